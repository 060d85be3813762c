//! Which addresses belong to the public internet.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Networks of IPv4 that are not public: the registry of special-purpose addresses (RFC 6890, IANA), multicast and what
/// is reserved. Clouds give out credentials at 169.254.169.254.
const SPECIAL_V4: &[(Ipv4Addr, u32)] = &[
    // This network.
    (Ipv4Addr::new(0, 0, 0, 0), 8),
    // Private (RFC 1918).
    (Ipv4Addr::new(10, 0, 0, 0), 8),
    (Ipv4Addr::new(172, 16, 0, 0), 12),
    (Ipv4Addr::new(192, 168, 0, 0), 16),
    // Shared by customers of a carrier (RFC 6598).
    (Ipv4Addr::new(100, 64, 0, 0), 10),
    // Loopback.
    (Ipv4Addr::new(127, 0, 0, 0), 8),
    // Link-local.
    (Ipv4Addr::new(169, 254, 0, 0), 16),
    // Protocol assignments.
    (Ipv4Addr::new(192, 0, 0, 0), 24),
    // Documentation.
    (Ipv4Addr::new(192, 0, 2, 0), 24),
    (Ipv4Addr::new(198, 51, 100, 0), 24),
    (Ipv4Addr::new(203, 0, 113, 0), 24),
    // Relays of 6to4, long gone.
    (Ipv4Addr::new(192, 88, 99, 0), 24),
    // Benchmarks.
    (Ipv4Addr::new(198, 18, 0, 0), 15),
    // Multicast, and all above it, broadcast among it.
    (Ipv4Addr::new(224, 0, 0, 0), 3),
];

/// All that is public of IPv6 is in here. Outside are loopback, link-local, unique-local, multicast, and the forms that
/// carry an IPv4 address: mapped, compatible and NAT64.
const GLOBAL_V6: (Ipv6Addr, u32) = (Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0), 3);

/// Networks inside that are not public after all.
const SPECIAL_V6: &[(Ipv6Addr, u32)] = &[
    // Protocol assignments: Teredo, benchmarks, ORCHID.
    (Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 23),
    // Documentation.
    (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 32),
    (Ipv6Addr::new(0x3fff, 0, 0, 0, 0, 0, 0, 0), 20),
    // 6to4 carries an IPv4 address.
    (Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 0), 16),
];

/// Whether an address belongs to the public internet. An IPv6 address that stands for an IPv4 one does not, whichever
/// that is: nobody publishes such an address.
#[must_use]
pub fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => !SPECIAL_V4.iter().any(|network| within_v4(address, *network)),
        IpAddr::V6(address) => {
            within_v6(address, GLOBAL_V6) && !SPECIAL_V6.iter().any(|network| within_v6(address, *network))
        }
    }
}

fn within_v4(address: Ipv4Addr, (network, prefix): (Ipv4Addr, u32)) -> bool {
    (address.to_bits() ^ network.to_bits()).leading_zeros() >= prefix
}

