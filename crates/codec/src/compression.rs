//! Packing, and unpacking under a limit that holds while it streams.

use std::io::{self, Read, Write as _};

use brotli::enc::BrotliEncoderParams;
use brotli::{BrotliDecompressStream, BrotliResult, BrotliState, HeapAlloc, HuffmanCode};
use flate2::{Decompress, FlushDecompress};
use liblzma::stream as xz;
use umbel_protocol::message::Reason;
use zstd::stream::raw::{DParameter, Operation as _};
use zstd::zstd_safe::{InBuffer, OutBuffer};

use crate::Compression;

/// What is unpacked at a time.
const STEP: usize = 32 << 10;

/// The most that a decoder of xz or lzma may ask for: presets up to 8 (a window of 32 MiB). Python's default is 6.
const XZ_MEMORY: u64 = 40 << 20;

/// The least window that a zstd frame may ask for, as a power of two: 8 MiB, what level 19 uses.
const ZSTD_WINDOW: u32 = 23;

/// Bytes that are kept while nobody knows yet how many there will be.
const FIRST: usize = 1 << 20;

/// The body, unpacked: at most `limit` bytes.
///
/// One that grows beyond 1 MiB is unpacked twice: once to count, in the memory of a few buffers, then into exactly the
/// room it takes. So what exceeds the limit costs no more than the decoder's window.
///
/// # Errors
/// [`Reason::Unpacked`] as soon as it grows beyond `limit`; [`Reason::Format`] for what is no such stream, is broken
/// off, or has something behind it.
pub fn decompress(compression: Compression, packed: &[u8], limit: usize) -> Result<Vec<u8>, Reason> {
    let explained = |fault| match fault {
        Fault::Limit => Reason::Unpacked { limit },
        Fault::Stream(why) => Reason::Format {
            format: compression.name(),
            why,
        },
    };
    let (mut out, mut total) = (Vec::new(), 0);
    unpack(compression, packed, limit, &mut |piece| {
        total += piece.len();
        if total > limit {
            return Err(Fault::Limit);
        }
        if total <= FIRST {
            out.extend_from_slice(piece);
        }
        Ok(())
    })
    .map_err(explained)?;
    if total > FIRST {
        out = Vec::with_capacity(total);
        unpack(compression, packed, limit, &mut |piece| {
            out.extend_from_slice(piece);
            Ok(())
        })
        .map_err(explained)?;
    }
    Ok(out)
}

/// Takes what comes out, piece by piece.
type Sink<'a> = dyn FnMut(&[u8]) -> Result<(), Fault> + 'a;

fn unpack(compression: Compression, packed: &[u8], limit: usize, sink: &mut Sink<'_>) -> Result<(), Fault> {
    match compression {
        Compression::Zlib if packed.starts_with(&[0x1f, 0x8b]) => gzip(packed, sink),
        Compression::Zlib => zlib(packed, sink),
        Compression::Bzip2 => bzip2(packed, sink),
        Compression::Lzma => lzma(packed, sink),
        Compression::Brotli => brotli(packed, sink),
        Compression::Zstd => zstd(packed, limit, sink),
    }
}

/// The body, packed, at the levels that kombu uses; brotli at a level that is not a hundred times slower.
pub fn compress(compression: Compression, body: &[u8]) -> Vec<u8> {
    let packed = match compression {
        Compression::Zlib => {
            let mut writer = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
            writer.write_all(body).and_then(|()| writer.finish())
        }
        Compression::Bzip2 => {
            let mut writer = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::best());
            writer.write_all(body).and_then(|()| writer.finish())
        }
        Compression::Lzma => {
            let mut writer = liblzma::write::XzEncoder::new(Vec::new(), 6);
            writer.write_all(body).and_then(|()| writer.finish())
        }
        Compression::Brotli => {
            let params = BrotliEncoderParams {
                quality: 5,
                ..BrotliEncoderParams::default()
            };
            let mut out = Vec::new();
            brotli::BrotliCompress(&mut &*body, &mut out, &params).map(|_| out)
        }
        Compression::Zstd => zstd::bulk::compress(body, 3),
    };
    packed.expect("packing in memory has no way to fail")
}

enum Fault {
    Limit,
    Stream(String),
}

#[allow(clippy::needless_pass_by_value)] // As `map_err` gives it.
fn broken(why: impl ToString) -> Fault {
    Fault::Stream(why.to_string())
}

/// What one step did.
struct Step {
    read: usize,
    written: usize,
    is_end: bool,
}

/// Runs a decoder to the end of its stream. `step` reads from the first slice and writes to the second.
fn run(
    packed: &[u8],
    sink: &mut Sink<'_>,
    mut step: impl FnMut(&[u8], &mut [u8]) -> Result<Step, Fault>,
) -> Result<(), Fault> {
    let mut buffer = vec![0; STEP];
    let mut rest = packed;
    loop {
        let Step { read, written, is_end } = step(rest, &mut buffer)?;
        rest = rest.get(read..).unwrap_or_default();
        sink(&buffer[..written])?;
        if is_end {
            return if rest.is_empty() {
                Ok(())
            } else {
                Err(broken(format!("{} bytes follow its end", rest.len())))
            };
        }
        if read == 0 && written == 0 {
            return Err(broken("broken off"));
        }
    }
}

