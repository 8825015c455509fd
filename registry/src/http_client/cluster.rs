//! The addresses that are the cluster's own, as far as they are known, and the hosts among them that may be reached.

use std::collections::BTreeSet;
use std::sync::Arc;

use ipnet::IpNet;

/// The domain of a cluster's names, as nearly every cluster has it. Names that end in `.svc` need none.
const DOMAIN: &str = ".cluster.local";

/// What of the cluster's own network may be reached. Cheap to clone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct ClusterNetwork {
    /// Addresses of the API server, Services, Pods and nodes: none is reached, but as one of `hosts`.
    pub ranges: Arc<[IpNet]>,
    /// What may be reached there.
    pub hosts: BTreeSet<HostPort>,
}

/// A port of a host. Ordered by host.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostPort {
    /// In lower case. Of a Service it is what stands before the cluster's domain, such as "registry.tools.svc".
    pub host: String,
    /// The port.
    pub port: u16,
}

impl HostPort {
    /// The port of the Service `service` in `namespace`.
    #[must_use]
    pub fn of_service(namespace: &str, service: &str, port: u16) -> Self {
        Self { host: format!("{service}.{namespace}.svc"), port }
    }
}

impl ClusterNetwork {
    /// `ranges` in any order, and some in others; what is said twice is left out.
    #[must_use]
    pub fn new(ranges: &[IpNet], hosts: BTreeSet<HostPort>) -> Self {
        let mut ranges = IpNet::aggregate(&ranges.to_vec());
        ranges.sort_unstable();
        Self { ranges: ranges.into(), hosts }
    }

    /// Whether an address is the cluster's own.
    pub(super) fn has(&self, ip: std::net::IpAddr) -> bool {
        self.ranges.iter().any(|range| range.contains(&ip))
    }

    /// Whether `host` is one of those that may be reached, at `port`.
    pub(super) fn reaches(&self, host: &str, port: u16) -> bool {
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        let name = host.strip_suffix(DOMAIN).unwrap_or(&host);
        self.hosts.iter().any(|known| known.port == port && (known.host == name || known.host == host))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_services() {
        let mirror = HostPort { host: "mirror.example".to_owned(), port: 443 };
        let of = |port| HostPort::of_service("tools", "registry", port);
        let network = ClusterNetwork::new(&[], [of(5000), of(443), mirror].into());
        for (host, port, expected) in [
            ("registry.tools.svc", 5000, true),
            ("registry.tools.svc", 443, true),
            ("Registry.Tools.SVC.", 443, true),
            ("registry.tools.svc.cluster.local", 443, true),
            ("registry.tools.svc.cluster.local.", 5000, true),
            ("registry.tools.svc", 5001, false),
            ("registry.tools.svc.evil.example", 443, false),
            ("registry.tools.svc.cluster.local.evil.example", 443, false),
            ("x.registry.tools.svc", 443, false),
            ("registry.other.svc", 443, false),
            ("registry.tools", 443, false),
            ("registry", 443, false),
            ("mirror.example", 443, true),
            ("mirror.example", 80, false),
        ] {
            assert_eq!(network.reaches(host, port), expected, "{host} {port}");
        }
    }

    #[test]
    fn ranges_are_merged() {
        let range = |text: &str| text.parse::<IpNet>().unwrap();
        let ranges = ["10.1.1.0/24", "10.1.0.0/24", "10.1.0.7/32", "fd00::/64", "10.1.0.0/24"].map(range);
        let network = ClusterNetwork::new(&ranges, BTreeSet::new());
        assert_eq!(*network.ranges, [range("10.1.0.0/23"), range("fd00::/64")]);
    }
}
