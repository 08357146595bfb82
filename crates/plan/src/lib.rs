//! Every decision of the operator, pure: values in, values and reasons out, `now` given.

pub mod drain;
pub mod scaling;
