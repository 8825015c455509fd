//! BuilderPools of a test: the installed default pool, changed, for one tenant.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kiln_crds::{BuilderPool, BuilderPoolSpec};
use kube::api::{ListParams, PostParams};
use kube::{Api, ResourceExt as _};

use crate::Tenant;

impl Tenant {
    /// Makes a pool for this tenant alone; its name. It reaches registries as the default pool does.
    pub async fn pool(&self, name: &str, change: impl FnOnce(&mut BuilderPoolSpec)) -> String {
        let pools: Api<BuilderPool> = Api::all(self.cluster.client.clone());
        let list = pools.list(&ListParams::default()).await.expect("BuilderPools can be listed; is Kiln installed?");
        let default = list
            .items
            .into_iter()
            .find(|pool| pool.spec.default)
            .expect("Kiln is installed with a default BuilderPool");
        let mut spec = BuilderPoolSpec {
            default: false,
            namespace_selector: Some(LabelSelector {
                match_labels: Some(BTreeMap::from([(
                    "kubernetes.io/metadata.name".to_owned(),
                    self.namespace.clone(),
                )])),
                ..LabelSelector::default()
            }),
            ..default.spec
        };
        change(&mut spec);
        let name = format!("{}-{name}", self.id);
        let pool = pools
            .create(&PostParams::default(), &BuilderPool::new(&name, spec))
            .await
            .unwrap_or_else(|error| panic!("BuilderPool {name}: {error}"));
        self.pools.lock().expect("no test panics while it holds this").push(name);
        pool.name_any()
    }
}
