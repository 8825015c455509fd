//! Asks a Git server by ssh: `git-upload-pack` in a session of its own, behind a server key that must be known.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kiln_crds::{GitUrl, SshUrl};
use kiln_registry::http_client::{AddressPolicy, TransportFailure};
use kiln_registry::text::plain_text;
use russh::client::{self, AuthResult, Handle, Msg};
use russh::keys::{Algorithm, HashAlg, PrivateKeyWithHashAlg, PublicKey, PublicKeyOrCertificate, decode_secret_key};
use russh::{Channel, ChannelMsg, Preferred};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::advertisement::{Greeting, GreetingReader, Malformed, Refs, RefsReader, ls_refs_request};
use super::credential::SshKey;
use super::error::Error;
use super::known_hosts;
use super::refname::Wanted;
use super::resolve::{Resolved, choose, not_found};

/// Time to connect, and for the whole exchange after that.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const TIMEOUT: Duration = Duration::from_secs(30);
/// Version 0 servers send all their refs.
const LIMIT: usize = 64 * 1024 * 1024;

/// As [`super::resolve()`], by ssh.
pub(super) async fn resolve(
    addresses: &AddressPolicy,
    url: &GitUrl,
    ssh: &SshUrl,
    key: Option<&SshKey>,
    reference: Option<&str>,
    wanted: Wanted,
) -> Result<Resolved, Error> {
    let exchange = Exchange { url, ssh };
    let Some(key) = key else { return Err(Error::KeyRefused { url: url.to_string(), with_key: false }) };
    let whole = async {
        let mut session = exchange.open(addresses, key).await?;
        let answer = exchange.ask(&mut session, reference, wanted).await;
        let _ = session.channel.close().await;
        answer
    };
    timeout(TIMEOUT, whole).await.map_err(|_| exchange.transport(TransportFailure::Timeout))?
}

/// A running `git-upload-pack`. The handle keeps the connection open.
struct Session {
    channel: Channel<Msg>,
    _handle: Handle<KnownKeys>,
    /// The beginning of what the server wrote to its standard error.
    stderr: String,
}

/// Lets only a server in whose key is known.
struct KnownKeys {
    keys: Vec<PublicKey>,
    refused: Arc<AtomicBool>,
}

impl client::Handler for KnownKeys {
    type Error = russh::Error;

    async fn check_server_key(&mut self, shown: &PublicKeyOrCertificate) -> Result<bool, Self::Error> {
        let known = match shown {
            PublicKeyOrCertificate::PublicKey { key, .. } => {
                self.keys.iter().any(|known| known.key_data() == key.key_data())
            }
            PublicKeyOrCertificate::Certificate(_) => false,
        };
        self.refused.store(!known, Ordering::Relaxed);
        Ok(known)
    }
}

struct Exchange<'a> {
    url: &'a GitUrl,
    ssh: &'a SshUrl,
}

