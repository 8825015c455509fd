//! The agent's own way to registries, with a job's logins and CAs: connections and tokens stay from job to job.

use std::{fs, path::PathBuf};

use kiln_agent_proto::Job as Spec;
use kiln_registry::{
    Client, Login, LoginSecret, RegistryClients, Repository, Scheme,
    http_client::{AddressPolicy, BundleError, Clients, SecretString},
};

use super::content::Contents;

/// Clients of registries, and what is known of images.
#[derive(Debug)]
pub struct Registries {
    http: Clients,
    clients: RegistryClients,
    trust: PathBuf,
    /// What images hold that were looked at before.
    pub contents: Contents,
}

impl Registries {
    /// Trusts the CAs in the directory `trust` too, which may be absent.
    #[must_use]
    pub fn new(trust: PathBuf) -> Self {
        Self { http: Clients::new(), clients: RegistryClients::new(), trust, contents: Contents::default() }
    }

    /// A client of the registry of `repository`, with what the job has for it.
    pub fn client(&self, spec: &Spec, repository: &Repository) -> Result<Client, BundleError> {
        let pem = self.trusted(&spec.registry_ca_pem);
        let policy = AddressPolicy::new(spec.allow_private_addresses);
        let http = self.http.get((!pem.is_empty()).then_some(pem.as_bytes()), policy)?;
        let is_plain = spec.plain_http_registries.contains(&repository.registry);
        let scheme = if is_plain { Scheme::Http } else { Scheme::Https };
        Ok(self.clients.get(&http, scheme, login(spec, repository).as_ref()))
    }

    fn trusted(&self, job: &str) -> String {
        let mut files: Vec<PathBuf> =
            fs::read_dir(&self.trust).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
        files.sort();
        let texts = files.iter().filter_map(|file| fs::read_to_string(file).ok());
        let mut pem: Vec<String> = texts.filter(|text| text.contains("-----BEGIN CERTIFICATE-----")).collect();
        pem.extend((!job.is_empty()).then(|| job.to_owned()));
        pem.join("\n")
    }
}

fn login(spec: &Spec, repository: &Repository) -> Option<Login> {
    let login = spec.logins.iter().find(|login| login.registry == repository.registry)?;
    let secret = if login.identity_token.is_empty() {
        LoginSecret::Password(SecretString::new(&login.password))
    } else {
        LoginSecret::IdentityToken(SecretString::new(&login.identity_token))
    };
    Some(Login { registry: login.registry.clone(), username: login.username.clone(), secret })
}
