//! Bodies of task messages that are not plain JSON: msgpack, YAML, compressed ones, signed ones.
//!
//! A [`Codec`] is made once a process, from what may be accepted, how large a body may grow and whom to believe. It
//! turns any body it accepts into JSON text in kombu's dialect, so that the rest of the program knows one form:
//! bytes become `{"__type__": "bytes", …}`, a YAML time `{"__type__": "datetime", …}`.
//!
//! Everything here is a function of its arguments, but for two things that are asked for where they are needed: the
//! time, by which certificates expire ([`Keyring`]), and random salts of signatures ([`Signer`]).
//!
//! # Guarantees
//! - What is not accepted is refused by its label, before its body is touched. Pickle is never read, signed or not.
//! - Unpacking ends at a limit while it streams: no body costs more memory than the limit, a window of at most 40 MiB
//!   that is touched only as far as the limit, and a few buffers.
//! - A body has one compressed stream and nothing behind it.
//!
//! # Where things are
//! - [`compress`], [`decompress`]: the five compressions of kombu, for results too.
//! - [`read_document`], [`write_document`]: what a result backend holds.
//! - [`Keyring`], [`Signer`]: the serializer `auth`.

mod auth;
mod codec;
mod compression;
mod document;
mod json;
mod msgpack;
mod names;
mod yaml;

pub use auth::{Digest, KeyError, Keyring, Signer};
pub use codec::{Codec, EncodeError, Options, TooLarge};
pub use compression::{compress, decompress};
pub use document::{compress_document, read_document, write_any_document, write_document};
pub use names::{Compression, Serializer, UnknownName};

/// Bytes of a body after unpacking, unless told otherwise.
pub const DEFAULT_MAX_INFLATED: usize = 8 << 20;
/// The most that [`Options::max_inflated`] may be: above it a few bombs at a time would fill a small container.
pub const MOST_INFLATED: usize = 32 << 20;
