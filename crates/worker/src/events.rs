//! What the worker tells about itself and its tasks to whoever watches: Flower, `celery events`, Celery's own workers.
//!
//! # Guarantees
//! Task events cost one load of a flag while they are off, as they are until `enable_events`. While they are on, no task
//! waits for them: what the buffer or Redis has no room for is dropped and counted.
//!
//! Heartbeats say in `freq` when the next one comes, and receivers count a worker as alive for twice as long: every 10 s,
//! or every 2 s while task events are on and somebody listens. While nobody does they come up to half a second late, or
//! sooner, with another call.

use std::collections::{HashSet, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use umbel_protocol::canvas::Outgoing;
use umbel_protocol::event::{Batch, Event, Heartbeat, MAX_BATCH, Publication, Source, Stamp, TaskInfo};
use umbel_protocol::iso;
use umbel_protocol::message::TaskMessage;
use umbel_telemetry::chain;

use crate::app::Shared;
use crate::clock::RedisClock;

/// Events that wait to be published; about a megabyte.
const BUFFER: usize = 4096;
/// With so many they are published at once.
const MANY: usize = 32 * MAX_BATCH;
/// For so long events are gathered.
const GATHERED: Duration = Duration::from_millis(100);
/// What takes longer is dropped.
const PATIENCE: Duration = Duration::from_secs(2);
/// Messages put aside that are remembered as told of; about a megabyte.
const TOLD: usize = 10_000;
/// Interval of heartbeats while somebody watches tasks, and else.
const BEATS: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(10));
/// For so long one that nobody waits for is put off, so that it goes along with something else.
const PUT_OFF: Duration = Duration::from_millis(500);

/// Where events go in.
pub(crate) struct Events {
    source: Source,
    is_on: AtomicBool,
    lamport: AtomicU64,
    dropped: AtomicU64,
    gathered: Mutex<Gathered>,
    /// There is one.
    some: Notify,
    /// There are as many as go out at once.
    many: Notify,
    clock: Arc<RedisClock>,
    beat_now: Notify,
    beats: tokio::sync::Mutex<Beats>,
    told: Mutex<Told>,
}

/// Heartbeats, as far as they have come.
struct Beats {
    next: Instant,
    /// Was the worker told of as there?
    is_known: bool,
    /// Did anybody hear the last one?
    is_heard: bool,
}

/// Events on their way out.
#[derive(Default)]
struct Gathered {
    batches: Vec<Batch>,
    count: usize,
}

/// Messages that were put aside and have had their task-received: they come again and are not told of twice, unless
/// another worker gets them.
#[derive(Default)]
struct Told {
    order: VecDeque<Arc<str>>,
    keys: HashSet<Arc<str>>,
}

impl Told {
    fn add(&mut self, key: String) {
        let key: Arc<str> = key.into();
        if self.keys.insert(Arc::clone(&key)) {
            self.order.push_back(key);
        }
        while self.order.len() > TOLD {
            let oldest = self.order.pop_front();
            oldest.map(|key| self.keys.remove(&key));
        }
    }
}

impl Events {
    /// `exchange` is that of events, `is_on`: are tasks told of from the start?
    pub(crate) fn new(node: &str, exchange: &str, is_on: bool, clock: Arc<RedisClock>) -> Events {
        Events {
            source: Source::on(exchange, node, std::process::id()),
            is_on: AtomicBool::new(is_on),
            lamport: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            gathered: Mutex::default(),
            some: Notify::new(),
            many: Notify::new(),
            clock,
            beat_now: Notify::new(),
            beats: tokio::sync::Mutex::new(Beats {
                next: Instant::now(),
                is_known: false,
                is_heard: false,
            }),
            told: Mutex::default(),
        }
    }

    /// Tells once that a message was received. `comes_again`: it is put aside for now.
    pub(crate) fn received(&self, message: &TaskMessage, comes_again: bool) {
        if !self.is_on.load(Ordering::Relaxed) {
            return;
        }
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let mut is_told = false;
        if comes_again || !told.keys.is_empty() {
            let key = format!("{}/{}", message.retries, message.id);
            is_told = told.keys.contains(&*key);
            if comes_again {
                told.add(key);
            }
        }
        drop(told);
        if !is_told {
            self.task(|| Event::TaskReceived(TaskInfo::from(message)));
        }
    }

    /// Tells about a task, if anybody wants to know. `make` is not called otherwise.
    pub(crate) fn task(&self, make: impl FnOnce() -> Event) {
        if self.is_on.load(Ordering::Relaxed) {
            self.always(make);
        }
    }

