//! Which addresses the operator and builders may connect to on a tenant's behalf, checked on the resolved address at
//! connect.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use url::Host;

use super::cluster::ClusterNetwork;

/// Which addresses may be reached. Loopback, link-local, unspecified, multicast, reserved and cloud metadata
/// addresses never may. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct AddressPolicy {
    allow_private: bool,
    allow_loopback: bool,
    cluster: ClusterNetwork,
}

impl Default for AddressPolicy {
    fn default() -> Self {
        Self::new(true)
    }
}

/// An address that Kiln does not connect to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{address} is {range}: Kiln {rule}")]
pub struct AddressForbidden {
    /// The address.
    pub address: IpAddr,
    /// What it is, such as "a loopback address".
    pub range: &'static str,
    /// What holds there, such as "does not connect there".
    pub rule: &'static str,
}

const NEVER: &str = "does not connect there";
const NO_PRIVATE: &str = "does not connect there, because the BuilderPool's allow.privateAddresses is false";
const NOT_LISTED: &str = "connects there only to the Services that the BuilderPool's allow.cluster lists, by the name \
                          SERVICE.NAMESPACE.svc and a port of theirs";

/// Metadata and platform services of clouds outside the link-local range.
const METADATA_V4: [Ipv4Addr; 3] = [
    Ipv4Addr::new(100, 100, 100, 200), // Alibaba Cloud
    Ipv4Addr::new(168, 63, 129, 16),   // Azure
    Ipv4Addr::new(192, 0, 0, 192),     // Oracle Cloud
];
const METADATA_V6: [Ipv6Addr; 6] = [
    Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254),      // AWS
    Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23),       // AWS EKS Pod Identity
    Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254),       // Google Cloud
    Ipv6Addr::new(0xfd00, 0xc1, 0, 0, 0, 0, 0xa9fe, 0xa9fe), // Oracle Cloud
    Ipv6Addr::new(0xfd00, 0x42, 0, 0, 0, 0, 0, 0x42),        // Scaleway
    Ipv6Addr::new(0xfd00, 0xa9fe, 0xa9fe, 0, 0, 0, 0, 1),    // Linode
];

impl AddressPolicy {
    /// `allow_private`: whether private ranges may be reached: RFC 1918, unique local (RFC 4193) and carrier-grade NAT
    /// (RFC 6598). Most registries and forges are there.
    #[must_use]
    pub fn new(allow_private: bool) -> Self {
        Self { allow_private, allow_loopback: false, cluster: ClusterNetwork::default() }
    }

    /// Reaches loopback addresses too: for unit tests, whose servers listen there. No setting leads here.
    #[must_use]
    pub fn with_loopback(self) -> Self {
        Self { allow_loopback: true, ..self }
    }

    /// Reaches of the cluster's own network only what `cluster` lists.
    #[must_use]
    pub fn with_cluster(self, cluster: ClusterNetwork) -> Self {
        Self { cluster, ..self }
    }

    /// What holds for the addresses of a host, which may be an address itself, at a port: those of a host that the pool lists
    /// may be the cluster's own, which are private nearly everywhere.
    ///
    /// # Errors
    /// Where the host is an address that may not be reached.
    pub fn of_host<S: AsRef<str>>(&self, host: &Host<S>, port: u16) -> Result<Self, AddressForbidden> {
        let (text, ip) = match host {
            Host::Ipv4(ip) => (ip.to_string(), Some(IpAddr::from(*ip))),
            Host::Ipv6(ip) => (ip.to_string(), Some(IpAddr::from(*ip))),
            Host::Domain(name) => (name.as_ref().to_owned(), None),
        };
        let policy = if self.cluster.reaches(&text, port) { self.everywhere_in_the_cluster() } else { self.clone() };
        ip.map_or(Ok(()), |ip| policy.permits(ip))?;
        Ok(policy)
    }

    /// Whether hosts in the cluster are listed.
    pub(super) fn lists_hosts(&self) -> bool {
        !self.cluster.hosts.is_empty()
    }

    /// The same without what holds for the cluster's own addresses.
    pub(super) fn everywhere_in_the_cluster(&self) -> Self {
        Self { allow_private: true, ..self.clone() }.with_cluster(ClusterNetwork::default())
    }

    /// Whether `ip` may be reached. IPv6 addresses that carry an IPv4 one (mapped, compatible, NAT64, 6to4) are
    /// judged by that.
    pub fn permits(&self, ip: IpAddr) -> Result<(), AddressForbidden> {
        if self.allow_loopback && ip.is_loopback() {
            return Ok(());
        }
        let judged = match ip {
            IpAddr::V4(_) => ip,
            IpAddr::V6(v6) => embedded_v4(v6).map_or(ip, IpAddr::from),
        };
        let never = match judged {
            IpAddr::V4(v4) => never_v4(v4),
            IpAddr::V6(v6) => never_v6(v6),
        };
        let forbidden = |range, rule| Err(AddressForbidden { address: ip, range, rule });
        if let Some(range) = never {
            forbidden(range, NEVER)
        } else if self.cluster.has(judged) {
            forbidden("an address of the cluster (its API server, a Service, Pod or node)", NOT_LISTED)
        } else if !self.allow_private && is_private(judged) {
            forbidden("a private address", NO_PRIVATE)
        } else {
            Ok(())
        }
    }
}

