//! Ending deliveries: acknowledge, retry later, park, bury, quarantine, hand back.
//!
//! # Guarantees
//! Everything that belongs to an end (result, follow-up messages, run record, the message's next place) happens in one
//! script that removes the lease last. A lease that is gone changes nothing and is answered as lost.
//! When a reply is lost the caller repeats the call; *lost* then also means "settled the first time".

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::call::{ACK, Args, EARLY, FOLLOW, RENEW, SETTLE};
use crate::control::failed;
use crate::direct::Direct;
use crate::link::{Driver, watching};
use crate::{Broker, Error, Keys, StoredResult};

/// Where a delivery ends.
#[derive(Debug, Clone, PartialEq)]
pub enum End {
    /// Done; the message goes.
    Ack,
    /// A new message takes its place when it is due (a retry).
    Later {
        /// Redis time in seconds.
        due: f64,
        /// The message.
        raw: Vec<u8>,
    },
    /// The message itself waits until it is due (an ETA).
    Park {
        /// Redis time in seconds.
        due: f64,
    },
    /// To the dead letters.
    Bury {
        /// Why, for people.
        reason: String,
    },
    /// To the dead letters with these bytes: of a delivery that was acknowledged early, which Redis has no longer.
    BuryBytes {
        /// Why, for people.
        reason: String,
        /// The message.
        raw: Vec<u8>,
    },
    /// To the quarantine: it could not even be read.
    Quarantine {
        /// Why, for people.
        reason: String,
    },
    /// Back to the head of its list, uncharged.
    Release,
    /// The same, counted as a delivery that ended without settlement.
    Charge,
    /// Back to the end of its list, uncharged: the task itself refused it.
    Requeue,
}

/// One delivery's end with all that belongs to it.
#[derive(Debug, Clone)]
pub struct Settlement {
    /// Lease id.
    pub lid: Arc<str>,
    /// Task id; empty where it could not be read.
    pub id: String,
    /// Task name, likewise.
    pub task: String,
    /// Where it ends.
    pub end: End,
    /// Result document, where one is stored on this broker.
    pub result: Option<StoredResult>,
    /// Run of a schedule that this message belongs to.
    pub run: Option<String>,
    /// How the run record counts it: `succeeded`, `failed`, `expired` or `revoked`.
    pub outcome: &'static str,
    /// What follows: callbacks, the next step of a chain, a chord's body.
    pub follow_ups: Vec<FollowUp>,
}

/// One thing that follows an end, done in the same script, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FollowUp {
    /// A message into a list.
    Push {
        /// Key of the list.
        list: String,
        /// The message.
        raw: Vec<u8>,
    },
    /// A result document that does not replace a SUCCESS.
    Store {
        /// Key.
        key: String,
        /// Seconds to live; 0 = for ever.
        ttl: u64,
        /// Celery's document.
        document: Vec<u8>,
    },
    /// A key of a chord.
    Set {
        /// Key.
        key: String,
        /// Seconds to live.
        ttl: u64,
        /// Value.
        value: Vec<u8>,
    },
    /// A key of a chord goes.
    Delete {
        /// Key.
        key: String,
    },
    /// A chord waits for more members.
    Extend {
        /// Key.
        key: String,
        /// Seconds to live.
        ttl: u64,
        /// How many.
        by: u64,
        /// A new name: however often this is carried out, it counts once.
        once: String,
    },
    /// A key of the broker's own, whatever database results are in.
    Mark {
        /// Key.
        key: String,
        /// Seconds to live.
        ttl: u64,
        /// Value.
        value: String,
    },
    /// A key of the broker's own goes, if it still holds the token.
    LetGo {
        /// Key.
        key: String,
        /// Token.
        token: String,
    },
    /// One more in a hash of the broker's own.
    Count {
        /// Key of the hash.
        key: String,
        /// Seconds that the hash lives from now on.
        ttl: u64,
        /// What is counted.
        field: String,
    },
    /// Only where the key still holds the token.
    Guarded {
        /// Key.
        key: String,
        /// Token.
        token: String,
        /// What then follows.
        then: Vec<FollowUp>,
    },
}

