//! Addresses that nobody is to reach, and who came there nevertheless. Only the local cluster has them.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use jiff::Timestamp;
use serde::Deserialize;

use crate::cluster::variable;

/// The recorder's file, from the time on that this was made.
pub struct Recorder {
    file: PathBuf,
    since: Timestamp,
    /// A cloud's metadata address.
    pub metadata: IpAddr,
    /// A private host that nobody needs.
    pub forbidden: IpAddr,
    /// The zone of names for such addresses: `metadata`, `private`, `loopback`; `mixed` has a good one and metadata's.
    pub zone: String,
}

/// A connection. A second line with the same source tells what it sent first.
#[derive(Debug, Deserialize)]
pub struct Visit {
    /// When it came, or sent.
    pub time: Timestamp,
    /// Where from.
    pub source: SocketAddr,
    /// To which of the addresses.
    pub destination: SocketAddr,
    /// The first bytes.
    pub bytes: String,
}

impl Recorder {
    /// None, and a word about it, on a cluster that is not the local one.
    #[must_use]
    pub fn here() -> Option<Self> {
        if std::env::var_os("KILN_RECORDER_LOG").is_none() {
            assert!(
                std::env::var_os("KILN_LOCAL_CLUSTER").is_none(),
                "KILN_RECORDER_LOG is not set: this local cluster runs without its recorder; \
                 run: make cluster && . .cluster/env"
            );
            eprintln!("not tested: this needs the local cluster's recorder and its enforcer of NetworkPolicies");
            return None;
        }
        let address = |name| variable(name).parse().unwrap_or_else(|error| panic!("{name}: {error}"));
        Some(Self {
            file: variable("KILN_RECORDER_LOG").into(),
            since: Timestamp::now(),
            metadata: address("KILN_METADATA_ADDRESS"),
            forbidden: address("KILN_FORBIDDEN_HOST"),
            zone: variable("KILN_TEST_ZONE"),
        })
    }

    /// A name that stands for the Git server and registry where the first to look it up does so, and elsewhere for what
    /// `label` does.
    #[must_use]
    pub fn rebinding(&self, unique: &str, label: &str) -> String {
        format!("{unique}.{label}.{}", variable("KILN_REBINDING_NAME"))
    }

    /// Who came from one of these addresses.
    #[must_use]
    pub fn visits(&self, from: &[IpAddr]) -> Vec<Visit> {
        let text = std::fs::read_to_string(&self.file)
            .unwrap_or_else(|error| panic!("KILN_RECORDER_LOG names {}: {error}", self.file.display()));
        text.lines()
            .map(|line| serde_json::from_str::<Visit>(line).unwrap_or_else(|error| panic!("{line}: {error}")))
            .filter(|visit| visit.time >= self.since && from.contains(&visit.source.ip()))
            .collect()
    }
}
