//! What one Redis and one core can do for a Celery-wire queue, and the load for measuring those who really do it.
//!
//! ```text
//! floor round   --port P [--messages N]                     the Redis work of a queue alone, as fast as one process can
//! floor enqueue --port P [--messages N]                     pushes alone, pipelined and one by one
//! floor wake    --port P [--count N]                        a blocked pop at idle, and the whole circle with its result
//! floor fill    --port P --key K --messages N [--results]   puts N tasks into a list
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

/// The envelope under an id of its own.
fn message(id: &str) -> String {
    ENVELOPE.replace(ID, id).replace(TAG, &uuid::Uuid::new_v4().to_string())
}

fn messages(count: usize, with_results: bool) -> Vec<String> {
    let ids = (0..count).map(|_| message(&uuid::Uuid::new_v4().to_string()));
    if with_results {
        ids.map(|text| text.replace("\"ignore_result\": true", "\"ignore_result\": false")).collect()
    } else {
        ids.collect()
    }
}

fn push(connection: &mut Connection, key: &str, messages: &[String]) {
    for chunk in messages.chunks(64) {
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
        Some("fill") => {
            let messages = messages(flags.number("--messages", 1000), flags.has("--results"));
            push(&mut Connection::open(port), flags.required("--key"), &messages);
        }
        Some("latency") => {
            latency::tasks(port, flags.required("--queue"), flags.required("--task"), flags.number("--count", 320));
        }
        _ => eprintln!("floor round|enqueue|wake|fill|latency"),
    }
}
