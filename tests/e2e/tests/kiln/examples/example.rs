//! One folder of `examples/`, on the local cluster: hosts are rewritten, and what a user has at them is made.

use std::path::PathBuf;

use k8s_openapi::api::core::v1::{ConfigMap, Secret, ServiceAccount};
use kiln_crds::{BuilderPoolSpec, ImageBuild};
use kiln_e2e::registries::Login;
use kiln_e2e::registry::{Image, Registry};
use kiln_e2e::tenant::{CA, image_of, run_of};
use kiln_e2e::{Repository, Tenant};
use kube::Resource;
use kube::api::{Patch, PatchParams};
use kube::core::NamespaceResourceScope;
use serde::Deserialize as _;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// Where the examples are.
pub const EXAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples");

/// An example in a tenant's namespace.
pub struct Example<'a> {
    /// Whose namespace it is.
    pub tenant: &'a Tenant,
    /// The registry that stands for ghcr.io.
    pub registry: Registry,
    /// Its pools, each with the name that it has in its file and here.
    pools: Vec<(String, String)>,
    /// Its files, one after the other.
    text: String,
}

impl<'a> Example<'a> {
    /// Reads a folder, and those in it. Credentials for its registries are in the namespace, under the names that all
    /// examples use.
    pub async fn read(tenant: &'a Tenant, folder: &str) -> Self {
        let mut folders = vec![PathBuf::from(format!("{EXAMPLES}/{folder}"))];
        let mut files = Vec::new();
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else if path.extension().is_some_and(|extension| extension == "yaml") {
                    files.push(path);
                }
            }
        }
        files.sort();
        assert!(!files.is_empty(), "examples/{folder} holds YAML");
        let texts: Vec<_> = files.iter().map(|path| std::fs::read_to_string(path).unwrap()).collect();
        let cluster = &tenant.cluster;
        let mut example =
            Self { tenant, registry: Registry::new(cluster), pools: Vec::new(), text: texts.join("\n---\n") };
        let here = format!("{}/e2e/{}", cluster.registry, tenant.id);
        example.replace("ghcr.io/you", &here);
        let other = Login::referrers();
        example.replace("quay.io/you", &format!("{}/e2e/{}", other.host, tenant.id));
        tenant.login_secret("registry-login", &[&Login::first()]).await;
        tenant.login_secret("quay-login", &[&other]).await;
        example
    }

    /// Writes something else wherever this text stands.
    ///
    /// # Panics
    /// Where a part of the example that a test relies on is gone.
    pub fn set(&mut self, from: &str, to: &str) {
        assert!(self.text.contains(from), "the example holds {from:?}");
        self.replace(from, to);
    }

    fn replace(&mut self, from: &str, to: &str) {
        self.text = self.text.replace(from, to);
    }

    /// Makes the repository that stands for `https://github.com/you/NAME`.
    pub fn git(&mut self, name: &str) -> Repository {
        let repository = Repository::public(self.tenant, name);
        let here = format!("https://github.com/you/{name}");
        self.set(&here, &repository.url);
        // The URL ends in .git already.
        self.replace(".git.git", ".git");
        repository
    }

    /// The repository in the registry that stands for `ghcr.io/you/NAME`.
    pub fn repository(&self, name: &str) -> String {
        format!("{}/e2e/{}/{name}", self.registry.host, self.tenant.id)
    }

    /// Applies all objects of the example.
    pub async fn apply(&mut self) {
        self.apply_where(|_| true).await;
    }

    /// Applies the ImageBuild of this name, and what the example has beside its ImageBuilds.
    pub async fn apply_one(&mut self, name: &str) {
        self.apply_where(|object| object["kind"] != "ImageBuild" || object["metadata"]["name"] == name).await;
    }

    /// Applies its ImageBuilds alone.
    pub async fn apply_builds(&mut self) {
        self.apply_where(|object| object["kind"] == "ImageBuild").await;
    }

    /// The object of this kind, of which the example has one.
    pub fn object(&self, kind: &str) -> Value {
        self.objects().into_iter().find(|object| object["kind"] == kind).expect("the example has one of this kind")
    }

    /// The objects, with the CA of the local cluster where their users' certificates need none.
    fn objects(&self) -> Vec<Value> {
        let mut objects: Vec<Value> = serde_yaml_ng::Deserializer::from_str(&self.text)
            .map(|document| Value::deserialize(document).unwrap())
            .filter(|object| !object.is_null())
            .collect();
        for object in &mut objects {
            trust(&self.tenant.cluster.registry, &self.tenant.cluster.git, object);
        }
        objects
    }

    async fn apply_where(&mut self, wanted: impl Fn(&Value) -> bool) {
        // Pools first, for ImageBuilds name them.
        let (of_pools, others): (Vec<_>, Vec<_>) =
            self.objects().into_iter().filter(wanted).partition(|object| object["kind"] == "BuilderPool");
        for object in of_pools {
            let name = object["metadata"]["name"].as_str().unwrap();
            if self.pools.iter().all(|(there, _)| there != name) {
                let here = self.tenant.pool(name, |spec| overlay(spec, &object["spec"])).await;
                self.pools.push((name.to_owned(), here));
            }
        }
        for mut object in others {
            if let Some(pool) = object["spec"]["pool"].as_str() {
                let (_, here) = self.pools.iter().find(|(name, _)| name == pool).expect("the example has its pool");
                object["spec"]["pool"] = json!(here);
            }
            match object["kind"].as_str().unwrap() {
                "ImageBuild" => self.apply_object::<ImageBuild>(&object).await,
                "Secret" => self.apply_object::<Secret>(&object).await,
                "ConfigMap" => self.apply_object::<ConfigMap>(&object).await,
                "ServiceAccount" => self.apply_object::<ServiceAccount>(&object).await,
                other => panic!("these tests apply no {other}"),
            }
        }
    }

    async fn apply_object<K>(&self, object: &Value)
    where
        K: Clone + DeserializeOwned + std::fmt::Debug + Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        let name = object["metadata"]["name"].as_str().unwrap();
        let parameters = PatchParams::apply("kiln-e2e").force();
        let answer = self.tenant.api::<K>().patch(name, &parameters, &Patch::Apply(object)).await;
        answer.unwrap_or_else(|error| panic!("{} {name}: {error}\n{object:#}", K::kind(&())));
    }

    /// Waits for an ImageBuild's image, and reads that of linux/amd64.
    pub async fn image(&self, name: &str) -> Image {
        self.image_for(name, "linux/amd64").await
    }

    /// Waits for an ImageBuild's image, and reads that of a platform.
    pub async fn image_for(&self, name: &str, platform: &str) -> Image {
        let image = image_of(&self.tenant.built(name).await);
        self.registry.image_for(&image.repository, &image.digest, platform).await
    }

    /// Changes an ImageBuild, and waits for the image of another run than `former`'s.
    pub async fn edited(&self, former: &ImageBuild, change: impl FnMut(&mut ImageBuild)) -> ImageBuild {
        let name = former.metadata.name.as_deref().unwrap();
        self.tenant.edit(name, change).await;
        self.tenant.built_after(name, &run_of(former)).await
    }
}