impl FollowUp {
    /// The operation as the scripts read it.
    pub(crate) fn arguments(&self) -> Vec<Vec<u8>> {
        let number = |number: u64| number.to_string().into_bytes();
        match self {
            FollowUp::Push { list, raw } => vec![b"push".to_vec(), list.clone().into_bytes(), raw.clone()],
            FollowUp::Store { key, ttl, document } => {
                vec![
                    b"store".to_vec(),
                    key.clone().into_bytes(),
                    number(*ttl),
                    document.clone(),
                ]
            }
            FollowUp::LetGo { key, token } => {
                vec![b"free".to_vec(), key.clone().into_bytes(), token.clone().into_bytes()]
            }
            FollowUp::Set { key, ttl, value } => {
                vec![b"set".to_vec(), key.clone().into_bytes(), number(*ttl), value.clone()]
            }
            FollowUp::Mark { key, ttl, value } => {
                vec![
                    b"set".to_vec(),
                    key.clone().into_bytes(),
                    number(*ttl),
                    value.clone().into_bytes(),
                ]
            }
            FollowUp::Delete { key } => vec![b"del".to_vec(), key.clone().into_bytes()],
            FollowUp::Extend { key, ttl, by, once } => vec![
                b"incr".to_vec(),
                key.clone().into_bytes(),
                number(*ttl),
                number(*by),
                once.clone().into_bytes(),
            ],
            FollowUp::Count { key, ttl, field } => {
                vec![
                    b"count".to_vec(),
                    key.clone().into_bytes(),
                    number(*ttl),
                    field.clone().into_bytes(),
                ]
            }
            FollowUp::Guarded { key, token, then } => {
                let inner: Vec<Vec<u8>> = then.iter().flat_map(FollowUp::arguments).collect();
                let mut all = vec![b"guard".to_vec(), key.clone().into_bytes(), token.clone().into_bytes()];
                all.push(inner.len().to_string().into_bytes());
                all.extend(inner);
                all
            }
        }
    }
}

/// Deliveries of one queue that ended well.
#[derive(Debug, Clone, Default)]
pub struct AckGroup {
    /// Queue.
    pub queue: Arc<str>,
    /// Lease ids with their task ids.
    pub leases: Vec<(Arc<str>, String)>,
    /// Result key and SUCCESS document of each, in the same order; empty where none is stored.
    pub results: Vec<(String, Vec<u8>)>,
}

fn ack<'a>(keys: &Keys, worker: &str, ttl: u64, has_counted: bool, groups: &[AckGroup]) -> Args<'a> {
    let mut args = Args::new(&ACK, keys.scope())
        .arg(worker)
        .arg(ttl)
        .arg(i32::from(has_counted));
    for AckGroup { queue, leases, results } in groups {
        args.push(&**queue);
        args.push(leases.len());
        args.push(i32::from(!results.is_empty()));
        for (lid, _) in leases {
            args.push(&**lid);
        }
        if has_counted {
            for (_, id) in leases {
                args.push(id);
            }
        }
        for (key, document) in results {
            args.push(key);
            args.push(document.as_slice());
        }
    }
    args
}

/// Acknowledges by a connection that nobody else uses. Where there is none, the call goes by the shared one and does not
/// wait; after one that went well so, a connection is made beside.
pub struct Acks {
    _watching: Option<Driver>,
    broker: Broker,
    kept: Kept,
    connecting: Mutex<Option<Driver>>,
}

/// The connection while no call is on its way.
type Kept = Arc<Mutex<Option<Direct>>>;

fn locked<T>(place: &Mutex<Option<T>>) -> MutexGuard<'_, Option<T>> {
    place.lock().unwrap_or_else(PoisonError::into_inner) // It is there or not, after any panic.
}

