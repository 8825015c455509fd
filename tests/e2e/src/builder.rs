//! The builder pods of a tenant, and their nodes and volumes.

use std::path::PathBuf;

use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod};
use kube::api::{AttachParams, DeleteParams, ListParams};
use kube::runtime::watcher;
use kube::{Api, ResourceExt as _};
use tokio::io::AsyncReadExt as _;

use crate::Tenant;
use crate::cluster::builders_namespace;
use crate::wait::{self, Objects};

/// The label of builder pods and volumes that names the tenant's namespace.
pub const OF_TENANT: &str = "kiln.build/namespace";
/// The label that names the builder's architecture.
pub const ARCHITECTURE: &str = "kiln.build/architecture";

impl Tenant {
    /// The builders namespace's pods.
    #[must_use]
    pub fn builder_pods(&self) -> Api<Pod> {
        Api::namespaced(self.cluster.client.clone(), &builders_namespace())
    }

    /// This tenant's builder pods.
    pub async fn builders(&self) -> Vec<Pod> {
        self.builder_pods().list(&self.list()).await.expect("builder pods can be listed").items
    }

    /// This tenant's cache volumes.
    pub async fn volumes(&self) -> Vec<PersistentVolumeClaim> {
        let volumes: Api<PersistentVolumeClaim> = Api::namespaced(self.cluster.client.clone(), &builders_namespace());
        volumes.list(&self.list()).await.expect("cache volumes can be listed").items
    }

    /// The directory of a cache volume, on a cluster that is this machine.
    pub async fn directory_of(&self, volume: &PersistentVolumeClaim) -> PathBuf {
        let name = volume.spec.as_ref().and_then(|spec| spec.volume_name.as_ref()).expect("the claim is bound");
        let volumes: Api<PersistentVolume> = Api::all(self.cluster.client.clone());
        let spec = volumes.get(name).await.expect("its volume is there").spec.unwrap_or_default();
        let path = spec.local.map(|local| local.path).or(spec.host_path.map(|host| host.path));
        path.expect("a volume of this machine").into()
    }

    /// Waits until this tenant's builder pods are as told.
    pub async fn wait_builders(
        &self,
        what: &str,
        limit: std::time::Duration,
        mut holds: impl FnMut(&Objects<Pod>) -> bool,
    ) -> Objects<Pod> {
        let select = watcher::Config::default().labels(&format!("{OF_TENANT}={}", self.namespace));
        self.wait(self.builder_pods(), select, &format!("builders: {what}"), limit, |pods| Ok(holds(pods))).await
    }

    /// Deletes this tenant's builder pods as a drain of their nodes does, and waits until they are gone.
    pub async fn delete_builders(&self) {
        self.delete_builders_with(&DeleteParams::default()).await;
    }

    /// Takes this tenant's builder pods away at once, as the loss of their nodes does.
    pub async fn lose_builders(&self) {
        self.delete_builders_with(&DeleteParams::default().grace_period(0)).await;
    }

    /// Deletes this tenant's builder pods and their cache volumes: the next build begins as on a new node.
    pub async fn forget_builders(&self) {
        let volumes: Api<PersistentVolumeClaim> = Api::namespaced(self.cluster.client.clone(), &builders_namespace());
        let deleted = volumes.delete_collection(&DeleteParams::default(), &self.list()).await;
        deleted.expect("cache volumes can be deleted");
        self.delete_builders().await;
    }

    async fn delete_builders_with(&self, parameters: &DeleteParams) {
        let former: Vec<_> = self.builders().await.iter().filter_map(kube::ResourceExt::uid).collect();
        self.builder_pods().delete_collection(parameters, &self.list()).await.expect("builder pods can be deleted");
        self.wait_builders("the former ones are gone", wait::SOON, |pods| {
            !pods.values().any(|pod| pod.uid().is_some_and(|uid| former.contains(&uid)))
        })
        .await;
    }

    fn list(&self) -> ListParams {
        ListParams::default().labels(&format!("{OF_TENANT}={}", self.namespace))
    }

    /// The architecture of a node, from its label.
    pub async fn architecture_of(&self, node: &str) -> String {
        let nodes: Api<Node> = Api::all(self.cluster.client.clone());
        let node = nodes.get(node).await.unwrap_or_else(|error| panic!("node {node}: {error}"));
        node.labels().get("kubernetes.io/arch").cloned().expect("each node has the label kubernetes.io/arch")
    }

    /// Whether a container of a builder has a file of this path. The agent's has no shell: `git` looks.
    pub async fn has_file(&self, pod: &str, container: &str, path: &str) -> bool {
        let parameters = AttachParams::default().container(container).stderr(false);
        let mut attached = self
            .builder_pods()
            .exec(pod, ["git", "hash-object", path], &parameters)
            .await
            .unwrap_or_else(|error| panic!("exec in {pod}: {error}"));
        let mut bytes = Vec::new();
        attached.stdout().expect("stdout is attached").read_to_end(&mut bytes).await.expect("it can be read");
        attached.join().await.expect("exec ends");
        !bytes.is_empty()
    }

    /// Runs a command in a builder's agent's container; what it printed.
    pub async fn in_agent(&self, pod: &str, command: &str) -> String {
        let parameters = AttachParams::default().container("agent").stderr(false);
        let attached = self.builder_pods().exec(pod, ["sh", "-c", command], &parameters).await;
        let mut attached = attached.unwrap_or_else(|error| panic!("exec in {pod}: {error}"));
        let mut text = String::new();
        attached.stdout().expect("stdout is attached").read_to_string(&mut text).await.expect("it can be read");
        attached.join().await.expect("exec ends");
        text
    }

    /// The command lines of all processes that a builder's buildkitd container sees, arguments parted by spaces.
    pub async fn processes(&self, pod: &str) -> String {
        let show = "for file in /proc/[0-9]*/cmdline; do tr '\\0' ' ' < $file; echo; done 2>/dev/null";
        let parameters = AttachParams::default().container("buildkitd").stderr(false);
        let mut attached = self
            .builder_pods()
            .exec(pod, ["sh", "-c", show], &parameters)
            .await
            .unwrap_or_else(|error| panic!("exec in {pod}: {error}"));
        let mut bytes = Vec::new();
        attached
            .stdout()
            .expect("stdout is attached")
            .read_to_end(&mut bytes)
            .await
            .expect("the output of exec can be read");
        attached.join().await.expect("exec ends");
        String::from_utf8_lossy(&bytes).into_owned()
    }
}
