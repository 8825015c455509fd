//! The registries beside the first: one with the referrers of OCI 1.1, and one that wants tokens.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::json;

use crate::Tenant;
use crate::cluster::variable;

/// A registry and one user of it.
#[derive(Clone, Debug)]
pub struct Login {
    /// `host:port`.
    pub host: String,
    /// The user.
    pub user: String,
    /// That user's password.
    pub password: String,
}

impl Login {
    /// The first registry, of the one user that it has.
    #[must_use]
    pub fn first() -> Self {
        Self::of("KILN_REGISTRY", "KILN_REGISTRY_USER", "KILN_REGISTRY_PASSWORD")
    }

    /// The registry with referrers (<https://github.com/opencontainers/distribution-spec/blob/main/spec.md#listing-referrers>).
    #[must_use]
    pub fn referrers() -> Self {
        Self::of("KILN_REFERRERS_REGISTRY", "KILN_REFERRERS_REGISTRY_USER", "KILN_REFERRERS_REGISTRY_PASSWORD")
    }

    /// The registry with token authentication, of the user who may push.
    #[must_use]
    pub fn token() -> Self {
        Self::of("KILN_TOKEN_REGISTRY", "KILN_TOKEN_REGISTRY_USER", "KILN_TOKEN_REGISTRY_PASSWORD")
    }

    /// The same registry, of the user whose tokens allow to pull only.
    #[must_use]
    pub fn token_reader() -> Self {
        Self::of("KILN_TOKEN_REGISTRY", "KILN_TOKEN_REGISTRY_READER", "KILN_TOKEN_REGISTRY_READER_PASSWORD")
    }

    fn of(host: &str, user: &str, password: &str) -> Self {
        Self { host: variable(host), user: variable(user), password: variable(password) }
    }

    /// The same user and password at another `host:port`, such as a front's.
    #[must_use]
    pub fn at(&self, host: &str) -> Self {
        Self { host: host.to_owned(), ..self.clone() }
    }

    /// Where an image of this name goes in this registry.
    #[must_use]
    pub fn repository(&self, tenant: &Tenant, name: &str) -> String {
        format!("{}/e2e/{}/{name}", self.host, tenant.id)
    }
}

impl Tenant {
    /// Makes a Secret of type `kubernetes.io/dockerconfigjson` with these credentials.
    pub async fn login_secret(&self, name: &str, logins: &[&Login]) {
        let auths: serde_json::Map<_, _> = logins
            .iter()
            .map(|Login { host, user, password }| {
                let auth = BASE64_STANDARD.encode(format!("{user}:{password}"));
                (host.clone(), json!({"username": user, "password": password, "auth": auth}))
            })
            .collect();
        let config = json!({ "auths": auths }).to_string();
        self.secret(name, "kubernetes.io/dockerconfigjson", &[(".dockerconfigjson", &config)]).await;
    }
}
