//! The queues that a worker serves: those of the command line, changed by remote control while it runs.

use tokio::sync::watch;
use umbel_broker::{FanoutBinding, Keys};
use umbel_protocol::control::Consumed;

use crate::args::{Config, check_queue_name};

/// The list that everybody looks at: the consumer, who is told of each change, recovery, heartbeats and answers.
pub(crate) struct Queues(watch::Sender<Vec<Consumed>>);

impl Queues {
    /// The queues of a configuration.
    pub(crate) fn of(config: &Config) -> Queues {
        let queues = Queues::new(&config.queues);
        if config.is_direct {
            queues.add_direct(&config.name);
        }
        for exchange in &config.broadcast {
            queues.add(Consumed {
                name: format!("bcast.{}", uuid::Uuid::new_v4()),
                exchange: exchange.clone(),
                exchange_type: "fanout".into(),
                routing_key: "#".into(),
            });
        }
        queues
    }

    fn new(names: &[String]) -> Queues {
        Queues(watch::Sender::new(
            names.iter().map(|name| Consumed::named(name)).collect(),
        ))
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.0.borrow().iter().map(|queue| queue.name.clone()).collect()
    }

    pub(crate) fn all(&self) -> Vec<Consumed> {
        self.0.borrow().clone()
    }

    /// For who follows the changes; the list of now counts as seen.
    pub(crate) fn follow(&self) -> watch::Receiver<Vec<Consumed>> {
        self.0.subscribe()
    }

    /// Serves a queue from now on; one that is served already stays as it is. False: it was.
    pub(crate) fn add(&self, queue: Consumed) -> bool {
        self.0.send_if_modified(|served| {
            let is_new = served.iter().all(|known| known.name != queue.name);
            if is_new {
                served.push(queue);
            }
            is_new
        })
    }

    /// Serves the queue of a node's own, under the names that Celery's `worker_direct` has for it.
    fn add_direct(&self, node: &str) -> bool {
        self.add(Consumed {
            name: format!("{node}.dq2"),
            exchange: "C.dq2".into(),
            exchange_type: "direct".into(),
            routing_key: node.to_owned(),
        })
    }

    /// The fanout exchanges to be heard, and who gets what they say.
    pub(crate) fn fanouts(&self) -> Vec<FanoutBinding> {
        let served = self.0.borrow();
        let fanouts = served.iter().filter(|queue| queue.exchange_type == "fanout");
        fanouts
            .map(|queue| FanoutBinding {
                exchange: queue.exchange.clone(),
                routing_key: queue.routing_key.clone(),
                queue: queue.name.clone(),
            })
            .collect()
    }

    /// Serves a queue no more. Messages that were taken from it run on. False: it was not served. What was added as the
    /// queue of a fanout exchange goes by the name it was added by.
    pub(crate) fn cancel(&self, name: &str, node: &str) -> bool {
        let copy = copy_of(name, node);
        self.0.send_if_modified(|served| {
            let before = served.len();
            served.retain(|known| known.name != name && (known.exchange_type != "fanout" || known.name != copy));
            served.len() != before
        })
    }
}

/// Each worker has a list of its own for a fanout exchange, or those that share one would get as many copies as they are.
fn copy_of(queue: &str, node: &str) -> String {
    format!("{queue}.{node}")
}

/// How `add_consumer` asks for a queue.
pub(crate) struct Wanted {
    pub(crate) queue: String,
    pub(crate) exchange: Option<String>,
    pub(crate) exchange_type: Option<String>,
    pub(crate) routing_key: Option<String>,
}

impl Wanted {
    /// The queue with Celery's defaults: an exchange of its own name, `direct`, its name as the routing key.
    ///
    /// # Errors
    /// Why it cannot be served.
    pub(crate) fn check(self, keys: &Keys, node: &str) -> Result<Consumed, String> {
        check_queue_name(&self.queue, keys)?;
        let exchange_type = self.exchange_type.unwrap_or_else(|| "direct".into());
        match exchange_type.as_str() {
            "direct" | "topic" | "fanout" => {}
            other => return Err(format!("exchange type {other:?} is none of direct, topic and fanout")),
        }
        let is_fanout = exchange_type == "fanout";
        let exchange = self.exchange.unwrap_or_else(|| self.queue.clone());
        let routing_key = self
            .routing_key
            .unwrap_or_else(|| if is_fanout { "#".into() } else { self.queue.clone() });
        for (what, name) in [("exchange", &exchange), ("routing key", &routing_key)] {
            if name.len() > 512 || name.contains(keys.separator()) {
                return Err(format!(
                    "the {what} has more than 512 bytes, or kombu's separator in it"
                ));
            }
        }
        Ok(Consumed {
            name: if is_fanout {
                copy_of(&self.queue, node)
            } else {
                self.queue
            },
            exchange,
            exchange_type,
            routing_key,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(queue: &str, exchange_type: &str) -> Result<Consumed, String> {
        Wanted {
            queue: queue.into(),
            exchange: None,
            exchange_type: Some(exchange_type.into()),
            routing_key: None,
        }
        .check(&Keys::new(""), "w@h")
    }

    #[test]
    fn queues_come_and_go_once() {
        let queues = Queues::new(&["a".into()]);
        let mut followed = queues.follow();
        assert!(queues.add(Consumed::named("b")) && !queues.add(Consumed::named("b")));
        assert!(followed.has_changed().unwrap());
        assert_eq!(followed.borrow_and_update().len(), 2);
        assert!(!queues.cancel("c", "w@h") && !followed.has_changed().unwrap());
        assert!(queues.cancel("a", "w@h") && queues.cancel("b", "w@h"));
        assert_eq!(queues.names(), [] as [&str; 0]);
    }

    #[test]
    fn a_queue_that_nobody_could_serve_is_refused() {
        assert_eq!(wanted("mail", "direct"), Ok(Consumed::named("mail")));
        assert_eq!(wanted("news", "fanout").map(|queue| queue.name), Ok("news.w@h".into()));
        for (queue, exchange_type) in [
            ("", "direct"),
            ("unacked", "direct"),
            ("umbel:lease", "direct"),
            ("q\u{6}\u{16}3", "direct"),
            ("q", "headers"),
        ] {
            assert!(wanted(queue, exchange_type).is_err(), "{queue:?} {exchange_type}");
        }
    }
}
