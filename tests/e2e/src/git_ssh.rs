//! The same repositories over ssh, for who has the one key.

use crate::cluster::variable;
use crate::{Repository, Tenant};

/// The Secret that [`Tenant::git_ssh_secret`] makes.
pub const GIT_SSH_SECRET: &str = "git-ssh";

impl Repository {
    /// Its URL over ssh.
    #[must_use]
    pub fn ssh_url(&self, tenant: &Tenant) -> String {
        let path = self.url.strip_prefix(&tenant.cluster.git).expect("the repository is on the Git server");
        format!("{}{path}", variable("KILN_GIT_SSH"))
    }
}

impl Tenant {
    /// Makes [`GIT_SSH_SECRET`] with the key that the Git server lets in, and with the server's own in `known_hosts`.
    pub async fn git_ssh_secret(&self) {
        self.git_ssh_secret_with(&client_key(), &known_hosts()).await;
    }

    /// Makes [`GIT_SSH_SECRET`] with another key or other known hosts.
    pub async fn git_ssh_secret_with(&self, key: &str, known_hosts: &str) {
        let data = [("ssh-privatekey", key), ("known_hosts", known_hosts)];
        self.secret(GIT_SSH_SECRET, "kubernetes.io/ssh-auth", &data).await;
    }
}

/// The private key that the Git server lets in, in OpenSSH's format.
#[must_use]
pub fn client_key() -> String {
    read("KILN_GIT_SSH_KEY")
}

/// The Git server's line for `known_hosts`.
#[must_use]
pub fn known_hosts() -> String {
    read("KILN_GIT_KNOWN_HOSTS")
}

fn read(name: &str) -> String {
    let path = variable(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{name} names {path}, which cannot be read: {error}"))
}
