//! Tasks that are not to run, by id or by stamp. Kept in Redis, so that they are known to every worker and after a
//! restart; here in memory, so that a message costs no question.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use umbel_broker::{Broker, Error, REVOKED_KEPT, Revocations};
use umbel_protocol::json::Json;
use umbel_protocol::message::TaskMessage;

/// For so long an id or a stamp is remembered, as an id by Celery.
pub(crate) const REMEMBERED: Duration = Duration::from_secs(3 * 3600);

/// Ids and stamps, each with the time (Redis', in seconds) until which it counts.
#[derive(Default)]
pub(crate) struct Revoked {
    known: Mutex<Known>,
    len: AtomicUsize,
}

#[derive(Default)]
struct Known {
    ids: HashMap<String, f64>,
    /// By name and then by value, as JSON text.
    stamps: BTreeMap<String, HashMap<String, f64>>,
}

impl Known {
    fn len(&self) -> usize {
        self.ids.len() + self.stamps.values().map(HashMap::len).sum::<usize>()
    }

    fn add_stamp(&mut self, name: String, value: &Json, until: f64) {
        let values = self.stamps.entry(name).or_default();
        values.insert(value.to_string(), until);
        bound(values);
    }

    fn forget(&mut self, now: f64) {
        self.ids.retain(|_, until| *until > now);
        for values in self.stamps.values_mut() {
            values.retain(|_, until| *until > now);
        }
        self.stamps.retain(|_, values| !values.is_empty());
    }
}

/// Keeps the latest; a tenth more than needed goes at a time, so that this is rare.
fn bound(until: &mut HashMap<String, f64>) {
    if until.len() <= REVOKED_KEPT {
        return;
    }
    let mut times: Vec<f64> = until.values().copied().collect();
    let surplus = until.len() - REVOKED_KEPT + REVOKED_KEPT / 10;
    let (_, oldest, _) = times.select_nth_unstable_by(surplus, f64::total_cmp);
    let oldest = *oldest;
    // Of several of that one time it does not matter which go.
    let mut left = surplus - until.values().filter(|until| **until < oldest).count();
    until.retain(|_, until| {
        let goes = *until < oldest || (left > 0 && *until <= oldest);
        left -= usize::from(goes && *until >= oldest);
        !goes
    });
}

impl Revoked {
    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner) // Maps are whole after any panic.
    }

    /// Is the task not to run? One load when no task is.
    pub(crate) fn contains(&self, message: &TaskMessage, now: f64) -> bool {
        if self.len.load(Ordering::Relaxed) == 0 {
            return false;
        }
        let known = self.lock();
        let counts = |until: Option<&f64>| until.is_some_and(|until| *until > now);
        counts(known.ids.get(&message.id))
            || (!known.stamps.is_empty()
                && stamps(message).iter().any(|(name, values)| {
                    let known = known.stamps.get(name);
                    known.is_some_and(|known| values.iter().any(|value| counts(known.get(&value.to_string()))))
                }))
    }

    pub(crate) fn add(&self, ids: impl IntoIterator<Item = String>, now: f64) {
        let mut known = self.lock();
        known
            .ids
            .extend(ids.into_iter().map(|id| (id, now + REMEMBERED.as_secs_f64())));
        bound(&mut known.ids);
        self.len.store(known.len(), Ordering::Relaxed);
    }

    pub(crate) fn add_stamps(&self, stamps: &[(String, Json)], now: f64) {
        let mut known = self.lock();
        for (name, value) in stamps {
            known.add_stamp(name.clone(), value, now + REMEMBERED.as_secs_f64());
        }
        self.len.store(known.len(), Ordering::Relaxed);
    }

    pub(crate) fn ids(&self, now: f64) -> Vec<String> {
        let known = self.lock();
        let mut ids: Vec<String> = known
            .ids
            .iter()
            .filter(|(_, until)| **until > now)
            .map(|(id, _)| id.clone())
            .collect();
        ids.sort();
        ids
    }

    /// Takes over what Redis has. What this worker could not store yet is kept.
    pub(crate) async fn refresh(&self, broker: &Broker, now: f64) -> Result<(), Error> {
        let Revocations { ids, stamps } = broker.revoked(now).await?;
        let mut known = self.lock();
        known.forget(now);
        known.ids.extend(ids);
        bound(&mut known.ids);
        known.ids.shrink_to_fit();
        for ((name, value), until) in stamps {
            known.add_stamp(name, &value, until);
        }
        self.len.store(known.len(), Ordering::Relaxed);
        Ok(())
    }
}

