//! Messages that would grow beyond all measure, and messages that are beyond it already: what they cost a worker.

use std::io::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;
use umbel_codec::{Compression, compress};
use umbel_testkit::redis::AsyncCommands;
use umbel_testkit::{Process, eventually};

use super::{Stage, envelope};
use crate::support::LATER;

/// What a hostile message may cost.
const MOST: u64 = 64 << 20;

/// The most memory that a process has had so far, in bytes.
fn peak(process: &Process) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.pid())).expect("it runs");
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .expect("Linux says");
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
    kib << 10
}

fn packed(compression: Compression, body: &[u8]) -> Vec<u8> {
    envelope(|message| {
        message["headers"]["compression"] = json!(compression.content_type());
        message["body"] = json!(STANDARD.encode(body));
    })
}

/// Zeros in a zlib stream, a thousand to one: one piece, flushed so that it can be repeated.
fn zlib() -> Vec<u8> {
    let mut writer = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::best());
    writer
        .write_all(&vec![0; 1 << 20])
        .and_then(|()| writer.flush())
        .expect("it is memory");
    let piece = writer.get_ref().clone();
    [&[0x78, 0x9c][..], &piece.repeat(700 << 10 >> 10)].concat()
}

/// 10 GiB in an `.xz` file that never ends: one LZMA2 chunk of 2 MiB, which resets everything, again and again.
fn xz() -> Vec<u8> {
    let whole = compress(Compression::Lzma, &vec![0; 2 << 20]);
    let chunk = 12 + (usize::from(whole[12]) + 1) * 4;
    let length = usize::from(u16::from_be_bytes([whole[chunk + 3], whole[chunk + 4]])) + 1;
    let end = chunk + 6 + length;
    assert!(
        whole[chunk] >= 0xe0,
        "the first chunk resets state, properties and dictionary"
    );
    let mut bomb = whole[..end].to_vec();
    while bomb.len() < 700 << 10 {
        bomb.extend_from_slice(&whole[chunk..end]);
    }
    bomb
}

/// 10 GiB in zstd: blocks that say "128 KiB of this byte".
fn zstd() -> Vec<u8> {
    let mut bomb = vec![0x28, 0xb5, 0x2f, 0xfd, 0x00, 0x58];
    let block = (128_u32 << 10) << 3 | 1 << 1;
    for _ in 0..81_920 {
        bomb.extend_from_slice(&block.to_le_bytes()[..3]);
        bomb.push(0);
    }
    bomb
}

fn bombs() -> Vec<(&'static str, Vec<u8>)> {
    let nested = compress(Compression::Zstd, include_bytes!("10gib.bz2"));
    vec![
        ("zlib", packed(Compression::Zlib, &zlib())),
        ("bzip2", packed(Compression::Bzip2, include_bytes!("10gib.bz2"))),
        ("lzma", packed(Compression::Lzma, &xz())),
        ("brotli", packed(Compression::Brotli, include_bytes!("10gib.br"))),
        ("zstd", packed(Compression::Zstd, &zstd())),
        ("one in another", packed(Compression::Zstd, &nested)),
        (
            "a false header",
            packed(Compression::Brotli, include_bytes!("10gib.bz2")),
        ),
        ("another false header", packed(Compression::Bzip2, b"[[], {}, null]")),
        (
            "broken off",
            packed(Compression::Zstd, &compress(Compression::Zstd, b"[[], {}, null]")[..12]),
        ),
        (
            "followed by more",
            packed(
                Compression::Zlib,
                &[compress(Compression::Zlib, b"[[], {}, null]"), vec![0]].concat(),
            ),
        ),
    ]
}

#[tokio::test]
async fn i04_a_bomb_stops_at_the_limit_and_costs_little() {
    let bombs = bombs();
    for (flags, limit) in [(&[][..], 8 << 20), (&["--max-inflated", "33554432"][..], 32 << 20)] {
        let mut stage = Stage::start(flags).await;
        stage.run_all(&[]).await;
        let before = peak(&stage.worker);
        let kept = stage.put_aside(&bombs).await;
        let cost = peak(&stage.worker) - before;
        println!("ten bombs at a limit of {limit} bytes cost {} KiB", cost >> 10);
        assert!(cost <= MOST, "{} MiB", cost >> 20);
        let stopped = format!("body is larger than {limit} bytes when unpacked");
        let stopped = kept.iter().filter(|(reason, _)| *reason == stopped).count();
        let broken = kept
            .iter()
            .filter(|(reason, _)| reason.starts_with("body is not "))
            .count();
        assert_eq!((stopped, broken), (5, 5), "{kept:#?}");
    }
}

/// As large as Redis lets a message be, made inside of it: no test program holds one.
async fn huge(stage: &Stage, bytes: usize) {
    let mut connection = stage.redis.connection().await;
    let script = "redis.call('SETRANGE', 'huge', ARGV[1] - 1, 'x') \
         redis.call('LPUSH', 'celery', redis.call('GET', 'huge')) \
         return redis.call('DEL', 'huge')";
    let made: Result<i64, _> = umbel_testkit::redis::cmd("EVAL")
        .arg(script)
        .arg(0)
        .arg(bytes)
        .query_async(&mut connection)
        .await;
    made.expect("Redis has room for it");
}

async fn cost_of(bytes: usize) -> u64 {
    let mut stage = Stage::start(&[]).await;
    stage.run_all(&[]).await;
    let before = peak(&stage.worker);
    huge(&stage, bytes).await;
    // Its bytes are not asked for: they would all come.
    let mut connection = stage.redis.connection().await;
    eventually(LATER, "it is in the quarantine", async || {
        let kept: u64 = connection.xlen("umbel:quarantine:celery").await.unwrap_or_default();
        kept == 1
    })
    .await;
    let neighbours = stage.run_beside(&[]).await;
    let states = stage.celery.wait_all(&neighbours, LATER).await;
    assert_eq!(states.get("SUCCESS"), Some(&neighbours.len()), "{states:?}");
    let told = format!("oversized message of {bytes} bytes moved to the quarantine");
    stage.worker.says(LATER, &told).await;
    peak(&stage.worker) - before
}

/// With `UMBEL_TEST_HUGE`, 512 MB: Redis itself then takes 2 GB for a while.
#[tokio::test]
async fn i05_a_huge_message_never_reaches_the_worker() {
    let largest = std::env::var_os("UMBEL_TEST_HUGE").map(|_| 512_000_000);
    for bytes in [100_000_000].into_iter().chain(largest) {
        let cost = cost_of(bytes).await;
        println!("a message of {bytes} bytes cost {} KiB", cost >> 10);
        assert!(cost <= MOST, "{} MiB for {bytes} bytes", cost >> 20);
    }
}
