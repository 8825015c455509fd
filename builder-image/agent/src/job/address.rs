//! Which addresses a Git server may have: the operator's own rules (`http_client/address.rs`), applied where the
//! builder connects.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Metadata and platform services of clouds outside the link-local range: Alibaba Cloud, Azure, Oracle Cloud.
const METADATA_V4: [Ipv4Addr; 3] =
    [Ipv4Addr::new(100, 100, 100, 200), Ipv4Addr::new(168, 63, 129, 16), Ipv4Addr::new(192, 0, 0, 192)];
/// The same of AWS and Google Cloud.
const METADATA_V6: [Ipv6Addr; 2] =
    [Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254), Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)];

/// Why builds do not connect to an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Forbidden {
    /// It never is another host's, or it is a cloud's metadata service.
    #[error("builds may not reach it (loopback, link-local, reserved or metadata)")]
    Always,
    /// It is in a private range, and the pool forbids those.
    #[error(
        "it is a private address, and the BuilderPool's allow.privateAddresses is false; use a public server, or ask for another pool"
    )]
    Private,
}

/// Whether builds may connect to `address`; to one in a private range only where `allow_private` says so. IPv6
/// addresses that carry an IPv4 one (mapped, compatible, NAT64, 6to4) are judged by that.
pub fn permit(address: IpAddr, allow_private: bool) -> Result<(), Forbidden> {
    let (never, private) = match address {
        IpAddr::V4(v4) => (never_v4(v4), private_v4(v4)),
        IpAddr::V6(v6) => match embedded_v4(v6) {
            Some(v4) => (never_v4(v4), private_v4(v4)),
            None => (never_v6(v6), private_v6(v6)),
        },
    };
    match (never, private) {
        (true, _) => Err(Forbidden::Always),
        (_, true) if !allow_private => Err(Forbidden::Private),
        _ => Ok(()),
    }
}

fn never_v4(ip: Ipv4Addr) -> bool {
    let [first, ..] = ip.octets();
    // 240.0.0.0/4 is reserved; its last address is the broadcast.
    ip.is_loopback()
        || ip.is_link_local()
        || first == 0
        || ip.is_multicast()
        || first >= 240
        || METADATA_V4.contains(&ip)
}

fn never_v6(ip: Ipv6Addr) -> bool {
    ip.is_loopback()
        || ip.is_unspecified()
        || ip.is_multicast()
        || ip.is_unicast_link_local()
        || METADATA_V6.contains(&ip)
}

/// RFC 1918, carrier-grade NAT (RFC 6598), benchmarks (RFC 2544), protocol assignments (RFC 6890).
fn private_v4(ip: Ipv4Addr) -> bool {
    let [a, b, c, _] = ip.octets();
    ip.is_private()
        || (a == 100 && (64..128).contains(&b))
        || (a == 198 && (b == 18 || b == 19))
        || (a == 192 && b == 0 && c == 0)
}

/// Unique local addresses (RFC 4193), and the site-local ones before them.
fn private_v6(ip: Ipv6Addr) -> bool {
    ip.is_unique_local() || ip.segments()[0] & 0xffc0 == 0xfec0
}

fn embedded_v4(ip: Ipv6Addr) -> Option<Ipv4Addr> {
    let from = |high: u16, low: u16| Some(Ipv4Addr::from(u32::from(high) << 16 | u32::from(low)));
    match ip.segments() {
        // :: and ::1 are IPv6's own.
        [0, 0, 0, 0, 0, 0, 0, 0 | 1] => None,
        [0, 0, 0, 0, 0, 0 | 0xffff, high, low]
        | [0, 0, 0, 0, 0xffff, 0, high, low]
        | [0x64, 0xff9b, 0, 0, 0, 0, high, low]
        | [0x64, 0xff9b, 1, _, _, _, high, low]
        | [0x2002, high, low, ..] => from(high, low),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn addresses() {
        let cases: [(Result<(), Forbidden>, &[&str]); 3] = [
            (
                Err(Forbidden::Always),
                &[
                    "127.0.0.1",
                    "169.254.169.254",
                    "0.0.0.0",
                    "100.100.100.200",
                    "168.63.129.16",
                    "255.255.255.255",
                    "224.0.0.1",
                    "::1",
                    "::",
                    "fe80::1",
                    "ff02::1",
                    "fd00:ec2::254",
                    "::ffff:127.0.0.1",
                    "::ffff:169.254.169.254",
                    "::169.254.169.254",
                    "64:ff9b::7f00:1",
                    "64:ff9b:1::a9fe:a9fe",
                    "2002:7f00:1::",
                ],
            ),
            (
                Err(Forbidden::Private),
                &[
                    "10.0.0.1",
                    "172.16.0.1",
                    "192.168.1.1",
                    "100.64.0.1",
                    "198.18.0.1",
                    "fd00::1",
                    "fec0::1",
                    "::ffff:10.0.0.1",
                    "64:ff9b::a00:1",
                    "2002:a00:1::",
                ],
            ),
            (Ok(()), &["8.8.8.8", "172.32.0.1", "100.128.0.1", "2606:4700::1", "::ffff:8.8.8.8"]),
        ];
        for (expected, addresses) in cases {
            for address in addresses {
                let address: IpAddr = address.parse().unwrap();
                assert_eq!(permit(address, false), expected, "{address}");
                let open = if expected == Err(Forbidden::Private) { Ok(()) } else { expected };
                assert_eq!(permit(address, true), open, "{address}, where private ones are allowed");
            }
        }
    }

    proptest! {
        #[test]
        fn a_mapped_address_is_judged_as_its_v4(bits in any::<u32>(), allow_private in any::<bool>()) {
            let v4 = Ipv4Addr::from(bits);
            prop_assert_eq!(permit(v4.into(), allow_private), permit(v4.to_ipv6_mapped().into(), allow_private));
        }
    }
}
