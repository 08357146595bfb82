//! What producers and workers do.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use proptest::sample::Index;
use umbel_broker::{AckGroup, End, Reclaim, Reserved, Reserver, Settlement, SweepAnswer, Sweeper};

use super::{LEASE, World, id, name, reserver};
use crate::model::{Delayed, Gate, LARGEST, Lease, QUEUES, Raw, Taken};

impl World {
    pub(super) async fn publish(&mut self, queue: usize, priority: u8, is_oversized: bool) {
        let raw = self.raw(is_oversized);
        let message = std::slice::from_ref(&raw);
        self.broker
            .publish(QUEUES[queue], priority, message)
            .await
            .expect("the server answers");
        self.model.publish(queue, priority, &raw);
    }

    /// A worker's first call says hello: its gate is new then.
    fn said_hello(&mut self, worker: usize) {
        if self.gates[worker] == Gate::Unknown {
            self.gates[worker] = Gate::New;
        }
    }

    fn take(&mut self, worker: usize, answer: &Reserved, expected: Taken) {
        let Reserved::Batch(batch) = answer else {
            panic!("an open gate gives messages: {answer:?}")
        };
        let got: Vec<_> = batch.taken.iter().map(|taken| (&*taken.queue, &taken.raw)).collect();
        let wanted: Vec<_> = expected.iter().map(|(queue, _, raw)| (QUEUES[*queue], raw)).collect();
        assert_eq!(got, wanted);
        for (taken, (queue, list, raw)) in batch.taken.iter().zip(expected) {
            assert_eq!(batch.term, self.fence.term);
            assert!(taken.micros > self.last_token, "tokens grow");
            self.last_token = taken.micros;
            let lid = taken.lid.to_string();
            assert_eq!(self.seen.insert(lid.clone(), raw.clone()), None, "lease ids are new");
            self.model.leases.insert(
                lid,
                Lease {
                    worker,
                    queue,
                    list,
                    raw,
                    overdue: None,
                },
            );
        }
    }

    pub(super) async fn reserve(&mut self, worker: usize, count: usize) {
        let held = self.held(worker);
        let answer = self.reservers[worker]
            .reserve(count, &self.queues, || held)
            .await
            .expect("the server answers");
        self.reserved(worker, count, &answer);
    }

    fn reserved(&mut self, worker: usize, count: usize, answer: &Reserved) {
        self.said_hello(worker);
        if self.gates[worker] == Gate::Open {
            let expected = self.model.reserve(count);
            self.take(worker, answer, expected);
        } else {
            assert!(
                matches!(answer, Reserved::Gate(_)),
                "a gate that is not open gives nothing: {answer:?}"
            );
        }
    }

    /// Dropped on its way: whatever Redis did with it is undone by the next hello.
    pub(super) async fn cancelled_reserve(&mut self, worker: usize, count: usize, micros: u64) {
        if self.model.lists.values().flatten().any(|raw| raw.len() > LARGEST) {
            return; // It may or may not have put one into the quarantine.
        }
        let held = self.held(worker);
        let call = self.reservers[worker].reserve(count, &self.queues, || held);
        if let Ok(answer) = tokio::time::timeout(Duration::from_micros(micros), call).await {
            return self.reserved(worker, count, &answer.expect("the server answers"));
        }
        let held = self.held(worker);
        self.reservers[worker]
            .ensure(|| held)
            .await
            .expect("the server answers");
        self.said_hello(worker);
        let token: Option<u64> = self.read("GET", "umbel:fence").await;
        self.last_token = token.unwrap_or(0);
    }

    pub(super) async fn reserve_suspect(&mut self, worker: usize) {
        let held = self.held(worker);
        let answer = self.reservers[worker]
            .reserve_suspect(&self.queues, || held)
            .await
            .expect("the server answers");
        self.said_hello(worker);
        if self.gates[worker] != Gate::Open {
            assert!(matches!(answer, Reserved::Gate(_)), "{answer:?}");
        } else if self.model.held_by(worker) > 0 {
            assert!(
                matches!(answer, Reserved::Busy),
                "a busy worker gets no suspect: {answer:?}"
            );
        } else {
            let queue = (0..QUEUES.len()).find(|queue| !self.model.suspects[*queue].is_empty());
            let first = queue.and_then(|queue| Some((queue, self.model.suspects[queue].pop_front()?)));
            self.take(
                worker,
                &answer,
                first
                    .into_iter()
                    .map(|(queue, (list, raw))| (queue, list, raw))
                    .collect(),
            );
        }
    }