fn within_v6(address: Ipv6Addr, (network, prefix): (Ipv6Addr, u32)) -> bool {
    (address.to_bits() ^ network.to_bits()).leading_zeros() >= prefix
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn public(address: &str) -> bool {
        is_public(address.parse().unwrap())
    }

    #[test]
    fn each_class_that_is_not_public_is_refused_from_its_first_address_to_its_last() {
        for (class, addresses) in [
            ("this network", ["0.0.0.0", "0.255.255.255"]),
            ("private", ["10.0.0.0", "10.255.255.255"]),
            ("private", ["172.16.0.0", "172.31.255.255"]),
            ("private", ["192.168.0.0", "192.168.255.255"]),
            ("carrier-grade NAT", ["100.64.0.0", "100.127.255.255"]),
            ("loopback", ["127.0.0.0", "127.255.255.255"]),
            ("link-local", ["169.254.0.0", "169.254.255.255"]),
            ("metadata of clouds", ["169.254.169.254", "169.254.170.2"]),
            ("protocol assignments", ["192.0.0.0", "192.0.0.255"]),
            ("documentation", ["192.0.2.0", "192.0.2.255"]),
            ("documentation", ["198.51.100.0", "198.51.100.255"]),
            ("documentation", ["203.0.113.0", "203.0.113.255"]),
            ("6to4 relays", ["192.88.99.0", "192.88.99.255"]),
            ("benchmarks", ["198.18.0.0", "198.19.255.255"]),
            ("multicast", ["224.0.0.0", "239.255.255.255"]),
            ("reserved, broadcast", ["240.0.0.0", "255.255.255.255"]),
            ("unspecified, loopback", ["::", "::1"]),
            ("IPv4-compatible", ["::8.8.8.8", "::127.0.0.1"]),
            ("IPv4-mapped", ["::ffff:8.8.8.8", "::ffff:127.0.0.1"]),
            ("IPv4-translated", ["::ffff:0:8.8.8.8", "::ffff:0:127.0.0.1"]),
            ("NAT64", ["64:ff9b::8.8.8.8", "64:ff9b::10.0.0.1"]),
            ("local NAT64", ["64:ff9b:1::", "64:ff9b:1:ffff:ffff:ffff:ffff:ffff"]),
            ("discard", ["100::", "100::ffff:ffff:ffff:ffff"]),
            ("Teredo", ["2001::", "2001:0:ffff:ffff:ffff:ffff:ffff:ffff"]),
            ("protocol assignments", ["2001:2::", "2001:1ff:ffff:ffff:ffff:ffff:ffff:ffff"]),
            ("documentation", ["2001:db8::", "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff"]),
            ("documentation", ["3fff::", "3fff:fff:ffff:ffff:ffff:ffff:ffff:ffff"]),
            ("6to4", ["2002::", "2002:7f00:1::"]),
            ("segment routing", ["5f00::", "5f00:ffff::"]),
            ("unique-local", ["fc00::", "fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"]),
            ("metadata of a cloud", ["fd00:ec2::254", "fd20:ce::254"]),
            ("link-local", ["fe80::", "febf:ffff:ffff:ffff:ffff:ffff:ffff:ffff"]),
            ("site-local", ["fec0::", "feff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"]),
            ("multicast", ["ff00::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"]),
        ] {
            for address in addresses {
                assert!(!public(address), "{class}: {address}");
            }
        }
    }

    #[test]
    fn what_lies_right_beside_a_class_is_public() {
        for address in [
            "1.0.0.0",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "126.255.255.255",
            "128.0.0.0",
            "169.253.255.255",
            "169.255.0.0",
            "172.15.255.255",
            "172.32.0.0",
            "191.255.255.255",
            "192.0.1.0",
            "192.0.3.0",
            "192.88.98.255",
            "192.88.100.0",
            "192.167.255.255",
            "192.169.0.0",
            "198.17.255.255",
            "198.20.0.0",
            "198.51.99.255",
            "198.51.101.0",
            "203.0.112.255",
            "203.0.114.0",
            "223.255.255.255",
            "2000::",
            "2001:200::",
            "2001:db7:ffff::",
            "2001:db9::",
            "2001:ffff::",
            "2003::",
            "2606:4700:4700::1111",
            "3ffe:ffff::",
            "3fff:1000::",
        ] {
            assert!(public(address), "{address}");
        }
    }

    proptest! {
        #[test]
        fn what_stands_for_an_ipv4_address_is_never_public(address: u32) {
            let address = Ipv4Addr::from_bits(address);
            let bits = u128::from(address.to_bits());
            let nat64 = Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0).to_bits();
            let six_to_four = (0x2002u128 << 112) | (bits << 80);
            for address in [
                address.to_ipv6_mapped(),
                address.to_ipv6_compatible(),
                Ipv6Addr::from_bits(nat64 | bits),
                Ipv6Addr::from_bits(six_to_four),
            ] {
                prop_assert!(!is_public(IpAddr::V6(address)), "{}", address);
            }
        }

        /// The standard library knows some classes by itself.
        #[test]
        fn the_standard_library_agrees(address: u32, six: u128) {
            let address = Ipv4Addr::from_bits(address);
            if address.is_private()
                || address.is_loopback()
                || address.is_link_local()
                || address.is_multicast()
                || address.is_broadcast()
                || address.is_documentation()
                || address.is_unspecified()
            {
                prop_assert!(!is_public(IpAddr::V4(address)), "{}", address);
            }
            for six in [six, six | (0xfc << 120), (six >> 10) | (0x3fa << 118)] {
                let six = Ipv6Addr::from_bits(six);
                if six.is_unique_local() || six.is_unicast_link_local() || six.is_multicast() {
                    prop_assert!(!is_public(IpAddr::V6(six)), "{}", six);
                }
            }
        }
    }
}
