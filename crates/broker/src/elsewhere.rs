//! Looking for our queues where we are not: a wrong database or prefix shows as silence.

use redis::aio::ConnectionLike;

use crate::{Broker, Error};

/// Rounds of a scan, of a thousand keys each: a hint is not worth more of the server's time.
const ROUNDS: usize = 20;

/// A queue of a name that we serve, in another place than ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Elsewhere {
    /// The queue.
    pub queue: String,
    /// Where, in words: `database 5`, `prefix "app:"`.
    pub place: String,
    /// Messages there.
    pub waiting: u64,
}

impl Broker {
    /// Messages that wait under the names of these queues in other databases of the server or under other prefixes of
    /// this one. Only reads. What the user may not see is left out.
    ///
    /// # Errors
    /// [`Error::Connect`], [`Error::Call`].
    ///
    /// # Cancellation
    /// Safe.
    pub async fn elsewhere(&self, queues: &[String]) -> Result<Vec<Elsewhere>, Error> {
        let failed = |source| Error::Call {
            call: "INFO keyspace",
            source,
        };
        // A connection of its own: it goes from database to database.
        let mut connection = self.config.connection().await?;
        let own = self.config.database();
        let mut found = Vec::new();
        self.under_other_prefixes(&mut connection, queues, &mut found).await?;
        let info: redis::RedisResult<String> = redis::cmd("INFO").arg("keyspace").query_async(&mut connection).await;
        let info = match info {
            Ok(info) => info,
            Err(err) if err.code() == Some("NOPERM") => return Ok(found),
            Err(err) => return Err(failed(err)),
        };
        let databases = info
            .lines()
            .filter_map(|line| line.strip_prefix("db")?.split(':').next()?.parse::<i64>().ok());
        for database in databases.filter(|database| *database != own) {
            let selected: redis::RedisResult<()> =
                redis::cmd("SELECT").arg(database).query_async(&mut connection).await;
            if selected.is_err() {
                continue;
            }
            for queue in queues {
                let mut waiting = 0;
                for list in self.keys.lists(queue) {
                    let length: redis::RedisResult<u64> =
                        redis::cmd("LLEN").arg(&list).query_async(&mut connection).await;
                    waiting += length.unwrap_or(0); // Another type, or no right to look: not what we look for.
                }
                if waiting > 0 {
                    found.push(Elsewhere {
                        queue: queue.clone(),
                        place: format!("database {database}"),
                        waiting,
                    });
                }
            }
        }
        Ok(found)
    }

    async fn under_other_prefixes(
        &self,
        connection: &mut impl ConnectionLike,
        queues: &[String],
        found: &mut Vec<Elsewhere>,
    ) -> Result<(), Error> {
        let mut cursor = "0".to_owned();
        for _ in 0..ROUNDS {
            let mut scan = redis::cmd("SCAN");
            scan.arg(&cursor).arg("COUNT").arg(1000).arg("TYPE").arg("list");
            let scanned: redis::RedisResult<(String, Vec<Vec<u8>>)> = scan.query_async(connection).await;
            let (next, keys) = match scanned {
                Ok(scanned) => scanned,
                Err(err) if err.code() == Some("NOPERM") => return Ok(()),
                Err(source) => return Err(Error::Call { call: "SCAN", source }),
            };
            for key in keys.iter().filter_map(|key| std::str::from_utf8(key).ok()) {
                let named = queues
                    .iter()
                    .find_map(|queue| Some((queue, key.strip_suffix(queue.as_str())?)));
                let Some((queue, prefix)) = named else { continue };
                // A prefix that is set off; `mycelery` is a queue of its own.
                let is_set_off = prefix.ends_with([':', '_', '-', '.', '/', '|']);
                if prefix == self.keys.prefix() || !is_set_off || prefix.contains("umbel:") {
                    continue;
                }
                let length: redis::RedisResult<u64> = redis::cmd("LLEN").arg(key).query_async(connection).await;
                found.push(Elsewhere {
                    queue: queue.clone(),
                    place: format!("prefix \"{prefix}\""),
                    waiting: length.unwrap_or(0),
                });
            }
            cursor = next;
            if cursor == "0" {
                break;
            }
        }
        Ok(())
    }
}
