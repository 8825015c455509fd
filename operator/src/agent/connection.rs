//! Connections to agents, over mutual TLS, one for each builder pod.

use std::collections::HashMap;
use std::error::Error as _;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kiln_agent_proto::agent_client::AgentClient;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use crate::builder::Authority;
use crate::builder::authority::Certificates;
use crate::builder::pod::AGENT_PORT;

/// How long it may take until an agent's node has taken a connection.
const CONNECT: Duration = Duration::from_secs(2);
/// How long the agent's handshake may take. While one is made, all calls to this agent wait for it.
const HANDSHAKE: Duration = Duration::from_secs(5);

/// One agent: where it is, and the name that its certificate must hold.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Agent {
    /// The builder's name.
    pub builder: String,
    /// The pod's address.
    pub address: IpAddr,
}

/// A channel, and the certificates that it was made with.
type Made = (Arc<Certificates>, Channel);

/// Connections to agents. They are made when first used, and made again when lost, and for new calls when certificates
/// have changed: a stream that runs goes on over the connection that it began on.
#[derive(Clone)]
pub struct Connections {
    authority: Arc<Authority>,
    channels: Arc<Mutex<HashMap<Agent, Made>>>,
    port: u16,
}

impl Connections {
    /// Connections that trust and are trusted by this authority's certificates.
    #[must_use]
    pub fn new(authority: Arc<Authority>) -> Self {
        Self { authority, channels: Arc::default(), port: AGENT_PORT }
    }

    /// The same, to agents that listen elsewhere.
    #[cfg(test)]
    pub(super) fn with_port(self, port: u16) -> Self {
        Self { port, ..self }
    }

    /// A client for this agent.
    ///
    /// # Errors
    /// Where the certificates cannot be used; nothing has been sent yet.
    pub fn client(&self, agent: &Agent) -> Result<AgentClient<Channel>, tonic::transport::Error> {
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        let certificates = self.authority.current();
        if let Some((_, channel)) = channels.get(agent).filter(|(with, _)| Arc::ptr_eq(with, &certificates)) {
            return Ok(client(channel.clone()));
        }
        let host = match agent.address {
            IpAddr::V4(address) => address.to_string(),
            IpAddr::V6(address) => format!("[{address}]"),
        };
        let identity = certificates.client();
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(certificates.trust()))
            .identity(Identity::from_pem(&identity.certificate, &identity.key))
            .domain_name(&agent.builder)
            .timeout(HANDSHAKE);
        let channel = Endpoint::from_shared(format!("https://{host}:{}", self.port))?
            .tls_config(tls)?
            .connect_timeout(CONNECT)
            .tcp_nodelay(true)
            // A node that is gone answers no ping: its connection is made again, and calls do not wait on a dead one.
            .http2_keep_alive_interval(Duration::from_secs(10))
            .keep_alive_timeout(Duration::from_secs(10))
            .keep_alive_while_idle(true)
            .connect_lazy();
        channels.insert(agent.clone(), (certificates, channel.clone()));
        Ok(client(channel))
    }

    /// Drops the connection to a builder that is gone.
    pub fn forget(&self, builder: &str) {
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        channels.retain(|agent, _| agent.builder != builder);
    }
}

/// Whether an agent could not be reached because one does not trust the other's certificate.
#[must_use]
pub fn is_untrusted(status: &tonic::Status) -> bool {
    let mut cause = status.source();
    while let Some(error) = cause {
        let inner = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        if error.is::<rustls::Error>() || inner.is_some_and(<dyn std::error::Error + Send + Sync>::is::<rustls::Error>)
        {
            return true;
        }
        cause = error.source();
    }
    false
}

/// Inline sources and secrets travel in a job: its size is that of an object in the API server, and more than gRPC's 4 MiB.
fn client(channel: Channel) -> AgentClient<Channel> {
    AgentClient::new(channel).max_encoding_message_size(32 << 20).max_decoding_message_size(4 << 20)
}