impl Exchange<'_> {
    async fn open(&self, addresses: &AddressPolicy, key: &SshKey) -> Result<Session, Error> {
        let host = self.ssh.known_host();
        let keys = known_hosts::keys(&key.known_hosts, &host);
        if keys.is_empty() {
            return Err(Error::HostKeyUnknown { host, changed: false });
        }
        let private = decode_secret_key(key.private_key.expose(), None)
            .map_err(|_| Error::KeyRefused { url: self.url.to_string(), with_key: true })?;
        let stream = self.connect(addresses).await?;
        // A server with keys of several kinds shows the one that is asked for first.
        let preferred = Preferred { key: algorithms(&keys).into(), ..Preferred::default() };
        let config = client::Config { preferred, nodelay: true, ..client::Config::default() };
        let refused = Arc::new(AtomicBool::new(false));
        let checker = KnownKeys { keys, refused: Arc::clone(&refused) };
        let mut handle = client::connect_stream(Arc::new(config), stream, checker).await.map_err(|error| {
            // No key of a known kind is another key, too.
            let none_in_common = matches!(error, russh::Error::NoCommonAlgo { kind: russh::AlgorithmKind::Key, .. });
            if refused.load(Ordering::Relaxed) || none_in_common {
                Error::HostKeyUnknown { host, changed: true }
            } else {
                self.failed(&error)
            }
        })?;
        let hash = handle.best_supported_rsa_hash().await.map_err(|error| self.failed(&error))?.flatten();
        let private = PrivateKeyWithHashAlg::new(Arc::new(private), hash.or(Some(HashAlg::Sha256)));
        match handle.authenticate_publickey(&self.ssh.user, private).await.map_err(|error| self.failed(&error))? {
            AuthResult::Success => {}
            AuthResult::Failure { .. } => {
                return Err(Error::KeyRefused { url: self.url.to_string(), with_key: true });
            }
        }
        let start = async {
            let channel = handle.channel_open_session().await?;
            // Servers may ignore it, and speak version 0 then.
            channel.set_env(false, "GIT_PROTOCOL", "version=2").await?;
            // The path holds no quotes: the URL would be refused.
            channel.exec(true, format!("git-upload-pack '{}'", self.ssh.path)).await?;
            Ok(channel)
        };
        let channel = start.await.map_err(|error: russh::Error| self.failed(&error))?;
        Ok(Session { channel, _handle: handle, stderr: String::new() })
    }

    async fn connect(&self, addresses: &AddressPolicy) -> Result<TcpStream, Error> {
        let host = url::Host::Domain(self.ssh.host.as_str());
        let addresses = addresses
            .of_host(&host, self.ssh.port)
            .map_err(|error| self.transport(TransportFailure::AddressForbidden(error)))?;
        let connection = |error: std::io::Error| self.transport(TransportFailure::Connection(error.to_string()));
        let found = tokio::net::lookup_host((self.ssh.host.as_str(), self.ssh.port))
            .await
            .map_err(|error| self.transport(TransportFailure::Dns(error.to_string())))?;
        let (mut permitted, mut refused) = (Vec::new(), None);
        for address in found {
            match addresses.permits(address.ip()) {
                Ok(()) => permitted.push(address),
                Err(error) => refused = Some(error),
            }
        }
        if let (Some(error), true) = (refused, permitted.is_empty()) {
            return Err(self.transport(TransportFailure::AddressForbidden(error)));
        }
        timeout(CONNECT_TIMEOUT, TcpStream::connect(permitted.as_slice()))
            .await
            .map_err(|_| self.transport(TransportFailure::Timeout))?
            .map_err(connection)
    }

    async fn ask(&self, session: &mut Session, reference: Option<&str>, wanted: Wanted) -> Result<Resolved, Error> {
        let candidates = match &wanted {
            Wanted::Commit(_) => &[],
            Wanted::Ref(candidates) => candidates.as_slice(),
        };
        let mut reader = GreetingReader::without_service(candidates);
        self.read(session, &mut reader, GreetingReader::feed, GreetingReader::is_complete).await?;
        let greeting = reader.finish().map_err(|error| self.protocol(error.to_string()))?;
        if let Wanted::Commit(commit) = wanted {
            return Ok(Resolved { commit, ref_name: None });
        }
        let (refs, format) = match greeting {
            Greeting::Refs(refs) => (refs, None),
            Greeting::V2 { object_format } => {
                (self.ls_refs(session, object_format.as_deref(), candidates).await?, Some(object_format))
            }
        };
        if let Some(resolved) = choose(&refs, candidates) {
            return Ok(resolved);
        }
        let all = match format {
            None => Some(refs),
            Some(format) => {
                let prefixes = ["refs/heads/".to_owned(), "refs/tags/".to_owned()];
                self.ls_refs(session, format.as_deref(), &prefixes).await.ok()
            }
        };
        Err(not_found(self.url.to_string(), reference.unwrap_or("HEAD"), all.as_ref()))
    }

    async fn ls_refs(&self, session: &mut Session, format: Option<&str>, prefixes: &[String]) -> Result<Refs, Error> {
        let request = ls_refs_request(format, prefixes);
        session.channel.data_bytes(request).await.map_err(|error| self.failed(&error))?;
        let mut reader = RefsReader::new(prefixes);
        self.read(session, &mut reader, RefsReader::feed, RefsReader::is_complete).await?;
        reader.finish().map_err(|error| self.protocol(error.to_string()))
    }

    /// Feeds what comes to the reader until it has the whole answer.
    async fn read<R>(
        &self,
        session: &mut Session,
        reader: &mut R,
        feed: impl Fn(&mut R, &[u8]) -> Result<(), Malformed>,
        is_complete: impl Fn(&R) -> bool,
    ) -> Result<(), Error> {
        let mut read = 0;
        while let Some(message) = session.channel.wait().await {
            match message {
                ChannelMsg::Data { data } => {
                    read += data.len();
                    if read > LIMIT {
                        return Err(self.protocol(format!("the answer is larger than {LIMIT} bytes")));
                    }
                    feed(reader, &data).map_err(|error| self.protocol(error.to_string()))?;
                    if is_complete(reader) {
                        return Ok(());
                    }
                }
                ChannelMsg::ExtendedData { data, .. } if session.stderr.len() < 4096 => {
                    session.stderr.push_str(&String::from_utf8_lossy(&data));
                }
                ChannelMsg::Failure => return Err(self.protocol("it runs no git-upload-pack")),
                _ => {}
            }
        }
        Err(self.ended(&session.stderr))
    }

    /// The server ended before its answer did: what it says of it.
    fn ended(&self, stderr: &str) -> Error {
        let lower = stderr.to_ascii_lowercase();
        let signs = ["not found", "does not appear to be a git", "does not exist", "could not be found", "no such"];
        if signs.iter().any(|sign| lower.contains(sign)) {
            return Error::NotFound { url: self.url.to_string(), with_credential: true };
        }
        if ["permission", "denied", "not authorized", "forbidden"].iter().any(|sign| lower.contains(sign)) {
            return Error::KeyRefused { url: self.url.to_string(), with_key: true };
        }
        let said = plain_text(stderr, 200);
        self.protocol(if said.is_empty() { "it breaks off".to_owned() } else { format!("it says {said:?}") })
    }

    fn failed(&self, error: &russh::Error) -> Error {
        self.transport(TransportFailure::Connection(plain_text(&error.to_string(), 200)))
    }

    fn transport(&self, failure: TransportFailure) -> Error {
        Error::Transport { url: self.url.to_string(), failure }
    }

    fn protocol(&self, cause: impl Into<String>) -> Error {
        Error::Protocol { url: self.url.to_string(), cause: cause.into() }
    }
}

/// The algorithms that the known keys can be shown with; those of RSA without SHA-1.
fn algorithms(keys: &[PublicKey]) -> Vec<Algorithm> {
    let mut algorithms = Vec::new();
    for key in keys {
        let of_key = match key.algorithm() {
            Algorithm::Rsa { .. } => {
                [HashAlg::Sha512, HashAlg::Sha256].map(|hash| Algorithm::Rsa { hash: Some(hash) }).to_vec()
            }
            algorithm => vec![algorithm],
        };
        algorithms.extend(of_key.into_iter().filter(|algorithm| !algorithms.contains(algorithm)).collect::<Vec<_>>());
    }
    algorithms
}

#[cfg(test)]
pub(super) mod tests;
