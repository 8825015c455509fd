//! What a Git server is shown: user and password for https, a key for ssh. Both come from a Secret.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderValue;
use k8s_openapi::ByteString;
use kiln_crds::GitUrl;
use kiln_registry::http_client::SecretString;

/// A Git server's credential, of the kind that the URL needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GitCredential {
    /// For https.
    Basic(BasicAuth),
    /// For ssh.
    Ssh(SshKey),
}

/// A user name and password (or token) for a Git server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BasicAuth {
    /// The account's name; many servers take any name with a token.
    pub username: String,
    /// Password or token.
    pub password: SecretString,
}

/// A private key, and the keys that servers may have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SshKey {
    /// In OpenSSH's format, PKCS#1 or PKCS#8, unencrypted.
    pub private_key: SecretString,
    /// Lines as in sshd(8), `SSH_KNOWN_HOSTS FILE FORMAT`.
    pub known_hosts: String,
}

/// What is wrong with a Secret that should hold a Git server's credential.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SecretError {
    /// A key is not there.
    #[error("it has no key password (with a key username beside it)")]
    NoPassword,
    /// Only an ssh key is there.
    #[error(
        "it holds an ssh key, which an https URL has no use for: put username and password (a token) into it, or write the URL as ssh://"
    )]
    SshKey,
    /// Not text, or several lines.
    #[error("the value of {0} is not a single line of text")]
    NotText(&'static str),
    /// No ssh key.
    #[error("it has no key ssh-privatekey, which an ssh URL needs")]
    NoKey,
    /// No known hosts.
    #[error("it has no key known_hosts: put what `ssh-keyscan HOST` prints into it")]
    NoKnownHosts,
    /// The ssh key has a passphrase.
    #[error("the key in ssh-privatekey is encrypted: put one without a passphrase into it")]
    Encrypted,
    /// The ssh key is no key.
    #[error("the value of ssh-privatekey is not a private key in OpenSSH's or PEM format")]
    NotAKey,
}

impl GitCredential {
    /// Reads a Secret's data as the URL needs it: [`BasicAuth`] for https, [`SshKey`] for ssh.
    pub fn from_secret(url: &GitUrl, data: &BTreeMap<String, ByteString>) -> Result<Self, SecretError> {
        if url.ssh().is_some() {
            SshKey::from_secret(data).map(Self::Ssh)
        } else {
            BasicAuth::from_secret(data).map(Self::Basic)
        }
    }
}

impl SshKey {
    /// Reads a Secret's data: `ssh-privatekey` (or `identity`, as Flux calls it) and `known_hosts`.
    pub fn from_secret(data: &BTreeMap<String, ByteString>) -> Result<Self, SecretError> {
        let text = |keys: &[&str]| {
            let value = keys.iter().find_map(|key| data.get(*key))?;
            std::str::from_utf8(&value.0).ok().map(str::to_owned).filter(|text| !text.trim().is_empty())
        };
        let private_key = text(&["ssh-privatekey", "identity"]).ok_or(SecretError::NoKey)?;
        russh::keys::decode_secret_key(&private_key, None).map_err(|error| match error {
            russh::keys::Error::KeyIsEncrypted => SecretError::Encrypted,
            _ => SecretError::NotAKey,
        })?;
        let known_hosts = text(&["known_hosts"]).ok_or(SecretError::NoKnownHosts)?;
        Ok(Self { private_key: SecretString::new(private_key), known_hosts })
    }
}

impl BasicAuth {
    /// Reads a Secret's data: `password`, and `username` (`git` where it is missing: tokens need none).
    pub fn from_secret(data: &BTreeMap<String, ByteString>) -> Result<Self, SecretError> {
        let line = |key: &'static str| match data.get(key) {
            None => Ok(None),
            // Editors end a file with a line break, which is never part of a password.
            Some(value) => match std::str::from_utf8(&value.0).map(|text| text.trim_end_matches(['\r', '\n'])) {
                Ok(text) if !text.chars().any(char::is_control) => Ok(Some(text.to_owned())),
                _ => Err(SecretError::NotText(key)),
            },
        };
        let username = line("username")?.filter(|name| !name.is_empty()).unwrap_or_else(|| "git".into());
        match line("password")?.filter(|password| !password.is_empty()) {
            Some(password) => Ok(Self { username, password: SecretString::new(password) }),
            None if data.contains_key("ssh-privatekey") || data.contains_key("identity") => Err(SecretError::SshKey),
            None => Err(SecretError::NoPassword),
        }
    }

    pub(super) fn header(&self) -> Option<HeaderValue> {
        let pair = STANDARD.encode(format!("{}:{}", self.username, self.password.expose()));
        let mut header = HeaderValue::from_str(&format!("Basic {pair}")).ok()?;
        header.set_sensitive(true);
        Some(header)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(pairs: &[(&str, &str)]) -> BTreeMap<String, ByteString> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), ByteString((*v).into()))).collect()
    }

    #[test]
    fn passwords() {
        let secret = |pairs: &[(&str, &str)]| BasicAuth::from_secret(&data(pairs));
        let auth = secret(&[("username", "me\n"), ("password", "pw\n")]).unwrap();
        assert_eq!((auth.username.as_str(), auth.password.expose()), ("me", "pw"));
        assert_eq!(secret(&[("password", "token")]).unwrap().username, "git");
        assert_eq!(secret(&[("username", "me")]), Err(SecretError::NoPassword));
        assert_eq!(secret(&[("ssh-privatekey", "x")]), Err(SecretError::SshKey));
        assert_eq!(secret(&[("password", "a\nb")]), Err(SecretError::NotText("password")));
        assert!(!format!("{auth:?}").contains("pw"));
    }

    #[test]
    fn ssh_keys() {
        let url = GitUrl::parse("git@host:x").unwrap();
        let secret = |pairs: &[(&str, &str)]| GitCredential::from_secret(&url, &data(pairs));
        let key = super::super::ssh::tests::private_key();
        let known = ("known_hosts", "host ssh-ed25519 AAAA");
        for name in ["ssh-privatekey", "identity"] {
            let read = secret(&[(name, &key), known]).unwrap();
            assert!(matches!(&read, GitCredential::Ssh(ssh) if ssh.private_key.expose() == key), "{name}");
            assert!(!format!("{read:?}").contains(&key));
        }
        assert_eq!(secret(&[("ssh-privatekey", &key)]), Err(SecretError::NoKnownHosts));
        assert_eq!(secret(&[known]), Err(SecretError::NoKey));
        assert_eq!(secret(&[("password", "pw")]), Err(SecretError::NoKey));
        assert_eq!(secret(&[("ssh-privatekey", "hunter22"), known]), Err(SecretError::NotAKey));
    }
}
