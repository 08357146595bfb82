//! What one Redis and one core can do for a Celery-wire queue, and the load for measuring those who really do it.
//!
//! ```text
//! floor round   --port P [--messages N]                     the Redis work of a queue alone, as fast as one process can
//! floor enqueue --port P [--messages N]                     pushes alone, pipelined and one by one
//! floor wake    --port P [--count N]                        a blocked pop at idle, and the whole circle with its result
//! floor fill    --port P --key K --messages N [--results]   puts N tasks into a list; --keys M: over K0 to K<M-1>;
//!               [--bytes B]  with B characters of argument;  [--task T] of another task, without arguments
//!               [--eta S --spread D]  due from S (seconds since 1970) on, over D seconds
//!               [--ids I]  with the ids I0, I1 ...
//! floor latency --port P --queue Q --task T [--count N]     sends one task at a time, waits for its result
//! ```
//!
//! Each prints lines of JSON. The scenarios of `round` decode nothing, schedule nothing and survive nothing: a worker
//! that does all that cannot be faster than the best of them.

mod latency;
mod redis;
mod round;

use std::io::Write;

use crate::redis::Connection;

/// A task message of 1.1 KiB as Celery 5.7 sends it, with one argument of 100 characters and no result.
const ENVELOPE: &str = include_str!("envelope.json");
const ID: &str = "66287802-22e7-46e6-ac2e-ab2ddbb02a30";
const TAG: &str = "3b509888-a2b1-4363-8a64-d9b9e2797c7b";

/// As the envelope says that no result is wanted, and that one is.
const NO_RESULT: &str = "\"ignore_result\": true";
const RESULT: &str = "\"ignore_result\": false";

/// The envelope under an id of its own.
fn message(id: &str) -> String {
    ENVELOPE.replace(ID, id).replace(TAG, &uuid::Uuid::new_v4().to_string())
}

fn messages(count: usize, with_results: bool) -> Vec<String> {
    let ids = (0..count).map(|_| message(&uuid::Uuid::new_v4().to_string()));
    if with_results {
        ids.map(|text| text.replace(NO_RESULT, RESULT)).collect()
    } else {
        ids.collect()
    }
}

/// Messages as the flags want them, into lists by turns.
fn fill(port: u16, flags: &Flags) {
    let mut connection = Connection::open(port);
    let (count, keys) = (flags.number("--messages", 1000), flags.number("--keys", 1));
    let mut text = ENVELOPE.to_owned();
    let body = ENVELOPE.split('"').nth(3).expect("the body");
    if let Some(task) = flags.text("--task") {
        text = text.replace("umbel.echo", task).replace(body, latency::NO_ARGUMENTS);
    } else if let Some(bytes) = flags.text("--bytes") {
        let argument = "x".repeat(bytes.parse().expect("bytes"));
        let arguments = format!(
            r#"[["{argument}"], {{}}, {{"callbacks": null, "errbacks": null, "chain": null, "chord": null}}]"#
        );
        text = text.replace(body, &base64(arguments.as_bytes()));
    }
    if flags.has("--results") {
        text = text.replace(NO_RESULT, RESULT);
    }
    let eta: Option<f64> = flags.text("--eta").map(|eta| eta.parse().expect("seconds"));
    let spread = flags.number("--spread", 0) as f64;
    let (key, ids) = (flags.required("--key"), flags.text("--ids"));
    let name = |list: usize| if keys > 1 { format!("{key}{list}") } else { key.to_owned() };
    for list in 0..keys {
        let messages: Vec<String> = (list..count)
            .step_by(keys)
            .map(|n| {
                let id = ids.map_or_else(|| uuid::Uuid::new_v4().to_string(), |ids| format!("{ids}{n}"));
                let text = text.replace(ID, &id).replace(TAG, &uuid::Uuid::new_v4().to_string());
                match eta {
                    Some(eta) => {
                        let due = iso(eta + spread * n as f64 / count as f64);
                        text.replace(r#""eta": null"#, &format!(r#""eta": "{due}""#))
                    }
                    None => text,
                }
            })
            .collect();
        push(&mut connection, &name(list), &messages);
    }
}

/// A time as Celery writes it.
fn iso(at: f64) -> String {
    let micros = (at * 1e6) as i64;
    let (days, rest) = (micros.div_euclid(86_400_000_000), micros.rem_euclid(86_400_000_000));
    // Days since 1970 to a date: Hinnant's algorithm.
    let shifted = days + 719_468;
    let (era, of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (seconds, micros) = (rest / 1_000_000, rest % 1_000_000);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}+00:00")
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for three in bytes.chunks(3) {
        let value = (0..3).fold(0_u32, |value, n| value << 8 | u32::from(*three.get(n).unwrap_or(&0)));
        for n in 0..4 {
            let digit = DIGITS[(value >> (18 - 6 * n) & 63) as usize];
            text.push(if n > three.len() { '=' } else { digit as char });
        }
    }
    text
}

fn push(connection: &mut Connection, key: &str, messages: &[String]) {
    let together = if messages.first().is_some_and(|text| text.len() > 16_384) { 4 } else { 64 };
    for chunk in messages.chunks(together) {
        write!(connection.out, "*{}\r\n", chunk.len() + 2).expect("memory");
        connection.arg(b"LPUSH");
        connection.arg(key.as_bytes());
        for text in chunk {
            connection.arg(text.as_bytes());
        }
        connection.flush();
        connection.reply();
    }
}

struct Flags(Vec<String>);

impl Flags {
    fn text(&self, name: &str) -> Option<&str> {
        let at = self.0.iter().position(|word| word == name)?;
        self.0.get(at + 1).map(String::as_str)
    }

    fn number(&self, name: &str, otherwise: usize) -> usize {
        self.text(name).map_or(otherwise, |text| text.parse().unwrap_or_else(|_| panic!("{name} {text}")))
    }

    fn required(&self, name: &str) -> &str {
        self.text(name).unwrap_or_else(|| panic!("{name} is missing"))
    }

    fn has(&self, name: &str) -> bool {
        self.0.iter().any(|word| word == name)
    }
}

fn main() {
    let flags = Flags(std::env::args().skip(1).collect());
    let port = flags.number("--port", 6379).try_into().expect("a port");
    match flags.0.first().map(String::as_str) {
        Some("round") => round::run(port, flags.number("--messages", 65_536)),
        Some("enqueue") => round::enqueue(port, flags.number("--messages", 65_536)),
        Some("wake") => latency::wake(port, flags.number("--count", 320)),
        Some("fill") => fill(port, &flags),
        Some("latency") => {
            latency::tasks(port, flags.required("--queue"), flags.required("--task"), flags.number("--count", 320));
        }
        _ => eprintln!("floor round|enqueue|wake|fill|latency"),
    }
}