/// The stamps of a message that its list of stamped headers names, each with its values.
pub(crate) fn stamps(message: &TaskMessage) -> Vec<(String, Vec<Json>)> {
    let (Some(named), Some(stamps)) = (message.header("stamped_headers"), message.header("stamps")) else {
        return Vec::new();
    };
    let named = named.elements().unwrap_or_default();
    let named = named.iter().filter_map(Json::text);
    named
        .filter_map(|name| {
            let value = stamps.get(&name).filter(|value| !value.is_null())?;
            let values = value.elements().unwrap_or_else(|| vec![value]);
            Some((name, values))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use umbel_protocol::message::{Limits, NewTask, decode};

    fn message(id: &str, headers: &[(&str, &str)]) -> TaskMessage {
        let task = NewTask {
            id: id.into(),
            task: "t".into(),
            queue: "q".into(),
            headers: headers
                .iter()
                .map(|(name, value)| ((*name).to_owned(), Json::parse(value).unwrap()))
                .collect(),
            ..NewTask::default()
        };
        decode(&task.encode(), &Limits::default(), &jiff::tz::TimeZone::UTC).unwrap()
    }

    #[test]
    fn an_id_counts_for_three_hours() {
        let revoked = Revoked::default();
        assert!(!revoked.contains(&message("1", &[]), 0.0));
        revoked.add(["1".to_owned()], 100.0);
        assert!(revoked.contains(&message("1", &[]), 100.0) && !revoked.contains(&message("2", &[]), 100.0));
        let late = 101.0 + REMEMBERED.as_secs_f64();
        assert!(!revoked.contains(&message("1", &[]), late));
        assert_eq!((revoked.ids(100.0).len(), revoked.ids(late).len()), (1, 0));
    }

    #[test]
    fn a_stamp_counts_when_the_message_names_it() {
        let revoked = Revoked::default();
        revoked.add_stamps(&[("tenant".into(), Json::string("acme"))], 100.0);
        let stamped = |stamps| {
            revoked.contains(
                &message(
                    "1",
                    &[("stamped_headers", "[\"tenant\", \"other\"]"), ("stamps", stamps)],
                ),
                100.0,
            )
        };
        assert!(stamped(r#"{"tenant": "acme"}"#));
        assert!(stamped(r#"{"other": 1, "tenant": ["x", "acme"]}"#));
        for other in [r#"{"tenant": "b"}"#, r#"{"other": "acme"}"#, "{}", "null", "7"] {
            assert!(!stamped(other), "{other}");
        }
        let unnamed = message("1", &[("stamps", r#"{"tenant": "acme"}"#)]);
        assert!(!revoked.contains(&unnamed, 100.0));
    }

    #[test]
    fn the_latest_are_kept() {
        let revoked = Revoked::default();
        for hour in 0..12 {
            let ids = (0..10_000).map(|n| format!("{hour}-{n}"));
            revoked.add(ids, f64::from(hour));
        }
        let ids = revoked.ids(0.0);
        assert!((40_000..=REVOKED_KEPT).contains(&ids.len()), "{}", ids.len());
        assert!(ids.iter().any(|id| id == "11-9999") && !ids.iter().any(|id| id.starts_with("5-")));
    }
}
