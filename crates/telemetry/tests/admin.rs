//! The admin port over a real socket.

#![allow(clippy::unwrap_used)] // Tests stop at what they did not expect.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;
use umbel_telemetry::metrics::{Registry, counter::Counter};
use umbel_telemetry::{Readiness, admin};

async fn get(addr: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn probes_follow_the_service_and_metrics_carry_our_prefix() {
    let readiness = Readiness::new();
    let mut registry = Registry::new("test");
    let turns = registry.add("turns", "Turns of the loop", Counter::<u64>::default());
    turns.inc();
    let shutdown = CancellationToken::new();
    let local = SocketAddr::from(([127, 0, 0, 1], 0));
    let server = admin::serve(local, readiness.clone(), registry.done(), shutdown.clone())
        .await
        .unwrap();

    assert!(get(server.addr, "/readyz").await.starts_with("HTTP/1.1 503"));
    readiness.set_ready();
    assert!(get(server.addr, "/readyz").await.starts_with("HTTP/1.1 200"));
    assert!(get(server.addr, "/livez").await.starts_with("HTTP/1.1 200"));
    let metrics = get(server.addr, "/metrics").await;
    assert!(metrics.contains("umbel_turns_total 1"), "{metrics}");
    assert!(metrics.contains("umbel_build_info{service=\"test\""), "{metrics}");

    shutdown.cancel();
    tokio::time::timeout(Duration::from_secs(5), server.task)
        .await
        .unwrap()
        .unwrap();
}

#[tokio::test]
async fn a_stalled_loop_is_not_alive() {
    let readiness = Readiness::new();
    readiness.alive_within(Duration::from_millis(20));
    assert!(readiness.is_alive());
    tokio::time::timeout(Duration::from_secs(5), async {
        while readiness.is_alive() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    readiness.progress();
    assert!(readiness.is_alive());
}
