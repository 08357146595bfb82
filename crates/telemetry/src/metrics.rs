//! The metrics registry and its text form.
//!
//! Names begin with `umbel_`; counters are registered without `_total`, which
//! the text form adds. Labels are bounded by the number of custom resources:
//! never a task id, a pod or an error text.

use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

pub use prometheus_client::encoding;
use prometheus_client::encoding::EncodeLabelSet;
pub use prometheus_client::metrics::{counter, family, gauge, histogram, info};
use prometheus_client::registry::Registry as Inner;

/// Longest time that a reader of metrics waits for fresh ones.
const REFRESH: Duration = Duration::from_secs(2);

/// What brings metrics up to date that are only worth their cost when somebody reads them.
type Refresh = Box<dyn Fn() -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

/// Where a service registers its metrics before it starts to serve them.
pub struct Registry {
    inner: Inner,
    names: Vec<String>,
    refresh: OnceLock<Refresh>,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Build {
    service: &'static str,
    version: &'static str,
}

impl Registry {
    /// An empty registry that knows only which build this is.
    pub fn new(service: &'static str) -> Self {
        let mut inner = Inner::with_prefix("umbel");
        inner.register(
            "build",
            "Which build of which service this is",
            info::Info::new(Build {
                service,
                version: env!("CARGO_PKG_VERSION"),
            }),
        );
        Self {
            inner,
            names: vec!["umbel_build".to_owned()],
            refresh: OnceLock::new(),
        }
    }

    /// Registers one metric and hands back a handle to it.
    pub fn add<M>(&mut self, name: &str, help: &str, metric: M) -> M
    where
        M: prometheus_client::registry::Metric + Clone,
    {
        self.inner.register(name, help, metric.clone());
        self.names.push(format!("umbel_{name}"));
        metric
    }

    /// The registry itself, for what [`Registry::add`] does not cover.
    pub fn inner(&mut self) -> &mut Inner {
        &mut self.inner
    }

    /// Names of all metrics, as registered: the text adds `_total` and `_info`.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Ends registration; from here on the registry is only read.
    pub fn done(self) -> Arc<Self> {
        Arc::new(self)
    }

    /// From now on this is done before each [`Registry::fresh`]; the first one stays.
    pub fn refresh_by<F: Future<Output = ()> + Send + 'static>(&self, work: impl Fn() -> F + Send + Sync + 'static) {
        let _ = self.refresh.set(Box::new(move || Box::pin(work())));
    }

    /// All metrics in OpenMetrics text, brought up to date as far as that takes no longer than two seconds.
    ///
    /// # Errors
    /// A metric that cannot be written.
    ///
    /// # Cancellation
    /// Safe.
    pub async fn fresh(&self) -> Result<String, fmt::Error> {
        if let Some(refresh) = self.refresh.get() {
            let _ = tokio::time::timeout(REFRESH, refresh()).await; // What is late is not shown as it was.
        }
        self.text()
    }

    /// All metrics in OpenMetrics text.
    pub fn text(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        encoding::text::encode(&mut text, &self.inner)?;
        Ok(text)
    }
}

/// Upper bounds, in seconds, that suit both a script of a tenth of a
/// millisecond and a task of half an hour: about four a decade up to a second,
/// then fewer.
pub const SECONDS: [f64; 16] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 1800.0,
];
