//! A step that fills its builder's cache volume: a small one of its own, in memory.

use std::panic::{AssertUnwindSafe, resume_unwind};
use std::process::Command;

use futures::FutureExt as _;
use k8s_openapi::api::core::v1::PersistentVolume;
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kiln_crds::SecurityProfile;
use kiln_crds::builder_pool::PoolCache;
use kiln_e2e::build::file;
use kiln_e2e::tenant::run_of;
use kiln_e2e::{Build, Tenant};
use kube::Api;
use kube::api::{DeleteParams, PostParams};
use serde_json::{Value, json};

use crate::hostile::report::Report;

kiln_e2e::tests![is_full_under_user_namespace, is_full_under_rootless];

async fn is_full_under_user_namespace() {
    fill("hostile-disk-userns", SecurityProfile::UserNamespace).await;
}

async fn is_full_under_rootless() {
    fill("hostile-disk-rootless", SecurityProfile::Rootless).await;
}

async fn fill(name: &str, profile: SecurityProfile) {
    Tenant::fresh(name, async |tenant| {
        // The nodes of the local cluster have this machine's files.
        assert_eq!(
            std::env::var("KILN_LOCAL_CLUSTER").as_deref(),
            Ok("1"),
            "this test makes a file system on its nodes"
        );
        let directory = format!("/var/tmp/kiln-e2e/{}", tenant.namespace);
        run(&["mkdir", "-p", &directory]);
        run(&["mount", "-t", "tmpfs", "-o", "size=256m,mode=755", "kiln-e2e", &directory]);
        let outcome = AssertUnwindSafe(fill_volume(tenant, &directory, profile)).catch_unwind().await;
        let _ = AssertUnwindSafe(tenant.lose_builders()).catch_unwind().await;
        run(&["umount", "--lazy", &directory]);
        run(&["rmdir", &directory]);
        let client = &tenant.cluster.client;
        let _ = Api::<PersistentVolume>::all(client.clone()).delete(&tenant.namespace, &DeleteParams::default()).await;
        let _ = Api::<StorageClass>::all(client.clone()).delete(&tenant.namespace, &DeleteParams::default()).await;
        if let Err(panic) = outcome {
            resume_unwind(panic);
        }
    })
    .await;
}

async fn fill_volume(tenant: &Tenant, directory: &str, profile: SecurityProfile) {
    let (name, client) = (&tenant.namespace, &tenant.cluster.client);
    let class: StorageClass = object(json!({
        "metadata": {"name": name},
        "provisioner": "kubernetes.io/no-provisioner",
        "volumeBindingMode": "WaitForFirstConsumer",
    }));
    Api::all(client.clone()).create(&PostParams::default(), &class).await.expect("a StorageClass can be made");
    let volume: PersistentVolume = object(json!({
        "metadata": {"name": name},
        "spec": {
            "capacity": {"storage": "256Mi"},
            "accessModes": ["ReadWriteOnce"],
            "persistentVolumeReclaimPolicy": "Retain",
            "storageClassName": name,
            "local": {"path": directory},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [
                {"matchExpressions": [{"key": "kubernetes.io/arch", "operator": "In", "values": ["amd64"]}]}]}},
        },
    }));
    Api::all(client.clone()).create(&PostParams::default(), &volume).await.expect("a PersistentVolume can be made");
    let cache = PoolCache {
        storage_class_name: Some(name.clone()),
        size: Some(Quantity("256Mi".to_owned())),
        ..PoolCache::default()
    };
    let pool = tenant
        .pool("disk", |spec| {
            spec.cache = Some(cache);
            spec.security_profile = Some(profile);
        })
        .await;
    let dockerfile = "FROM busybox\nRUN dd if=/dev/zero of=/fill bs=1M\n";
    let build = Build::inline(tenant, "app", &[("Dockerfile", dockerfile)])
        .amd64()
        .pool(&pool)
        .with(|spec| spec.retries = Some(0));
    tenant.create_build(&build).await;
    let failed = tenant.not_ready("app", "NoSpaceLeft").await;
    let former = run_of(&failed);
    let message = failed.status.and_then(|status| status.failure).map(|failure| failure.message).unwrap_or_default();
    tenant.edit("app", |build| "FROM busybox\nRUN true\n".clone_into(file(&mut build.spec, "Dockerfile"))).await;
    tenant.built_after("app", &former).await;

    let mut report = Report::new(profile);
    report.add(
        "a full disk",
        "NoSpaceLeft, which names the volume; the builder goes on",
        &format!("NoSpaceLeft: {message}; the builder goes on"),
        message.contains("cache volume is full"),
    );
    report.end();
}

fn run(command: &[&str]) {
    let status = Command::new(command[0]).args(&command[1..]).status().expect("the command can be started");
    assert!(status.success(), "{command:?}");
}

fn object<K: serde::de::DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).expect("the object is one")
}
