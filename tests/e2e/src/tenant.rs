//! A namespace for each test, as a user has one: Pod Security `restricted`, a Secret for the registry, its CA.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, resume_unwind};
use std::sync::Mutex;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures::FutureExt as _;
use k8s_openapi::ByteString;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod, Secret, Service, ServiceAccount};
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta};
use kiln_crds::image_build::BuiltImage;
use kiln_crds::{BuilderPool, ImageBuild, ImageBuildRun, REBUILD_ANNOTATION};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::core::NamespaceResourceScope;
use kube::{Api, Resource, ResourceExt as _};
use serde_json::json;

use crate::cluster::builders_namespace;
use crate::wait::{self, Objects, Verdict};
use crate::{Build, Cluster, diagnosis, suite};

/// The label of every namespace that a test makes.
pub const LABEL: &str = "kiln.build/e2e";
/// The Secret with the registry's credential, of type `kubernetes.io/dockerconfigjson`.
pub const REGISTRY_SECRET: &str = "registry";
/// The Secret with the Git server's credential.
pub const GIT_SECRET: &str = "git";
/// The label of each Secret that a test wrote, and no other.
pub const PLANTED: &str = "e2e.kiln.build/planted";
/// The `ConfigMap` with the CA of the registry and the Git server.
pub const CA: &str = "private-ca";

/// A test's namespace and what is in it.
pub struct Tenant {
    /// The cluster that it is in.
    pub cluster: Cluster,
    /// The namespace's name.
    pub namespace: String,
    /// What no other test has: names of repositories and pools begin with it. A fresh namespace's name is that too.
    pub id: String,
    /// The level of Pod Security.
    level: String,
    /// BuilderPools to be removed with it.
    pub(crate) pools: Mutex<Vec<String>>,
}

/// Namespaces whose tests have ended, each with its warm builders and nothing else.
static WARM: Mutex<Vec<String>> = Mutex::new(Vec::new());

impl Tenant {
    /// Runs a test in a namespace that it has for itself, where an earlier test may have left warm builders: to start them
    /// is what costs most. Objects that the test leaves are removed at its end.
    ///
    /// With `KILN_E2E_KEEP` set, the namespace of a failed test stays.
    pub async fn run(name: &str, test: impl AsyncFnOnce(&Self)) {
        let cluster = Cluster::new().await;
        let warm = WARM.lock().expect("no test panics while it holds this").pop();
        let is_warm = warm.is_some();
        let namespace = warm.unwrap_or_else(|| format!("e2e-warm-{}", unique()));
        let tenant = Self::new(cluster, namespace, format!("e2e-{name}-{}", unique()), "restricted");
        if !is_warm {
            tenant.make_namespace().await;
        }
        tenant.fill().await;
        if tenant.end(AssertUnwindSafe(test(&tenant)).catch_unwind().await).await {
            tenant.empty().await;
            WARM.lock().expect("no test panics while it holds this").push(tenant.namespace);
        }
    }

    /// Runs a test in a fresh namespace without builders, and removes that namespace at the end, also after a panic.
    ///
    /// With `KILN_E2E_KEEP` set, the namespace of a failed test stays.
    pub async fn fresh(name: &str, test: impl AsyncFnOnce(&Self)) {
        Self::fresh_at(name, "restricted", test).await;
    }

    /// The same, with another level of Pod Security.
    pub async fn fresh_at(name: &str, level: &str, test: impl AsyncFnOnce(&Self)) {
        let namespace = format!("e2e-{name}-{}", unique());
        let tenant = Self::new(Cluster::new().await, namespace.clone(), namespace, level);
        tenant.make().await;
        if tenant.end(AssertUnwindSafe(test(&tenant)).catch_unwind().await).await {
            tenant.remove().await;
        }
    }

    fn new(cluster: Cluster, namespace: String, id: String, level: &str) -> Self {
        suite::has_namespace(&namespace);
        Self { cluster, namespace, id, level: level.to_owned(), pools: Mutex::default() }
    }

