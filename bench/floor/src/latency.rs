//! Latency at idle: one message at a time, at irregular times.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::redis::Connection;
use crate::{ENVELOPE, message};

/// The first are left out: caches and scripts are cold.
const WARM_UP: usize = 20;
/// Body of a call without arguments.
pub const NO_ARGUMENTS: &str = "W1tdLCB7fSwgeyJjYWxsYmFja3MiOiBudWxsLCAiZXJyYmFja3MiOiBudWxsLCAiY2hhaW4iOiBudWxsLCAiY2hvcmQiOiBudWxsfV0=";

fn micros() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970").as_secs_f64() * 1e6
}

/// 5 to 55 ms, so that no interval of a worker is hit again and again.
fn gap(n: usize) {
    std::thread::sleep(Duration::from_micros(5_000 + (n as u64 * 7_919) % 50_000));
}

fn report(name: &str, mut values: Vec<f64>) {
    values.drain(..WARM_UP.min(values.len() / 2));
    values.sort_by(f64::total_cmp);
    let quantile = |share: f64| values[((values.len() as f64 * share) as usize).min(values.len() - 1)];
    println!(
        r#"{{"name": "{name}", "count": {}, "p50_us": {:.1}, "p90_us": {:.1}, "p99_us": {:.1}}}"#,
        values.len(),
        quantile(0.5),
        quantile(0.9),
        quantile(0.99)
    );
}

/// A blocked pop, and what stores and publishes a result at once.
pub fn wake(port: u16, count: usize) {
    let receiver = std::thread::spawn(move || {
        let (mut pop, mut store) = (Connection::open(port), Connection::open(port));
        let mut waits = Vec::new();
        for _ in 0..count {
            pop.command(&[b"BRPOP", b"wake", b"0"]);
            pop.flush();
            let sent = String::from_utf8_lossy(&pop.strings()[1][..24]).trim().parse::<f64>().expect("a time");
            waits.push(micros() - sent);
            store.command(&[b"SETEX", b"celery-task-meta-x", b"60", b"{\"status\":\"SUCCESS\"}"]);
            store.command(&[b"PUBLISH", b"celery-task-meta-x", b"{\"status\":\"SUCCESS\"}"]);
            store.flush();
            store.reply();
            store.reply();
        }
        waits
    });
    let (mut sender, mut subscriber) = (Connection::open(port), Connection::open(port));
    subscriber.command(&[b"SUBSCRIBE", b"celery-task-meta-x"]);
    subscriber.flush();
    subscriber.reply();
    let mut circles = Vec::new();
    for n in 0..count {
        gap(n);
        let begin = Instant::now();
        let text = format!("{:24.1}{}", micros(), &ENVELOPE[..1100]);
        sender.call(&[b"LPUSH", b"wake", text.as_bytes()]);
        subscriber.reply();
        circles.push(begin.elapsed().as_secs_f64() * 1e6);
    }
    report("enqueue_to_start", receiver.join().expect("the receiver"));
    report("round_trip", circles);
}

/// A task that returns the time at which it started, in microseconds since 1970, by the clock of this machine.
pub fn tasks(port: u16, queue: &str, task: &str, count: usize) {
    let (mut sender, mut subscriber) = (Connection::open(port), Connection::open(port));
    let (mut starts, mut circles) = (Vec::new(), Vec::new());
    let body = ENVELOPE.split('"').nth(3).expect("the body");
    for n in 0..count {
        let id = uuid::Uuid::new_v4().to_string();
        let key = format!("celery-task-meta-{id}");
        let text = message(&id)
            .replace(body, NO_ARGUMENTS)
            .replace("umbel.echo", task)
            .replace("\"ignore_result\": true", "\"ignore_result\": false");
        subscriber.command(&[b"SUBSCRIBE", key.as_bytes()]);
        subscriber.flush();
        subscriber.strings();
        gap(n);
        let sent = micros();
        let begin = Instant::now();
        sender.call(&[b"LPUSH", queue.as_bytes(), text.as_bytes()]);
        let document = subscriber.strings().pop().expect("a message");
        circles.push(begin.elapsed().as_secs_f64() * 1e6);
        let document = String::from_utf8_lossy(&document).into_owned();
        let (_, rest) = document.split_once("\"result\": ").unwrap_or_else(|| panic!("no result in {document}"));
        let started: f64 = rest.split(',').next().and_then(|number| number.parse().ok()).expect("a time");
        starts.push(started - sent);
        subscriber.command(&[b"UNSUBSCRIBE", key.as_bytes()]);
        subscriber.flush();
        subscriber.strings();
    }
    report("enqueue_to_start", starts);
    report("round_trip", circles);
}
