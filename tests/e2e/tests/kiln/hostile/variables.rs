//! A few lines that name any amount of text: each variable is twice the one before. BuildKit writes it all.

use kiln_crds::SecurityProfile;
use kiln_e2e::tenant::image_of;
use kiln_e2e::{Build, Tenant};
use serde_json::json;

use crate::hostile::report::Report;

kiln_e2e::tests![are_bounded_by_the_pods_memory];

/// Of buildkitd: enough for an honest build of busybox.
const MEMORY: &str = "256Mi";

async fn are_bounded_by_the_pods_memory() {
    Tenant::fresh("hostile-variables", async |tenant| {
        let resources = json!({"limits": {"memory": MEMORY}, "requests": {"memory": "128Mi"}});
        let pool = tenant
            .pool("pool", |spec| {
                spec.security_profile = Some(SecurityProfile::UserNamespace);
                let template = spec.template.get_or_insert_default();
                template.resources = Some(serde_json::from_value(resources).unwrap());
            })
            .await;
        let honest = "FROM busybox\nRUN head -c 16 /dev/urandom > /random\n";
        let honest = Build::inline(tenant, "honest", &[("Dockerfile", honest)]).amd64().pool(&pool);
        let before = image_of(&tenant.build(&honest).await).digest;

        let doubled = (1..34).fold("FROM busybox\nARG A0=xxxxxxxxxxxxxxxx\n".to_owned(), |text, number| {
            let former = number - 1;
            text + &format!("ARG A{number}=$A{former}$A{former}\n")
        });
        let hostile = Build::inline(tenant, "hostile", &[("Dockerfile", &doubled)]).amd64().pool(&pool);
        tenant.create_build(&hostile.with(|spec| spec.retries = Some(2))).await;
        tenant.not_ready("hostile", "OutOfMemory").await;

        // The builder goes on with the next, and has what it had.
        let after = image_of(&tenant.rebuild("honest", "from the cache").await).digest;
        let mut report = Report::new(SecurityProfile::UserNamespace);
        report.add(
            "34 variables, each twice the one before",
            "buildkitd is killed at the limit of its memory, the build fails, the cache is kept",
            if before == after { "OutOfMemory, the cache was kept" } else { "the cache was lost" },
            before == after,
        );
        report.end();
    })
    .await;
}