    /// What follows a test: whether it succeeded. Where it panicked, the namespace is removed, and the panic goes on.
    async fn end(&self, outcome: std::thread::Result<()>) -> bool {
        let Err(panic) = outcome else { return true };
        if std::env::var_os("KILN_E2E_KEEP").is_some() {
            eprintln!("KILN_E2E_KEEP is set: the namespace {} stays", self.namespace);
        } else {
            self.remove().await;
        }
        resume_unwind(panic)
    }

    /// Removes the namespaces with warm builders: no test follows.
    pub async fn remove_warm() {
        let namespaces = std::mem::take(&mut *WARM.lock().expect("no test panics while it holds this"));
        for namespace in namespaces {
            Self::new(Cluster::new().await, namespace.clone(), namespace, "restricted").remove().await;
        }
    }

    /// Makes the namespace and what every tenant has in it.
    pub async fn make(&self) {
        self.make_namespace().await;
        self.fill().await;
    }

    async fn make_namespace(&self) {
        let namespace = Namespace {
            metadata: ObjectMeta {
                name: Some(self.namespace.clone()),
                labels: Some(
                    [(LABEL, "true"), ("pod-security.kubernetes.io/enforce", &self.level)]
                        .map(|(key, value)| (key.to_owned(), value.to_owned()))
                        .into(),
                ),
                ..ObjectMeta::default()
            },
            ..Namespace::default()
        };
        let namespaces: Api<Namespace> = Api::all(self.cluster.client.clone());
        namespaces.create(&PostParams::default(), &namespace).await.expect("a namespace can be made");
    }

    /// Makes what every tenant has, as it is at first.
    async fn fill(&self) {
        let Cluster { registry_user, registry_password, git_user, git_password, .. } = &self.cluster;
        self.registry_secret(registry_user, registry_password).await;
        self.secret(GIT_SECRET, "Opaque", &[("username", git_user), ("password", git_password)]).await;
        // Registry and Git server may have a CA each.
        let bundle = format!("{}\n{}", self.cluster.registry_ca, self.cluster.git_ca);
        self.ca(CA, &bundle).await;
    }

