//! Serializers and compressions by the names that kombu has for them.

use std::fmt;
use std::str::FromStr;

/// How a body is serialised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Serializer {
    /// Python's JSON with kombu's special types.
    Json,
    /// MessagePack.
    Msgpack,
    /// What PyYAML's `safe_dump` writes.
    Yaml,
    /// JSON in a signed envelope.
    Auth,
}

/// How a body is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Compression {
    /// A zlib stream (RFC 1950), which kombu calls gzip. A gzip file (RFC 1952) is read, too.
    Zlib,
    /// bzip2.
    Bzip2,
    /// An `.xz` file; an old `.lzma` file is read, too.
    Lzma,
    /// Brotli (RFC 7932).
    Brotli,
    /// Zstandard (RFC 8878).
    Zstd,
}

/// A name that kombu does not have either, or one that is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {name:?} is not known; known are {known}")]
pub struct UnknownName {
    what: &'static str,
    name: String,
    known: &'static str,
}

impl Serializer {
    /// All of them.
    pub const ALL: [Serializer; 4] = [
        Serializer::Json,
        Serializer::Msgpack,
        Serializer::Yaml,
        Serializer::Auth,
    ];

    /// The content type that messages carry.
    pub fn content_type(self) -> &'static str {
        match self {
            Serializer::Json => "application/json",
            Serializer::Msgpack => "application/x-msgpack",
            Serializer::Yaml => "application/x-yaml",
            Serializer::Auth => "application/data",
        }
    }

    /// The content encoding that messages carry.
    pub fn content_encoding(self) -> &'static str {
        match self {
            Serializer::Msgpack => "binary",
            Serializer::Json | Serializer::Yaml | Serializer::Auth => "utf-8",
        }
    }

    /// kombu's name.
    pub fn name(self) -> &'static str {
        match self {
            Serializer::Json => "json",
            Serializer::Msgpack => "msgpack",
            Serializer::Yaml => "yaml",
            Serializer::Auth => "auth",
        }
    }

    /// By a content type or one of its names, in any case.
    pub fn named(name: &str) -> Option<Serializer> {
        Serializer::ALL
            .into_iter()
            .find(|known| name == known.content_type())
            .or_else(|| match name.trim().to_ascii_lowercase().as_str() {
                "json" | "application/json" => Some(Serializer::Json),
                "msgpack" | "application/x-msgpack" | "application/msgpack" | "application/vnd.msgpack" => {
                    Some(Serializer::Msgpack)
                }
                "yaml" | "application/x-yaml" | "application/yaml" | "text/yaml" | "text/x-yaml" => {
                    Some(Serializer::Yaml)
                }
                "auth" | "application/data" => Some(Serializer::Auth),
                _ => None,
            })
    }
}

impl FromStr for Serializer {
    type Err = UnknownName;

    fn from_str(name: &str) -> Result<Serializer, UnknownName> {
        Serializer::named(name).ok_or_else(|| UnknownName {
            what: "serializer",
            name: name.to_owned(),
            known: "json, msgpack, yaml and auth (pickle is never read)",
        })
    }
}

impl fmt::Display for Serializer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Compression {
    /// All of them.
    pub const ALL: [Compression; 5] = [
        Compression::Zlib,
        Compression::Bzip2,
        Compression::Lzma,
        Compression::Brotli,
        Compression::Zstd,
    ];

    /// The value of the header `compression`.
    pub fn content_type(self) -> &'static str {
        match self {
            Compression::Zlib => "application/x-gzip",
            Compression::Bzip2 => "application/x-bz2",
            Compression::Lzma => "application/x-lzma",
            Compression::Brotli => "application/x-brotli",
            Compression::Zstd => "application/zstd",
        }
    }

    /// kombu's name.
    pub fn name(self) -> &'static str {
        match self {
            Compression::Zlib => "zlib",
            Compression::Bzip2 => "bzip2",
            Compression::Lzma => "lzma",
            Compression::Brotli => "brotli",
            Compression::Zstd => "zstd",
        }
    }

    /// By a content type or one of kombu's aliases.
    pub fn named(name: &str) -> Option<Compression> {
        match name.trim().to_ascii_lowercase().as_str() {
            "application/x-gzip" | "application/gzip" | "gzip" | "zlib" => Some(Compression::Zlib),
            "application/x-bz2" | "bzip2" | "bzip" | "bz2" => Some(Compression::Bzip2),
            "application/x-lzma" | "lzma" | "xz" => Some(Compression::Lzma),
            "application/x-brotli" | "brotli" => Some(Compression::Brotli),
            "application/zstd" | "zstd" | "zstandard" => Some(Compression::Zstd),
            _ => None,
        }
    }
}

impl FromStr for Compression {
    type Err = UnknownName;

    fn from_str(name: &str) -> Result<Compression, UnknownName> {
        Compression::named(name).ok_or_else(|| UnknownName {
            what: "compression",
            name: name.to_owned(),
            known: "zlib, bzip2, lzma, brotli and zstd",
        })
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
