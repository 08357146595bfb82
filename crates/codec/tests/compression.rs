//! Bodies that are not what they say, or far more: unpacking ends at its limit, and says why.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod common;

use common::{codec, everything, message, read};
use proptest::prelude::*;
use umbel_codec::{Compression, Serializer, compress, decompress};
use umbel_protocol::message::Reason;

const LIMIT: usize = 1 << 20;

#[test]
fn a_body_of_exactly_the_limit_is_read_and_one_more_byte_is_not() {
    for compression in Compression::ALL {
        let packed = compress(compression, &vec![b'x'; LIMIT]);
        assert_eq!(decompress(compression, &packed, LIMIT).unwrap().len(), LIMIT);
        let packed = compress(compression, &vec![b'x'; LIMIT + 1]);
        assert_eq!(
            decompress(compression, &packed, LIMIT),
            Err(Reason::Unpacked { limit: LIMIT }),
            "{compression}"
        );
    }
}

#[test]
fn a_stream_that_is_broken_off_anywhere_is_refused() {
    for compression in Compression::ALL {
        let packed = compress(compression, &sample());
        for length in 0..packed.len() {
            let refused = decompress(compression, &packed[..length], LIMIT);
            assert!(
                matches!(refused, Err(Reason::Format { .. })),
                "{compression}: {length} of {}: {refused:?}",
                packed.len()
            );
        }
    }
}

#[test]
fn what_follows_a_stream_is_refused() {
    for compression in Compression::ALL {
        let packed = compress(compression, &sample());
        for more in [&b"\0"[..], b"more", &packed] {
            let refused = decompress(compression, &[&packed, more].concat(), LIMIT).unwrap_err();
            let text = refused.to_string();
            assert!(
                text.ends_with(&format!("{} bytes follow its end", more.len())),
                "{compression}: {text}"
            );
        }
    }
}

#[test]
fn one_compression_is_not_taken_for_another() {
    for compression in Compression::ALL {
        let others = Compression::ALL.into_iter().filter(|other| *other != compression);
        for other in others {
            let refused = decompress(other, &compress(compression, &sample()), LIMIT);
            assert!(
                matches!(refused, Err(Reason::Format { .. })),
                "{compression} as {other}: {refused:?}"
            );
        }
        let refused = decompress(compression, &sample(), LIMIT);
        assert!(
            matches!(refused, Err(Reason::Format { .. })),
            "plain text as {compression}: {refused:?}"
        );
    }
}

#[test]
fn real_gzip_and_old_lzma_files_are_read_too() {
    use std::io::Write as _;
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    gzip.write_all(&sample()).unwrap();
    let gzip = gzip.finish().unwrap();
    assert_eq!(decompress(Compression::Zlib, &gzip, LIMIT), Ok(sample()));
    for length in 2..gzip.len() {
        assert!(
            decompress(Compression::Zlib, &gzip[..length], LIMIT).is_err(),
            "{length}"
        );
    }
    assert!(decompress(Compression::Zlib, &[&gzip[..], b"x"].concat(), LIMIT).is_err());
    let options = liblzma::stream::LzmaOptions::new_preset(6).unwrap();
    let old = liblzma::stream::Stream::new_lzma_encoder(&options).unwrap();
    let mut old = liblzma::write::XzEncoder::new_stream(Vec::new(), old);
    old.write_all(&sample()).unwrap();
    let old = old.finish().unwrap();
    assert_eq!(decompress(Compression::Lzma, &old, LIMIT), Ok(sample()));
}

/// Headers that ask for a large window cost nothing: they are refused before any of it is taken.
#[test]
fn windows_beyond_the_bound_are_refused() {
    // A zstd frame without its size, with a window of 2^31 bytes.
    let zstd = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xa8, 0x01, 0x00, 0x00];
    // An .lzma header with a dictionary of 4 GiB - 1.
    let mut lzma = vec![0x5d];
    lzma.extend(u32::MAX.to_le_bytes());
    lzma.extend(u64::MAX.to_le_bytes());
    lzma.extend([0; 16]);
    // A brotli stream of the "large window" extension, 30 bits.
    let brotli = [0x11, 0x1e, 0x03];
    for (compression, packed) in [
        (Compression::Zstd, &zstd[..]),
        (Compression::Lzma, &lzma),
        (Compression::Brotli, &brotli),
    ] {
        let refused = decompress(compression, packed, LIMIT);
        assert!(
            matches!(refused, Err(Reason::Format { .. })),
            "{compression}: {refused:?}"
        );
    }
    let refused = decompress(Compression::Lzma, &lzma, LIMIT).unwrap_err().to_string();
    assert_eq!(
        refused,
        "body is not acceptable lzma: it asks for more than 41943040 bytes of memory"
    );
}

