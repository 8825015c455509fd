//! What the policy says; pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use k8s_openapi::api::networking::v1::{
    IPBlock, NetworkPolicy, NetworkPolicyEgressRule, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicySpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, OwnerReference};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::api::ObjectMeta;
use kube::{Resource as _, ResourceExt as _};

use super::Egress;
use crate::cluster_network::Endpoint;

/// The policy, removed with its `owner`.
pub(super) fn policy(egress: &Egress, owner: &NetworkPolicy, api_server: &BTreeSet<Endpoint>) -> NetworkPolicy {
    let owner = OwnerReference {
        api_version: NetworkPolicy::api_version(&()).into_owned(),
        kind: NetworkPolicy::kind(&()).into_owned(),
        name: owner.name_any(),
        uid: owner.uid().unwrap_or_default(),
        ..OwnerReference::default()
    };
    NetworkPolicy {
        metadata: ObjectMeta {
            name: Some(egress.name.clone()),
            labels: Some([("app.kubernetes.io/managed-by".to_owned(), "kiln".to_owned())].into()),
            owner_references: Some(vec![owner]),
            ..ObjectMeta::default()
        },
        spec: Some(NetworkPolicySpec {
            pod_selector: Some(LabelSelector::default()),
            policy_types: Some(vec!["Egress".to_owned()]),
            egress: Some(rules(egress, api_server)),
            ..NetworkPolicySpec::default()
        }),
    }
}

fn rules(egress: &Egress, api_server: &BTreeSet<Endpoint>) -> Vec<NetworkPolicyEgressRule> {
    let mut closed: Vec<String> = egress.metadata_addresses.clone();
    closed.extend(api_server.iter().map(|endpoint| whole(endpoint.address)));
    if !egress.private_addresses {
        closed.extend_from_slice(&egress.private_ranges);
    }
    let family = |all: &str, is_v6: bool| {
        let of: BTreeSet<&String> = closed.iter().filter(|range| range.contains(':') == is_v6).collect();
        let except: Vec<String> = of.into_iter().cloned().collect();
        block(IPBlock { cidr: all.to_owned(), except: (!except.is_empty()).then_some(except) })
    };
    let mut everywhere = vec![family("0.0.0.0/0", false), family("::/0", true)];
    if !egress.private_addresses {
        return vec![NetworkPolicyEgressRule { to: Some(everywhere), ports: None }];
    }
    // Pods: some network plugins do not count them among the addresses.
    everywhere
        .push(NetworkPolicyPeer { namespace_selector: Some(LabelSelector::default()), ..NetworkPolicyPeer::default() });
    let mut rules = vec![NetworkPolicyEgressRule { to: Some(everywhere), ports: None }];
    // A registry or Git server may share the API server's address: there, every port is open but the API server's.
    let mut shut: BTreeMap<IpAddr, BTreeSet<u16>> = BTreeMap::new();
    for endpoint in api_server {
        shut.entry(endpoint.address).or_default().insert(endpoint.port);
    }
    rules.extend(shut.iter().map(|(address, shut)| NetworkPolicyEgressRule {
        to: Some(vec![block(IPBlock { cidr: whole(*address), except: None })]),
        ports: Some(all_but(shut)),
    }));
    rules
}

fn block(of: IPBlock) -> NetworkPolicyPeer {
    NetworkPolicyPeer { ip_block: Some(of), ..NetworkPolicyPeer::default() }
}

/// The range of one address.
fn whole(address: IpAddr) -> String {
    format!("{address}/{}", if address.is_ipv6() { 128 } else { 32 })
}

/// Every TCP port but these.
fn all_but(shut: &BTreeSet<u16>) -> Vec<NetworkPolicyPort> {
    let mut ports = Vec::new();
    let mut from = 1;
    for port in shut.iter().copied().map(i32::from).chain([65536]) {
        if port > from {
            ports.push(NetworkPolicyPort {
                protocol: Some("TCP".to_owned()),
                port: Some(IntOrString::Int(from)),
                end_port: Some(port - 1),
            });
        }
        from = port + 1;
    }
    ports
}

#[cfg(test)]
mod tests {
    use super::*;

    fn egress(private_addresses: bool) -> Egress {
        Egress {
            name: "kiln-builders-addresses".into(),
            owner: "kiln-builders-dns".into(),
            metadata_addresses: vec!["169.254.169.254/32".into(), "fd00:ec2::254/128".into()],
            private_addresses,
            private_ranges: vec!["10.0.0.0/8".into(), "fc00::/7".into()],
            api_server: Vec::new(),
        }
    }

    fn owner() -> NetworkPolicy {
        let mut owner = NetworkPolicy::default();
        owner.metadata.name = Some("kiln-builders-dns".into());
        owner.metadata.uid = Some("u".into());
        owner
    }

    fn api_server() -> BTreeSet<Endpoint> {
        let of = |address: &str, port| Endpoint { address: address.parse().unwrap(), port };
        [of("198.51.100.1", 443), of("2001:db8::1", 443), of("203.0.113.1", 6443), of("203.0.113.2", 6443)].into()
    }

    /// The end-to-end tests try this one.
    #[test]
    fn closed_to_private_addresses() {
        insta::assert_yaml_snapshot!(policy(&egress(false), &owner(), &api_server()));
    }

    #[test]
    fn open_to_private_addresses() {
        insta::assert_yaml_snapshot!(policy(&egress(true), &owner(), &api_server()));
    }

    #[test]
    fn ports_around_those_that_are_shut() {
        for (shut, expected) in [
            (vec![443], vec![(1, 442), (444, 65535)]),
            (vec![1, 2, 65535], vec![(3, 65534)]),
            (vec![443, 444], vec![(1, 442), (445, 65535)]),
        ] {
            let open: Vec<_> = all_but(&shut.iter().copied().collect())
                .into_iter()
                .map(|range| match (range.port, range.end_port) {
                    (Some(IntOrString::Int(from)), Some(to)) => (from, to),
                    other => panic!("{other:?}"),
                })
                .collect();
            assert_eq!(open, expected, "{shut:?}");
        }
    }
}
