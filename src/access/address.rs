//! Where a caller is: the peer's address, or what a trusted proxy says it is.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;

use crate::config::Access;

/// What stands for an address where callers are counted: an IPv4 address, or the first 64 bits of an IPv6 address, which
/// is what one household or one machine gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AddressKey(u64);

impl AddressKey {
    #[must_use]
    pub fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            // A prefix that no IPv6 address has that can be a caller's: ::/64 is reserved.
            IpAddr::V4(address) => Self(u64::from(u32::from(address))),
            IpAddr::V6(address) => Self((u128::from(address) >> 64).try_into().unwrap_or(u64::MAX)),
        }
    }

    /// As a name: `203.0.113.7` or `2001:db8:1:2::/64`.
    #[must_use]
    pub fn name(self) -> String {
        match u32::try_from(self.0) {
            Ok(address) => IpAddr::from(address.to_be_bytes()).to_string(),
            Err(_) => format!("{}/64", Ipv6Addr::from(u128::from(self.0) << 64)),
        }
    }
}

/// Whether an address may call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Allowed,
    Blocked,
}

/// Which addresses may call, and whose word on addresses counts.
#[derive(Clone, Debug, Default)]
pub struct AddressRules {
    blocked: Vec<IpNet>,
    /// Empty: all.
    allowed: Vec<IpNet>,
    trusted_proxies: Vec<IpNet>,
}

impl AddressRules {
    #[must_use]
    pub fn new(access: &Access) -> Self {
        let Access { blocked, allowed, trusted_proxies, .. } = access;
        Self { blocked: blocked.clone(), allowed: allowed.clone(), trusted_proxies: trusted_proxies.clone() }
    }

    #[must_use]
    pub fn judge(&self, address: IpAddr) -> Verdict {
        let is_allowed = self.allowed.is_empty() || contains(&self.allowed, address);
        if is_allowed && !contains(&self.blocked, address) { Verdict::Allowed } else { Verdict::Blocked }
    }

    /// Where the caller is, with these `X-Forwarded-For` headers. They count only as far as they were written by trusted
    /// proxies: from the right, up to the first address that is not one. What cannot be read ends the search there.
    #[must_use]
    pub fn caller<'a>(&self, peer: IpAddr, forwarded: impl DoubleEndedIterator<Item = &'a [u8]>) -> IpAddr {
        let mut caller = peer.to_canonical();
        if self.trusted_proxies.is_empty() || !contains(&self.trusted_proxies, caller) {
            return caller;
        }
        for header in forwarded.rev() {
            // An empty part says nothing. Source: RFC 9110, 5.6.1.2.
            for hop in header.rsplit(|byte| *byte == b',').filter(|hop| !hop.trim_ascii().is_empty()) {
                let Some(address) = std::str::from_utf8(hop).ok().and_then(parse) else { return caller };
                caller = address.to_canonical();
                if !contains(&self.trusted_proxies, caller) {
                    return caller;
                }
            }
        }
        caller
    }
}

fn contains(nets: &[IpNet], address: IpAddr) -> bool {
    let address = address.to_canonical();
    nets.iter().any(|net| net.contains(&address))
}