#[allow(clippy::cast_possible_truncation, reason = "a step is at most as long as its slices")]
fn zlib(packed: &[u8], sink: &mut Sink<'_>) -> Result<(), Fault> {
    let mut decoder = Decompress::new(true);
    run(packed, sink, |input, output| {
        let before = (decoder.total_in(), decoder.total_out());
        let status = decoder
            .decompress(input, output, FlushDecompress::None)
            .map_err(broken)?;
        Ok(Step {
            read: (decoder.total_in() - before.0) as usize,
            written: (decoder.total_out() - before.1) as usize,
            is_end: status == flate2::Status::StreamEnd,
        })
    })
}

/// Its reader checks the trailer, so a stream that is broken off does not pass for a short one.
fn gzip(packed: &[u8], sink: &mut Sink<'_>) -> Result<(), Fault> {
    let mut reader = flate2::bufread::GzDecoder::new(packed);
    let mut buffer = vec![0; STEP];
    loop {
        let written = reader.read(&mut buffer).map_err(broken)?;
        if written == 0 {
            break;
        }
        sink(&buffer[..written])?;
    }
    match reader.into_inner().len() {
        0 => Ok(()),
        rest => Err(broken(format!("{rest} bytes follow its end"))),
    }
}

#[allow(clippy::cast_possible_truncation, reason = "a step is at most as long as its slices")]
fn bzip2(packed: &[u8], sink: &mut Sink<'_>) -> Result<(), Fault> {
    let mut decoder = bzip2::Decompress::new(false);
    run(packed, sink, |input, output| {
        let before = (decoder.total_in(), decoder.total_out());
        let status = decoder.decompress(input, output).map_err(broken)?;
        Ok(Step {
            read: (decoder.total_in() - before.0) as usize,
            written: (decoder.total_out() - before.1) as usize,
            is_end: status == bzip2::Status::StreamEnd,
        })
    })
}

#[allow(clippy::cast_possible_truncation, reason = "a step is at most as long as its slices")]
fn lzma(packed: &[u8], sink: &mut Sink<'_>) -> Result<(), Fault> {
    let explained = |err| match err {
        xz::Error::MemLimit => broken(format!("it asks for more than {XZ_MEMORY} bytes of memory")),
        other => broken(other),
    };
    let mut decoder = xz::Stream::new_auto_decoder(XZ_MEMORY, 0).map_err(explained)?;
    run(packed, sink, |input, output| {
        let before = (decoder.total_in(), decoder.total_out());
        let status = decoder.process(input, output, xz::Action::Run).map_err(explained)?;
        Ok(Step {
            read: (decoder.total_in() - before.0) as usize,
            written: (decoder.total_out() - before.1) as usize,
            is_end: status == xz::Status::StreamEnd,
        })
    })
}

fn brotli(packed: &[u8], sink: &mut Sink<'_>) -> Result<(), Fault> {
    // Strict: a window is at most 16 MiB; the "large window" extension would take up to 1 GiB.
    let mut state = BrotliState::new_strict(
        HeapAlloc::<u8>::new(0),
        HeapAlloc::<u32>::new(0),
        HeapAlloc::<HuffmanCode>::new(HuffmanCode::default()),
    );
    let mut total = 0;
    run(packed, sink, |input, output| {
        let (mut available_in, mut read) = (input.len(), 0);
        let (mut available_out, mut written) = (output.len(), 0);
        let result = BrotliDecompressStream(
            &mut available_in,
            &mut read,
            input,
            &mut available_out,
            &mut written,
            output,
            &mut total,
            &mut state,
        );
        match result {
            BrotliResult::ResultFailure => Err(broken("no such stream")),
            BrotliResult::NeedsMoreInput if read == input.len() && written == 0 => Err(broken("broken off")),
            _ => Ok(Step {
                read,
                written,
                is_end: matches!(result, BrotliResult::ResultSuccess),
            }),
        }
    })
}

fn zstd(packed: &[u8], limit: usize, sink: &mut Sink<'_>) -> Result<(), Fault> {
    let explained = |err: io::Error| broken(err);
    let mut decoder = zstd::stream::raw::Decoder::new().map_err(explained)?;
    // A frame that knows its size has a window of that size, so the window may be as large as a body.
    let window = limit.next_power_of_two().ilog2().clamp(ZSTD_WINDOW, 25);
    decoder
        .set_parameter(DParameter::WindowLogMax(window))
        .map_err(explained)?;
    if !packed.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        return Err(broken("no such frame"));
    }
    run(packed, sink, |input, output| {
        let (mut input, mut output) = (InBuffer::around(input), OutBuffer::around(output));
        let hint = decoder.run(&mut input, &mut output).map_err(explained)?;
        Ok(Step {
            read: input.pos(),
            written: output.pos(),
            is_end: hint == 0,
        })
    })
}
