//! YAML as PyYAML's `safe_dump` writes it and its `safe_load` reads it: version 1.1's idea of what a plain word is.

mod plain;
mod read;
mod write;

pub(crate) use read::read;
pub(crate) use write::write;
