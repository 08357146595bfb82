//! Queues bound to exchanges as kombu binds them: in sets that publishers read.

use crate::control::failed;
use crate::{Broker, Error};

impl Broker {
    /// Binds a queue: what is published to the exchange with this routing key goes to it from now on. `exchange_type` is
    /// `direct` or `topic`; another one binds like `direct`.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub async fn bind(&self, exchange: &str, exchange_type: &str, routing_key: &str, queue: &str) -> Result<(), Error> {
        let sep = self.keys.separator();
        let pattern = if exchange_type == "topic" {
            topic_pattern(routing_key)
        } else {
            String::new()
        };
        let member = format!("{routing_key}{sep}{pattern}{sep}{queue}");
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