    pub(super) async fn ack(&mut self, worker: usize, leases: &[Index]) {
        let picked: BTreeSet<String> = leases.iter().filter_map(|index| self.pick(index)).collect();
        let own: Vec<String> = picked
            .into_iter()
            .filter(|lid| self.model.leases[lid].worker == worker)
            .collect();
        let groups: Vec<AckGroup> = own
            .iter()
            .map(|lid| {
                let lease = &self.model.leases[lid];
                let id = id(&lease.raw);
                // Every other one stores a result.
                let stores = lease.raw.len().is_multiple_of(2);
                let results = if stores {
                    vec![(format!("result-{id}"), lease.raw.clone())]
                } else {
                    Vec::new()
                };
                AckGroup {
                    queue: QUEUES[lease.queue].into(),
                    leases: vec![(lid.as_str().into(), id)],
                    results,
                }
            })
            .collect();
        let has_counted = !self.model.deaths.is_empty();
        let lost = self
            .broker
            .ack(&name(worker), 60, has_counted, &groups)
            .await
            .expect("the server answers");
        assert_eq!(lost, 0, "what is held is acknowledged");
        for (key, document) in groups.into_iter().flat_map(|group| group.results) {
            assert_eq!(
                self.read::<Option<Raw>>("GET", &key).await,
                Some(document),
                "its result is stored"
            );
        }
        for lid in own {
            if let Some(lease) = self.model.leases.remove(&lid) {
                self.model.deaths.remove(&lease.raw);
                self.model.settled.insert(lease.raw);
            }
        }
    }

    /// A zombie acknowledges what was taken from it; the message may be another's by now.
    pub(super) async fn late_ack(&mut self, worker: usize) {
        let Some(lid) = self.lost_lid() else { return };
        let result = ("late".to_owned(), b"SUCCESS".to_vec());
        let leases = vec![(lid.as_str().into(), id(&self.seen[&lid]))];
        let group = AckGroup {
            queue: QUEUES[0].into(),
            leases,
            results: vec![result],
        };
        let answer = self
            .broker
            .ack(&name(worker), 60, true, &[group])
            .await
            .expect("the server answers");
        assert_eq!(
            self.read::<Option<Raw>>("GET", "late").await,
            None,
            "and no result is stored"
        );
        assert_eq!(answer, 1);
        let plain = AckGroup {
            queue: QUEUES[0].into(),
            leases: vec![(lid.as_str().into(), String::new())],
            results: Vec::new(),
        };
        let answer = self.broker.ack(&name(worker), 60, false, &[plain]).await;
        assert_eq!(answer.expect("the server answers"), 1);
    }

    pub(super) async fn end(&mut self, lid: &str, end: u8) {
        let rank = self.next();
        let fresh = self.raw(false);
        let soon = 1_000_000.0 + f64::from(rank);
        let end = match end {
            0 => End::Ack,
            1 => End::Later {
                due: soon,
                raw: fresh.clone(),
            },
            2 => End::Park {
                due: if rank.is_multiple_of(2) { soon } else { 99_999_999_999.0 },
            },
            3 => End::Bury {
                reason: "no such task".into(),
            },
            4 => End::Quarantine {
                reason: "not JSON".into(),
            },
            5 => End::Requeue,
            6 => End::Charge,
            _ => End::Release,
        };
        let settlement = Settlement {
            lid: lid.into(),
            id: id(&self.seen[lid]),
            task: "t".into(),
            end: end.clone(),
            result: None,
            run: None,
            outcome: "succeeded",
            follow_ups: Vec::new(),
        };
        let lost = self
            .broker
            .settle(1000, &[settlement])
            .await
            .expect("the server answers");
        if !self.model.leases.contains_key(lid) {
            assert_eq!(lost, [lid], "what is not held is answered as lost");
            return;
        }
        assert!(lost.is_empty(), "what is held is settled");
        if matches!(end, End::Charge) {
            let raw = self.model.leases[lid].raw.clone();
            *self.model.deaths.entry(raw).or_default() += 1;
        }
        if matches!(end, End::Release | End::Charge) {
            return self.model.release(lid);
        }
        let Some(Lease { queue, list, raw, .. }) = self.model.leases.remove(lid) else {
            return;
        };
        if !matches!(end, End::Park { .. }) {
            self.model.deaths.remove(&raw);
        }
        let rank = u64::from(rank);
        match end {
            End::Ack => drop(self.model.settled.insert(raw)),
            End::Later { .. } => {
                self.model.settled.insert(raw);
                self.model.published.insert(fresh.clone());
                self.model.delayed[queue].push(Delayed {
                    list,
                    raw: fresh,
                    is_due: true,
                    rank,
                });
            }
            End::Park { due } => self.model.delayed[queue].push(Delayed {
                list,
                raw,
                is_due: due <= soon,
                rank,
            }),
            End::Bury { .. } | End::BuryBytes { .. } => self.model.dead[queue].push(raw),
            End::Requeue => self.model.lists.entry(list).or_default().push_back(raw),
            End::Quarantine { .. } => self.model.quarantine[queue].push(raw),
            End::Release | End::Charge => {}
        }
    }

