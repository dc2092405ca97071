//! Where a caller is: the peer, or an address in a header, and behind the peer only ones whom a trusted proxy named. The
//! first byte chooses the peer; the rest is headers, one a line.
#![no_main]

use std::net::{IpAddr, SocketAddr};

use ai_service::{
    access::{AddressKey, AddressRules},
    config::Access,
};
use ipnet::IpNet;
use libfuzzer_sys::fuzz_target;

const PEERS: [&str; 6] = ["203.0.113.7", "10.0.0.1", "::ffff:10.0.0.1", "2001:db8::1", "2001:db9::1", "::1"];
const PROXIES: [&str; 3] = ["10.0.0.0/8", "2001:db8::/32", "::1/128"];

fuzz_target!(|input: &[u8]| {
    let Some((choice, headers)) = input.split_first() else { return };
    let peer: IpAddr = PEERS[usize::from(*choice) % PEERS.len()].parse().expect("an address");
    let trusted_proxies: Vec<IpNet> = PROXIES.iter().map(|net| net.parse().expect("a network")).collect();
    let is_trusted = |address: IpAddr| trusted_proxies.iter().any(|net| net.contains(&address));
    let headers: Vec<&[u8]> = headers.split(|byte| *byte == b'\n').collect();

    // From the nearest: the peer, then the headers read from behind, up to what cannot be read.
    let hops = headers.iter().flat_map(|header| header.split(|byte| *byte == b',')).rev();
    let mut way = vec![peer.to_canonical()];
    way.extend(hops.map_while(read));
    let expected =
        way.iter().find(|address| !is_trusted(**address)).or(way.last()).copied().expect("the peer at least");

    let rules = AddressRules::new(&Access { trusted_proxies: trusted_proxies.clone(), ..Access::default() });
    let found = rules.caller(peer, headers.iter().copied());
    assert_eq!(found, expected, "{way:?}");
    let nobody_trusted = AddressRules::new(&Access::default());
    assert_eq!(nobody_trusted.caller(peer, headers.iter().copied()), peer.to_canonical());
    assert!(!AddressKey::of(found).name().is_empty());
});

fn read(hop: &[u8]) -> Option<IpAddr> {
    let hop = std::str::from_utf8(hop).ok()?.trim_matches([' ', '\t']);
    let plain = hop.parse::<IpAddr>().or_else(|_| hop.parse::<SocketAddr>().map(|address| address.ip())).ok();
    let bracketed = || hop.strip_prefix('[')?.strip_suffix(']')?.parse().ok();
    plain.or_else(bracketed).map(|address| address.to_canonical())
}