/// Gives every place that names a host of the local cluster the CA of its certificate, unless it has one.
fn trust(registry: &str, git: &str, value: &mut Value) {
    match value {
        Value::Object(fields) => {
            let host = fields.get("repository").or_else(|| fields.get("url")).and_then(Value::as_str);
            if host.is_some_and(|host| {
                host.starts_with(registry) || host.starts_with(&Login::referrers().host) || host.starts_with(git)
            }) {
                fields.entry("caRef").or_insert_with(|| json!({"name": CA}));
            }
            fields.values_mut().for_each(|value| trust(registry, git, value));
        }
        Value::Array(values) => values.iter_mut().for_each(|value| trust(registry, git, value)),
        _ => {}
    }
}

/// Puts what an example's pool says over the settings of the installed one, as a user who copies it does.
fn overlay(spec: &mut BuilderPoolSpec, example: &Value) {
    let mut merged = serde_json::to_value(&*spec).unwrap();
    for (field, value) in example.as_object().unwrap() {
        match field.as_str() {
            // The tenant's own.
            "namespaceSelector" => {}
            "registries" => {
                let added = value.as_array().unwrap();
                let list = merged["registries"].as_array_mut().unwrap();
                list.retain(|there| added.iter().all(|one| one["host"] != there["host"]));
                list.extend(added.iter().cloned());
            }
            _ => merged[field] = value.clone(),
        }
    }
    *spec = serde_json::from_value(merged).unwrap();
}
