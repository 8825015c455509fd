//! The addresses of the cluster's own network, as far as objects tell them: the API server's, and those of Services, Pods
//! and nodes.
//!
//! A NetworkPolicy keeps builders from the API server ([`crate::network_policy`]). And what an ImageBuild names as source
//! or registry is at none of them, but at a Service that its BuilderPool lists: whoever may write an ImageBuild would
//! otherwise reach, through the operator and its builders, what only the cluster's own components should.

mod addresses;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use kiln_crds::BuilderPool;
use kiln_registry::http_client::{ClusterNetwork, HostPort};
use kube::api::ListParams;
use kube::runtime::reflector::Store;
use kube::runtime::watcher::Config;
use kube::{Api, Client};
use serde::Deserialize;
use tokio::sync::{Notify, SetOnce, watch};
use tracing::{info, warn};

use crate::context::{backoff, namespaced};
use crate::trim;
use crate::watches::{Synced, drive, watch as watch_kind};

/// The namespace of the API server's Service, and the name of that and of its EndpointSlice.
const API_SERVER: (&str, &str) = ("default", "kubernetes");

/// How long the first look at the EndpointSlice may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often an API server is asked whether it knows a kind by now.
const UPGRADED: Duration = Duration::from_hours(1);

/// An address and a port of the API server.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd)]
pub struct Endpoint {
    /// The address.
    pub address: IpAddr,
    /// The port.
    pub port: u16,
}

/// What is known, kept up to date by [`keep`].
#[derive(Debug)]
pub struct ClusterAddresses {
    /// `None`: not read yet.
    api_server: watch::Sender<Option<BTreeSet<Endpoint>>>,
    /// One that does not change is one allocation: clients of registries and Git servers are found by it.
    ranges: Mutex<Arc<[IpNet]>>,
    /// Set once what there is has been looked at.
    known: Arc<SetOnce<()>>,
}

impl Default for ClusterAddresses {
    /// Nothing is known.
    fn default() -> Self {
        Self::new(Arc::default())
    }
}

impl ClusterAddresses {
    /// Nothing is known yet. `known` is set when it is.
    #[must_use]
    pub fn new(known: Arc<SetOnce<()>>) -> Self {
        Self { api_server: watch::Sender::new(None), ranges: Mutex::default(), known }
    }

    /// What builds of a pool may reach of the cluster's network.
    #[must_use]
    pub fn network(&self, pool: &BuilderPool) -> ClusterNetwork {
        ClusterNetwork {
            ranges: self.ranges.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            hosts: hosts(pool),
        }
    }

    /// Where the API server is, and every change of that. `None`: not known yet.
    #[must_use]
    pub fn api_server(&self) -> watch::Receiver<Option<BTreeSet<Endpoint>>> {
        self.api_server.subscribe()
    }

    fn set_api_server(&self, found: &BTreeSet<Endpoint>) {
        self.api_server.send_if_modified(|told| {
            let is_news = told.as_ref() != Some(found);
            if is_news {
                *told = Some(found.clone());
            }
            is_news
        });
    }

    fn set_ranges(&self, found: &[IpNet]) {
        let found = ClusterNetwork::new(found, BTreeSet::new()).ranges;
        let mut ranges = self.ranges.lock().unwrap_or_else(PoisonError::into_inner);
        if *ranges != found {
            info!(ranges = found.len(), "the cluster's own addresses have changed");
            *ranges = found;
        }
    }
}

/// What a pool lets its builds reach wherever it is: the Services that it lists, and its mirrors, which it names itself.
fn hosts(pool: &BuilderPool) -> BTreeSet<HostPort> {
    let listed = pool.spec.allow.iter().flat_map(|allow| &allow.cluster);
    let services = listed.flat_map(|listed| {
        listed.ports.iter().map(|port| HostPort::of_service(&listed.namespace, &listed.service, *port))
    });
    let mirrors = pool.spec.registries.iter().flat_map(|registry| &registry.mirrors).map(|mirror| {
        let place = mirror.split_once('/').map_or(mirror.as_str(), |(place, _)| place).to_ascii_lowercase();
        let is_plain = pool.spec.registries.iter().any(|known| known.plain_http && known.host == place);
        let named = place.rsplit_once(':').and_then(|(host, port)| Some((host.to_owned(), port.parse().ok()?)));
        let (host, port) = named.unwrap_or((place, if is_plain { 80 } else { 443 }));
        HostPort { host, port }
    });
    services.chain(mirrors).collect()
}

/// What is known without looking, from the chart's values.
#[derive(Clone, Copy, Debug)]
pub struct Named<'a> {
    /// Addresses of the API server.
    pub api_server: &'a [Endpoint],
    /// Ranges that are the cluster's.
    pub ranges: &'a [IpNet],
}

