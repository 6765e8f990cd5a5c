//! Whether a host is one that a peer could be reached at.
//!
//! Three kinds of addresses are refused where they are given: an address that only a listener can have (a wildcard), an
//! address that means many nodes (multicast, broadcast), and a name that no resolver accepts. In the log, such an
//! address would be dialled for ever.
//!
//! Deliberately absent: asking a resolver. A name may have an address later.

use std::net::{IpAddr, Ipv4Addr};

/// The longest name of a host, in bytes, and the longest part of it between dots (RFC 1035 section 2.3.4).
const MAX_NAME: usize = 253;
const MAX_LABEL: usize = 63;

/// Why an IP address cannot be the address of one peer.
pub(super) fn ip_problem(address: IpAddr) -> Option<String> {
    let ip = address.to_canonical();
    let no_host = match ip {
        IpAddr::V4(v4) => v4.octets()[0] == 0,
        IpAddr::V6(v6) => v6.is_unspecified(),
    };
    match () {
        () if no_host => Some(format!(
            "{address} is where a node may listen, and no address that a peer could reach it at: name one of its own"
        )),
        () if ip.is_multicast() => Some(format!("{address} is a multicast address, and one node is meant")),
        () if ip == IpAddr::V4(Ipv4Addr::BROADCAST) => {
            Some(format!("{address} is the broadcast address, and one node is meant"))
        }
        () => None,
    }
}

/// What is wrong with a host that is no address in brackets.
pub(super) fn host_problem(host: &str) -> Option<String> {
    if host.is_empty() {
        return Some("the host is missing".to_owned());
    }
    if let Some(stray) = host.chars().find(|c| !c.is_ascii_alphanumeric() && !"-._".contains(*c)) {
        return Some(format!("a host name cannot contain {stray:?}"));
    }
    if let Ok(v4) = host.parse::<Ipv4Addr>() {
        return ip_problem(v4.into());
    }
    // The dot of the root may stand at the end.
    let name = host.strip_suffix('.').unwrap_or(host);
    if name.len() > MAX_NAME {
        return Some(format!("a host name has at most {MAX_NAME} letters, and this one has {}", name.len()));
    }
    for label in name.split('.') {
        match label.len() {
            0 => return Some(format!("{host} has nothing between two dots")),
            long if long > MAX_LABEL => {
                return Some(format!(
                    "a host name has at most {MAX_LABEL} letters between two dots, and here are {long}"
                ));
            }
            _ if label.starts_with('-') || label.ends_with('-') => {
                return Some(format!("no part of a host name begins or ends with a dash, as {label} does"));
            }
            _ => {}
        }
    }
    // Resolvers read it as an address, in a form that people do not expect: 10.0.1 is 10.0.0.1, and 0x0 is the
    // wildcard.
    let last = name.rsplit('.').next().unwrap_or(name);
    let hexadecimal = last.strip_prefix("0x").or_else(|| last.strip_prefix("0X"));
    let number = last.bytes().all(|byte| byte.is_ascii_digit())
        || hexadecimal.is_some_and(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()));
    number.then(|| format!("{host} is not an IPv4 address"))
}

/// One text for all the ways to write an address, to compare it by.
pub(super) fn canonical(text: &str) -> String {
    let Some((host, port)) = text.rsplit_once(':') else { return text.to_ascii_lowercase() };
    let in_brackets = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let host = match in_brackets.unwrap_or(host).parse::<IpAddr>() {
        Ok(ip) => ip.to_canonical().to_string(),
        Err(_) => host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase(),
    };
    format!("{host} {}", port.trim_start_matches('0'))
}
