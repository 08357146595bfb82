//! `--autoscale MAX,MIN`: as many slots as there is work for, between two bounds, as Celery's worker does it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use umbel_telemetry::chain;

use crate::app::Shared;

/// So long a slot stays that nobody needs, as with Celery.
const KEPT: Duration = Duration::from_secs(30);
/// How often the need is looked at.
const EVERY: Duration = Duration::from_secs(1);

/// The bounds; none where the worker was started without.
pub(crate) struct Autoscale(Mutex<Option<Bounds>>);

/// Slots at most and at least.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// At most.
    pub max: usize,
    /// At least, one or more.
    pub min: usize,
}

impl Autoscale {
    pub(crate) fn new(bounds: Option<Bounds>) -> Autoscale {
        Autoscale(Mutex::new(bounds))
    }

    pub(crate) fn bounds(&self) -> Option<Bounds> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the bounds; `None` leaves one as it is, but never with `min` above `max`: the one that is given counts.
    /// `None` where the worker does not scale.
    pub(crate) fn change(&self, max: Option<usize>, min: Option<usize>) -> Option<Bounds> {
        let mut bounds = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = (*bounds)?;
        let max = max.unwrap_or(known.max).clamp(1, crate::slots::MOST);
        let min = min.unwrap_or(known.min).clamp(1, max);
        *bounds = Some(Bounds { max, min });
        *bounds
    }
}

/// Slots for this work, and whether there are too few now.
fn wanted(bounds: Bounds, busy: usize, waiting: u64) -> usize {
    let waiting = usize::try_from(waiting).unwrap_or(usize::MAX);
    busy.saturating_add(waiting).clamp(bounds.min, bounds.max)
}

/// Follows the need for ever.
pub(crate) async fn run(shared: Arc<Shared>) {
    let mut needed = Instant::now();
    loop {
        tokio::time::sleep(EVERY).await;
        let Some(bounds) = shared.autoscale.bounds() else {
            return;
        };
        let (total, busy) = (shared.slots.total(), shared.busy());
        // With free slots nothing waits for one, whatever lies in the lists.
        let waiting = if busy < total { 0 } else { waiting(&shared).await };
        let wanted = wanted(bounds, busy, waiting);
        if wanted > total {
            shared.slots.grow(wanted - total);
            tracing::info!(slots.from = total, slots.to = wanted, "more slots");
        }
        if wanted >= total {
            needed = Instant::now();
        } else if needed.elapsed() >= KEPT || total > bounds.max {
            shared.slots.shrink(total - wanted.min(bounds.max));
            tracing::info!(slots.from = total, slots.to = wanted, "fewer slots");
        }
    }
}

async fn waiting(shared: &Shared) -> u64 {
    match shared.broker.depths(&shared.queues.names()).await {
        Ok(sample) => sample.queues.iter().flatten().map(|depth| depth.waiting).sum(),
        Err(err) => {
            tracing::debug!(error = %chain(&err), "looking at the queues again");
            0
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_follow_the_work_within_bounds() {
        let bounds = Bounds { max: 10, min: 2 };
        for (busy, waiting, expected) in [
            (0, 0, 2),
            (2, 0, 2),
            (2, 3, 5),
            (2, 100, 10),
            (12, 0, 10),
            (4, u64::MAX, 10),
        ] {
            assert_eq!(wanted(bounds, busy, waiting), expected, "{busy} {waiting}");
        }
    }

    #[test]
    fn bounds_are_changed_where_there_are_any() {
        assert_eq!(Autoscale::new(None).change(Some(5), Some(2)), None);
        let scale = Autoscale::new(Some(Bounds { max: 4, min: 1 }));
        assert_eq!(scale.change(Some(5), Some(2)), Some(Bounds { max: 5, min: 2 }));
        assert_eq!(scale.change(None, Some(3)), Some(Bounds { max: 5, min: 3 }));
        assert_eq!(scale.change(Some(2), None), Some(Bounds { max: 2, min: 2 }));
        assert_eq!(scale.change(Some(0), Some(0)), Some(Bounds { max: 1, min: 1 }));
    }
}
