//! What Redis should hold, as plain values.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Largest message that is sent to a worker.
pub(crate) const LARGEST: usize = 200;
/// Deliveries that may end without settlement.
pub(crate) const DELIVERIES: u32 = 3;
/// The queues of the test; the second has a name to trip over.
pub(crate) const QUEUES: [&str; 2] = ["mail", "a\u{6}b:umbel:"];
/// kombu's steps.
const STEPS: [u8; 4] = [0, 3, 6, 9];

pub(crate) type Raw = Vec<u8>;

/// The key that takes a message of this priority.
pub(crate) fn list(queue: usize, priority: u8) -> String {
    match STEPS.iter().rev().find(|step| **step <= priority) {
        Some(0) | None => QUEUES[queue].to_owned(),
        Some(step) => format!("{}\u{6}\u{16}{step}", QUEUES[queue]),
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Lease {
    pub(crate) worker: usize,
    pub(crate) queue: usize,
    pub(crate) list: String,
    pub(crate) raw: Raw,
    /// Set by the test instead of waiting: smaller ones ran out earlier.
    pub(crate) overdue: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Gate {
    Unknown,
    New,
    Open,
    Closed,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Delayed {
    pub(crate) list: String,
    pub(crate) raw: Raw,
    pub(crate) is_due: bool,
    /// Order among those that are due.
    pub(crate) rank: u64,
}

/// All of it. In every list the first element is the next to be taken.
#[derive(Debug, Default)]
pub(crate) struct Model {
    pub(crate) lists: BTreeMap<String, VecDeque<Raw>>,
    pub(crate) leases: BTreeMap<String, Lease>,
    pub(crate) delayed: [Vec<Delayed>; 2],
    pub(crate) suspects: [VecDeque<(String, Raw)>; 2],
    pub(crate) dead: [Vec<Raw>; 2],
    pub(crate) quarantine: [Vec<Raw>; 2],
    pub(crate) deaths: BTreeMap<Raw, u32>,
    pub(crate) published: BTreeSet<Raw>,
    /// Acknowledged, or replaced by a retry.
    pub(crate) settled: BTreeSet<Raw>,
    /// Messages that died so often that they were buried.
    pub(crate) buried: usize,
}

/// What a reserve takes: the list's queue, its key and the message.
pub(crate) type Taken = Vec<(usize, String, Raw)>;

impl Model {
    pub(crate) fn publish(&mut self, queue: usize, priority: u8, raw: &Raw) {
        self.lists
            .entry(list(queue, priority))
            .or_default()
            .push_back(raw.clone());
        self.published.insert(raw.clone());
    }

    /// Takes as the worker does: each queue its share first, the urgent lists first, then what is left to anybody.
    /// Oversized messages at the head of a list go to the quarantine.
    pub(crate) fn reserve(&mut self, count: usize) -> Taken {
        let mut taken: Taken = Vec::new();
        let mut oversized: BTreeMap<String, usize> = BTreeMap::new();
        let share = count.div_ceil(QUEUES.len());
        for quota_of_round in [share, count] {
            for queue in 0..QUEUES.len() {
                let mut quota = quota_of_round.min(count - taken.len());
                for step in STEPS {
                    let key = list(queue, step);
                    let messages = self.lists.entry(key.clone()).or_default();
                    while quota > 0 && !oversized.contains_key(&key) {
                        match messages.front() {
                            None => break,
                            Some(raw) if raw.len() > LARGEST => {
                                oversized.insert(key.clone(), queue);
                            }
                            Some(_) => {
                                taken.extend(messages.pop_front().map(|raw| (queue, key.clone(), raw)));
                                quota -= 1;
                            }
                        }
                    }
                }
            }
        }
        for (key, queue) in oversized {
            let raw = self.lists.get_mut(&key).and_then(VecDeque::pop_front);
            self.quarantine[queue].extend(raw);
        }
        taken
    }

    /// Back to the head of its list, or of the suspects.
    pub(crate) fn release(&mut self, lid: &str) {
        let Some(lease) = self.leases.remove(lid) else { return };
        if lid.contains('|') {
            self.lists.entry(lease.list).or_default().push_front(lease.raw);
        } else {
            self.suspects[lease.queue].push_front((lease.list, lease.raw));
        }
    }

    /// Takes overdue leases back, those that ran out first first.
    pub(crate) fn reclaim(&mut self) {
        let mut overdue: Vec<(u64, String)> = self
            .leases
            .iter()
            .filter_map(|(lid, lease)| Some((lease.overdue?, lid.clone())))
            .collect();
        overdue.sort();
        for (_, lid) in overdue {
            let Some(lease) = self.leases.remove(&lid) else {
                continue;
            };
            let deaths = self.deaths.entry(lease.raw.clone()).or_default();
            *deaths += 1;
            if *deaths >= DELIVERIES {
                self.deaths.remove(&lease.raw);
                self.buried += 1;
                self.dead[lease.queue].push(lease.raw);
            } else if *deaths >= 2 {
                self.suspects[lease.queue].push_back((lease.list, lease.raw));
            } else {
                self.lists.entry(lease.list).or_default().push_front(lease.raw);
            }
        }
    }

    pub(crate) fn promote(&mut self) {
        for delayed in &mut self.delayed {
            let (mut due, later): (Vec<_>, Vec<_>) = delayed.drain(..).partition(|member| member.is_due);
            *delayed = later;
            due.sort_by_key(|member| std::cmp::Reverse(member.rank));
            for member in due {
                self.lists.entry(member.list).or_default().push_front(member.raw);
            }
        }
    }

    pub(crate) fn held_by(&self, worker: usize) -> usize {
        self.leases.values().filter(|lease| lease.worker == worker).count()
    }
}
