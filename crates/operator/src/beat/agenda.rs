//! Which schedule is to be looked at when. A thousand of them may be due in one second: what is asked in between is asked of
//! those alone.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use umbel_api::PeriodicTask;

use super::{Entry, seen};
use crate::controllers::periodictask::uid;

/// All schedules, and their turns.
#[derive(Default)]
pub(super) struct Agenda {
    all: HashMap<Arc<str>, One>,
    /// Those that nobody looks at right now, by the time of their turn.
    turns: BTreeSet<(Instant, Arc<str>)>,
}

struct One {
    task: Arc<PeriodicTask>,
    /// `None`: somebody looks at it right now and has the entry.
    rest: Option<(Instant, Entry)>,
}

impl Agenda {
    /// Takes the schedules as they are now.
    pub(super) fn refresh(&mut self, tasks: Vec<Arc<PeriodicTask>>, now: Instant) {
        let present: HashSet<String> = tasks.iter().map(|task| uid(task)).collect();
        let gone: Vec<Arc<str>> = self
            .all
            .keys()
            .filter(|uid| !present.contains(&***uid))
            .cloned()
            .collect();
        for uid in gone {
            self.remove(&uid);
        }
        for task in tasks {
            self.put(task, now);
        }
    }

    /// Takes one schedule as it is now. A new one, and one that changed, has its turn at once.
    pub(super) fn put(&mut self, task: Arc<PeriodicTask>, now: Instant) {
        let uid: Arc<str> = uid(&task).into();
        let one = self.all.entry(uid.clone()).or_insert_with(|| One {
            task: task.clone(),
            rest: Some((now, Entry::default())),
        });
        one.task = task;
        if let Some((turn, entry)) = &mut one.rest {
            self.turns.remove(&(*turn, uid.clone()));
            if entry.seen.as_ref() != Some(&seen(&one.task)) {
                *turn = now;
            }
            self.turns.insert((*turn, uid));
        }
    }

    /// Forgets one that is gone.
    pub(super) fn remove(&mut self, uid: &str) {
        if let Some((
            uid,
            One {
                rest: Some((turn, _)), ..
            },
        )) = self.all.remove_entry(uid)
        {
            self.turns.remove(&(turn, uid));
        }
    }

    /// The schedule whose turn it is, and what is remembered of it: to be given back by [`Agenda::back`].
    pub(super) fn next(&mut self, now: Instant) -> Option<(Arc<str>, Arc<PeriodicTask>, Entry)> {
        let (_, uid) = self.turns.first().filter(|(turn, _)| *turn <= now)?.clone();
        self.turns.pop_first();
        let one = self.all.get_mut(&uid)?;
        let (_, entry) = one.rest.take()?;
        Some((uid, one.task.clone(), entry))
    }

    /// How many schedules there are.
    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    /// When the next turn comes.
    pub(super) fn soonest(&self) -> Option<Instant> {
        self.turns.first().map(|(turn, _)| *turn)
    }

    /// Takes back what [`Agenda::next`] gave. What changed meanwhile has its turn at once; what is gone is forgotten.
    pub(super) fn back(&mut self, uid: &Arc<str>, entry: Entry, now: Instant) {
        let Some(one) = self.all.get_mut(uid) else { return };
        let is_same = entry.seen.as_ref() == Some(&seen(&one.task));
        let turn = entry.wake.filter(|_| is_same).unwrap_or(now);
        one.rest = Some((turn, entry));
        self.turns.insert((turn, uid.clone()));
    }

    /// Nothing that was given comes back: all of those have their turn at once, with nothing remembered.
    pub(super) fn forget_given(&mut self, now: Instant) {
        for (uid, one) in &mut self.all {
            if one.rest.is_none() {
                one.rest = Some((now, Entry::default()));
                self.turns.insert((now, uid.clone()));
            }
        }
    }

    /// All that rest have their turn at once.
    pub(super) fn rush(&mut self, now: Instant) {
        self.turns.clear();
        for (uid, one) in &mut self.all {
            if let Some((turn, _)) = &mut one.rest {
                *turn = now;
                self.turns.insert((now, uid.clone()));
            }
        }
    }
}