fn never_v4(ip: Ipv4Addr) -> Option<&'static str> {
    let [a, ..] = ip.octets();
    if ip.is_loopback() {
        Some("a loopback address")
    } else if METADATA_V4.contains(&ip) {
        Some("a cloud metadata address")
    } else if ip.is_link_local() {
        Some("a link-local address")
    } else if a == 0 {
        Some("an unspecified address")
    } else if ip.is_multicast() {
        Some("a multicast address")
    } else if a >= 240 {
        Some("a reserved or broadcast address")
    } else {
        None
    }
}

fn never_v6(ip: Ipv6Addr) -> Option<&'static str> {
    if ip.is_loopback() {
        Some("a loopback address")
    } else if METADATA_V6.contains(&ip) {
        Some("a cloud metadata address")
    } else if ip.is_unicast_link_local() {
        Some("a link-local address")
    } else if ip.is_unspecified() {
        Some("an unspecified address")
    } else if ip.is_multicast() {
        Some("a multicast address")
    } else {
        None
    }
}

fn is_private(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => {
            let [a, b, c, _] = v4.octets();
            v4.is_private()
                || (a == 100 && (64..128).contains(&b))
                || (a == 198 && (b == 18 || b == 19))
                || (a == 192 && b == 0 && c == 0)
        }
        // fec0::/10 is the deprecated site-local range.
        IpAddr::V6(v6) => v6.is_unique_local() || v6.segments()[0] & 0xffc0 == 0xfec0,
    }
}

fn embedded_v4(ip: Ipv6Addr) -> Option<Ipv4Addr> {
    let from = |high: u16, low: u16| {
        let [a, b] = high.to_be_bytes();
        let [c, d] = low.to_be_bytes();
        Some(Ipv4Addr::new(a, b, c, d))
    };
    match ip.segments() {
        // :: and ::1 are IPv6's own.
        [0, 0, 0, 0, 0, 0, 0, 0 | 1] => None,
        [0, 0, 0, 0, 0, 0 | 0xffff, h, l]
        | [0, 0, 0, 0, 0xffff, 0, h, l]
        | [0x64, 0xff9b, 0, 0, 0, 0, h, l]
        | [0x64, 0xff9b, 1, _, _, _, h, l]
        | [0x2002, h, l, ..] => from(h, l),
        _ => None,
    }
}

