//! A cache volume as most provisioners make it: its root belongs to root:root and has the mode 0755.

use std::panic::{AssertUnwindSafe, resume_unwind};

use futures::FutureExt as _;
use k8s_openapi::api::core::v1::{Node, PersistentVolume};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kiln_crds::SecurityProfile;
use kiln_crds::builder_pool::PoolCache;
use kiln_e2e::registry::Registry;
use kiln_e2e::tenant::{REGISTRY_SECRET, image_of};
use kiln_e2e::{Build, Tenant};
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::{Api, ResourceExt as _};
use serde_json::{Value, json};

kiln_e2e::tests![owned_by_root_under_user_namespace, owned_by_root_under_rootless];

/// Where the directories of such volumes are on the node.
const ROOT: &str = "/var/tmp/kiln-e2e";

async fn owned_by_root_under_user_namespace() {
    builds("volume-userns", SecurityProfile::UserNamespace).await;
}

async fn owned_by_root_under_rootless() {
    builds("volume-rootless", SecurityProfile::Rootless).await;
}

async fn builds(name: &str, profile: SecurityProfile) {
    // A pod of the test makes the directory on its node, which is not for a restricted namespace.
    Tenant::fresh_at(name, "privileged", async |tenant| {
        let outcome = AssertUnwindSafe(build_on_volume(tenant, profile)).catch_unwind().await;
        let pods = tenant.delete_builders();
        let _ = AssertUnwindSafe(pods).catch_unwind().await;
        on_node(tenant, &format!("rm -rf /node/{}; rmdir /node 2>/dev/null; true", tenant.namespace)).await;
        let client = &tenant.cluster.client;
        let _ = Api::<PersistentVolume>::all(client.clone()).delete(&tenant.namespace, &DeleteParams::default()).await;
        let _ = Api::<StorageClass>::all(client.clone()).delete(&tenant.namespace, &DeleteParams::default()).await;
        if let Err(panic) = outcome {
            resume_unwind(panic);
        }
    })
    .await;
}

async fn build_on_volume(tenant: &Tenant, profile: SecurityProfile) {
    let name = &tenant.namespace;
    let client = &tenant.cluster.client;
    let made = on_node(tenant, &format!("mkdir -m 755 /node/{name} && stat -c '%u:%g %a' /node/{name}")).await;
    assert_eq!(made, "0:0 755");

    let class: StorageClass = object(json!({
        "metadata": {"name": name},
        "provisioner": "kubernetes.io/no-provisioner",
        "volumeBindingMode": "WaitForFirstConsumer",
    }));
    Api::all(client.clone()).create(&PostParams::default(), &class).await.expect("a StorageClass can be made");
    let node = node(tenant).await;
    let volume: PersistentVolume = object(json!({
        "metadata": {"name": name},
        "spec": {
            "capacity": {"storage": "1Gi"},
            "accessModes": ["ReadWriteOnce"],
            "persistentVolumeReclaimPolicy": "Retain",
            "storageClassName": name,
            "local": {"path": format!("{ROOT}/{name}")},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [
                {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]}]}},
        },
    }));
    Api::all(client.clone()).create(&PostParams::default(), &volume).await.expect("a PersistentVolume can be made");

    let cache = PoolCache {
        storage_class_name: Some(name.clone()),
        size: Some(Quantity("1Gi".to_owned())),
        ..PoolCache::default()
    };
    let pool = tenant
        .pool("root", |spec| {
            spec.cache = Some(cache);
            spec.security_profile = Some(profile);
        })
        .await;
    let files = [
        ("Dockerfile", "FROM busybox\nRUN mkdir -p /made/deep && echo content > /made/deep/file\nCOPY file /copied/\n"),
        ("file", "copied"),
    ];
    let built = tenant.build(&Build::inline(tenant, "app", &files).amd64().pool(&pool)).await;
    assert_eq!(
        tenant.volumes().await[0].spec.as_ref().unwrap().volume_name.as_ref(),
        Some(name),
        "it was built on that volume"
    );

    let image = image_of(&built);
    let one = Registry::new(&tenant.cluster).image_for(&image.repository, &image.digest, "linux/amd64").await;
    assert_eq!(one.text("made/deep/file"), "content");
    for entry in one.built() {
        assert_eq!(
            (entry.uid, entry.gid, entry.mode & 0o6000),
            (0, 0, 0),
            "{} is root's, without setuid and setgid: {:o}",
            entry.path,
            entry.mode
        );
    }
    for (path, mode) in
        [("made", 0o755), ("made/deep", 0o755), ("made/deep/file", 0o644), ("copied", 0o755), ("copied/file", 0o644)]
    {
        assert_eq!(one.entry(path).map(|entry| entry.mode), Some(mode), "{path}");
    }
}

/// A node of linux/amd64.
async fn node(tenant: &Tenant) -> String {
    let nodes: Api<Node> = Api::all(tenant.cluster.client.clone());
    let list =
        nodes.list(&ListParams::default().labels("kubernetes.io/arch=amd64")).await.expect("nodes can be listed");
    let node = list.items.first().expect("there is a node of amd64");
    node.labels().get("kubernetes.io/hostname").cloned().unwrap_or_else(|| node.name_any())
}

/// Runs a command as root in a pod that has the node's directory [`ROOT`] at /node; what it printed.
async fn on_node(tenant: &Tenant, command: &str) -> String {
    tenant
        .run_pod(json!({
            "metadata": {"generateName": "on-node-"},
            "spec": {
                "restartPolicy": "Never",
                "automountServiceAccountToken": false,
                "nodeSelector": {"kubernetes.io/hostname": node(tenant).await},
                "imagePullSecrets": [{"name": REGISTRY_SECRET}],
                "terminationGracePeriodSeconds": 0,
                "volumes": [{"name": "node", "hostPath": {"path": ROOT, "type": "DirectoryOrCreate"}}],
                "containers": [{
                    "name": "command",
                    "image": format!("{}/docker.io/library/busybox", tenant.cluster.registry),
                    "command": ["sh", "-c", command],
                    "volumeMounts": [{"name": "node", "mountPath": "/node"}],
                }],
            },
        }))
        .await
}

fn object<K: serde::de::DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).expect("the object is one")
}
