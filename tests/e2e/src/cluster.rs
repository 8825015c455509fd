//! The cluster that the tests run on, and the addresses beside it, from the environment.

use std::path::PathBuf;
use std::time::Duration;

use kube::Client;

/// The cluster, its registry and its Git server.
///
/// All of it comes from the environment variables that `.cluster/env` sets; a missing one fails the test with the
/// command to run.
#[derive(Clone)]
pub struct Cluster {
    /// A client with full rights.
    pub client: Client,
    /// `host:port` of the registry, the same for pods and this machine.
    pub registry: String,
    /// The CA of registry and Git server, in PEM.
    pub registry_ca: String,
    /// The user that may push and pull.
    pub registry_user: String,
    /// That user's password.
    pub registry_password: String,
    /// Base of the Git server's URLs, with `https://`.
    pub git: String,
    /// The CA of the Git server, in PEM.
    pub git_ca: String,
    /// The user of repositories below `private/`.
    pub git_user: String,
    /// That user's password.
    pub git_password: String,
    /// The directory in which a bare repository `NAME.git` is served as `$KILN_GIT/NAME.git`.
    pub git_root: PathBuf,
}

impl Cluster {
    /// Reads the environment and makes a client.
    pub async fn new() -> Self {
        // Twice is an error that does not matter: each test of a process comes here.
        let _ = rustls::crypto::ring::default_provider().install_default();
        // A test must never run on a cluster that somebody's ~/.kube/config happens to name.
        let kubeconfig = variable("KUBECONFIG");
        let mut config = kube::Config::infer().await.unwrap_or_else(|error| {
            panic!("KUBECONFIG={kubeconfig} names no usable cluster ({error}); run: make cluster")
        });
        // Watches are open for minutes; a lost one is seen by the tests' own limits.
        config.read_timeout = Some(Duration::from_mins(5));
        Self {
            client: Client::try_from(config).expect("a client can be made from the kubeconfig"),
            registry: variable("KILN_REGISTRY"),
            registry_ca: file("KILN_REGISTRY_CA"),
            registry_user: variable("KILN_REGISTRY_USER"),
            registry_password: variable("KILN_REGISTRY_PASSWORD"),
            git: variable("KILN_GIT"),
            git_ca: file("KILN_GIT_CA"),
            git_user: variable("KILN_GIT_USER"),
            git_password: variable("KILN_GIT_PASSWORD"),
            git_root: std::env::var_os("KILN_GIT_ROOT").map_or_else(
                || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../.cluster/git")),
                PathBuf::from,
            ),
        }
    }

    /// The registry's host without its port.
    #[must_use]
    pub fn registry_host(&self) -> &str {
        self.registry.rsplit_once(':').map_or(self.registry.as_str(), |(host, _)| host)
    }
}

/// What is kept between runs, of whoever runs this.
pub(crate) fn cache_directory() -> Option<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))?;
    Some(cache.join("kiln"))
}

/// The namespace of the operator.
#[must_use]
pub fn operator_namespace() -> String {
    std::env::var("KILN_NAMESPACE").unwrap_or_else(|_| "kiln-system".to_owned())
}

/// The namespace of the builder pods.
#[must_use]
pub fn builders_namespace() -> String {
    std::env::var("KILN_BUILDERS_NAMESPACE").unwrap_or_else(|_| "kiln-builders".to_owned())
}

/// The value of a variable that `.cluster/env` sets.
#[must_use]
pub fn variable(name: &str) -> String {
    std::env::var(name).ok().filter(|value| !value.is_empty()).unwrap_or_else(|| {
        panic!(
            "{name} is not set. These tests need a cluster with Kiln on it: run `make test`, \
             or `make cluster && . .cluster/env && tests/install` before `cargo test --workspace --test kiln`"
        )
    })
}

fn file(name: &str) -> String {
    let path = variable(name);
    std::fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("{name} names {path}, which cannot be read: {error}; run: make cluster"))
}