/// A body can grow again when it is written as JSON.
#[test]
fn what_unfolds_on_the_way_to_json_meets_the_limit_too() {
    let codec = umbel_codec::Codec::new(umbel_codec::Options {
        accept: vec![Serializer::Msgpack, Serializer::Yaml],
        max_inflated: 4096,
        ..umbel_codec::Options::default()
    });
    let controls = [&[0x93, 0x91, 0xda, 0x03, 0xe8][..], &[1; 1000], &[0x80, 0xc0]].concat();
    let unfolded = message("application/x-msgpack", None, &controls);
    assert_eq!(
        read(&codec, &unfolded).unwrap_err().reason,
        Reason::Unpacked { limit: 4096 }
    );
    let mut bomb = String::from("- - &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for level in 1..40 {
        let alias = format!("*a{}", level - 1);
        bomb.extend(["  - &a", &level.to_string(), " [", &vec![alias; 10].join(", "), "]\n"]);
    }
    bomb += "- {}\n- null\n";
    let refused = read(&codec, &message("application/x-yaml", None, bomb.as_bytes())).unwrap_err();
    assert_eq!(refused.reason, Reason::Unpacked { limit: 4096 });
}

#[test]
fn a_compression_that_nobody_knows_is_refused_unread() {
    let refused = read(
        &everything(),
        &message("application/json", Some("application/x-7z"), b"[[], {}, null]"),
    );
    assert_eq!(
        refused.unwrap_err().to_string(),
        "compression `application/x-7z` is not accepted"
    );
}

#[test]
fn every_name_that_kombu_has_is_understood() {
    let codec = codec(&[Serializer::Json]);
    for (name, compression) in [
        ("application/x-gzip", Compression::Zlib),
        ("gzip", Compression::Zlib),
        ("zlib", Compression::Zlib),
        ("application/x-bz2", Compression::Bzip2),
        ("bzip2", Compression::Bzip2),
        ("bzip", Compression::Bzip2),
        ("application/x-lzma", Compression::Lzma),
        ("lzma", Compression::Lzma),
        ("xz", Compression::Lzma),
        ("application/x-brotli", Compression::Brotli),
        ("brotli", Compression::Brotli),
        ("application/zstd", Compression::Zstd),
        ("zstd", Compression::Zstd),
        ("zstandard", Compression::Zstd),
    ] {
        let packed = compress(compression, b"[[7], {}, null]");
        let message = read(&codec, &message("application/json", Some(name), &packed)).unwrap();
        assert_eq!(message.args.as_str(), "[7]", "{name}");
    }
}

fn sample() -> Vec<u8> {
    (0..200).flat_map(|number| format!("{number}, ").into_bytes()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn what_was_packed_comes_out_again(body in proptest::collection::vec(any::<u8>(), 0..4096)) {
        for compression in Compression::ALL {
            prop_assert_eq!(decompress(compression, &compress(compression, &body), LIMIT), Ok(body.clone()), "{}", compression);
        }
    }

    #[test]
    fn no_bytes_make_it_panic_or_grow(bytes in proptest::collection::vec(any::<u8>(), 0..512), flip in any::<(usize, u8)>()) {
        for compression in Compression::ALL {
            let _ = decompress(compression, &bytes, 4096);
            let mut packed = compress(compression, &bytes);
            let at = flip.0 % packed.len();
            packed[at] ^= flip.1;
            if let Ok(out) = decompress(compression, &packed, 4096) {
                prop_assert!(out.len() <= 4096);
            }
        }
    }
}
