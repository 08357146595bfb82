//! Placeholder until the crate's owner fills it.