fn keep(kept: &Kept, connection: Direct) {
    let mut place = locked(kept);
    // Under the lock: one that becomes stale after this is found here by who gives up.
    if !connection.is_stale() {
        *place = Some(connection);
    }
}

impl Acks {
    /// As [`Broker::ack`].
    ///
    /// # Errors
    /// As there.
    ///
    /// # Cancellation
    /// As there; the connection is given up.
    pub async fn ack(&self, worker: &str, ttl: u64, has_counted: bool, groups: &[AckGroup]) -> Result<u64, Error> {
        // Taken out while the call is on its way: a dropped future leaves no answer behind.
        let mut kept = locked(&self.kept).take();
        kept.take_if(Direct::is_over);
        let Some(mut connection) = kept else {
            let lost = self.broker.ack(worker, ttl, has_counted, groups).await?;
            self.connect();
            return Ok(lost);
        };
        let args = ack(&self.broker.keys, worker, ttl, has_counted, groups);
        let lost = match args.call(&mut connection).await {
            Ok(answer) => Ok(answer.count()?),
            Err(err) if err.is_connection() => return Err(err),
            Err(refused) => Err(refused),
        };
        keep(&self.kept, connection);
        lost
    }

    fn connect(&self) {
        let mut connecting = locked(&self.connecting);
        if connecting.as_ref().is_some_and(Driver::is_at_work) {
            return;
        }
        let (config, kept) = (self.broker.config.clone(), Arc::clone(&self.kept));
        *connecting = Some(Driver::new(async move {
            match config.direct().await {
                Ok(connection) => keep(&kept, connection),
                // The next call goes by the shared one, too.
                Err(err) => tracing::debug!(error = %err, "no connection of their own for acknowledgements"),
            }
        }));
    }
}

impl Broker {
    /// Acknowledges many deliveries of one worker that ended well, with their results. `has_counted` says that deliveries
    /// are counted somewhere: then the counts of these tasks are cleared. Returns how many leases were lost.
    ///
    /// # Errors
    /// [`Error::Call`]: repeat it.
    ///
    /// # Cancellation
    /// As an error: it may or may not have happened.
    pub async fn ack(&self, worker: &str, ttl: u64, has_counted: bool, groups: &[AckGroup]) -> Result<u64, Error> {
        let args = ack(&self.keys, worker, ttl, has_counted, groups);
        args.call(&mut self.connection.clone()).await?.count()
    }

    /// The same by a connection of their own.
    pub fn acks(&self) -> Acks {
        let kept = Kept::default();
        let place = Arc::downgrade(&kept);
        let give_up = move || {
            let Some(kept) = place.upgrade() else { return false };
            locked(&kept).take_if(|connection| connection.is_stale());
            true
        };
        Acks {
            _watching: watching(&self.config.place, give_up),
            broker: self.clone(),
            kept,
            connecting: Mutex::default(),
        }
    }

    /// Ends deliveries. Returns the lease ids that were lost.
    ///
    /// # Errors
    /// [`Error::Call`]: repeat it; one delivery at a time where the server refuses the whole.
    ///
    /// # Cancellation
    /// As an error: it may or may not have happened.
    pub async fn settle(&self, dead_kept: u64, settlements: &[Settlement]) -> Result<Vec<String>, Error> {
        let mut args = Args::new(&SETTLE, self.keys.scope()).arg(dead_kept);
        for settlement in settlements {
            let Settlement {
                lid,
                id,
                task,
                end,
                result,
                run,
                outcome,
                follow_ups,
            } = settlement;
            let empty: &[u8] = b"";
            let (action, x, raw) = match end {
                End::Ack => ("ack", String::new(), empty),
                End::Later { due, raw } => ("later", format!("{due:.6}"), raw.as_slice()),
                End::Park { due } => ("park", format!("{due:.6}"), empty),
                End::Bury { reason } => ("bury", reason.clone(), empty),
                End::BuryBytes { reason, raw } => ("bury", reason.clone(), raw.as_slice()),
                End::Quarantine { reason } => ("quarantine", reason.clone(), empty),
                End::Release => ("release", String::new(), empty),
                End::Charge => ("charge", String::new(), empty),
                End::Requeue => ("requeue", String::new(), empty),
            };
            args.push(action);
            args.push(&**lid);
            args.push(id);
            args.push(task);
            args.push(id); // the key in umbel:att
            args.push(run.as_deref().unwrap_or(""));
            args.push(*outcome);
            match result {
                Some(StoredResult {
                    key,
                    ttl,
                    document,
                    is_success,
                }) => {
                    args.push(key);
                    args.push(*ttl);
                    args.push(document.as_slice());
                    args.push(i32::from(*is_success));
                }
                None => {
                    for _ in 0..4 {
                        args.push("");
                    }
                }
            }
            args.push(x);
            args.push(raw);
            let followed: Vec<Vec<u8>> = follow_ups.iter().flat_map(FollowUp::arguments).collect();
            args.push(followed.len());
            for argument in &followed {
                args.push(argument.as_slice());
            }
        }
        args.call(&mut self.connection.clone()).await?.texts()
    }

