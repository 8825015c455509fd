//! `resolve` against a small ssh server on loopback: both protocol versions, keys, and what goes wrong.

use std::net::SocketAddr;

use russh::ChannelId;
use russh::keys::PrivateKey;
use russh::keys::ssh_key::LineEnding;
use russh::server::{self, Auth, Server as _, Session as ServerSession, VerifiedPublicKey};

use super::super::{ErrorKind, GitCredential, resolve};
use super::*;
use kiln_registry::http_client::{Clients, HttpClient, SecretString};

const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
const B: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

/// An ed25519 key made of this byte.
fn key(seed: u8) -> PrivateKey {
    use russh::keys::ssh_key::private::{Ed25519Keypair, KeypairData};
    PrivateKey::new(KeypairData::from(Ed25519Keypair::from_seed(&[seed; 32])), "").unwrap()
}

fn pem(key: &PrivateKey) -> String {
    key.to_openssh(LineEnding::LF).unwrap().to_string()
}

/// A private key in OpenSSH's format.
pub(in super::super) fn private_key() -> String {
    pem(&key(1))
}

fn packet(text: &str) -> String {
    format!("{:04x}{text}\n", text.len() + 5)
}

#[derive(Clone)]
struct Server {
    version_2: bool,
}

impl server::Server for Server {
    type Handler = Self;

    fn new_client(&mut self, _: Option<SocketAddr>) -> Self {
        self.clone()
    }
}

impl server::Handler for Server {
    type Error = russh::Error;

    async fn auth_publickey(&mut self, user: &str, shown: VerifiedPublicKey<'_>) -> Result<Auth, Self::Error> {
        let known = user == "git" && shown.public_key.key_data() == key(1).public_key().key_data();
        Ok(if known { Auth::Accept } else { Auth::reject() })
    }

    async fn channel_open_session(
        &mut self,
        _: Channel<server::Msg>,
        reply: server::ChannelOpenHandle,
        _: &mut ServerSession,
    ) -> Result<(), Self::Error> {
        reply.accept().await;
        Ok(())
    }

    async fn exec_request(
        &mut self,
        channel: ChannelId,
        command: &[u8],
        session: &mut ServerSession,
    ) -> Result<(), Self::Error> {
        session.channel_success(channel)?;
        if command != b"git-upload-pack '/app.git'" {
            session.extended_data(channel, 1, &b"fatal: '/x' does not appear to be a git repository"[..])?;
            return session.close(channel);
        }
        let greeting = if self.version_2 {
            [packet("version 2"), packet("ls-refs"), packet("object-format=sha1"), "0000".into()].concat()
        } else {
            [
                packet(&format!("{A} HEAD\0 symref=HEAD:refs/heads/main")),
                packet(&format!("{A} refs/heads/main")),
                packet(&format!("{B} refs/tags/v1")),
                "0000".into(),
            ]
            .concat()
        };
        session.data(channel, greeting.into_bytes())
    }

    async fn data(&mut self, channel: ChannelId, data: &[u8], session: &mut ServerSession) -> Result<(), Self::Error> {
        let asked = String::from_utf8_lossy(data).into_owned();
        let refs = [
            ("HEAD", format!("{A} HEAD symref-target:refs/heads/main")),
            ("refs/heads/main", format!("{A} refs/heads/main")),
            ("refs/tags/v1", format!("{A} refs/tags/v1 peeled:{B}")),
        ];
        let wanted = |name: &str| {
            asked.lines().any(|l| l.split_once("ref-prefix ").is_some_and(|(_, prefix)| name.starts_with(prefix)))
        };
        let lines: String = refs.iter().filter(|(name, _)| wanted(name)).map(|(_, line)| packet(line)).collect();
        session.data(channel, (lines + "0000").into_bytes())
    }
}

impl Server {
    /// Starts one that shows the key of seed 2, and gives its port.
    async fn start(version_2: bool) -> u16 {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let config = Arc::new(server::Config {
            keys: vec![key(2)],
            auth_rejection_time: Duration::ZERO,
            ..server::Config::default()
        });
        tokio::spawn(async move { Self { version_2 }.run_on_socket(config, &listener).await });
        port
    }
}

fn http() -> HttpClient {
    Clients::new().get(None, AddressPolicy::default().with_loopback()).unwrap()
}

fn credential(private: &PrivateKey, known_hosts: String) -> GitCredential {
    GitCredential::Ssh(SshKey { private_key: SecretString::new(pem(private)), known_hosts })
}

fn known(port: u16, seed: u8) -> String {
    format!("[127.0.0.1]:{port} {}", key(seed).public_key().to_openssh().unwrap())
}

fn url(port: u16, path: &str) -> GitUrl {
    GitUrl::parse(&format!("ssh://git@127.0.0.1:{port}/{path}")).unwrap()
}

#[tokio::test]
async fn resolves_with_both_versions() {
    for version_2 in [true, false] {
        let port = Server::start(version_2).await;
        let credential = credential(&key(1), known(port, 2));
        for (reference, commit, name) in [
            (None, A, Some("refs/heads/main")),
            (Some("main"), A, Some("refs/heads/main")),
            (Some("v1"), B, Some("refs/tags/v1")),
            (Some(B), B, None),
        ] {
            let resolved = resolve(&http(), &url(port, "app.git"), reference, Some(&credential)).await.unwrap();
            let expected = Resolved { commit: commit.into(), ref_name: name.map(str::to_owned) };
            assert_eq!(resolved, expected, "{reference:?}, version 2: {version_2}");
        }
        let error = resolve(&http(), &url(port, "app.git"), Some("mian"), Some(&credential)).await.unwrap_err();
        assert!(error.to_string().ends_with(r#"has no branch or tag "mian": did you mean main?"#), "{error}");
    }
}

#[tokio::test]
async fn refusals() {
    let port = Server::start(true).await;
    let ask = async |path: &str, credential: Option<GitCredential>, http: HttpClient| {
        resolve(&http, &url(port, path), None, credential.as_ref()).await.unwrap_err()
    };
    let good = || Some(credential(&key(1), known(port, 2)));
    assert_eq!(ask("app.git", None, http()).await.kind(), ErrorKind::Unauthorized);
    let other_key = credential(&key(3), known(port, 2));
    assert_eq!(ask("app.git", Some(other_key), http()).await.kind(), ErrorKind::Unauthorized);
    assert_eq!(ask("gone.git", good(), http()).await.kind(), ErrorKind::NotFound);

    let unknown = ask("app.git", Some(credential(&key(1), known(port + 1, 2))), http()).await;
    assert_eq!((unknown.kind(), unknown.to_string().contains("is not known")), (ErrorKind::HostKeyUnknown, true));
    let changed = ask("app.git", Some(credential(&key(1), known(port, 4))), http()).await;
    assert_eq!((changed.kind(), changed.to_string().contains("another key")), (ErrorKind::HostKeyUnknown, true));

    let strict = Clients::new().get(None, AddressPolicy::default()).unwrap();
    assert_eq!(ask("app.git", good(), strict).await.kind(), ErrorKind::AddressForbidden);
}
