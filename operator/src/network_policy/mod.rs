//! Keeps the NetworkPolicy that lets builders out: everywhere but to the API server and to what hands out a node's
//! credentials.
//!
//! The chart's own policy lets them reach DNS alone. Which addresses the API server has only the cluster knows, and they
//! change: a GitOps tool that renders the chart cannot look them up, and would set back what somebody else writes into its
//! objects. So this object is the operator's.

mod plan;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::api::{Patch, PatchParams};
use kube::runtime::watcher::Config;
use kube::{Api, Client, ResourceExt as _};
use serde::Deserialize;
use tokio::sync::Notify;
use tokio::sync::watch::Receiver;
use tracing::{info, warn};

use crate::cluster_network::Endpoint;
use crate::context::{FIELD_MANAGER, backoff, namespaced};
use crate::trim;
use crate::watches::{Synced, drive, watch};

/// What builders may reach, from the chart's values.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Egress {
    /// The name of the NetworkPolicy.
    pub name: String,
    /// The chart's NetworkPolicy of the same namespace: where it is removed, so is this one.
    pub owner: String,
    /// Ranges that are never reached: they hand out the node's credentials.
    pub metadata_addresses: Vec<String>,
    /// Whether private addresses and Pods may be reached.
    pub private_addresses: bool,
    /// The private ranges.
    pub private_ranges: Vec<String>,
    /// Addresses of the API server beside those that are found.
    pub api_server: Vec<Endpoint>,
}

/// Why the policy is not written.
#[derive(Debug, thiserror::Error)]
enum Error {
    /// No address of the API server is known.
    #[error(
        "the EndpointSlice default/kubernetes names no address of the API server: name them in builder.networkPolicy.apiServer"
    )]
    Nowhere,
    /// The chart's policy is not there.
    #[error("the chart's NetworkPolicy {0} is not in the namespace of the builders")]
    NoOwner(String),
    /// The API server did not do what was asked.
    #[error(transparent)]
    Api(#[from] kube::Error),
}

/// Keeps the policy as it should be, for ever. Nothing is written while it is. `api_server`: its addresses, once they are
/// known.
pub async fn keep(
    client: &Client,
    builders_namespace: &str,
    egress: &Egress,
    mut api_server: Receiver<Option<BTreeSet<Endpoint>>>,
) {
    let policies: Api<NetworkPolicy> = namespaced(client, builders_namespace);
    let mut synced = Synced::default();
    let (there, policy_changes) = watch(policies.clone(), Config::default(), trim::managed_fields, &mut synced);
    let changed = Notify::new();
    let watched = drive(policy_changes, |_| changed.notify_one());
    let written = async {
        synced.wait().await;
        let mut failures = 0;
        loop {
            let known = api_server.borrow_and_update().clone();
            let again = match known {
                None => Duration::MAX,
                Some(known) => match write(&policies, egress, &known, &there.state()).await {
                    Ok(()) => {
                        failures = 0;
                        Duration::MAX
                    }
                    Err(error) => {
                        failures += 1;
                        warn!(%error, "the NetworkPolicy that lets builders out is not written");
                        backoff(failures)
                    }
                },
            };
            // A change, or the time to try again.
            tokio::select! {
                () = changed.notified() => {}
                _ = api_server.changed() => {}
                () = tokio::time::sleep(again) => {}
            }
        }
    };
    tokio::select! {
        () = watched => {}
        () = written => {}
    }
}

async fn write(
    policies: &Api<NetworkPolicy>,
    egress: &Egress,
    api_server: &BTreeSet<Endpoint>,
    there: &[Arc<NetworkPolicy>],
) -> Result<(), Error> {
    // Where nothing is known, everything would be open. Builders wait with what is there.
    if api_server.is_empty() {
        return Err(Error::Nowhere);
    }
    let find = |name: &str| there.iter().find(|policy| policy.name_any() == name);
    // It goes with the chart's: without that, nobody would remove it.
    let owner = find(&egress.owner).ok_or_else(|| Error::NoOwner(egress.owner.clone()))?;
    let wanted = plan::policy(egress, owner, api_server);
    let is_there = find(&egress.name).is_some_and(|found| {
        found.spec == wanted.spec && found.metadata.owner_references == wanted.metadata.owner_references
    });
    if is_there {
        return Ok(());
    }
    policies.patch(&egress.name, &PatchParams::apply(FIELD_MANAGER).force(), &Patch::Apply(&wanted)).await?;
    info!(policy = egress.name, "the NetworkPolicy that lets builders out is written");
    Ok(())
}
