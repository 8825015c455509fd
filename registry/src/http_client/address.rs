//! Which addresses the operator and builders may connect to on a tenant's behalf, checked on the resolved address at
//! connect.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use reqwest::dns::{Addrs, Name, Resolve, Resolving};

/// Which addresses may be reached. Loopback, link-local, unspecified, multicast, reserved and cloud metadata
/// addresses never may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AddressPolicy {
    allow_private: bool,
    allow_loopback: bool,
}

impl Default for AddressPolicy {
    fn default() -> Self {
        Self::new(true)
    }
}

/// An address that Kiln does not connect to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{ip} is {range}: Kiln does not connect there{}", if *.private { ", because the BuilderPool's allow.privateAddresses is false" } else { "" })]
pub struct AddressForbidden {
    /// The address.
    pub ip: IpAddr,
    /// What it is, such as "a loopback address".
    pub range: &'static str,
    /// Whether only the policy on private addresses forbids it.
    pub private: bool,
}

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
    pub const fn new(allow_private: bool) -> Self {
        Self { allow_private, allow_loopback: false }
    }

    /// Reaches loopback addresses too: for unit tests, whose servers listen there. No setting leads here.
    #[must_use]
    pub const fn with_loopback(self) -> Self {
        Self { allow_loopback: true, ..self }
    }

    /// Whether `ip` may be reached. IPv6 addresses that carry an IPv4 one (mapped, compatible, NAT64, 6to4) are
    /// judged by that.
    pub fn permits(self, ip: IpAddr) -> Result<(), AddressForbidden> {
        if self.allow_loopback && ip.is_loopback() {
            return Ok(());
        }
        let forbidden = match ip {
            IpAddr::V4(v4) => never_v4(v4),
            IpAddr::V6(v6) => match embedded_v4(v6) {
                Some(v4) => never_v4(v4),
                None => never_v6(v6),
            },
        };
        if let Some(range) = forbidden {
            return Err(AddressForbidden { ip, range, private: false });
        }
        if !self.allow_private && is_private(ip) {
            return Err(AddressForbidden { ip, range: "a private address", private: true });
        }
        Ok(())
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
        IpAddr::V6(v6) => match embedded_v4(v6) {
            Some(v4) => is_private(v4.into()),
            // fec0::/10 is the deprecated site-local range.
            None => v6.is_unique_local() || v6.segments()[0] & 0xffc0 == 0xfec0,
        },
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
        let policy = self.0;
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