    /// Makes a `ConfigMap` with a CA bundle, in PEM.
    pub async fn ca(&self, name: &str, bundle: &str) {
        let ca = ConfigMap {
            metadata: ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() },
            data: Some(BTreeMap::from([("ca.crt".to_owned(), bundle.to_owned())])),
            ..ConfigMap::default()
        };
        let parameters = PatchParams::apply("kiln-e2e").force();
        self.api::<ConfigMap>().patch(name, &parameters, &Patch::Apply(&ca)).await.expect("a ConfigMap can be applied");
    }

    /// Removes what a test has made, and waits for what could be taken for the next one's.
    async fn empty(&self) {
        self.remove_pools().await;
        self.remove_all::<ImageBuild>("").await;
        self.remove_all::<Deployment>("").await;
        self.remove_all::<Pod>("").await;
        self.remove_all::<Service>("").await;
        self.remove_all::<Secret>(&format!("metadata.name!={REGISTRY_SECRET},metadata.name!={GIT_SECRET}")).await;
        self.remove_all::<ConfigMap>(&format!("metadata.name!={CA},metadata.name!=kube-root-ca.crt")).await;
        self.apply_account(&json!([])).await;
        let all = kube::runtime::watcher::Config::default;
        self.wait(self.builds(), all(), "the ImageBuilds are gone", wait::BUILD, |left| Ok(left.is_empty())).await;
        self.wait(self.runs(), all(), "the ImageBuildRuns are gone", wait::BUILD, |left| Ok(left.is_empty())).await;
        self.remove_all::<Event>("").await;
    }

    async fn remove_all<K>(&self, fields: &str)
    where
        K: Clone + std::fmt::Debug + serde::de::DeserializeOwned,
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        let these = ListParams::default().fields(fields);
        let removed = self.api::<K>().delete_collection(&DeleteParams::default(), &these).await;
        removed.unwrap_or_else(|error| panic!("removing each {} of {}: {error}", K::kind(&()), self.namespace));
    }

    async fn remove(&self) {
        let namespaces: Api<Namespace> = Api::all(self.cluster.client.clone());
        namespaces.delete(&self.namespace, &DeleteParams::default()).await.expect("a namespace can be deleted");
        self.remove_pools().await;
    }

    async fn remove_pools(&self) {
        let pools: Api<BuilderPool> = Api::all(self.cluster.client.clone());
        let names = std::mem::take(&mut *self.pools.lock().expect("no test panics while it holds this"));
        for name in names {
            pools.delete(&name, &DeleteParams::default()).await.expect("a BuilderPool can be deleted");
        }
    }

    /// Objects of this namespace.
    #[must_use]
    pub fn api<K: Resource<DynamicType = (), Scope = NamespaceResourceScope>>(&self) -> Api<K> {
        Api::namespaced(self.cluster.client.clone(), &self.namespace)
    }

    /// The ImageBuilds of this namespace.
    #[must_use]
    pub fn builds(&self) -> Api<ImageBuild> {
        self.api()
    }

    /// The ImageBuildRuns of this namespace.
    #[must_use]
    pub fn runs(&self) -> Api<ImageBuildRun> {
        self.api()
    }

    /// Makes a Secret, or writes another content into it.
    pub async fn secret(&self, name: &str, type_: &str, data: &[(&str, &str)]) {
        apply_secret(&self.api(), name, type_, data).await;
    }

    /// As [`Tenant::secret`], for a BuilderPool: in the builders' namespace, which is everybody's. The test deletes it.
    pub async fn builders_secret(&self, name: &str, type_: &str, data: &[(&str, &str)]) -> Api<Secret> {
        let secrets = Api::namespaced(self.cluster.client.clone(), &builders_namespace());
        apply_secret(&secrets, name, type_, data).await;
        secrets
    }

    /// Writes a credential for the test registry into [`REGISTRY_SECRET`].
    pub async fn registry_secret(&self, user: &str, password: &str) {
        let auth = STANDARD.encode(format!("{user}:{password}"));
        let config = json!({"auths": {&self.cluster.registry: {"username": user, "password": password, "auth": auth}}})
            .to_string();
        self.secret(REGISTRY_SECRET, "kubernetes.io/dockerconfigjson", &[(".dockerconfigjson", &config)]).await;
    }

    /// Gives the namespace's default service account a Secret to pull with.
    pub async fn account_pulls_with(&self, secret: &str) {
        self.apply_account(&json!([{"name": secret}])).await;
    }

    async fn apply_account(&self, pull_secrets: &serde_json::Value) {
        let account = json!({
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": {"name": "default"},
            "imagePullSecrets": pull_secrets,
        });
        let parameters = PatchParams::apply("kiln-e2e").force();
        let accounts = self.api::<ServiceAccount>();
        accounts.patch("default", &parameters, &Patch::Apply(&account)).await.expect("an account can be applied");
    }

    /// Creates an ImageBuild.
    pub async fn create_build(&self, build: &Build) -> ImageBuild {
        self.builds()
            .create(&PostParams::default(), &build.object)
            .await
            .unwrap_or_else(|error| panic!("ImageBuild {}: {error}", build.object.name_any()))
    }

    /// Creates an ImageBuild and waits for its image.
    pub async fn build(&self, build: &Build) -> ImageBuild {
        self.create_build(build).await;
        self.built(&build.object.name_any()).await
    }

    /// Changes an ImageBuild as a user does: reads it, changes it, writes it back.
    pub async fn edit(&self, name: &str, mut change: impl FnMut(&mut ImageBuild)) -> ImageBuild {
        loop {
            let mut build = self.builds().get(name).await.expect("the ImageBuild is there");
            change(&mut build);
            match self.builds().replace(name, &PostParams::default(), &build).await {
                Ok(build) => return build,
                // Its status was written in between.
                Err(kube::Error::Api(status)) if status.is_conflict() => {}
                Err(error) => panic!("ImageBuild {name}: {error}"),
            }
        }
    }

    /// Asks for a new run with the annotation, and waits for its image.
    pub async fn rebuild(&self, name: &str, value: &str) -> ImageBuild {
        let former = self.annotate(name, value).await;
        self.built_after(name, &run_of(&former)).await
    }

    /// Asks for a new run with the annotation.
    pub async fn annotate(&self, name: &str, value: &str) -> ImageBuild {
        self.edit(name, |build| drop(build.annotations_mut().insert(REBUILD_ANNOTATION.to_owned(), value.to_owned())))
            .await
    }

    /// Waits until an ImageBuild's image is pushed; fails at once where it cannot be.
    pub async fn built(&self, name: &str) -> ImageBuild {
        self.built_after(name, "").await
    }

    /// Waits for the image of a later run than `former`.
    pub async fn built_after(&self, name: &str, former: &str) -> ImageBuild {
        self.wait_build(name, &format!("built (by another run than {former:?})"), wait::BUILD, |build| {
            if !is_current(build)
                || build.status.as_ref().and_then(|status| status.run.as_deref()).unwrap_or_default() == former
            {
                return Ok(false);
            }
            let ready = condition(build, "Ready");
            if condition(build, "Stalled").is_some_and(|stalled| stalled.status == "True") {
                let why = ready.map(|ready| format!("{}: {}", ready.reason, ready.message));
                return Err(format!("it stalls: {}", why.unwrap_or_default()));
            }
            Ok(ready.is_some_and(|ready| ready.status == "True"))
        })
        .await
    }

    /// Waits until an ImageBuild is not ready for this reason.
    pub async fn not_ready(&self, name: &str, reason: &str) -> ImageBuild {
        self.wait_build(name, &format!("Ready=False, {reason}"), wait::BUILD, |build| {
            Ok(is_current(build)
                && condition(build, "Ready").is_some_and(|ready| ready.status == "False" && ready.reason == reason))
        })
        .await
    }

    /// Waits for a condition of an ImageBuild that is there.
    pub async fn wait_build(
        &self,
        name: &str,
        what: &str,
        limit: Duration,
        mut holds: impl FnMut(&ImageBuild) -> Verdict,
    ) -> ImageBuild {
        let what = format!("ImageBuild {name}: {what}");
        let mut found = self
            .wait(self.builds(), wait::named(name), &what, limit, |builds| {
                builds.get(name).map_or(Ok(false), &mut holds)
            })
            .await;
        found.remove(name).expect("the condition holds for an object that is there")
    }

    /// Waits for a condition of a run.
    pub async fn wait_run(
        &self,
        name: &str,
        what: &str,
        limit: Duration,
        mut holds: impl FnMut(&ImageBuildRun) -> Verdict,
    ) -> ImageBuildRun {
        let what = format!("ImageBuildRun {name}: {what}");
        let mut found = self
            .wait(self.runs(), wait::named(name), &what, limit, |runs| runs.get(name).map_or(Ok(false), &mut holds))
            .await;
        found.remove(name).expect("the condition holds for an object that is there")
    }

    /// Waits for a condition of any objects; where it is not met, panics with all that is known of this tenant.
    pub async fn wait<K>(
        &self,
        api: Api<K>,
        select: kube::runtime::watcher::Config,
        what: &str,
        limit: Duration,
        holds: impl FnMut(&Objects<K>) -> Verdict,
    ) -> Objects<K>
    where
        K: Clone + std::fmt::Debug + serde::de::DeserializeOwned + serde::Serialize + Send + 'static,
        K: Resource<DynamicType = ()>,
    {
        match wait::until(api, select, limit, holds).await {
            Ok(objects) => objects,
            Err(unmet) => {
                let seen = if unmet.last.is_empty() {
                    "; nothing was there".to_owned()
                } else {
                    // A dump of Kiln's own kinds follows in any case.
                    let others: Vec<_> = unmet.last.values().filter(|_| K::group(&()) != "kiln.build").collect();
                    format!(
                        "; last seen: {:?}\n{}",
                        unmet.last.keys(),
                        serde_yaml_ng::to_string(&others).unwrap_or_default()
                    )
                };
                panic!("{what}: {}{seen}\n{}", unmet.why, diagnosis::of(&self.cluster.client, &self.namespace).await)
            }
        }
    }

    /// Waits for an Event of this reason about an ImageBuild.
    pub async fn event(&self, build: &str, reason: &str) {
        let select = kube::runtime::watcher::Config::default()
            .fields(&format!("regarding.kind=ImageBuild,regarding.name={build},reason={reason}"));
        self.wait(
            self.api::<Event>(),
            select,
            &format!("ImageBuild {build}: an Event of the reason {reason}"),
            wait::SOON,
            |events| Ok(!events.is_empty()),
        )
        .await;
    }

    /// The newest run of an ImageBuild.
    pub async fn run_of(&self, build: &ImageBuild) -> ImageBuildRun {
        let name = run_of(build);
        self.runs().get(&name).await.unwrap_or_else(|error| panic!("run {name:?}: {error}"))
    }
}

