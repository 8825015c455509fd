//! A process that a step leaves behind, to wait for the next job and its credentials.

use kiln_crds::SecurityProfile;
use kiln_crds::image_build::BuildSecret;
use kiln_e2e::registry::Registry;
use kiln_e2e::tenant::image_of;
use kiln_e2e::{Build, Tenant};
use serde_json::json;

use crate::hostile::look::{PROBE, TOOLS};
use crate::hostile::report::Report;

kiln_e2e::tests![is_gone_under_user_namespace, is_gone_under_rootless];

const ATTEMPT: &str = "a process left behind that waits for the next job";

async fn is_gone_under_user_namespace() {
    leave("hostile-stay-userns", SecurityProfile::UserNamespace).await;
}

async fn is_gone_under_rootless() {
    leave("hostile-stay-rootless", SecurityProfile::Rootless).await;
}

async fn leave(name: &str, profile: SecurityProfile) {
    Tenant::fresh(name, async |tenant| {
        let value = format!("planted-next-{}", tenant.namespace);
        tenant.secret("next", "Opaque", &[("value", &value)]).await;
        let pool = tenant.pool("pool", |spec| spec.security_profile = Some(profile)).await;
        let dockerfile = format!(
            "FROM {TOOLS} AS stay\nUSER 0\nCOPY probe.pl /\nARG LOOK_FOR\nARG JOB\nRUN --mount=type=secret,id=next,env=NEXT --mount=type=secret,id=next mkdir /got && if [ $JOB = 1 ]; then perl /probe.pl stay 39999; else sleep 3; perl /probe.pl ask_stayed 39999 > /got/answer 2>&1; fi\nFROM busybox\nCOPY --from=stay /got /got\n"
        );
        let next: BuildSecret =
            serde_json::from_value(json!({"id": "next", "secretRef": {"name": "next", "key": "value"}})).unwrap();
        let build = Build::inline(tenant, "app", &[("Dockerfile", &dockerfile), ("probe.pl", PROBE)]).amd64().pool(&pool).with(|spec| {
            spec.args.insert("JOB".to_owned(), "1".to_owned());
            spec.args.insert("LOOK_FOR".to_owned(), format!("next={}", value.chars().rev().collect::<String>()));
        });
        let first = tenant.build(&build).await;
        tenant
            .edit("app", |build| {
                build.spec.args.insert("JOB".to_owned(), "2".to_owned());
                build.spec.secrets = vec![next.clone()];
            })
            .await;
        let image = image_of(&tenant.built_after("app", &kiln_e2e::tenant::run_of(&first)).await);
        let image = Registry::new(&tenant.cluster).image_for(&image.repository, &image.digest, "linux/amd64").await;
        let got = image.text("got/answer");
        let expected = match profile {
            // The builder ends what a step leaves behind, but shares its uid with it.
            SecurityProfile::Rootless => "gone after a second, unless it fights the builder",
            _ => "gone with its step",
        };
        let mut report = Report::new(profile);
        report.add(ATTEMPT, expected, &got, got == "gone");
        report.end();
    })
    .await;
}
