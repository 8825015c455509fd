//! A Git server as a job may use it: which addresses are allowed, and where its credential goes. Everything is told to
//! `git` by environment variables, nothing on its command line.

use std::{
    io,
    net::IpAddr,
    path::{Path, PathBuf},
};

use kiln_agent_proto::GitSource;
use kiln_crds::{GitUrl, SshUrl};
use kiln_registry::http_client::{AddressForbidden, AddressPolicy, BundleError, Clients, HttpClient};
use url::Host;

use super::credentials::{basic, git_credentials, write_bundle, write_private};
use crate::reasons::{JobFailure, Reason};

/// A repository's URL and what it takes to fetch from it.
#[derive(Clone)]
pub struct Remote {
    /// Where it is.
    pub url: GitUrl,
    credential: Credential,
    /// Whose the credential is; empty where there is none.
    identity: String,
    authorities: Authorities,
    /// Which addresses it may have.
    policy: AddressPolicy,
    /// The addresses that the host's name stood for when they were checked.
    addresses: Vec<IpAddr>,
}

/// What a server is shown.
#[derive(Clone, Default)]
pub enum Credential {
    /// Nothing.
    #[default]
    None,
    /// User and password, or token.
    Basic(String, String),
    /// An ssh key, in a file of its own; and the file with the keys that servers may have.
    Key(PathBuf, PathBuf),
}

/// The CAs to trust beside the system's: in PEM, and in a file together with the system's. None: the system's alone.
pub type Authorities = Option<(String, PathBuf)>;

/// Reads a repository's URL.
pub fn parse_url(url: &str) -> Result<GitUrl, JobFailure> {
    GitUrl::parse(url).map_err(|error| JobFailure::new(Reason::InvalidJob, error.to_string()))
}

impl Credential {
    /// The one in `source`; an ssh key goes to files in `memory`.
    pub fn write(source: &GitSource, memory: &Path) -> io::Result<Self> {
        if !source.ssh_private_key.is_empty() {
            let directory = git_credentials(memory);
            let (key, known_hosts) = (directory.join("ssh-key"), directory.join("known-hosts"));
            // ssh takes no key whose last line has no end, and none with the line ends of DOS.
            let text = String::from_utf8_lossy(&source.ssh_private_key);
            let lines: Vec<&str> = text.trim().lines().map(str::trim_end).collect();
            write_private(&key, format!("{}\n", lines.join("\n")).as_bytes())?;
            write_private(&known_hosts, format!("{}\n", source.known_hosts.trim()).as_bytes())?;
            return Ok(Self::Key(key, known_hosts));
        }
        if source.username.is_empty() && source.password.is_empty() {
            return Ok(Self::None);
        }
        Ok(Self::Basic(source.username.clone(), source.password.clone()))
    }
}

/// The CAs in `source`; together with the system's they go to a file in `memory`.
pub fn authorities(source: &GitSource, memory: &Path) -> io::Result<Authorities> {
    let pem = &source.ca_pem;
    if pem.is_empty() { Ok(None) } else { Ok(Some((pem.clone(), write_bundle(memory, pem)?))) }
}

impl Remote {
    /// The remote at `url`.
    #[must_use]
    pub fn new(url: GitUrl, credential: Credential, authorities: Authorities, policy: AddressPolicy) -> Self {
        Self { url, credential, identity: String::new(), authorities, policy, addresses: Vec::new() }
    }

    /// The same with the credential's identity: what does not change with a password, such as a Secret's UID.
    #[must_use]
    pub fn identified(self, identity: &str) -> Self {
        let identity = match (self.has_credential(), identity) {
            (false, _) => "",
            (true, "") => "unknown",
            (true, identity) => identity,
        };
        Self { identity: identity.to_owned(), ..self }
    }

    /// Whose credential is sent; empty where none is.
    #[must_use]
    pub fn identity(&self) -> &str {
        &self.identity
    }

    /// The same server's other repository, or another server: that one gets no credential.
    #[must_use]
    pub fn at(&self, url: GitUrl) -> Self {
        let credential = if url.is_same_server(&self.url) { self.credential.clone() } else { Credential::None };
        Self::new(url, credential, self.authorities.clone(), self.policy.clone()).identified(&self.identity)
    }

    /// Whether a credential is sent.
    #[must_use]
    pub fn has_credential(&self) -> bool {
        !matches!(self.credential, Credential::None)
    }

    /// The files that `git` and `ssh` read to reach this server: those of others it has not.
    #[must_use]
    pub fn files(&self) -> Vec<PathBuf> {
        let authorities = self.authorities.iter().map(|(_, bundle)| bundle.clone());
        let credential = match &self.credential {
            Credential::Key(key, known_hosts) => vec![key.clone(), known_hosts.clone()],
            Credential::None | Credential::Basic(..) => Vec::new(),
        };
        authorities.chain(credential).collect()
    }

