//! Free ports for servers that are told their port instead of choosing one.

use std::net::{Ipv4Addr, TcpListener};
use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};

/// Below the range from which Linux takes the source ports of connections (32768 and up). A port
/// from that range can be lost while its server is down: to any outgoing connection, even to our
/// own client's, which, trying again and again, in the end connects to itself.
const PORTS: Range<u32> = 12_000..32_000;

/// A port that was free a moment ago, and that this process has not given out before.
pub(crate) fn free() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    // Test processes start at different places, so that they seldom meet.
    let start = std::process::id().wrapping_mul(7919);
    for _ in PORTS {
        let n = start.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        let port = (PORTS.start + n % (PORTS.end - PORTS.start)) as u16;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
    panic!("no free port in {PORTS:?}");
}
