//! Starts runs: on a few tasks of the runtime, not on one for each message.
//!
//! A run that never waits, as most short ones, costs no task of its own, no timer and no wake-up, and its end goes to the
//! settler together with those beside it. What is left of one that has to wait becomes a task there and then.
//!
//! # Guarantees
//! There are as many runners as the runtime has threads, and each takes one message at a time from a queue that they
//! share: a run that computes keeps back nobody but itself, as long as a thread is free. Not the ends of those before it,
//! either: these lie where all runners gather, and a watcher sees to it that none lies there for long.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::sync::OwnedSemaphorePermit;

use crate::app::Shared;
use crate::settle::Ended;

/// Ends that are handed to the settler together.
const TOGETHER: usize = 128;
/// So long an end waits for others at first, and at most, where nothing more ends.
const WAIT: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(32));

/// What there is to start, and who starts it.
pub(crate) struct Runners<S> {
    state: Mutex<State<S>>,
    gathered: Mutex<Gathered>,
}

struct State<S> {
    waiting: VecDeque<S>,
    running: usize,
    is_watched: bool,
}

impl<S> Default for Runners<S> {
    fn default() -> Runners<S> {
        let state = State {
            waiting: VecDeque::new(),
            running: 0,
            is_watched: false,
        };
        Runners {
            state: Mutex::new(state),
            gathered: Mutex::default(),
        }
    }
}

impl<S> Runners<S> {
    fn lock(&self) -> MutexGuard<'_, State<S>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner) // A queue and a count are whole after any panic.
    }

    /// The next one; without one the runner is dismissed.
    fn next(&self) -> Option<S> {
        let mut state = self.lock();
        let next = state.waiting.pop_front();
        if next.is_none() {
            state.running -= 1;
        }
        next
    }

    /// Adds to what has gathered; answers how many ends that are now.
    fn gather(&self, more: &mut Gathered) -> usize {
        let mut gathered = self.gathered.lock().unwrap_or_else(PoisonError::into_inner);
        gathered.ended.append(&mut more.ended);
        if let Some(slots) = more.slots.take() {
            gathered.free(slots);
        }
        gathered.ended.len()
    }

    /// Hands to the settler what has gathered; false if that is nothing.
    async fn hand_over(&self, shared: &Shared) -> bool {
        let gathered = std::mem::take(&mut *self.gathered.lock().unwrap_or_else(PoisonError::into_inner));
        let Gathered { mut ended, slots } = gathered;
        let is_any = !ended.is_empty();
        if is_any {
            shared.send_all(&mut ended).await;
        }
        drop(slots); // After the settlements are on their way: a slow Redis slows the taking down.
        is_any
    }
}

impl<S: Send + 'static> Runners<S> {
    /// Starts these; `begin` takes each as far as it goes without waiting, and answers what is left of it.
    pub(crate) fn start<F>(self: &Arc<Self>, shared: &Arc<Shared>, these: impl IntoIterator<Item = S>, begin: F)
    where
        F: Fn(&Arc<Shared>, S, &mut Context<'_>) -> Option<BoxFuture<'static, ()>> + Copy + Send + Sync + 'static,
    {
        let threads = tokio::runtime::Handle::current().metrics().num_workers();
        let new = {
            let mut state = self.lock();
            state.waiting.extend(these);
            let new = threads.saturating_sub(state.running).min(state.waiting.len());
            state.running += new;
            new
        };
        if new == 0 {
            self.see_to_it(shared); // Whoever is busy may have left an end behind, and goes on with these.
        }
        for _ in 0..new {
            let (this, shared) = (Arc::clone(self), Arc::clone(shared));
            // Its budget is for tasks that wait for one thing after the other; each of these is polled once.
            tokio::spawn(tokio::task::unconstrained(async move {
                this.work(&shared, begin).await;
            }));
        }
    }

    async fn work<F>(self: &Arc<Self>, shared: &Arc<Shared>, begin: F)
    where
        F: Fn(&Arc<Shared>, S, &mut Context<'_>) -> Option<BoxFuture<'static, ()>>,
    {
        let mut gathered = Gathered::default();
        while let Some(next) = self.next() {
            let mut next = Some(next);
            let left = std::future::poll_fn(|cx| {
                let begin = || next.take().and_then(|next| begin(shared, next, cx));
                Poll::Ready(gathered.within(begin))
            })
            .await;
            match left {
                Some(None) => {}
                Some(Some(rest)) => drop(tokio::spawn(rest)),
                None => tracing::error!("a run panicked outside of its task"),
            }
            let ends = self.gather(&mut gathered);
            if ends >= TOGETHER {
                self.hand_over(shared).await;
                tokio::task::yield_now().await; // What was woken meanwhile has its turn.
            } else if ends > 0 {
                self.see_to_it(shared);
            }
        }
        self.hand_over(shared).await;
    }

    /// Sees to it that what has gathered goes on although the next run may compute for long.
    fn see_to_it(self: &Arc<Self>, shared: &Arc<Shared>) {
        let mut state = self.lock();
        if state.is_watched || state.waiting.is_empty() {
            return;
        }
        state.is_watched = true;
        drop(state);
        let (this, shared) = (Arc::clone(self), Arc::clone(shared));
        tokio::spawn(async move {
            let mut wait = WAIT.0;
            loop {
                tokio::time::sleep(wait).await;
                wait = if this.hand_over(&shared).await {
                    WAIT.0
                } else {
                    (wait * 2).min(WAIT.1)
                };
                let mut state = this.lock();
                if state.running == 0 {
                    state.is_watched = false; // Who was dismissed has handed over what was left, or is about to.
                    return;
                }
            }
        });
    }
}

/// What runs leave behind that end while a runner begins them.
#[derive(Default)]
struct Gathered {
    ended: Vec<Ended>,
    slots: Option<OwnedSemaphorePermit>,
}

thread_local! {
    /// There while a runner begins a run on this thread.
    static GATHERED: RefCell<Option<Gathered>> = const { RefCell::new(None) };
}

impl Gathered {
    /// Calls, and gathers meanwhile. `None`: a panic.
    fn within<T>(&mut self, call: impl FnOnce() -> T) -> Option<T> {
        GATHERED.set(Some(std::mem::take(self)));
        let done = std::panic::catch_unwind(AssertUnwindSafe(call));
        *self = GATHERED.take().unwrap_or_default();
        done.ok()
    }

    fn free(&mut self, slot: OwnedSemaphorePermit) {
        match &mut self.slots {
            Some(slots) => slots.merge(slot),
            none => *none = Some(slot),
        }
    }
}

/// Does a runner begin a run on this thread?
pub(crate) fn is_gathering() -> bool {
    GATHERED.with_borrow(Option::is_some)
}

/// Hands an end to the runner that begins its run on this thread; back, where none does.
pub(crate) fn gather(ended: Ended) -> Option<Ended> {
    GATHERED.with_borrow_mut(|gathered| match gathered {
        Some(gathered) => {
            gathered.ended.push(ended);
            None
        }
        None => Some(ended),
    })
}

/// Gives a slot back, with those of the runs beside it.
pub(crate) fn give_back(slot: OwnedSemaphorePermit) {
    GATHERED.with_borrow_mut(|gathered| {
        if let Some(gathered) = gathered {
            gathered.free(slot);
        }
    });
}
