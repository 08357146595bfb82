//! Queues bound to exchanges as kombu binds them: in sets that publishers read.

use std::time::Duration;

use crate::control::failed;
use crate::{Broker, Error};

/// kombu gives no binding less, lest a consumer that is held up loses it.
const SHORTEST: Duration = Duration::from_secs(3600);

impl Broker {
    /// Binds a queue: what is published to the exchange with this routing key goes to it from now on. `exchange_type` is
    /// `direct` or `topic`; another one binds like `direct`.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub async fn bind(&self, exchange: &str, exchange_type: &str, routing_key: &str, queue: &str) -> Result<(), Error> {
        let member = self.binding(exchange_type, routing_key, queue);
        // kombu 5.7 keeps the second set beside the first, for queues that do not expire.
        let permanent = format!("{}_kombu.binding_permanent.{exchange}", self.keys.prefix());
        redis::pipe()
            .atomic()
            .sadd(self.keys.binding(exchange), &member)
            .ignore()
            .sadd(permanent, &member)
            .ignore()
            .query_async::<()>(&mut self.connection.clone())
            .await
            .map_err(failed("SADD binding"))
    }

    /// Keeps a queue that was declared with `x-expires`: its lists for another `expires`, and its binding as kombu's
    /// consumers keep it. `now` is Redis' time in seconds.
    ///
    /// # Errors
    /// [`Error::Call`]: repeat it in time.
    pub async fn keep_queue(
        &self,
        (exchange, exchange_type, routing_key): (&str, &str, &str),
        queue: &str,
        expires: Duration,
        now: f64,
    ) -> Result<(), Error> {
        let mut pipe = redis::pipe();
        for list in self.keys.lists(queue) {
            pipe.cmd("PEXPIRE").arg(list).arg(millis(expires)).ignore();
        }
        let member = self.binding(exchange_type, routing_key, queue);
        pipe.sadd(self.keys.binding(exchange), &member).ignore();
        let deadline = now * 1000.0 + Duration::max(expires * 2, SHORTEST).as_secs_f64() * 1000.0;
        pipe.cmd("ZADD")
            .arg(format!("{}_kombu.binding_deadlines", self.keys.prefix()))
            .arg("GT")
            .arg(format!("{deadline:.0}"))
            .arg(exchange)
            .ignore();
        pipe.query_async::<()>(&mut self.connection.clone())
            .await
            .map_err(failed("PEXPIRE queue"))
    }

    /// A member of an exchange's set.
    fn binding(&self, exchange_type: &str, routing_key: &str, queue: &str) -> String {
        let sep = self.keys.separator();
        let pattern = if exchange_type == "topic" {
            topic_pattern(routing_key)
        } else {
            String::new()
        };
        format!("{routing_key}{sep}{pattern}{sep}{queue}")
    }
}

/// Milliseconds, at least one.
fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX).max(1)
}

/// The regular expression that kombu stores for a topic: `*` is one word, `#` any number of characters.
fn topic_pattern(routing_key: &str) -> String {
    let words: Vec<String> = routing_key
        .split('.')
        .map(|word| match word {
            "*" => r"[^\.]+".to_owned(),
            "#" => ".*?".to_owned(),
            word => escaped(word),
        })
        .collect();
    format!("^{}$", words.join(r"\."))
}

/// A word that stands for itself, as kombu's `escape_regex` writes it: members of the set must be equal to kombu's own.
fn escaped(word: &str) -> String {
    let mut out = String::with_capacity(word.len());
    for c in word.chars() {
        match c {
            '\0' => out.push_str("\\000"),
            '.' | '#' | '*' => out.push(c),
            c if c.is_alphanumeric() => out.push(c),
            c => out.extend(['\\', c]),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_are_kombus_expressions() {
        let cases = [
            ("feed.#", r"^feed\..*?$"),
            ("feed.*.important", r"^feed\.[^\.]+\.important$"),
            ("plain", "^plain$"),
            ("a+b.*", r"^a\+b\.[^\.]+$"),
            ("a(b", r"^a\(b$"),
            ("x-y_z", r"^x\-y\_z$"),
        ];
        for (routing_key, pattern) in cases {
            assert_eq!(topic_pattern(routing_key), pattern);
        }
    }
}
