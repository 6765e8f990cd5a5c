//! Ports for nodes of tests that run beside each other.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
    sync::atomic::{AtomicU32, Ordering::Relaxed},
};

/// A port on loopback that is free for UDP and TCP, and stays so while its node is down: the system gives none of these
/// to whoever asks for any port, and this process gives each once.
pub(crate) fn free_port() -> SocketAddr {
    const FIRST: u32 = 10_240;
    /// Below the range from which Linux gives ports (`ip_local_port_range`).
    const COUNT: u32 = 32_768 - FIRST;
    static GIVEN: AtomicU32 = AtomicU32::new(0);
    // Where another run on this machine is unlikely to begin.
    let begin = std::process::id().wrapping_mul(977);
    for _ in 0..COUNT {
        let port = FIRST + begin.wrapping_add(GIVEN.fetch_add(1, Relaxed)) % COUNT;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port as u16));
        if UdpSocket::bind(address).is_ok() && TcpListener::bind(address).is_ok() {
            return address;
        }
    }
    panic!("no free port");
}
