//! The admin port: `/livez`, `/readyz`, `/metrics`, and nothing that acts.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::metrics::Registry;

/// The content type of OpenMetrics text, as scrapers ask for it.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What the probes answer, set by the service itself.
///
/// A service is not ready until it says so. It is alive unless it promised
/// progress ([`Readiness::alive_within`]) and made none for that long.
pub struct Readiness {
    ready: AtomicBool,
    started: Instant,
    progress_ms: AtomicU64,
    limit_ms: AtomicU64,
}

impl Default for Readiness {
    fn default() -> Self {
        Self {
            ready: AtomicBool::new(false),
            started: Instant::now(),
            progress_ms: AtomicU64::new(0),
            limit_ms: AtomicU64::new(u64::MAX),
        }
    }
}

impl Readiness {
    /// Not ready, and alive for as long as the process answers.
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// Ready from now on.
    pub fn set_ready(&self) {
        self.ready.store(true, Ordering::Release);
    }

    /// Not ready from now on.
    pub fn set_not_ready(&self) {
        self.ready.store(false, Ordering::Release);
    }

    /// Whether the service said that it is ready.
    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire)
    }

    /// From now on, alive only while [`Readiness::progress`] is called at least this often.
    pub fn alive_within(&self, limit: Duration) {
        self.progress();
        self.limit_ms.store(millis(limit), Ordering::Release);
    }

    /// The service's main loop turned once more.
    pub fn progress(&self) {
        self.progress_ms
            .store(millis(self.started.elapsed()), Ordering::Release);
    }

    /// Whether the promised progress was made in time.
    pub fn is_alive(&self) -> bool {
        let idle = millis(self.started.elapsed()).saturating_sub(self.progress_ms.load(Ordering::Acquire));
        idle <= self.limit_ms.load(Ordering::Acquire)
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// A running admin server.
pub struct Admin {
    /// The address it really listens on; with port 0 the kernel chose it.
    pub addr: SocketAddr,
    /// Ends when the shutdown token is cancelled.
    pub task: JoinHandle<()>,
}

#[derive(Clone)]
struct Shared {
    readiness: Arc<Readiness>,
    registry: Arc<Registry>,
}

/// Listens on `addr` and serves the probes and metrics until `shutdown` is cancelled.
///
/// # Cancellation
/// Dropping the future before it returns opens no port; afterwards only the token stops the server.
pub async fn serve(
    addr: SocketAddr,
    readiness: Arc<Readiness>,
    registry: Arc<Registry>,
    shutdown: CancellationToken,
) -> io::Result<Admin> {
    let listener = TcpListener::bind(addr).await?;
    let addr = listener.local_addr()?;
    let router = Router::new()
        .route("/livez", get(live))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .with_state(Shared { readiness, registry });
    let task = tokio::spawn(async move {
        let served = axum::serve(listener, router)
            .with_graceful_shutdown(shutdown.cancelled_owned())
            .await;
        if let Err(error) = served {
            tracing::error!(error = %crate::chain(&error), "admin server ended");
        }
    });
    tracing::info!(addr = %addr, "admin server listens");
    Ok(Admin { addr, task })
}

async fn live(State(shared): State<Shared>) -> Response {
    answer(shared.readiness.is_alive(), "no progress")
}

async fn ready(State(shared): State<Shared>) -> Response {
    answer(shared.readiness.is_ready(), "not ready")
}

fn answer(good: bool, otherwise: &'static str) -> Response {
    if good {
        (StatusCode::OK, "ok\n").into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, otherwise).into_response()
    }
}

async fn metrics(State(shared): State<Shared>) -> Response {
    match shared.registry.fresh().await {
        Ok(text) => ([(header::CONTENT_TYPE, OPEN_METRICS)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
