//! How fast work is done and comes: measured over the last minutes from what workers and queues say.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

/// What is older does not count.
const WINDOW: SignedDuration = SignedDuration::from_mins(5);
/// Two marks are at least so far apart: heartbeats come every 5 s, so more marks would hold nothing new.
const APART: SignedDuration = SignedDuration::from_secs(5);
/// Below this, a rate is chance.
const SHORTEST: SignedDuration = SignedDuration::from_secs(10);
/// Tasks that must have ended: the mean of fewer says little.
const FEWEST: u64 = 5;

/// How fast work is done and comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// How long a slot is busy with a task, on average.
    pub task: Duration,
    /// Tasks that come in a thousand seconds.
    pub arrivals_milli: u64,
}

/// One worker process, as its heartbeat says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Beat {
    /// Slots in use.
    pub busy: u32,
    /// Tasks ended since the process began.
    pub finished: u64,
}

/// Sums since the meter began, at one time.
#[derive(Clone, Copy, Debug)]
struct Mark {
    at: Timestamp,
    finished: u64,
    /// Slots in use, times milliseconds.
    busy: u64,
    /// Everything there was to do then.
    work: u64,
}

/// Measures the pace of one pool. Memory of a leader, begun anew by the next one.
#[derive(Clone, Debug, Default)]
pub struct Meter {
    workers: BTreeMap<String, u64>,
    last: Option<Mark>,
    marks: VecDeque<Mark>,
    /// The latest mean: it stays when the pool falls asleep.
    task: Option<Duration>,
}

impl Meter {
    /// Takes in what was seen at one time: the pool's workers by name, and everything there is to do for it.
    pub fn see<'a>(&mut self, at: Timestamp, workers: impl IntoIterator<Item = (&'a str, Beat)>, work: u64) {
        let mut now = match self.last {
            Some(last) if last.at >= at => return,
            Some(last) => Mark { at, work, ..last },
            None => Mark {
                at,
                finished: 0,
                busy: 0,
                work,
            },
        };
        let passed = self.last.map_or(0, |last| {
            u64::try_from(at.duration_since(last.at).as_millis()).unwrap_or(0)
        });
        let mut known = BTreeMap::new();
        for (worker, Beat { busy, finished }) in workers {
            // What a process did before it was first seen happened at no known time.
            let before = self.workers.get(worker).copied().unwrap_or(finished);
            now.finished += finished.saturating_sub(before);
            now.busy = now.busy.saturating_add(u64::from(busy).saturating_mul(passed));
            known.insert(worker.to_owned(), finished);
        }
        self.workers = known;
        self.last = Some(now);
        if self.marks.back().is_none_or(|mark| at.duration_since(mark.at) >= APART) {
            self.marks.push_back(now);
        }
        // One mark at the far side of the window stays, so that the window is full.
        while self
            .marks
            .get(1)
            .is_some_and(|mark| at.duration_since(mark.at) >= WINDOW)
        {
            self.marks.pop_front();
        }
        if let Some((first, last, _)) = self.span()
            && last.finished - first.finished >= FEWEST
            && last.busy > first.busy
        {
            self.task = Some(Duration::from_millis(
                ((last.busy - first.busy) / (last.finished - first.finished)).max(1),
            ));
        }
    }

    /// The pace, once enough was seen.
    pub fn pace(&self) -> Option<Pace> {
        let (first, last, millis) = self.span()?;
        // What is there was there before or came, and is not done.
        let came = (last.work + (last.finished - first.finished)).saturating_sub(first.work);
        Some(Pace {
            task: self.task?,
            arrivals_milli: came.saturating_mul(1_000_000) / millis,
        })
    }

    fn span(&self) -> Option<(Mark, Mark, u64)> {
        let (first, last) = (*self.marks.front()?, self.last?);
        let passed = last.at.duration_since(first.at);
        let millis = u64::try_from(passed.as_millis()).ok()?;
        (passed >= SHORTEST).then_some((first, last, millis))
    }
}