    /// Tells about a task, whether or not anybody has asked for it.
    pub(crate) fn always(&self, make: impl FnOnce() -> Event) {
        let event = make();
        let mut gathered = self.gathered();
        if gathered.count >= BUFFER {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        if gathered.batches.last().is_none_or(Batch::is_full) {
            gathered.batches.push(Batch::default());
        }
        if let Some(batch) = gathered.batches.last_mut() {
            // As text at once: it is the form that needs the least room, and takes no more time than a copy.
            batch.push(&self.source, &event, self.stamp());
        }
        gathered.count += 1;
        let count = gathered.count;
        drop(gathered);
        match count {
            1 => self.some.notify_one(),
            MANY => self.many.notify_one(),
            _ => {}
        }
    }

    fn gathered(&self) -> MutexGuard<'_, Gathered> {
        self.gathered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Switches task events; was that a change?
    pub(crate) fn switch(&self, is_on: bool) -> bool {
        let is_change = self.is_on.swap(is_on, Ordering::Relaxed) != is_on;
        if is_change {
            self.beat_now.notify_one();
        }
        is_change
    }

    /// A heartbeat at once.
    pub(crate) fn beat(&self) {
        self.beat_now.notify_one();
    }

    /// The Lamport clock.
    pub(crate) fn lamport(&self) -> u64 {
        self.lamport.load(Ordering::Relaxed)
    }

    /// Somebody else's Lamport clock was seen.
    pub(crate) fn heard(&self, theirs: u64) {
        // Nobody counts that far; a clock at its end would stand still for ever.
        let theirs = theirs.min(1 << 62);
        let _ = self
            .lamport
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |own| Some(own.max(theirs) + 1));
    }

    fn stamp(&self) -> Stamp {
        let clock = self.lamport.fetch_add(1, Ordering::Relaxed) + 1;
        Stamp::at(clock, self.clock.timestamp())
    }

    fn single(&self, event: &Event) -> Publication {
        self.source
            .single(event, self.stamp(), &uuid::Uuid::new_v4().to_string())
    }

    /// All that has gathered, and how many events that are.
    fn take(&self) -> (Vec<Publication>, usize) {
        let Gathered { batches, count } = std::mem::take(&mut *self.gathered());
        let publication = |batch| self.source.batch(batch, &uuid::Uuid::new_v4().to_string());
        (batches.into_iter().map(publication).collect(), count)
    }
}

/// Publishes task events for ever.
pub(crate) async fn publish(shared: Arc<Shared>) {
    let events = &shared.events;
    loop {
        events.some.notified().await;
        tokio::select! {
            () = tokio::time::sleep(GATHERED) => {}
            () = events.many.notified() => {}
        }
        let (batches, count) = events.take();
        if let Err(err) = shared.broker.publish_events(&batches, PATIENCE).await {
            events.dropped.fetch_add(count as u64, Ordering::Relaxed);
            tracing::debug!(error = %chain(&err), "events not published");
        }
        let dropped = events.dropped.swap(0, Ordering::Relaxed);
        if dropped > 0 {
            tracing::warn!(dropped, "events dropped");
        }
    }
}

/// Tells for ever that the worker lives.
pub(crate) async fn beat(shared: Arc<Shared>) {
    let events = &shared.events;
    let mut is_asked = true;
    loop {
        let at = {
            let mut beats = events.beats.lock().await;
            if is_asked || beats.latest() <= Instant::now() {
                beats.tell(&shared).await;
            }
            beats.latest()
        };
        is_asked = tokio::select! {
            () = tokio::time::sleep_until(at.into()) => false,
            () = events.beat_now.notified() => true,
        };
    }
}

/// Tells it where that is due within so long and nobody listens: with what the worker says to Redis just now it costs
/// nobody a call of its own.
pub(crate) async fn beat_along(shared: &Shared, within: Duration) {
    if let Ok(mut beats) = shared.events.beats.try_lock()
        && beats.goes_along(Instant::now(), within)
    {
        beats.tell(shared).await;
    }
}

impl Beats {
    /// Does the next one, due within so long, go along with what is sent now?
    fn goes_along(&self, now: Instant, within: Duration) -> bool {
        self.is_known && !self.is_heard && self.next <= now + within
    }

    /// When the next one is told by itself.
    fn latest(&self) -> Instant {
        self.next + if self.is_heard { Duration::ZERO } else { PUT_OFF }
    }

    async fn tell(&mut self, shared: &Shared) {
        let events = &shared.events;
        let is_on = || events.is_on.load(Ordering::Relaxed);
        let freq = if self.is_heard && is_on() { BEATS.0 } else { BEATS.1 };
        self.next = Instant::now() + freq;
        let beat = describe(shared, freq);
        let event = if self.is_known {
            Event::WorkerHeartbeat(beat)
        } else {
            Event::WorkerOnline(beat)
        };
        match shared.broker.publish_events(&[events.single(&event)], PATIENCE).await {
            Ok(listeners) => {
                self.is_known = true;
                let was_heard = std::mem::replace(&mut self.is_heard, listeners > 0);
                if self.is_heard && !was_heard && is_on() {
                    events.beat(); // They were told of the longer interval.
                }
            }
            Err(err) => tracing::debug!(error = %chain(&err), "heartbeat event not published"),
        }
    }
}

