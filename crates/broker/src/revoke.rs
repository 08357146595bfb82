//! What is not to run: task ids and stamps, each until a time; and REVOKED as the result of what has not begun.

use umbel_protocol::json::Json;

use crate::call::{Args, REVOKE_RESULT};
use crate::control::failed;
use crate::{Broker, Error, ResultStore, StoredResult};

/// Ids and stamps kept, the latest of each, as by Celery.
pub const REVOKED_KEPT: usize = 50_000;
/// Members in one command.
const CHUNK: usize = 1000;
/// Results looked at in one call.
const RESULTS: usize = 1000;
/// Members of a sorted set with their scores.
type Scored = Vec<(String, f64)>;

/// States in which nobody has begun a task, as Celery's workers see it. Without a result it is PENDING.
const NOT_BEGUN: [&str; 4] = ["PENDING", "RECEIVED", "RETRY", "REJECTED"];

/// What is not to run.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Revocations {
    /// Task ids, each with the time until which it counts (Redis', in seconds).
    pub ids: Vec<(String, f64)>,
    /// Stamps by name and value, likewise.
    pub stamps: Vec<((String, Json), f64)>,
}

impl Broker {
    /// Remembers ids that are not to run until `until`; both times by Redis' clock in seconds.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub async fn revoke(&self, ids: &[String], now: f64, until: f64) -> Result<(), Error> {
        self.remember(&["revoked"], ids, now, until).await
    }

    /// The same, and those that run are to be stopped: a request for that is heard by who listens at that moment, and by
    /// nobody who connects anew just then.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub async fn terminate(&self, ids: &[String], now: f64, until: f64) -> Result<(), Error> {
        self.remember(&["revoked", "terminated"], ids, now, until).await
    }

    /// Those of these tasks that are to be stopped.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub async fn terminated(&self, ids: &[String], now: f64) -> Result<Vec<String>, Error> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let until: Vec<Option<f64>> = redis::cmd("ZMSCORE")
            .arg(self.keys.umbel("terminated"))
            .arg(ids)
            .query_async(&mut self.connection.clone())
            .await
            .map_err(failed("ZMSCORE terminated"))?;
        let counts = |until: Option<f64>| until.is_some_and(|until| until > now);
        let all = ids.iter().zip(until);
        Ok(all
            .filter(|(_, until)| counts(*until))
            .map(|(id, _)| id.clone())
            .collect())
    }

    /// Remembers stamps by which tasks are not to run.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub async fn revoke_stamps(&self, stamps: &[(String, Json)], now: f64, until: f64) -> Result<(), Error> {
        let members: Vec<String> = stamps.iter().map(|(name, value)| stamp_member(name, value)).collect();
        self.remember(&["revoked-stamps"], &members, now, until).await
    }

    async fn remember(&self, sets: &[&str], members: &[String], now: f64, until: f64) -> Result<(), Error> {
        let mut pipe = redis::pipe();
        for set in sets {
            let key = self.keys.umbel(set);
            for chunk in members.chunks(CHUNK) {
                // GT: who revokes for a shorter time does not take back what holds for a longer one.
                let command = pipe.cmd("ZADD").arg(&key).arg("GT");
                for member in chunk {
                    command.arg(format!("{until:.3}")).arg(member);
                }
                command.ignore();
            }
            pipe.cmd("ZREMRANGEBYSCORE")
                .arg(&key)
                .arg("-inf")
                .arg(format!("{now:.3}"))
                .ignore()
                .cmd("ZREMRANGEBYRANK")
                .arg(&key)
                .arg(0)
                .arg(format!("-{}", REVOKED_KEPT + 1))
                .ignore();
        }
        // Last: who sees the new count sees the members, too.
        pipe.cmd("INCR")
            .arg(self.keys.umbel("revocations"))
            .ignore()
            .query_async::<()>(&mut self.connection.clone())
            .await
            .map_err(failed("ZADD revoked"))
    }

    /// How often something was revoked: unchanged, there is nothing new to read.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub async fn revoked_count(&self) -> Result<u64, Error> {
        let count: Option<u64> = redis::cmd("GET")
            .arg(self.keys.umbel("revocations"))
            .query_async(&mut self.connection.clone())
            .await
            .map_err(failed("GET revocations"))?;
        Ok(count.unwrap_or(0))
    }

    /// What is not to run. What cannot be read is left out.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub async fn revoked(&self, now: f64) -> Result<Revocations, Error> {
        let mut pipe = redis::pipe();
        for set in ["revoked", "revoked-stamps"] {
            pipe.cmd("ZRANGEBYSCORE")
                .arg(self.keys.umbel(set))
                .arg(format!("({now:.3}"))
                .arg("+inf")
                .arg("WITHSCORES");
        }
        let (ids, stamps): (Scored, Scored) = pipe
            .query_async(&mut self.connection.clone())
            .await
            .map_err(failed("ZRANGEBYSCORE revoked"))?;
        let stamps = stamps.iter();
        Ok(Revocations {
            ids,
            stamps: stamps
                .filter_map(|(member, until)| Some((stamp_of(member)?, *until)))
                .collect(),
        })
    }
}

/// A stamp as a member: a JSON array of its name and its value.
fn stamp_member(name: &str, value: &Json) -> String {
    format!("[{}, {value}]", Json::string(name))
}

fn stamp_of(member: &str) -> Option<(String, Json)> {
    let pair = Json::parse(member).ok()?.elements()?;
    match pair.as_slice() {
        [name, value] => Some((name.text()?, value.clone())),
        _ => None,
    }
}

impl ResultStore {
    /// Stores these documents where nobody has begun the task; returns how many. Everything else keeps its result. `state`
    /// reads the state of what is stored; of what it cannot read the task has begun.
    ///
    /// # Errors
    /// [`Error::Call`]: to be repeated, or left to who takes the message.
    pub async fn store_unless_begun(
        &self,
        documents: &[StoredResult],
        state: impl Fn(&[u8]) -> Option<String>,
    ) -> Result<u64, Error> {
        let has_not_begun = |stored: &[u8]| state(stored).is_some_and(|state| NOT_BEGUN.contains(&state.as_str()));
        let mut stored = 0;
        for chunk in documents.chunks(RESULTS) {
            let mut connection = self.connection();
            let mut command = redis::cmd("MGET");
            for document in chunk {
                command.arg(&document.key);
            }
            let found: Vec<Option<Vec<u8>>> = command
                .query_async(&mut connection)
                .await
                .map_err(failed("MGET results"))?;
            let mut args = Args::new(&REVOKE_RESULT, self.prefix());
            let mut is_empty = true;
            for (document, found) in chunk.iter().zip(&found) {
                if found.as_deref().is_none_or(&has_not_begun) {
                    args.push(&document.key);
                    args.push(found.as_deref().unwrap_or_default());
                    args.push(document.ttl);
                    args.push(document.document.as_slice());
                    is_empty = false;
                }
            }
            if !is_empty {
                stored += args.call(&mut connection).await?.count()?;
            }
        }
        Ok(stored)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_are_members_and_come_back() {
        for value in ["\"acme\"", "7", "[1, \"a, b\"]", "null"] {
            let value = Json::parse(value).unwrap();
            let member = stamp_member("tenant]\"", &value);
            assert_eq!(stamp_of(&member), Some(("tenant]\"".to_owned(), value)));
        }
        assert_eq!(stamp_of("tenant"), None);
        assert_eq!(stamp_of("[1, 2]"), None);
    }
}
