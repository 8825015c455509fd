//! The agent's own way to registries, with a job's logins and CAs: connections and tokens stay from job to job.

use kiln_agent_proto::{self as proto, Job as Spec};
use kiln_registry::{
    Client, Login, LoginSecret, RegistryClients, Repository, Scheme,
    http_client::{BundleError, Clients, SecretString},
};

use super::{addresses, content::Contents};
use crate::trust::Trust;

/// Clients of registries, and what is known of images.
#[derive(Debug)]
pub struct Registries {
    http: Clients,
    clients: RegistryClients,
    trust: Trust,
    /// What images hold that were looked at before.
    pub contents: Contents,
}

impl Registries {
    /// Trusts these CAs beside the system's.
    #[must_use]
    pub fn new(trust: Trust) -> Self {
        Self { http: Clients::new(), clients: RegistryClients::new(), trust, contents: Contents::default() }
    }

    /// A client of the registry of `repository`, with what the job has for it.
    pub fn client(&self, spec: &Spec, repository: &Repository) -> Result<Client, BundleError> {
        let pem = self.trust.of_registry(&repository.registry);
        let http = self.http.get((!pem.is_empty()).then_some(pem.as_bytes()), addresses::policy(spec))?;
        let is_plain = spec.plain_http_registries.contains(&repository.registry);
        let scheme = if is_plain { Scheme::Http } else { Scheme::Https };
        Ok(self.clients.get(&http, scheme, Login::choose(&logins(spec), repository).as_ref()))
    }
}

/// The job's logins.
#[must_use]
pub fn logins(spec: &Spec) -> Vec<Login> {
    spec.logins.iter().map(read).collect()
}

/// A login as the job has it.
#[must_use]
pub fn read(login: &proto::Login) -> Login {
    let secret = if login.identity_token.is_empty() {
        LoginSecret::Password(SecretString::new(&login.password))
    } else {
        LoginSecret::IdentityToken(SecretString::new(&login.identity_token))
    };
    let proto::Login { registry, path, username, .. } = login.clone();
    Login { registry, path, username, secret }
}