/// The last words, after those about tasks.
pub(crate) async fn goodbye(shared: &Shared) {
    if shared.events.is_on.load(Ordering::Relaxed) {
        tokio::time::sleep(GATHERED + GATHERED / 2).await;
    }
    let event = Event::WorkerOffline(describe(shared, BEATS.1));
    let last = [shared.events.single(&event)];
    if let Err(err) = shared.broker.publish_events(&last, PATIENCE).await {
        tracing::debug!(error = %chain(&err), "offline event not published");
    }
}

fn describe(shared: &Shared, freq: Duration) -> Heartbeat {
    Heartbeat {
        freq: freq.as_secs_f64(),
        active: shared.busy() as u64,
        processed: shared.started.load(Ordering::Relaxed),
        loadavg: load(),
        sw_ident: "umbel".into(),
        sw_ver: env!("CARGO_PKG_VERSION").into(),
        sw_sys: "Linux".into(),
    }
}

/// Load of the host over 1, 5 and 15 minutes; zeroes where the kernel does not tell.
fn load() -> [f64; 3] {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let mut figures = text.split(' ').map(|figure| figure.parse().unwrap_or(0.0));
    std::array::from_fn(|_| figures.next().unwrap_or(0.0))
}

/// What is told of a task that is sent, in the words of its message.
pub(crate) fn sent(outgoing: &Outgoing) -> Event {
    let task = &outgoing.task;
    let time = |text: &Option<String>, time: Option<jiff::Timestamp>| text.clone().or_else(|| time.map(iso));
    Event::TaskSent {
        task: TaskInfo {
            uuid: task.id.clone(),
            name: task.task.clone(),
            args: task.argsrepr.clone().unwrap_or_else(|| task.args.repr_as_arguments()),
            kwargs: task.kwargsrepr.clone().unwrap_or_else(|| task.kwargs.repr()),
            root_id: task.root_id.clone().or_else(|| Some(task.id.clone())),
            parent_id: task.parent_id.clone(),
            retries: task.retries,
            eta: time(&task.eta_text, task.eta),
            expires: time(&task.expires_text, task.expires),
        },
        queue: outgoing
            .exchange
            .as_ref()
            .map_or_else(|| task.queue.clone(), |_| String::new()),
        exchange: outgoing.exchange.clone().unwrap_or_default(),
        routing_key: task.queue.clone(),
    }
}

/// How long a task ran, for its event.
pub(crate) fn seconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn started(uuid: &str) -> Event {
        Event::TaskStarted { uuid: uuid.into() }
    }

    #[test]
    fn nothing_is_made_while_nobody_asks_and_nothing_waits_when_full() {
        let events = Events::new("w@h", "celeryev", false, Arc::new(RedisClock::new()));
        events.task(|| unreachable!("events are off"));
        assert!(events.switch(true) && !events.switch(true));
        for _ in 0..BUFFER + 5 {
            events.task(|| started("1"));
        }
        assert_eq!(events.dropped.load(Ordering::Relaxed), 5);
    }

    #[test]
    fn a_heartbeat_that_nobody_hears_goes_along_with_another_call() {
        let (now, five) = (Instant::now(), Duration::from_secs(5));
        for (next, is_known, is_heard, goes_along, put_off) in [
            (5000, true, false, true, 500),
            (5001, true, false, false, 500),
            (0, true, false, true, 500),
            (0, true, true, false, 0),     // Who listens was told when it comes.
            (0, false, false, false, 500), // The first one says that the worker is there.
        ] {
            let next = now + Duration::from_millis(next);
            let beats = Beats {
                next,
                is_known,
                is_heard,
            };
            assert_eq!(beats.goes_along(now, five), goes_along, "{is_known} {is_heard}");
            assert_eq!(beats.latest() - next, Duration::from_millis(put_off));
        }
    }

    #[test]
    fn the_clock_is_lamports() {
        let events = Events::new("w@h", "celeryev", false, Arc::new(RedisClock::new()));
        events.heard(10);
        assert_eq!(events.lamport(), 11);
        events.heard(3);
        assert_eq!(events.lamport(), 12);
        events.heard(u64::MAX);
        assert_eq!(events.stamp().clock, (1 << 62) + 2);
    }

    #[test]
    fn batches_hold_what_celery_puts_into_one() {
        let events = Events::new("w@h", "celeryev", false, Arc::new(RedisClock::new()));
        for n in 0..60 {
            events.always(|| started(&n.to_string()));
        }
        let (batches, count) = events.take();
        assert_eq!((batches.len(), count), (3, 60));
        let read: Vec<_> = batches
            .iter()
            .flat_map(|batch| umbel_protocol::event::parse(&batch.payload).unwrap())
            .collect();
        assert_eq!(read.len(), 60);
        assert_eq!(read[59].uuid().as_deref(), Some("59"));
        assert!(read.windows(2).all(|pair| pair[0].clock < pair[1].clock));
    }
}
