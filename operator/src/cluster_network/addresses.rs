//! What objects tell of the cluster's own addresses; pure.

use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;

use super::Endpoint;

/// The addresses of the API server's Service: a network plugin may judge a packet before its address is translated.
#[must_use]
pub fn of_service(service: &Service) -> Vec<Endpoint> {
    let Some(spec) = &service.spec else { return Vec::new() };
    let ports = spec.ports.iter().flatten().filter_map(|port| u16::try_from(port.port).ok());
    let addresses = spec.cluster_ips.iter().flatten().filter_map(|address| address.parse().ok());
    each(addresses, &ports.collect::<Vec<_>>())
}

/// Its own addresses.
#[must_use]
pub fn of_slice(slice: &EndpointSlice) -> Vec<Endpoint> {
    let ports = slice.ports.iter().flatten().filter_map(|port| u16::try_from(port.port?).ok());
    let addresses = slice.endpoints.iter().flat_map(|endpoint| &endpoint.addresses);
    each(addresses.filter_map(|address| address.parse().ok()), &ports.collect::<Vec<_>>())
}

fn each(addresses: impl Iterator<Item = IpAddr>, ports: &[u16]) -> Vec<Endpoint> {
    addresses.flat_map(|address| ports.iter().map(move |port| Endpoint { address, port: *port })).collect()
}

/// A node's addresses, and those of its Pods where the node names them; some network plugins hand out others.
#[must_use]
pub fn of_node(node: &Node) -> Vec<IpNet> {
    let addresses = node.status.iter().flat_map(|status| status.addresses.iter().flatten());
    let addresses = addresses.filter_map(|address| address.address.parse::<IpAddr>().ok()).map(IpNet::from);
    let spec = node.spec.as_ref();
    let pods = spec.into_iter().flat_map(|spec| spec.pod_cidrs.iter().flatten().chain(&spec.pod_cidr));
    addresses.chain(pods.filter_map(|range| range.parse().ok())).collect()
}

/// The addresses that Services may have.
#[must_use]
pub fn of_service_cidr(range: &ServiceCIDR) -> Vec<IpNet> {
    let ranges = range.spec.iter().flat_map(|spec| spec.cidrs.iter().flatten());
    ranges.filter_map(|range| range.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{from_value, json};

    #[test]
    fn what_objects_tell() {
        let service = json!({"spec": {"clusterIPs": ["198.51.100.1", "2001:db8::1"], "ports": [{"port": 443}]}});
        let slice = json!({
            "addressType": "IPv4", "metadata": {"name": "kubernetes"},
            "endpoints": [{"addresses": ["203.0.113.1"]}, {"addresses": ["203.0.113.2"]}],
            "ports": [{"port": 6443}],
        });
        let node = json!({
            "metadata": {"name": "n"},
            "spec": {"podCIDR": "10.244.0.0/24", "podCIDRs": ["10.244.0.0/24", "fd00:244::/64", "nonsense"]},
            "status": {"addresses": [
                {"type": "InternalIP", "address": "192.0.2.1"}, {"type": "InternalIP", "address": "2001:db8::2"},
                {"type": "Hostname", "address": "n"},
            ]},
        });
        let services =
            json!({"metadata": {"name": "kubernetes"}, "spec": {"cidrs": ["10.96.0.0/16", "fd00:96::/108"]}});
        let mut told: Vec<String> = of_service(&from_value(service).unwrap())
            .into_iter()
            .chain(of_slice(&from_value(slice).unwrap()))
            .map(|endpoint| format!("{} {}", endpoint.address, endpoint.port))
            .collect();
        told.extend(of_node(&from_value(node).unwrap()).iter().map(ToString::to_string));
        told.extend(of_service_cidr(&from_value(services).unwrap()).iter().map(ToString::to_string));
        insta::assert_snapshot!(told.join("\n"), @r"
        198.51.100.1 443
        2001:db8::1 443
        203.0.113.1 6443
        203.0.113.2 6443
        192.0.2.1/32
        2001:db8::2/128
        10.244.0.0/24
        fd00:244::/64
        10.244.0.0/24
        10.96.0.0/16
        fd00:96::/108
        ");
    }
}
