//! The built-in jobs that reach outside, run by the worker as a process: real programs, a real server, real Redis.

mod blocking;
mod exec;
mod http;
mod secrets;
mod stage;