    /// The value of an `Authorization` header, where there is one for this server.
    #[must_use]
    pub fn authorization(&self) -> Option<String> {
        match &self.credential {
            Credential::Basic(username, password) => Some(format!("Basic {}", basic(username, password))),
            Credential::None | Credential::Key(..) => None,
        }
    }

    /// A client that trusts and reaches whom this remote may.
    pub fn http(&self) -> Result<HttpClient, BundleError> {
        Clients::new().get(self.authorities.as_ref().map(|(pem, _)| pem.as_bytes()), self.policy.clone())
    }

    /// The host and its port, where that is not the usual one.
    #[must_use]
    pub fn host(&self) -> String {
        let usual = if self.url.ssh().is_some() { 22 } else { 443 };
        let port = Some(self.url.port()).filter(|port| *port != usual).map(|port| format!(":{port}"));
        format!("{}{}", self.url.host(), port.unwrap_or_default())
    }

    /// Looks the host's addresses up and leaves out those that builds may not reach; fails where no other is left. `git`
    /// then connects to just these, so that a name which stands for another address a moment later gains nothing.
    pub async fn check_addresses(&mut self) -> Result<(), JobFailure> {
        let server = self.host();
        let forbidden = |forbidden: &AddressForbidden| {
            let message = format!("the Git server {server} is not asked: {forbidden}");
            JobFailure::new(Reason::AddressForbidden, message)
        };
        let host = self.url.https().and_then(reqwest::Url::host);
        let host = host.unwrap_or_else(|| Host::Domain(self.url.host()));
        let policy = self.policy.of_host(&host, self.url.port()).map_err(|why| forbidden(&why))?;
        let addresses: Vec<IpAddr> = match host {
            Host::Ipv4(address) => vec![address.into()],
            Host::Ipv6(address) => vec![address.into()],
            Host::Domain(_) => match tokio::net::lookup_host((self.url.host(), self.url.port())).await {
                Ok(found) => found.map(|address| address.ip()).collect(),
                // Behind a proxy, names may be known to the proxy alone, and it is the proxy that connects.
                Err(_)
                    if self.url.https().is_some()
                        && ["https_proxy", "HTTPS_PROXY"].iter().any(|name| std::env::var_os(name).is_some()) =>
                {
                    return Ok(());
                }
                Err(error) => {
                    let message = format!(
                        "the Git server {} is not to be found ({error}); check the host in the URL and the cluster's DNS",
                        self.host()
                    );
                    return Err(JobFailure::new(Reason::GitUnavailable, message));
                }
            },
        };
        let mut refused = None;
        self.addresses.clear();
        for address in addresses {
            match policy.permits(address) {
                Ok(()) if self.addresses.contains(&address) => {}
                Ok(()) => self.addresses.push(address),
                Err(forbidden) => refused = Some(forbidden),
            }
        }
        match refused {
            Some(why) if self.addresses.is_empty() => Err(forbidden(&why)),
            // A look-up that succeeds has an address.
            _ => Ok(()),
        }
    }

    /// Git's configuration for this remote.
    #[must_use]
    pub fn config(&self) -> Vec<(String, String)> {
        if let Some(ssh) = self.url.ssh() {
            let quoted: Vec<String> =
                self.ssh_options(ssh).iter().map(|option| format!("'{}'", option.replace('\'', r"'\''"))).collect();
            return [
                ("protocol.ssh.allow", "always".to_owned()),
                ("ssh.variant", "ssh".to_owned()),
                ("core.sshCommand", format!("ssh {}", quoted.join(" "))),
            ]
            .map(|(key, value)| (key.to_owned(), value))
            .into();
        }
        let mut config = Vec::new();
        let Some(url) = self.url.https() else { return config };
        if let Some(authorization) = self.authorization() {
            let origin = url.origin().ascii_serialization();
            config.push((format!("http.{origin}.extraHeader"), format!("Authorization: {authorization}")));
        }
        if let Some((_, bundle)) = &self.authorities {
            config.push(("http.sslCAInfo".to_owned(), bundle.display().to_string()));
        }
        if let (Some(Host::Domain(name)), false) = (url.host(), self.addresses.is_empty()) {
            let addresses: Vec<String> = self
                .addresses
                .iter()
                .map(|address| if address.is_ipv6() { format!("[{address}]") } else { address.to_string() })
                .collect();
            config.push((
                "http.curloptResolve".to_owned(),
                format!("{name}:{}:{}", self.url.port(), addresses.join(",")),
            ));
        }
        config
    }