/// Resolves names by the system and gives only the addresses that the policy permits.
pub(super) struct Resolver(pub(super) AddressPolicy);

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let policy = self.0.clone();
        Box::pin(async move {
            let mut refused = None;
            let mut permitted: Vec<SocketAddr> = Vec::new();
            for address in tokio::net::lookup_host((name.as_str(), 0)).await? {
                match policy.permits(address.ip()) {
                    Ok(()) => permitted.push(address),
                    Err(e) => refused = Some(e),
                }
            }
            match refused {
                Some(e) if permitted.is_empty() => Err(e.into()),
                _ => Ok(Box::new(permitted.into_iter()) as Addrs),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http_client::cluster::HostPort;
    use proptest::prelude::*;

    #[test]
    fn what_the_chart_closes_is_closed_here() {
        let values = include_str!("../../../charts/kiln/values.yaml");
        let list = values.split("metadataAddresses:\n").nth(1).unwrap();
        let items = list.lines().map_while(|line| line.trim().strip_prefix("- "));
        let addresses: Vec<IpAddr> = items.map(|item| item.split('/').next().unwrap().parse().unwrap()).collect();
        for address in &addresses {
            assert!(AddressPolicy::new(true).permits(*address).is_err(), "{address}");
        }
        for address in METADATA_V6.map(IpAddr::from).iter().chain(&METADATA_V4.map(IpAddr::from)) {
            assert!(addresses.contains(address), "{address} is not in the chart's values");
        }
    }

    #[test]
    fn table() {
        let open = AddressPolicy::new(true);
        let closed = AddressPolicy::new(false);
        // (address, with private allowed, without)
        for (ip, with, without) in [
            ("127.0.0.1", false, false),
            ("127.8.8.8", false, false),
            ("0.0.0.0", false, false),
            ("0.1.2.3", false, false),
            ("169.254.169.254", false, false),
            ("169.254.0.1", false, false),
            ("168.63.129.16", false, false),
            ("100.100.100.200", false, false),
            ("224.0.0.1", false, false),
            ("255.255.255.255", false, false),
            ("::1", false, false),
            ("::", false, false),
            ("fe80::1", false, false),
            ("febf::1", false, false),
            ("ff02::1", false, false),
            ("fd00:ec2::254", false, false),
            ("fd20:ce::254", false, false),
            ("::ffff:127.0.0.1", false, false),
            ("::127.0.0.1", false, false),
            ("64:ff9b::169.254.169.254", false, false),
            ("2002:7f00:1::", false, false),
            ("10.1.2.3", true, false),
            ("172.16.0.1", true, false),
            ("172.32.0.1", true, true),
            ("192.168.1.1", true, false),
            ("100.64.0.1", true, false),
            ("100.128.0.1", true, true),
            ("fd12::1", true, false),
            ("fc00::1", true, false),
            ("fec0::1", true, false),
            ("::ffff:10.0.0.1", true, false),
            ("64:ff9b::10.0.0.1", true, false),
            ("1.1.1.1", true, true),
            ("140.82.112.3", true, true),
            ("2606:4700::1111", true, true),
            ("64:ff9b::1.1.1.1", true, true),
        ] {
            let ip: IpAddr = ip.parse().unwrap();
            assert_eq!(open.permits(ip).is_ok(), with, "{ip} with private");
            assert_eq!(closed.permits(ip).is_ok(), without, "{ip} without private");
        }
    }

    #[test]
    fn says_what_forbids() {
        let closed = AddressPolicy::new(false);
        insta::assert_snapshot!(
            closed.permits("10.0.0.1".parse().unwrap()).unwrap_err(),
            @"10.0.0.1 is a private address: Kiln does not connect there, because the BuilderPool's allow.privateAddresses is false"
        );
        insta::assert_snapshot!(
            closed.permits("127.0.0.1".parse().unwrap()).unwrap_err(),
            @"127.0.0.1 is a loopback address: Kiln does not connect there"
        );
    }

    #[test]
    fn of_the_cluster_only_what_is_listed_is_reached() {
        let ranges = ["10.96.0.0/16", "10.217.0.11/32", "fd00:96::/108"].map(|range| range.parse().unwrap());
        let of_node = HostPort { host: "10.217.0.11".to_owned(), port: 5000 };
        let hosts = [HostPort::of_service("tools", "registry", 5000), of_node].into();
        let policy = AddressPolicy::new(true).with_cluster(ClusterNetwork::new(&ranges, hosts));
        let permits = |policy: &AddressPolicy, ip: &str| policy.permits(ip.parse().unwrap()).is_ok();
        for (ip, expected) in [
            ("10.96.0.1", false),
            ("::ffff:10.96.0.1", false),
            ("64:ff9b::10.96.0.1", false),
            ("fd00:96::1", false),
            ("10.217.0.11", false),
            ("10.217.0.12", true),
            ("10.97.0.1", true),
            ("1.1.1.1", true),
        ] {
            assert_eq!(permits(&policy, ip), expected, "{ip}");
        }
        let of = |host: &str, port| policy.of_host(&Host::parse(host).unwrap(), port);
        assert!(permits(&of("registry.tools.svc", 5000).unwrap(), "10.96.0.7"), "a Service that is listed");
        assert!(!permits(&of("registry.tools.svc", 5000).unwrap(), "169.254.169.254"), "it leads nowhere else");
        assert!(!permits(&of("git.tools.svc", 5000).unwrap(), "10.96.0.7"), "a Service that is not");
        assert!(permits(&of("registry.example", 443).unwrap(), "1.1.1.1"));
        assert!(of("10.217.0.11", 5000).is_ok(), "a mirror on a node");
        assert!(of("10.217.0.11", 10250).is_err(), "its kubelet");
        // A mirror's host may be a Git server's, too: it is judged by its address.
        assert!(of("10.97.0.1", 2222).is_ok());
        insta::assert_snapshot!(of("10.96.0.7", 5000).unwrap_err(), @"10.96.0.7 is an address of the cluster (its API server, a Service, Pod or node): Kiln connects there only to the Services that the BuilderPool's allow.cluster lists, by the name SERVICE.NAMESPACE.svc and a port of theirs");
        let strict = AddressPolicy { allow_private: false, ..policy.clone() };
        let listed = strict.of_host(&Host::parse("registry.tools.svc").unwrap(), 5000).unwrap();
        assert!(permits(&listed, "10.96.0.7"), "the pool lists it, whatever it says of private addresses");
        assert!(!permits(&strict, "10.97.0.1"));
        assert!(!permits(&of("registry.tools.svc", 22).unwrap(), "10.96.0.7"), "another port of it");
        assert_eq!(of("[::ffff:10.96.0.7]", 5000).unwrap_err().rule, NOT_LISTED);
    }

    proptest! {
        #[test]
        fn mapped_addresses_are_judged_as_their_v4(bits: u32, allow_private: bool) {
            let policy = AddressPolicy::new(allow_private);
            let v4 = Ipv4Addr::from(bits);
            let plain = policy.permits(v4.into()).is_ok();
            prop_assert_eq!(policy.permits(v4.to_ipv6_mapped().into()).is_ok(), plain);
        }

        #[test]
        fn forbidding_private_never_allows_more(bits: u128) {
            let ip = IpAddr::from(Ipv6Addr::from(bits));
            if AddressPolicy::new(false).permits(ip).is_ok() {
                let open = AddressPolicy::new(true);
                prop_assert!(open.permits(ip).is_ok());
            }
        }
    }
}
