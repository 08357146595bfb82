//! Who sends × who runs × what: each cell is a task or workflow that one real program sends, another runs, and whose
//! result the first one's own client reads. Cells that a program cannot do by itself are named with the reason.

mod cases;
mod cell;
mod elsewhere;
mod order;
mod ours;
mod report;
mod shared;
mod signed;
mod stage;
#[path = "../worker/support.rs"]
#[allow(dead_code, reason = "shared with the other tests of the worker")]
mod support;
mod table;
