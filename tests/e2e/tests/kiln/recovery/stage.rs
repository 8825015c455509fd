//! A tenant whose registry, Git server and API server are behind proxies, and builds that go through them.

use axum::http::Method;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::api::core::v1::ConfigMap;
use kiln_crds::image_build_run::{ImageBuildRunStatus, PlatformStatus};
use kiln_crds::{CaRef, ImageBuildRun};
use kiln_e2e::build::git;
use kiln_e2e::tenant::image_of;
use kiln_e2e::{Build, Repository, Tenant, wait};
use kube::ResourceExt as _;
use kube::api::{ListParams, PostParams};
use serde_json::{Value, json};

use crate::recovery::host;
use crate::recovery::proxy::{self, Proxy, Seen};

/// The `ConfigMap` with the proxies' CA.
const PROXY_CA: &str = "proxy-ca";
/// The Secret with the credential for the registry behind its proxy.
const PROXY_SECRET: &str = "proxy-registry";
/// Both platforms, each on a node of its own.
pub const PLATFORMS: [&str; 2] = ["linux/amd64", "linux/arm64"];
/// The tags of every build here.
pub const TAGS: [&str; 2] = ["one", "two"];

/// The tenant and its proxies.
pub struct Stage<'a> {
    pub tenant: &'a Tenant,
    pub registry: Proxy,
    pub git: Proxy,
}

impl<'a> Stage<'a> {
    pub async fn new(tenant: &'a Tenant) -> Self {
        let registry = host::before_registry(&tenant.cluster).await;
        let git = host::before_git(&tenant.cluster).await;
        let ca: ConfigMap =
            serde_json::from_value(json!({"metadata": {"name": PROXY_CA}, "data": {"ca.crt": proxy::ca()}}))
                .expect("a ConfigMap is one");
        tenant.api::<ConfigMap>().create(&PostParams::default(), &ca).await.expect("a ConfigMap can be made");
        let auth = STANDARD.encode(format!("{}:{}", tenant.cluster.registry_user, tenant.cluster.registry_password));
        // Base images come from the registry itself.
        let hosts = [registry.address.to_string(), tenant.cluster.registry.clone()];
        let login = json!({"auths": hosts.map(|host| (host, json!({"auth": auth}))).into_iter().collect::<Value>()})
            .to_string();
        tenant.secret(PROXY_SECRET, "kubernetes.io/dockerconfigjson", &[(".dockerconfigjson", &login)]).await;
        Self { tenant, registry, git }
    }

    /// A build for both platforms of a Git repository of its own; the same files are the same commit.
    pub fn build(&self, name: &str, dockerfile: &str) -> (Build, Repository) {
        let repository = Repository::public(self.tenant, name);
        repository.write(&[("Dockerfile", dockerfile)]);
        let ca = || Some(serde_json::from_value::<CaRef>(json!({"name": PROXY_CA})).expect("a name is enough"));
        let build = Build::git(self.tenant, name, &repository).platforms(&PLATFORMS).tags(&TAGS).with(|spec| {
            // Each has a repository and a commit of its own, and yet their digests are to be compared.
            for label in ["source", "revision", "created"] {
                spec.labels.insert(format!("org.opencontainers.image.{label}"), "the same".to_owned());
            }
            spec.args.insert("SOURCE_DATE_EPOCH".to_owned(), "0".to_owned());
            spec.image.as_mut().unwrap().repository = self.repository(name);
            PROXY_SECRET.clone_into(
                &mut spec.image.as_mut().unwrap().secret_ref.as_mut().expect("each build names a Secret").name,
            );
            spec.image.as_mut().unwrap().ca_ref = ca();
            let source = git(spec);
            source.ca_ref = ca();
            source.url = source.url.replace(&self.tenant.cluster.git, &format!("https://{}", self.git.address));
        });
        (build, repository)
    }

    /// Where the image of a build of this name goes.
    pub fn repository(&self, name: &str) -> String {
        format!("{}/e2e/{}/{name}", self.registry.address, self.tenant.namespace)
    }

    /// The path of a build's repository in the registry's API.
    pub fn registry_path(&self, name: &str) -> String {
        format!("/v2/e2e/{}/{name}/", self.tenant.namespace)
    }

    /// Waits for a build, and checks that it was made once: one run, one attempt and one push of each platform, each tag
    /// written once. Its digest.
    pub async fn made_once(&self, name: &str) -> String {
        let built = self.tenant.built(name).await;
        let image = image_of(&built);
        assert_eq!(image.tags, TAGS, "{name}");

        let runs = self.tenant.runs().list(&ListParams::default()).await.expect("runs can be listed");
        let own: Vec<_> = runs.items.iter().filter(|run| run.spec.image_build.name == name).collect();
        assert_eq!(own.len(), 1, "{name}: one run: {:?}", own.iter().map(|run| run.name_any()).collect::<Vec<_>>());
        let concluded = self
            .tenant
            .wait_run(&format!("{name}-1"), "let go of", wait::SOON, |run| Ok(run.finalizers().is_empty()))
            .await;
        let platforms = platforms(&concluded);
        let attempts: Vec<_> = platforms.iter().map(|platform| (platform.name.as_str(), platform.attempt)).collect();
        assert_eq!(attempts, PLATFORMS.map(|platform| (platform, 1)), "{name}: one attempt each");

        let pushes = |reference: &str| {
            let path = format!("{}manifests/{reference}", self.registry_path(name));
            let answered = self.registry.answered();
            answered.iter().filter(|seen| is_done(seen, &Method::PUT, &path)).count()
        };
        for platform in platforms {
            let digest = platform.digest.as_deref().expect("a built platform has a digest");
            assert_eq!(pushes(digest), 1, "{name}: pushes of the manifest for {}", platform.name);
        }
        let registry = kiln_e2e::registry::Registry::new(&self.tenant.cluster);
        let repository = format!("{}/e2e/{}/{name}", self.tenant.cluster.registry, self.tenant.namespace);
        for tag in TAGS {
            assert_eq!(pushes(tag), 1, "{name}: writes of the tag {tag}");
            assert_eq!(registry.digest(&repository, tag).await.as_ref(), Some(&image.digest), "{name}: the tag {tag}");
        }
        image.digest
    }
}

fn is_done(seen: &Seen, method: &Method, path: &str) -> bool {
    seen.method == method && seen.path == path && seen.status.is_some_and(|status| status.is_success())
}

/// The platforms of a run's status.
pub fn platforms(run: &ImageBuildRun) -> &[PlatformStatus] {
    run.status.as_ref().map(|status| status.platforms.as_slice()).unwrap_or_default()
}

/// What a write of this run's status says; `None`: it is another request.
pub fn status_of(seen: &Seen, namespace: &str, run: &str) -> Option<ImageBuildRunStatus> {
    let path = format!("/apis/kiln.build/v1alpha1/namespaces/{namespace}/imagebuildruns/{run}/status");
    (seen.method == Method::PATCH && seen.target() == path)
        .then(|| serde_json::from_value(seen.json()["status"].clone()).ok())
        .flatten()
}
