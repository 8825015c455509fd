//! While the operator is away, namespaces go all the same: none of their runs is kept but those whose jobs may run, and these are
//! let go of with one line.

use k8s_openapi::api::core::v1::Namespace;
use kiln_crds::image_build_run::PlatformPhase;
use kiln_e2e::{Build, Tenant, wait};
use kube::api::DeleteParams;
use kube::runtime::watcher;
use kube::{Api, ResourceExt as _};

use crate::recovery::host;
use crate::recovery::operator::Operator;
use crate::recovery::stage::platforms;

kiln_e2e::tests![alone a_namespace_goes_while_the_operator_is_away];

async fn a_namespace_goes_while_the_operator_is_away() {
    Tenant::fresh("unattended", async |tenant| {
        let nowhere = tenant
            .pool("nowhere", |spec| {
                let template = spec.template.get_or_insert_default();
                template.node_selector.insert("kiln.build/e2e".to_owned(), "nowhere".to_owned());
            })
            .await;
        let waits = Build::inline(tenant, "waits", &[("Dockerfile", "FROM busybox\n")]).amd64().pool(&nowhere);
        tenant.create_build(&waits).await;
        let works = [("Dockerfile", "FROM busybox\nRUN sleep 7405\n")];
        tenant.create_build(&Build::inline(tenant, "works", &works).amd64()).await;
        let waiting = tenant
            .wait_run("waits-1", "it waits for a node", wait::BUILD, |run| {
                let conditions = run.status.iter().flat_map(|status| &status.conditions);
                Ok(conditions.into_iter().any(|condition| condition.reason == "WaitingForNode"))
            })
            .await;
        assert!(waiting.finalizers().is_empty(), "nothing keeps it: {:?}", waiting.finalizers());
        let working = tenant
            .wait_run("works-1", "it builds", wait::BUILD, |run| {
                Ok(platforms(run).iter().any(|platform| platform.phase == PlatformPhase::Building))
            })
            .await;
        assert_eq!(working.finalizers(), ["kiln.build/cancel-jobs"]);

        let mut operator = Operator::of(tenant);
        operator.stop().await;
        let namespaces: Api<Namespace> = Api::all(tenant.cluster.client.clone());
        namespaces.delete(&tenant.namespace, &DeleteParams::default()).await.expect("a namespace can be deleted");
        tenant
            .wait(tenant.runs(), watcher::Config::default(), "only what builds is left", wait::BUILD, |runs| {
                Ok(runs.keys().map(String::as_str).eq(["works-1"]))
            })
            .await;
        // The line that docs/operate.md tells.
        let free = "kubectl -n \"$0\" get imagebuildruns -o name \
            | xargs kubectl -n \"$0\" patch --type=merge -p '{\"metadata\":{\"finalizers\":null}}'";
        host::run("sh", &["-c", free, &tenant.namespace]);
        tenant
            .wait(namespaces, wait::named(&tenant.namespace), "the namespace is gone", wait::BUILD, |left| {
                Ok(left.is_empty())
            })
            .await;

        // Nothing of it goes on once the operator is back.
        operator.start(1, None).await;
        tenant.wait_builders("none is left", wait::BUILD, std::collections::BTreeMap::is_empty).await;
        // For what follows every test.
        tenant.make().await;
    })
    .await;
}