    /// What `ssh` is told: nothing of a user's or the system's configuration, one key, one address, and servers whose
    /// key is known only.
    #[must_use]
    pub fn ssh_options(&self, ssh: &SshUrl) -> Vec<String> {
        const ALWAYS: [&str; 17] = [
            "BatchMode=yes",
            "StrictHostKeyChecking=yes",
            "GlobalKnownHostsFile=/dev/null",
            "CheckHostIP=no",
            "UpdateHostKeys=no",
            "VerifyHostKeyDNS=no",
            "IdentitiesOnly=yes",
            "IdentityAgent=none",
            "PreferredAuthentications=publickey",
            "ForwardAgent=no",
            "ForwardX11=no",
            "ClearAllForwardings=yes",
            "PermitLocalCommand=no",
            "ConnectTimeout=15",
            "ServerAliveInterval=20",
            "ServerAliveCountMax=3",
            "LogLevel=ERROR",
        ];
        let (key, known_hosts) = match &self.credential {
            Credential::Key(key, known_hosts) => (key.as_path(), known_hosts.as_path()),
            Credential::None | Credential::Basic(..) => (Path::new("none"), Path::new("/dev/null")),
        };
        let mut options = vec![
            format!("IdentityFile={}", key.display()),
            format!("UserKnownHostsFile={}", known_hosts.display()),
            format!("HostKeyAlias={}", ssh.known_host()),
        ];
        options.extend(self.addresses.first().map(|address| format!("HostName={address}")));
        let always = ALWAYS.into_iter().map(str::to_owned);
        let options = always.chain(options).flat_map(|option| ["-o".to_owned(), option]);
        ["-F", "none"].map(str::to_owned).into_iter().chain(options).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remote(url: &str) -> Remote {
        let credential = Credential::Basic("user".to_owned(), "hunter22".to_owned());
        Remote::new(parse_url(url).unwrap(), credential, None, AddressPolicy::new(true))
    }

    #[test]
    fn a_credential_stays_with_its_server() {
        let remote = remote("https://host:8443/a/b.git");
        assert_eq!(
            remote.config(),
            [("http.https://host:8443.extraHeader".to_owned(), "Authorization: Basic dXNlcjpodW50ZXIyMg==".to_owned())]
        );
        for (other, sent) in
            [("https://host:8443/c", true), ("https://host/c", false), ("https://sub.host:8443/c", false)]
        {
            assert_eq!(remote.at(parse_url(other).unwrap()).has_credential(), sent, "{other}");
        }
    }

    #[test]
    fn ssh_is_told_everything() {
        let key = Credential::Key("/m/ssh-key".into(), "/m/known-hosts".into());
        let mut remote = Remote::new(parse_url("ssh://git@host:2222/x").unwrap(), key, None, AddressPolicy::new(true));
        remote.addresses = vec!["10.0.0.1".parse().unwrap()];
        let config = remote.config();
        insta::assert_snapshot!(
            config.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join("\n")
        );
        let other = remote.at(parse_url("git@other:x").unwrap());
        assert!(!other.has_credential() && !other.config()[2].1.contains("/m/"));
        assert!(!remote.at(parse_url("https://host:2222/x").unwrap()).has_credential());
    }

    #[tokio::test]
    async fn private_addresses_are_refused_where_the_pool_says_so() {
        let message = async |url: &str, allow_private| {
            let mut remote =
                Remote::new(parse_url(url).unwrap(), Credential::None, None, AddressPolicy::new(allow_private));
            match remote.check_addresses().await {
                Ok(()) => String::new(),
                Err(failure) => {
                    assert_eq!(failure.reason, Reason::AddressForbidden);
                    failure.message
                }
            }
        };
        // Whatever way an address is written.
        for url in [
            "https://10.0.0.1/x",
            "https://0x0a000001/x",
            "https://10.1/x",
            "https://[fd00::1]/x",
            "https://[::ffff:a00:1]/x",
            "ssh://git@10.0.0.1/x",
        ] {
            assert_eq!(message(url, true).await, "", "{url}");
            assert!(message(url, false).await.contains("allow.privateAddresses is false"), "{url}");
        }
        for url in [
            "git@127.0.0.1:x",
            "git@0x7f000001:x",
            "ssh://localhost/x",
            "https://127.0.0.1/x",
            "https://localhost/x",
            "https://169.254.169.254/x",
            "https://2130706433/x",
        ] {
            assert!(message(url, true).await.contains("Kiln does not connect there"), "{url}");
        }
        // Redirects and submodules inherit it.
        let remote =
            Remote::new(parse_url("https://host/x").unwrap(), Credential::None, None, AddressPolicy::new(false));
        let mut other = remote.at(remote.url.submodule("https://10.0.0.1/y").unwrap());
        assert_eq!(other.check_addresses().await.unwrap_err().reason, Reason::AddressForbidden);
    }
}
