//! IPv4 addresses inside IPv6 addresses. Pure: it finds embedded addresses, and judges nothing.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::Ipv6Net;

const fn net(a: u16, b: u16, c: u16, length: u8) -> Ipv6Net {
    Ipv6Net::new_assert(Ipv6Addr::new(a, b, c, 0, 0, 0, 0, 0), length)
}

/// NAT64's well-known prefix (RFC 6052).
pub(super) const NAT64: Ipv6Net = net(0x64, 0xff9b, 0, 96);
/// NAT64's prefix for local use (RFC 8215), which operators cut at 48, 56, 64 or 96 bits.
const NAT64_LOCAL: Ipv6Net = net(0x64, 0xff9b, 1, 48);
const SIX_TO_FOUR: Ipv6Net = net(0x2002, 0, 0, 16);
const TEREDO: Ipv6Net = net(0x2001, 0, 0, 32);
/// IPv4-compatible (RFC 4291, deprecated).
const COMPATIBLE: Ipv6Net = net(0, 0, 0, 96);
/// IPv4-translated (RFC 2765).
const TRANSLATED: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0, 0, 0, 0, 0xffff, 0, 0, 0), 96);

/// Every IPv4 address that a packet to this IPv6 address may be handed on to. A mapped address is not here: it is
/// an IPv4 address in another spelling. Nor are 6rd and NAT64 under a prefix of a network's own: their form says
/// nothing, and only that network knows it.
pub(super) fn v4_in(address: Ipv6Addr) -> Vec<Ipv4Addr> {
    if address.is_loopback() || address.is_unspecified() {
        // Not IPv4-compatible (RFC 4291, 2.5.2 and 2.5.3): no packet to them leaves this host.
        return Vec::new();
    }
    let bits = u128::from(address);
    // 32 bits, this number above the last one.
    let at = |shift: u32| Ipv4Addr::from((bits >> shift) as u32);
    let mut found = Vec::new();
    if [NAT64, COMPATIBLE, TRANSLATED].iter().any(|net| net.contains(&address)) || is_isatap(address) {
        found.push(at(0));
    }
    if SIX_TO_FOUR.contains(&address) {
        found.push(at(80));
    }
    if TEREDO.contains(&address) {
        found.extend([at(64), Ipv4Addr::from(!(bits as u32))]);
    }
    if NAT64_LOCAL.contains(&address) {
        found.extend([around_u(bits, 48), around_u(bits, 56), around_u(bits, 64), at(0)]);
    }
    found
}

/// The interface identifier is `0000:5efe` and the address (RFC 5214); its bits for "universal" and "group" may be
/// set.
fn is_isatap(address: Ipv6Addr) -> bool {
    let segments = address.segments();
    segments[4] & 0xfcff == 0 && segments[5] == 0x5efe
}

/// The 32 bits behind a prefix of this length, without the octet at bit 64 that stays 0 (RFC 6052, 2.2).
fn around_u(bits: u128, length: u32) -> Ipv4Addr {
    let without = (bits >> 64 << 56) | (bits & ((1 << 56) - 1));
    Ipv4Addr::from((without >> (120 - 32 - length)) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The examples of RFC 6052, 2.4, and of the documents of the other forms.
    #[test]
    fn the_standards_examples_are_found() {
        let holds = |text: &str, v4: &str| v4_in(text.parse().unwrap()).contains(&v4.parse().unwrap());
        assert!(holds("64:ff9b::192.0.2.33", "192.0.2.33"));
        assert!(holds("64:ff9b:1:c000:2:2100::", "192.0.2.33"));
        assert!(holds("64:ff9b:1:c0:0:221::", "192.0.2.33"));
        assert!(holds("64:ff9b:1:0:c0:2:2100:0", "192.0.2.33"));
        assert!(holds("64:ff9b:1::192.0.2.33", "192.0.2.33"));
        assert!(holds("2002:c000:221::1", "192.0.2.33"));
        assert!(holds("2001:0:4136:e378:8000:63bf:3fff:fdd2", "65.54.227.120"));
        assert!(holds("2001:0:4136:e378:8000:63bf:3fff:fdd2", "192.0.2.45"));
        assert!(holds("fe80::5efe:192.0.2.33", "192.0.2.33") && holds("fe80::200:5efe:192.0.2.33", "192.0.2.33"));
        assert!(["::", "::1"].into_iter().all(|text| v4_in(text.parse().unwrap()).is_empty()));
        assert!(holds("::192.0.2.33", "192.0.2.33") && holds("::ffff:0:192.0.2.33", "192.0.2.33"));
        assert!(v4_in("2606:4700::1111".parse().unwrap()).is_empty());
        assert!(v4_in("fd00::1:5efe:192.0.2.33".parse().unwrap()).is_empty());
    }
}