    /// Acknowledges a delivery before it runs: the message goes, its lease stays, and whatever happens it is not run
    /// again. `stub` is a message that names it, for whoever finds the lease overdue. False: the lease was lost.
    ///
    /// # Errors
    /// [`Error::Call`]: repeat it, and do not run the task before there is an answer.
    ///
    /// # Cancellation
    /// As an error: it may or may not have happened.
    pub async fn ack_early(&self, lid: &str, stub: &[u8]) -> Result<bool, Error> {
        let args = Args::new(&EARLY, self.keys.scope()).arg(lid).arg(stub);
        let lost = args.call(&mut self.connection.clone()).await?.texts()?;
        Ok(lost.is_empty())
    }

    /// Carries out what is not bound to the end of a delivery: what a task sends while it runs.
    ///
    /// # Errors
    /// [`Error::Call`]: nothing or everything was done.
    ///
    /// # Cancellation
    /// As an error.
    pub async fn follow(&self, follow_ups: &[FollowUp]) -> Result<(), Error> {
        let mut args = Args::new(&FOLLOW, self.keys.scope());
        for argument in follow_ups.iter().flat_map(FollowUp::arguments) {
            args.push(argument);
        }
        args.call(&mut self.connection.clone()).await?.count().map(|_| ())
    }

    /// Was a message with this task id handed back by its task, or did a worker die with it? Known for a day.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub async fn was_delivered(&self, id: &str) -> Result<bool, Error> {
        let mut pipe = redis::pipe();
        pipe.cmd("EXISTS").arg(self.keys.umbel(&format!("back:{id}")));
        pipe.cmd("HEXISTS").arg(self.keys.umbel("att")).arg(id);
        let (back, died): (bool, bool) = pipe
            .query_async(&mut self.connection.clone())
            .await
            .map_err(failed("EXISTS back"))?;
        Ok(back || died)
    }

    /// How many deliveries of a message with this task id ended without settlement.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub async fn deaths(&self, id: &str) -> Result<u64, Error> {
        let counted: Option<u64> = redis::cmd("HGET")
            .arg(self.keys.umbel("att"))
            .arg(id)
            .query_async(&mut self.connection.clone())
            .await
            .map_err(failed("HGET att"))?;
        Ok(counted.unwrap_or(0))
    }

    /// Extends leases. Returns those that are lost.
    ///
    /// # Errors
    /// [`Error::Call`].
    ///
    /// # Cancellation
    /// Safe: a renewal that happened unheard does no harm.
    pub async fn renew(&self, lease: std::time::Duration, lids: &[Arc<str>]) -> Result<Vec<String>, Error> {
        let mut args = Args::new(&RENEW, self.keys.scope()).arg(lease.as_secs_f64());
        for lid in lids {
            args.push(&**lid);
        }
        args.call(&mut self.connection.clone()).await?.texts()
    }
}
