//! Which queue is served next, and with how many messages: by weights, or strictly by order. Pure.
//!
//! Nobody starves: by weights an own share is kept for each queue whatever the others hold, and in strict order a
//! twentieth of what is taken goes to the queues behind the first that has work.

use std::cmp::{Ordering, Reverse};
use std::collections::{BinaryHeap, HashMap};

/// How several queues share a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
#[value(rename_all = "PascalCase")]
pub enum Consumption {
    /// Each gets a share by its weight of what is taken, as long as it has messages.
    #[default]
    Weighted,
    /// The first queue that has messages is served first; those behind it get a twentieth.
    Strict,
}

/// In strict order every so manieth message is for the queues behind the first.
const STRICT_SHARE: f64 = 20.0;

/// One queue's part of a reserve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Quota {
    /// Place of the queue in the list of queues.
    pub(crate) index: usize,
    /// Messages that are its own; what others leave is free for all, in this order.
    pub(crate) count: usize,
}

/// What each queue has had. Times are virtual: a message of a queue of weight 2 advances it half as far as one of a queue
/// of weight 1, and the queue that is furthest behind is served first.
pub(crate) struct Shares {
    consumption: Consumption,
    queues: Vec<Share>,
    places: HashMap<String, usize>,
    /// Messages taken in strict order since those behind had theirs.
    strict: f64,
    /// Which of those behind is next.
    next_behind: usize,
}

/// A queue's virtual time and place, in the order of these.
struct Behind(f64, usize);

impl Ord for Behind {
    fn cmp(&self, other: &Behind) -> Ordering {
        self.0.total_cmp(&other.0).then(self.1.cmp(&other.1))
    }
}