/// Keeps what is known up to date, for ever. `nodes` is whole when `synced` is, and `nodes_changed` tells of its changes.
pub async fn keep(
    client: &Client,
    known: &ClusterAddresses,
    named: Named<'_>,
    nodes: &Store<Node>,
    synced: &Synced,
    nodes_changed: &Notify,
) {
    let (namespace, name) = API_SERVER;
    let (mut of_slices, mut of_services) = (Synced::default(), Synced::default());
    let of_api_server = Config::default().fields(&format!("metadata.name={name}"));
    let slices: Api<EndpointSlice> = namespaced(client, namespace);
    let (slices, slice_changes) = watch_kind(slices, of_api_server, trim::managed_fields, &mut of_slices);
    let service_ranges: Api<ServiceCIDR> = Api::all(client.clone());
    let (service_cidrs, service_changes) =
        watch_kind(service_ranges.clone(), Config::default(), trim::managed_fields, &mut of_services);
    let (changed, asked, service) = (Notify::new(), [SetOnce::new(), SetOnce::new()], SetOnce::new());
    let watched = futures::future::join4(
        drive(slice_changes, |_| changed.notify_one()),
        async {
            is_there(&service_ranges, &asked[0], named.ranges.is_empty()).await;
            drive(service_changes, |_| changed.notify_one()).await;
        },
        async {
            of_services.wait().await;
            let _ = asked[0].set(());
        },
        async {
            let _ = service.set(read_service(client, &asked[1]).await);
            changed.notify_one();
        },
    );
    let kept = async {
        synced.wait().await;
        // What cannot be read does not hold up what is known.
        if tokio::time::timeout(PATIENCE, of_slices.wait()).await.is_err() {
            warn!("the API server's EndpointSlice default/kubernetes cannot be read; builds begin without it");
        }
        for asked in &asked {
            asked.wait().await;
        }
        // An API server that ends takes its address out, and serves on for a moment: what was one stays closed.
        let mut api_server: BTreeSet<Endpoint> = named.api_server.iter().copied().collect();
        loop {
            api_server.extend(slices.state().iter().flat_map(|slice| addresses::of_slice(slice)));
            api_server.extend(service.get().into_iter().flat_map(addresses::of_service));
            let mut ranges = named.ranges.to_vec();
            ranges.extend(api_server.iter().map(|endpoint| IpNet::from(endpoint.address)));
            ranges.extend(nodes.state().iter().flat_map(|node| addresses::of_node(node)));
            ranges.extend(service_cidrs.state().iter().flat_map(|range| addresses::of_service_cidr(range)));
            known.set_ranges(&ranges);
            if service.get().is_some() {
                known.set_api_server(&api_server);
            }
            // Set already: it is not the first look.
            let _ = known.known.set(());
            tokio::select! {
                () = changed.notified() => {}
                () = nodes_changed.notified() => {}
            }
        }
    };
    tokio::select! {
        _ = watched => {}
        () = kept => {}
    }
}

/// Waits until the API server has this kind: before Kubernetes 1.33 it has not, and a watch would ask for it all the time.
/// `asked` is set once that was tried. `is_all`: nothing else tells where Services are.
async fn is_there(ranges: &Api<ServiceCIDR>, asked: &SetOnce<()>, is_all: bool) {
    let mut failures = 0;
    loop {
        let answer = ranges.list(&ListParams::default().limit(1)).await;
        let is_first = asked.set(()).is_ok();
        let again = match answer {
            Ok(_) => return,
            Err(kube::Error::Api(status)) if status.is_not_found() => {
                if is_first && is_all {
                    warn!(
                        "this API server does not tell the ranges of its Services' addresses, as none before Kubernetes \
                         1.33: builds may reach Services until the chart's clusterRanges names them"
                    );
                }
                UPGRADED
            }
            Err(error) => {
                failures += 1;
                warn!(%error, "the ranges of the Services' addresses cannot be read");
                backoff(failures)
            }
        };
        tokio::time::sleep(again).await;
    }
}

/// The API server's Service. Its addresses never change, and it may have one of each family. `asked` is set once that was
/// tried.
async fn read_service(client: &Client, asked: &SetOnce<()>) -> Service {
    let (namespace, name) = API_SERVER;
    let services = namespaced::<Service>(client, namespace);
    let mut failures = 0;
    loop {
        let answer = services.get(name).await;
        let _ = asked.set(());
        match answer {
            Ok(service) => return service,
            Err(error) => {
                failures += 1;
                warn!(%error, "the API server's Service cannot be read");
                tokio::time::sleep(backoff(failures)).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{from_value, json};

    #[test]
    fn what_a_pool_lets_its_builds_reach() {
        let pool: BuilderPool = from_value(json!({
            "apiVersion": "kiln.build/v1alpha1", "kind": "BuilderPool", "metadata": {"name": "default"},
            "spec": {
                "allow": {"cluster": [{"namespace": "tools", "service": "registry", "ports": [443, 5000]}]},
                "registries": [
                    {"host": "docker.io", "mirrors": ["mirror.example/docker.io", "10.0.0.1:5000", "Plain.example"]},
                    {"host": "plain.example", "plainHttp": true},
                ],
            },
        }))
        .unwrap();
        let hosts: Vec<_> = hosts(&pool).into_iter().map(|known| format!("{}:{}", known.host, known.port)).collect();
        let expected = [
            "10.0.0.1:5000",
            "mirror.example:443",
            "plain.example:80",
            "registry.tools.svc:443",
            "registry.tools.svc:5000",
        ];
        assert_eq!(hosts, expected);
    }
}