/// An address with or without a port: some proxies write one.
fn parse(hop: &str) -> Option<IpAddr> {
    let hop = hop.trim_matches([' ', '\t']);
    let bracketed = hop.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let address = bracketed.unwrap_or(hop).parse().ok();
    address.or_else(|| hop.parse::<SocketAddr>().ok().map(|address| address.ip()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nets(text: &str) -> Vec<IpNet> {
        text.split_whitespace().map(|net| net.parse().unwrap()).collect()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_proxys_word_counts_as_far_as_it_is_trusted() {
        let access = Access { trusted_proxies: nets("10.0.0.0/8 2001:db8::/32"), ..Access::default() };
        let rules = AddressRules::new(&access);
        for (peer, headers, expected) in [
            ("203.0.113.7", &["1.2.3.4"][..], "203.0.113.7"),
            ("10.0.0.1", &[], "10.0.0.1"),
            ("10.0.0.1", &["1.2.3.4"], "1.2.3.4"),
            ("10.0.0.1", &["6.6.6.6, 1.2.3.4, 10.0.0.2"], "1.2.3.4"),
            ("10.0.0.1", &["6.6.6.6", "1.2.3.4", "10.0.0.2"], "1.2.3.4"),
            ("10.0.0.1", &["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
            ("10.0.0.1", &["1.2.3.4, unknown"], "10.0.0.1"),
            ("10.0.0.1", &["1.2.3.4, unknown, 10.0.0.2"], "10.0.0.2"),
            ("10.0.0.1", &[""], "10.0.0.1"),
            ("10.0.0.1", &["1.2.3.4,"], "1.2.3.4"),
            ("10.0.0.1", &["1.2.3.4", ""], "1.2.3.4"),
            ("10.0.0.1", &["6.6.6.6, 1.2.3.4, \t,, 10.0.0.2 ,"], "1.2.3.4"),
            ("10.0.0.1", &[" , ,"], "10.0.0.1"),
            ("10.0.0.1", &["1.2.3.4:5678"], "1.2.3.4"),
            ("::ffff:10.0.0.1", &["::ffff:1.2.3.4"], "1.2.3.4"),
            ("2001:db8::1", &["[2001:db9::7]:443"], "2001:db9::7"),
            ("2001:db8::1", &["fe80::1%eth0"], "2001:db8::1"),
            ("10.0.0.1", &["1.2.3.4\u{0}"], "10.0.0.1"),
        ] {
            let headers = headers.iter().map(|header| header.as_bytes());
            assert_eq!(
                rules.caller(ip(peer), headers.clone()),
                ip(expected),
                "{peer} {:?}",
                headers.collect::<Vec<_>>()
            );
        }
        let many = vec!["10.0.0.1"; 10_000].join(",");
        assert_eq!(rules.caller(ip("10.0.0.1"), [many.as_bytes()].into_iter()), ip("10.0.0.1"));
    }

    #[test]
    fn blocked_wins_over_allowed_and_an_empty_list_allows_all() {
        let rules = |blocked, allowed| {
            AddressRules::new(&Access { blocked: nets(blocked), allowed: nets(allowed), ..Access::default() })
        };
        assert_eq!(rules("", "").judge(ip("1.2.3.4")), Verdict::Allowed);
        assert_eq!(rules("1.2.3.0/24", "").judge(ip("1.2.3.4")), Verdict::Blocked);
        assert_eq!(rules("1.2.3.0/24", "").judge(ip("::ffff:1.2.3.4")), Verdict::Blocked);
        assert_eq!(rules("", "10.0.0.0/8").judge(ip("1.2.3.4")), Verdict::Blocked);
        assert_eq!(rules("10.6.0.0/16", "10.0.0.0/8").judge(ip("10.6.0.1")), Verdict::Blocked);
        assert_eq!(rules("10.6.0.0/16", "10.0.0.0/8").judge(ip("10.7.0.1")), Verdict::Allowed);
    }

    #[test]
    fn callers_are_counted_by_address_or_by_64_bits_of_it() {
        let same = |a, b| AddressKey::of(ip(a)) == AddressKey::of(ip(b));
        assert!(same("2001:db8:1:2::1", "2001:db8:1:2:ffff::9"));
        assert!(!same("2001:db8:1:2::1", "2001:db8:1:3::1"));
        assert!(same("1.2.3.4", "::ffff:1.2.3.4"));
        assert!(!same("1.2.3.4", "1.2.3.5"));
        assert_eq!(AddressKey::of(ip("1.2.3.4")).name(), "1.2.3.4");
        assert_eq!(AddressKey::of(ip("2001:db8:1:2::1")).name(), "2001:db8:1:2::/64");
    }
}