impl PartialOrd for Behind {
    fn partial_cmp(&self, other: &Behind) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Behind {
    fn eq(&self, other: &Behind) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Behind {}

struct Share {
    name: String,
    weight: f64,
    time: f64,
}

impl Shares {
    /// Queues with their weights, in the order of the command line.
    pub(crate) fn new(consumption: Consumption) -> Shares {
        Shares {
            consumption,
            queues: Vec::new(),
            places: HashMap::new(),
            strict: 0.0,
            next_behind: 0,
        }
    }

    /// Serves these from now on; those of before keep what they have had.
    pub(crate) fn set(&mut self, queues: &[(String, u32)]) {
        let now = self.now();
        let mut before = std::mem::take(&mut self.queues);
        self.queues = queues
            .iter()
            .map(|(name, weight)| {
                let known = before.iter().position(|share| share.name == *name);
                Share {
                    name: name.clone(),
                    weight: f64::from((*weight).max(1)),
                    time: known.map_or(now, |at| before.swap_remove(at).time),
                }
            })
            .collect();
        self.places = self
            .queues
            .iter()
            .enumerate()
            .map(|(at, share)| (share.name.clone(), at))
            .collect();
        self.next_behind = 0;
    }

    /// How many of these messages, told by their queues, each queue gave.
    pub(crate) fn counted<'a>(&self, queues: impl Iterator<Item = &'a str>) -> Vec<usize> {
        let mut counts = vec![0; self.queues.len()];
        for queue in queues {
            if let Some(&at) = self.places.get(queue) {
                counts[at] += 1;
            }
        }
        counts
    }

    /// Virtual time: that of the queue that is furthest behind.
    fn now(&self) -> f64 {
        let least = self.queues.iter().map(|share| share.time).fold(f64::INFINITY, f64::min);
        if least.is_finite() { least } else { 0.0 }
    }

    /// The order in which `count` messages are to be taken. Every queue is in it once.
    pub(crate) fn plan(&self, count: usize) -> Vec<Quota> {
        match self.consumption {
            Consumption::Weighted => self.by_weight(count),
            Consumption::Strict => self.in_order(count),
        }
    }

    fn by_weight(&self, count: usize) -> Vec<Quota> {
        let mut order: Vec<usize> = (0..self.queues.len()).collect();
        order.sort_by(|a, b| self.queues[*a].time.total_cmp(&self.queues[*b].time));
        // The messages one by one, each to the queue that is furthest behind: as if each were taken alone.
        let behind = |(index, share): (usize, &Share)| Reverse(Behind(share.time, index));
        let mut heap: BinaryHeap<Reverse<Behind>> = self.queues.iter().enumerate().map(behind).collect();
        let mut counts = vec![0; self.queues.len()];
        for _ in 0..count {
            let Some(Reverse(Behind(time, index))) = heap.pop() else {
                break;
            };
            counts[index] += 1;
            heap.push(Reverse(Behind(time + 1.0 / self.queues[index].weight, index)));
        }
        let quota = |index: usize| Quota {
            index,
            count: counts[index],
        };
        order.into_iter().map(quota).collect()
    }

    fn in_order(&self, count: usize) -> Vec<Quota> {
        let queues = self.queues.len();
        let mut plan: Vec<Quota> = (0..queues).map(|index| Quota { index, count }).collect();
        if queues < 2 || count == 0 {
            return plan;
        }
        #[allow(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss
        )] // Hundreds.
        let behind = (((self.strict + count as f64) / STRICT_SHARE) as usize).min(count);
        if behind > 0 {
            // Those behind in turn, in front of all for what is theirs.
            let index = 1 + self.next_behind % (queues - 1);
            plan.remove(index);
            plan.insert(0, Quota { index, count: behind });
        }
        plan
    }

    /// What a reserve by this plan has brought: messages of each queue, by its place.
    pub(crate) fn taken(&mut self, plan: &[Quota], counts: &[usize]) {
        #[allow(clippy::cast_precision_loss)] // Hundreds.
        for (index, count) in counts.iter().enumerate() {
            if let Some(share) = self.queues.get_mut(index) {
                share.time += *count as f64 / share.weight;
            }
        }
        match self.consumption {
            Consumption::Weighted => {
                // Who had nothing to give saves nothing up for later.
                let now = plan
                    .iter()
                    .filter(|quota| {
                        quota.count > 0 && counts.get(quota.index).is_some_and(|count| *count >= quota.count)
                    })
                    .map(|quota| self.queues[quota.index].time)
                    .fold(f64::INFINITY, f64::min);
                for quota in plan {
                    let is_empty = quota.count > 0 && counts.get(quota.index).is_none_or(|count| *count < quota.count);
                    if is_empty && now.is_finite() {
                        let share = &mut self.queues[quota.index];
                        share.time = share.time.max(now);
                    }
                }
                self.rebase();
            }
            Consumption::Strict => {
                let is_behind_first = plan.first().is_some_and(|quota| quota.index > 0);
                #[allow(clippy::cast_precision_loss)]
                let taken = counts.iter().sum::<usize>() as f64;
                if is_behind_first {
                    self.strict = 0.0;
                    self.next_behind = (self.next_behind + 1) % (self.queues.len() - 1).max(1);
                } else {
                    self.strict += taken;
                }
            }
        }
    }

    /// Keeps the numbers small.
    fn rebase(&mut self) {
        let now = self.now();
        if now > 1e9 {
            for share in &mut self.queues {
                share.time -= now;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Plays a worker that takes `count` at a time from queues with so many messages: what each has had after `rounds`.
    fn play(shares: &mut Shares, waiting: &mut [usize], count: usize, rounds: usize) -> Vec<usize> {
        let mut had = vec![0; waiting.len()];
        for _ in 0..rounds {
            let plan = shares.plan(count);
            let mut counts = vec![0; waiting.len()];
            let mut left = count;
            for round in 0..2 {
                for quota in &plan {
                    let wish = if round == 0 { quota.count.min(left) } else { left };
                    let got = wish.min(waiting[quota.index]);
                    waiting[quota.index] -= got;
                    counts[quota.index] += got;
                    left -= got;
                }
            }
            shares.taken(&plan, &counts);
            for (had, count) in had.iter_mut().zip(&counts) {
                *had += count;
            }
        }
        had
    }

    fn shares(consumption: Consumption, weights: &[u32]) -> Shares {
        let mut shares = Shares::new(consumption);
        let queues: Vec<(String, u32)> = weights.iter().enumerate().map(|(i, w)| (i.to_string(), *w)).collect();
        shares.set(&queues);
        shares
    }

    #[test]
    fn each_queue_gets_the_share_of_its_weight() {
        for count in [1, 7, 64] {
            let mut shares = shares(Consumption::Weighted, &[1, 2, 5]);
            let had = play(&mut shares, &mut [100_000; 3], count, 800);
            let all = 800 * count;
            for (had, weight) in had.iter().zip([1, 2, 5]) {
                assert!(
                    had.abs_diff(all * weight / 8) <= 8,
                    "{count}: {had} of {all} at weight {weight}"
                );
            }
        }
    }

    #[test]
    fn a_flooded_queue_leaves_the_others_theirs_and_takes_what_they_do_not_need() {
        let mut shares = shares(Consumption::Weighted, &[1, 1, 1]);
        let had = play(&mut shares, &mut [100_000, 10, 0], 4, 100);
        assert_eq!(had, [390, 10, 0]);
        // What the last one did not use while it was empty is not owed to it now.
        let had = play(&mut shares, &mut [100_000, 100_000, 100_000], 3, 100);
        assert!(had.iter().all(|had| had.abs_diff(100) <= 3), "{had:?}");
    }

    #[test]
    fn strict_order_leaves_a_twentieth_to_those_behind() {
        for count in [1, 5, 40] {
            let mut shares = shares(Consumption::Strict, &[1, 1, 1]);
            let had = play(&mut shares, &mut [1_000_000; 3], count, 4000);
            let all = 4000 * count;
            assert!(had[0] >= all * 94 / 100 && had[0] < all, "{count}: {had:?}");
            for behind in [1, 2] {
                assert!(had[behind] >= all / 50 && had[behind] <= all / 20, "{count}: {had:?}");
            }
        }
        let mut shares = shares(Consumption::Strict, &[1, 1]);
        assert_eq!(
            play(&mut shares, &mut [3, 9], 4, 3),
            [3, 9],
            "the second gets all that the first leaves"
        );
    }

    #[test]
    fn queues_come_and_go() {
        let mut shares = shares(Consumption::Weighted, &[1]);
        play(&mut shares, &mut [1000], 1, 500);
        shares.set(&[("0".into(), 1), ("new".into(), 1)]);
        let had = play(&mut shares, &mut [1000, 1000], 1, 100);
        assert_eq!(had, [50, 50], "a new queue is owed nothing of the past");
        shares.set(&[]);
        assert!(shares.plan(3).is_empty());
        shares.taken(&[], &[]);
    }
}
