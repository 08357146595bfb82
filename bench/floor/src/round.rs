//! Throughput: enqueue, and the steady state of a worker, which acknowledges one batch and takes the next in one call.

use std::io::Write;
use std::time::Instant;

use crate::redis::{Connection, Reply};
use crate::{messages, push};

/// Acknowledges the previous batch (from the fourth argument on) and reserves the next one under tags of ours.
const ACKRESERVE: &str = r"
if #ARGV > 3 then
  redis.call('ZREM', KEYS[3], unpack(ARGV, 4))
  redis.call('HDEL', KEYS[2], unpack(ARGV, 4))
end
local m = redis.call('RPOP', KEYS[1], ARGV[1])
if not m then return {} end
local h, z, p, t = {}, {}, ARGV[2], ARGV[3]
for i = 1, #m do
  local tag = p .. i
  h[2*i-1] = tag
  h[2*i] = m[i]
  z[2*i-1] = t
  z[2*i] = tag
end
redis.call('HSET', KEYS[2], unpack(h))
redis.call('ZADD', KEYS[3], unpack(z))
return m
";

const RESULT: &str = r#"{"status": "SUCCESS", "result": null, "traceback": null, "children": [], "date_done": "2026-11-20T11:56:25.337022+00:00", "task_id": "4dfda4cb-f849-4507-a25e-5be59b1128ce"}"#;

fn report(name: &str, parameters: &str, count: usize, begin: Instant) {
    let rate = count as f64 / begin.elapsed().as_secs_f64();
    println!(r#"{{"name": "{name}", "parameters": "{parameters}", "per_second": {rate:.0}}}"#);
}

/// Seconds of processor time that the server has used.
fn cpu(connection: &mut Connection) -> f64 {
    let text = connection.text(&[b"INFO", b"cpu"]);
    let of = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.parse::<f64>().ok());
    of("used_cpu_user:").unwrap_or_default() + of("used_cpu_sys:").unwrap_or_default()
}

/// What a producer can do.
pub fn enqueue(port: u16, count: usize) {
    let mut connection = Connection::open(port);
    let messages = messages(count, false);
    for pipeline in [64, 256] {
        connection.call(&[b"DEL", b"floor"]);
        let begin = Instant::now();
        for chunk in messages.chunks(pipeline) {
            for text in chunk {
                connection.command(&[b"LPUSH", b"floor", text.as_bytes()]);
            }
            connection.flush();
            for _ in chunk {
                connection.reply();
            }
        }
        report("enqueue", &format!("pipeline {pipeline}"), count, begin);
    }
    connection.call(&[b"DEL", b"floor"]);
    let begin = Instant::now();
    for text in &messages[..count / 2] {
        connection.command(&[b"LPUSH", b"floor", text.as_bytes()]);
        connection.flush();
        connection.reply();
    }
    report("enqueue_one", "one on the way", count / 2, begin);
    connection.call(&[b"DEL", b"floor"]);
}

/// What a worker can do.
pub fn run(port: u16, count: usize) {
    let mut connection = Connection::open(port);
    let messages = messages(count, false);
    for batch in [16, 64, 256] {
        for depth in [1, 2] {
            connection.call(&[b"DEL", b"floor"]);
            push(&mut connection, "floor", &messages);
            work(&mut connection, count, batch, depth, false);
        }
    }
    for batch in [16, 64, 256] {
        connection.call(&[b"DEL", b"floor"]);
        push(&mut connection, "floor", &messages);
        work(&mut connection, count, batch, 1, true);
    }
    connection.call(&[b"DEL", b"floor"]);
}

fn work(connection: &mut Connection, count: usize, batch: usize, depth: usize, with_results: bool) {
    let hash = connection.load(ACKRESERVE);
    let size = batch.to_string();
    let tags = |call: usize| (1..=batch).map(|n| format!("w:{call}:{n}")).collect::<Vec<_>>();
    let calls = count / batch + depth; // The last ones only acknowledge.
    let (mut sent, mut got) = (0, 0);
    let used = cpu(connection);
    let begin = Instant::now();
    while got < calls {
        let mut results = 0;
        while sent < calls && sent - got < depth {
            let settled = if sent >= depth { tags(sent - depth) } else { Vec::new() };
            if with_results {
                for n in 0..settled.len() {
                    let key = format!("celery-task-meta-4dfda4cb-f849-4507-a25e-{:012x}", sent * batch + n);
                    connection.command(&[b"SETEX", key.as_bytes(), b"86400", RESULT.as_bytes()]);
                    connection.command(&[b"PUBLISH", key.as_bytes(), RESULT.as_bytes()]);
                }
                results = 2 * settled.len();
            }
            write!(connection.out, "*{}\r\n", 9 + settled.len()).expect("memory");
            let prefix = format!("w:{sent}:");
            let head: [&[u8]; 9] = [
                b"EVALSHA", &hash, b"3", b"floor", b"floor:unacked", b"floor:lease", size.as_bytes(), prefix.as_bytes(),
                b"1790000000.123456",
            ];
            for part in head {
                connection.arg(part);
            }
            for tag in &settled {
                connection.arg(tag.as_bytes());
            }
            connection.flush();
            sent += 1;
        }
        for _ in 0..=results {
            connection.reply();
        }
        got += 1;
    }
    let name = if with_results { "work_with_results" } else { "work" };
    let rate = count as f64 / begin.elapsed().as_secs_f64();
    let micros = (cpu(connection) - used) * 1e6 / count as f64;
    println!(
        r#"{{"name": "{name}", "parameters": "batch {batch}, {depth} on the way", "per_second": {rate:.0}, "redis_us": {micros:.2}}}"#
    );
    assert_eq!(connection.call(&[b"HLEN", b"floor:unacked"]), Reply::Number(0), "all are acknowledged");
}
