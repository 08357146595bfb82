//! placeholder
use crate::context::Context;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;
/// Runs.
pub async fn run(_context: Arc<Context>, _scope: usize, stop: CancellationToken) {
    stop.cancelled().await;
}