async fn apply_secret(secrets: &Api<Secret>, name: &str, type_: &str, data: &[(&str, &str)]) {
    let secret = Secret {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            labels: Some([(PLANTED.to_owned(), String::new())].into()),
            ..ObjectMeta::default()
        },
        type_: Some(type_.to_owned()),
        data: Some(
            data.iter().map(|(key, value)| ((*key).to_owned(), ByteString(value.as_bytes().to_vec()))).collect(),
        ),
        ..Secret::default()
    };
    let parameters = PatchParams::apply("kiln-e2e").force();
    secrets.patch(name, &parameters, &Patch::Apply(&secret)).await.expect("a Secret can be applied");
}

/// The name of the newest run; empty where there is none.
#[must_use]
pub fn run_of(build: &ImageBuild) -> String {
    build.status.as_ref().and_then(|status| status.run.clone()).unwrap_or_default()
}

/// The last good image.
///
/// # Panics
/// Where there is none.
#[must_use]
pub fn image_of(build: &ImageBuild) -> BuiltImage {
    build
        .status
        .as_ref()
        .and_then(|status| status.image.clone())
        .unwrap_or_else(|| panic!("{} has an image in its status: {:#?}", build.name_any(), build.status))
}

/// A condition of an ImageBuild.
#[must_use]
pub fn condition<'a>(build: &'a ImageBuild, type_: &str) -> Option<&'a Condition> {
    build.status.as_ref()?.conditions.iter().find(|condition| condition.type_ == type_)
}

/// Whether the status speaks of the spec as it is now.
#[must_use]
pub fn is_current(build: &ImageBuild) -> bool {
    build.status.as_ref().is_some_and(|status| status.observed_generation == build.metadata.generation)
}

/// Five characters that no other test of this machine uses at the same time.
fn unique() -> String {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let nanoseconds = jiff::Timestamp::now().as_nanosecond();
    let mut number = u64::try_from(nanoseconds / 1000 % 36_i128.pow(5)).expect("a remainder is positive")
        + NEXT.fetch_add(7919, Ordering::Relaxed);
    (0..5)
        .map(|_| {
            let digit = u32::try_from(number % 36).expect("below 36");
            number /= 36;
            char::from_digit(digit, 36).expect("below 36")
        })
        .collect()
}
