//! The chart's policy about statuses: nobody but Kiln makes runs and writes statuses, and everything else works as before.

use std::process::Command;
use std::time::{Duration, Instant};

use kiln_crds::image_build_run::RunPhase;
use kiln_crds::{BuilderPool, ImageBuild, ImageBuildRun};
use kiln_e2e::admission::AdmissionPolicy;
use kiln_e2e::cluster::operator_namespace;
use kiln_e2e::shell::kubectl;
use kiln_e2e::{Build, Tenant, wait};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, PropagationPolicy};
use kube::core::ObjectMeta;
use kube::{Api, ResourceExt as _};
use serde_json::{Value, json};

kiln_e2e::tests![nobody_but_kiln_writes_statuses];

/// The chart's policy, which binds this namespace alone.
fn policy_of(namespace: &str) -> AdmissionPolicy {
    let chart = concat!(env!("CARGO_MANIFEST_DIR"), "/../../charts/kiln");
    let output = Command::new("helm")
        .args(["template", "kiln", chart, "--namespace", &operator_namespace()])
        .args(["--show-only", "templates/policies.yaml", "--set", "policies.status=true"])
        .args(["--set", "policies.writers={system:serviceaccount:backup:restore}"])
        .output()
        .expect("helm is in PATH");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let documents: Vec<Value> = serde_yaml_ng::Deserializer::from_str(&text)
        .map(|document| serde::Deserialize::deserialize(document).unwrap())
        .collect();
    let Ok([mut policy, mut binding]) = <[Value; 2]>::try_from(documents) else { panic!("a policy and its binding") };
    policy["metadata"]["name"] = json!(namespace);
    binding["metadata"]["name"] = json!(namespace);
    binding["spec"]["policyName"] = json!(namespace);
    binding["spec"]["matchResources"] =
        json!({"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}}});
    AdmissionPolicy::apply(&policy, &binding)
}

async fn nobody_but_kiln_writes_statuses() {
    Tenant::fresh("policy", async |tenant| {
        let _policy = policy_of(&tenant.namespace);
        let build = |name: &str, step: &str| {
            Build::inline(tenant, name, &[("Dockerfile", &format!("FROM busybox\nRUN {step}\n"))]).amd64()
        };
        // Kiln itself makes runs and writes statuses.
        let built = tenant.build(&build("app", "true")).await;
        let run = tenant.run_of(&built).await;

        // Who may do everything else may not. The policy takes a moment until the API server goes by it.
        let forged = ImageBuildRun {
            metadata: ObjectMeta { name: Some("forged-1".to_owned()), ..ObjectMeta::default() },
            status: None,
            ..run.clone()
        };
        let dry = PostParams { dry_run: true, ..PostParams::default() };
        let begun = Instant::now();
        let refused = loop {
            assert!(begun.elapsed() < wait::SOON, "a run of somebody else's is refused");
            match tenant.runs().create(&dry, &forged).await {
                Err(kube::Error::Api(status)) if status.code == 403 => break status.message,
                _ => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        };
        assert!(refused.contains("only Kiln makes ImageBuildRuns"), "{refused}");
        let status = Patch::Merge(json!({"status": {"run": "forged-1"}}));
        let parameters = PatchParams { dry_run: true, ..PatchParams::default() };
        let attempt = Patch::Merge(json!({"status": {"conditions": []}}));
        for written in [
            tenant.builds().patch_status("app", &parameters, &status).await.map(drop),
            tenant.runs().patch_status("app-1", &parameters, &attempt).await.map(drop),
        ] {
            assert!(matches!(&written, Err(kube::Error::Api(status)) if status.code == 403), "{written:?}");
        }
        let pools: Api<BuilderPool> = Api::all(tenant.cluster.client.clone());
        let pool = pools.list(&ListParams::default()).await.unwrap().items.remove(0).name_any();
        let written = pools.patch_status(&pool, &parameters, &Patch::Merge(json!({"status": {"jobCount": 7}}))).await;
        assert!(matches!(&written, Err(kube::Error::Api(status)) if status.code == 403), "{written:?}");
        // Those whom the value lists may.
        let restore = ["--as=system:serviceaccount:backup:restore", "--as-group=system:masters", "--dry-run=server"];
        let status = [
            "patch",
            "imagebuilds",
            "app",
            "--subresource=status",
            "--type=merge",
            "-p",
            "{\"status\":{\"run\":\"app-1\"}}",
        ];
        kubectl(tenant, &[&status[..], &restore].concat());

        // What people do with runs goes on: cancelling, labels, deleting.
        tenant.create_build(&build("long", "sleep 600")).await;
        tenant.wait_run("long-1", "it builds", wait::BUILD, |run| Ok(phase(run) == Some(RunPhase::Building))).await;
        let cancel = Patch::Merge(json!({"metadata": {"labels": {"x": "y"}}, "spec": {"cancel": true}}));
        tenant.runs().patch("long-1", &PatchParams::default(), &cancel).await.expect("a run can be cancelled");
        tenant
            .wait_run("long-1", "it is cancelled", wait::BUILD, |run| Ok(phase(run) == Some(RunPhase::Cancelled)))
            .await;
        tenant.runs().delete("long-1", &DeleteParams::default()).await.expect("a run can be deleted");
        for (name, propagation) in [("app", PropagationPolicy::Foreground), ("long", PropagationPolicy::Background)] {
            let how = DeleteParams { propagation_policy: Some(propagation), ..DeleteParams::default() };
            tenant.builds().delete(name, &how).await.expect("an ImageBuild can be deleted");
        }
        gone::<ImageBuild>(tenant, tenant.builds()).await;
        gone::<ImageBuildRun>(tenant, tenant.runs()).await;
        // The namespace itself is deleted behind this, with another build in it.
        tenant.build(&build("last", "true")).await;
        let namespaces: Api<k8s_openapi::api::core::v1::Namespace> = Api::all(tenant.cluster.client.clone());
        namespaces.delete(&tenant.namespace, &DeleteParams::default()).await.expect("the namespace can be deleted");
        let itself = wait::named(&tenant.namespace);
        tenant.wait(namespaces, itself, "the namespace is gone", wait::BUILD, |left| Ok(left.is_empty())).await;
        // For what follows every test.
        tenant.make().await;
    })
    .await;
}

fn phase(run: &ImageBuildRun) -> Option<RunPhase> {
    run.status.as_ref().map(|status| status.phase)
}

async fn gone<K>(tenant: &Tenant, api: Api<K>)
where
    K: Clone + std::fmt::Debug + serde::de::DeserializeOwned + serde::Serialize + Send + 'static,
    K: kube::Resource<DynamicType = ()>,
{
    let all = kube::runtime::watcher::Config::default();
    tenant.wait(api, all, "all are gone", wait::SOON, |left| Ok(left.is_empty())).await;
}
