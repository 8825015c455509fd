//! A fork bomb: what the kubelet's limit of a pod's processes (podPidsLimit) makes of it.

use k8s_openapi::api::core::v1::Node;
use kiln_crds::{ImageBuild, SecurityProfile};
use kiln_e2e::registry::Registry;
use kiln_e2e::tenant::{condition, image_of, is_current, run_of};
use kiln_e2e::{Build, Tenant, wait};
use kube::Api;
use kube::api::ListParams;

use crate::hostile::look::{PROBE, TOOLS};
use crate::hostile::report::Report;

kiln_e2e::tests![are_bounded_under_user_namespace, are_bounded_under_rootless];

async fn are_bounded_under_user_namespace() {
    bomb("hostile-bomb-userns", SecurityProfile::UserNamespace).await;
}

async fn are_bounded_under_rootless() {
    bomb("hostile-bomb-rootless", SecurityProfile::Rootless).await;
}

async fn bomb(name: &str, profile: SecurityProfile) {
    Tenant::fresh(name, async |tenant| {
        let pool = tenant.pool("pool", |spec| spec.security_profile = Some(profile)).await;
        let dockerfile = format!(
            "FROM {TOOLS} AS bomb\nUSER 0\nCOPY probe.pl /\nARG AGAIN\nRUN mkdir /got && perl /probe.pl bomb > /got/bomb 2>&1\nFROM busybox\nCOPY --from=bomb /got /got\n"
        );
        let bomb = Build::inline(tenant, "app", &[("Dockerfile", &dockerfile), ("probe.pl", PROBE)]).amd64().pool(&pool);
        // Another build of the same namespace, at the same time: under UserNamespace on the same builder.
        let other = Build::inline(tenant, "other", &[("Dockerfile", "FROM busybox\nRUN sleep 3\n")]).amd64().pool(&pool);
        tenant.create_build(&bomb).await;
        let (built, _) = tokio::join!(bombed(tenant), tenant.build(&other));
        let image = image_of(&built);
        let image = Registry::new(&tenant.cluster).image_for(&image.repository, &image.digest, "linux/amd64").await;
        let got = image.text("got/bomb");

        // The same builders go on.
        let uids = |pods: Vec<k8s_openapi::api::core::v1::Pod>| pods.iter().filter_map(kube::ResourceExt::uid).collect::<Vec<_>>();
        let former = uids(tenant.builders().await);
        tenant.edit("app", |build| drop(build.spec.args.insert("AGAIN".to_owned(), "1".to_owned()))).await;
        tenant.built_after("app", &run_of(&built)).await;
        let same = former == uids(tenant.builders().await);
        let nodes: Api<Node> = Api::all(tenant.cluster.client.clone());
        let nodes = nodes.list(&ListParams::default()).await.unwrap();
        let unready: Vec<_> = nodes.iter().filter(|node| !is_ready(node)).map(kube::ResourceExt::name_any).collect();

        let mut report = Report::new(profile);
        let builder = if same { "the builder goes on" } else { "the builder was replaced" };
        let got = format!("{got}; {builder}, nodes not ready: {}", unready.len());
        report.add(
            "a fork bomb",
            "bounded by podPidsLimit; other builds, builder and node go on",
            &got,
            got == "bounded; the builder goes on, nodes not ready: 0",
        );
        report.end();
    })
    .await;
}

/// Waits until the bomb is built. kiln-build's threads count within the same limit: where it needs one more just then, it ends,
/// and the build that bombs with it.
async fn bombed(tenant: &Tenant) -> ImageBuild {
    let mut former = String::new();
    for again in 1.. {
        let ended = tenant.wait_build("app", "ended", wait::BUILD, |build| {
            let is = |type_| condition(build, type_).is_some_and(|condition| condition.status == "True");
            Ok(is_current(build) && run_of(build) != former && (is("Ready") || is("Stalled")))
        });
        let ended = ended.await;
        let ready = condition(&ended, "Ready").unwrap();
        if ready.status == "True" {
            return ended;
        }
        assert!(again < 4 && ready.message.contains("failed to create new OS thread"), "{}", ready.message);
        former = run_of(&ended);
        tenant.edit("app", |build| drop(build.spec.args.insert("AGAIN".to_owned(), format!("after {again}")))).await;
    }
    unreachable!("the loop has no end of its own")
}

fn is_ready(node: &Node) -> bool {
    let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}
