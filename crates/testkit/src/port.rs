//! Free ports on loopback.

use std::net::TcpListener;
use std::sync::atomic::{AtomicU16, Ordering};

/// Below the range from which the kernel takes ports for outgoing connections, so that a port stays free while the
/// server that owned it restarts.
const FIRST: u16 = 12_000;
const COUNT: u16 = 20_000;
static NEXT: AtomicU16 = AtomicU16::new(0);

/// A port of 127.0.0.1 that nobody listens on. Processes that run side by side begin at different places.
///
/// # Panics
/// When none is left.
pub fn free_port() -> u16 {
    let offset =
        u16::try_from(u64::from(std::process::id()) * 7919 % u64::from(COUNT)).expect("a remainder below the count");
    for _ in 0..COUNT {
        let n = NEXT.fetch_add(1, Ordering::Relaxed) % COUNT;
        let port = FIRST + (n + offset) % COUNT;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no free port on loopback")
}