    /// As if the lease had run out: the deadline is set back instead of waiting.
    pub(super) async fn overdue(&mut self, lease: &Index) {
        let Some(lid) = self.pick(lease) else { return };
        let rank = self.next();
        let mut set = redis::cmd("ZADD");
        set.arg("umbel:lease").arg("XX").arg(rank).arg(&lid);
        set.query_async::<()>(&mut self.redis)
            .await
            .expect("the server answers");
        if let Some(lease) = self.model.leases.get_mut(&lid) {
            lease.overdue = Some(rank.into());
        }
    }

    pub(super) async fn renew(&mut self, lease: &Index) {
        let lids: Vec<String> = self.pick(lease).into_iter().chain(self.lost_lid()).collect();
        let named: Vec<Arc<str>> = lids.iter().map(|lid| lid.as_str().into()).collect();
        let lost = self.broker.renew(LEASE, &named).await.expect("the server answers");
        let expected: Vec<&String> = lids
            .iter()
            .filter(|lid| !self.model.leases.contains_key(*lid))
            .collect();
        assert_eq!(lost.iter().collect::<Vec<_>>(), expected);
        for lid in lids {
            if let Some(lease) = self.model.leases.get_mut(&lid) {
                lease.overdue = None;
            }
        }
    }

    pub(super) async fn sweep(&mut self) {
        // The shortest grace there is: outages have tests of their own.
        let mut sweeper = Sweeper::new(Duration::from_millis(1), Duration::ZERO, Duration::ZERO);
        let what = "the grace ends";
        let overdue = umbel_testkit::eventually_some(Duration::from_secs(10), what, async || {
            match sweeper
                .sweep(&self.broker, 1000, false)
                .await
                .expect("the server answers")
            {
                SweepAnswer::Overdue(overdue) => Some(overdue),
                SweepAnswer::Skipped | SweepAnswer::Grace { .. } => None,
            }
        })
        .await;
        let reclaims: Vec<Reclaim> = overdue
            .iter()
            .map(|overdue| Reclaim {
                lid: overdue.lid.clone(),
                counted_as: id(&overdue.raw),
                is_served: true,
            })
            .collect();
        let reclaimed = self.broker.reclaim(LEASE, &reclaims).await.expect("the server answers");
        // As workers do: what is given up is ended by whoever swept.
        let ends: Vec<Settlement> = reclaimed
            .given_up
            .iter()
            .map(|given| Settlement {
                lid: Arc::clone(&given.lid),
                id: id(&overdue[given.at].raw),
                task: "t".into(),
                end: End::Bury { reason: "why".into() },
                result: None,
                run: None,
                outcome: "failed",
                follow_ups: Vec::new(),
            })
            .collect();
        if !ends.is_empty() {
            let lost = self.broker.settle(1000, &ends).await.expect("the server answers");
            assert!(lost.is_empty(), "the sweeper holds what it was given");
        }
        self.model.reclaim();
    }

    pub(super) async fn promote(&mut self) {
        let promoted = self.broker.promote(1000, &QUEUES).await.expect("the server answers");
        let due = self
            .model
            .delayed
            .iter()
            .flatten()
            .filter(|member| member.is_due)
            .count();
        assert_eq!(promoted.moved, due as u64);
        self.model.promote();
    }

    /// A new connection that does not name one of its leases: that one goes back, the others stay.
    pub(super) async fn reconnect(&mut self, worker: usize, forgotten: &Index) {
        let forgotten = self
            .pick(forgotten)
            .filter(|lid| self.model.leases[lid].worker == worker);
        let named: Vec<Arc<str>> = self
            .held(worker)
            .into_iter()
            .filter(|lid| Some(&**lid) != forgotten.as_deref())
            .collect();
        let mut fresh = reserver(&self.config, worker);
        fresh.ensure(|| named).await.expect("the server answers");
        self.said_hello(worker);
        let hello = fresh.take_hello().expect("it has just said hello");
        assert_eq!(hello.handed_back, u64::from(forgotten.is_some()));
        if let Some(lid) = forgotten {
            self.model.release(&lid);
        }
        self.old[worker] = Some(std::mem::replace(&mut self.reservers[worker], fresh));
    }

    /// The connection before the newest reserves: refused, whatever the gate says.
    pub(super) async fn old_reserve(&mut self, worker: usize) {
        let Some(mut old) = self.old[worker].take().filter(Reserver::is_connected) else {
            return;
        };
        let held = self.held(worker);
        let answer = old.reserve(5, &self.queues, || held).await.expect("the server answers");
        assert!(
            matches!(answer, Reserved::Gate(_)),
            "an older epoch takes nothing: {answer:?}"
        );
    }
}
