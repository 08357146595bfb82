//! Starts runs: on a few tasks of the runtime, not on one for each message.
//!
//! A run whose first poll ends it, as that of most short tasks does, costs no task of its own, no timer and no wake-up,
//! and its end goes to the settler together with those beside it. A run that has to wait becomes a task there and then.
//!
//! # Guarantees
//! There are as many runners as the runtime has threads, and each takes one message at a time from a queue that they
//! share: a run that computes keeps back nobody but itself, as long as a thread is free.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures::future::OptionFuture;
use tokio::sync::OwnedSemaphorePermit;

use crate::app::Shared;
use crate::settle::Ended;

/// Ends that are handed to the settler together.
const TOGETHER: usize = 64;
/// An end waits no longer for others.
const WAIT: Duration = Duration::from_micros(500);

/// What there is to start, and who starts it.
pub(crate) struct Runners<S> {
    state: Mutex<State<S>>,
}

struct State<S> {
    waiting: VecDeque<S>,
    running: usize,
}

impl<S> Default for Runners<S> {
    fn default() -> Runners<S> {
        let state = State {
            waiting: VecDeque::new(),
            running: 0,
        };
        Runners {
            state: Mutex::new(state),
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
}

impl<S: Send + 'static> Runners<S> {
    /// Starts these; `run` makes the future of each.
    pub(crate) fn start<F>(
        self: &Arc<Self>,
        shared: &Arc<Shared>,
        these: impl IntoIterator<Item = S>,
        run: impl Fn(Arc<Shared>, S) -> F + Copy + Send + 'static,
    ) where
        F: Future<Output = ()> + Send + 'static,
    {
        let threads = tokio::runtime::Handle::current().metrics().num_workers();
        let new = {
            let mut state = self.lock();
            state.waiting.extend(these);
            let new = threads.saturating_sub(state.running).min(state.waiting.len());
            state.running += new;
            new
        };
        for _ in 0..new {
            let (this, shared) = (Arc::clone(self), Arc::clone(shared));
            // Its budget is for tasks that wait for one thing after the other; each of these is polled once.
            tokio::spawn(tokio::task::unconstrained(async move {
                this.work(&shared, run).await;
            }));
        }
    }

    async fn work<F>(&self, shared: &Arc<Shared>, run: impl Fn(Arc<Shared>, S) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let mut gathered = Gathered::default();
        let mut place: Option<Pin<Box<OptionFuture<F>>>> = None;
        let mut since = Instant::now();
        while let Some(next) = self.next() {
            let future = OptionFuture::from(Some(run(Arc::clone(shared), next)));
            let mut running = match place.take() {
                Some(mut place) => {
                    place.set(future);
                    place
                }
                None => Box::pin(future),
            };
            let polled = std::future::poll_fn(|cx| Poll::Ready(gathered.while_polling(running.as_mut(), cx))).await;
            match polled {
                Some(Poll::Ready(_)) => {
                    running.set(OptionFuture::default());
                    place = Some(running);
                }
                Some(Poll::Pending) => drop(tokio::spawn(running)),
                None => tracing::error!("a run panicked outside of its task: its lease returns the message"),
            }
            if gathered.ended.len() >= TOGETHER || since.elapsed() > WAIT {
                gathered.hand_over(shared).await;
                tokio::task::yield_now().await; // What was woken meanwhile has its turn.
                since = Instant::now();
            }
        }
        gathered.hand_over(shared).await;
    }
}

/// What runs leave behind that end while a runner polls them.
#[derive(Default)]
struct Gathered {
    ended: Vec<Ended>,
    slots: Option<OwnedSemaphorePermit>,
}

thread_local! {
    /// There while a runner polls a run on this thread.
    static GATHERED: RefCell<Option<Gathered>> = const { RefCell::new(None) };
}

impl Gathered {
    /// Polls, and gathers meanwhile. `None`: a panic.
    fn while_polling<F: Future>(&mut self, future: Pin<&mut F>, cx: &mut Context<'_>) -> Option<Poll<F::Output>> {
        GATHERED.set(Some(std::mem::take(self)));
        let polled = std::panic::catch_unwind(AssertUnwindSafe(|| future.poll(cx)));
        *self = GATHERED.take().unwrap_or_default();
        polled.ok()
    }

    async fn hand_over(&mut self, shared: &Shared) {
        if !self.ended.is_empty() {
            shared.send_all(&mut self.ended).await;
        }
        self.slots = None; // After the settlements are on their way: a slow Redis slows the taking down.
    }
}

/// Hands an end to the runner that polls its run on this thread; back, where none does.
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
            match &mut gathered.slots {
                Some(slots) => slots.merge(slot),
                none => *none = Some(slot),
            }
        }
    });
}
