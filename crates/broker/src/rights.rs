//! Which rights a user lacks: asked only when the server has refused something, because inside of scripts it names neither
//! command nor key.

use redis::{Cmd, RedisError, Value};

use crate::control::failed;
use crate::{Broker, Error};

/// Commands of our scripts, each with the words that make it harmless on a key of its own. `K` stands for that key.
const COMMANDS: [&str; 54] = [
    "EVALSHA 0000000000000000000000000000000000000000 0",
    "EVAL return 0",
    "TIME",
    "INFO",
    "TYPE K",
    "EXISTS K",
    "GET K",
    "SET K 1 EX 1",
    "SETEX K 1 1",
    "DEL K",
    "INCRBY K 1",
    "EXPIRE K 1",
    "PEXPIRE K 1000",
    "PTTL K",
    "DEL K",
    "LPUSH K x",
    "RPUSH K x",
    "LINDEX K 0",
    "LLEN K",
    "LRANGE K 0 0",
    "LTRIM K 0 -1",
    "RPOP K",
    "DEL K",
    "HSET K f v",
    "HGET K f",
    "HMGET K f",
    "HEXISTS K f",
    "HGETALL K",
    "HKEYS K",
    "HLEN K",
    "HSCAN K 0",
    "HINCRBY K n 1",
    "HDEL K f",
    "DEL K",
    "SADD K m",
    "SISMEMBER K m",
    "SREM K m",
    "DEL K",
    "ZADD K 1 m",
    "ZCARD K",
    "ZCOUNT K -inf +inf",
    "ZSCORE K m",
    "ZMSCORE K m",
    "ZRANK K m",
    "ZRANGE K 0 0",
    "ZRANGEBYSCORE K -inf +inf",
    "ZREM K m",
    "ZREMRANGEBYSCORE K -inf +inf",
    "DEL K",
    "XADD K * f v",
    "XLEN K",
    "XRANGE K - + COUNT 1",
    "XDEL K 0-1",
    "DEL K",
];

impl Broker {
    /// What the user of this connection lacks to work on these queues, in words: `command hset`, `key celery`,
    /// `channel …`. Empty where nothing is missing.
    ///
    /// # Errors
    /// [`Error::Call`] where the server does not answer.
    ///
    /// # Cancellation
    /// Safe; a key of ours with a time to live may be left.
    pub async fn missing_rights(&self, queues: &[String]) -> Result<Vec<String>, Error> {
        let own = self.keys.umbel(&format!("probe:{}", uuid::Uuid::new_v4().simple()));
        let mut asked: Vec<(String, Cmd)> = Vec::new();
        for line in COMMANDS {
            let mut words = line.split(' ');
            let name = words.next().unwrap_or_default();
            let mut command = redis::cmd(name);
            if name == "EVAL" {
                command.arg("return 0").arg(0);
            } else {
                for word in words {
                    command.arg(if word == "K" { own.as_str() } else { word });
                }
            }
            asked.push((format!("command {}", name.to_ascii_lowercase()), command));
        }
        let result = format!("{}celery-task-meta-{}", self.config.result_prefix, uuid::Uuid::new_v4());
        let mut keys = vec![
            self.keys.umbel("unacked"),
            format!("{}unacked", self.keys.prefix()),
            result.clone(),
        ];
        for queue in queues {
            keys.extend(self.keys.lists(queue));
        }
        for key in keys {
            let mut command = redis::cmd("TYPE");
            command.arg(&key);
            asked.push((format!("key {key}"), command));
        }
        let mut publish = redis::cmd("PUBLISH");
        publish.arg(&result).arg("");
        asked.push((
            format!("channel {}celery-task-meta-*", self.config.result_prefix),
            publish,
        ));

        let mut pipe = redis::pipe();
        pipe.ignore_errors();
        for (_, command) in &asked {
            pipe.add_command(command.clone());
        }
        let replies: Vec<Result<Value, RedisError>> = pipe
            .query_async(&mut self.connection.clone())
            .await
            .map_err(failed("rights"))?;
        let mut missing: Vec<String> = Vec::new();
        let lacks_own_key = |what: &str, err: &RedisError| {
            // Commands are asked on a key of ours: where that is what is refused, it says so once.
            what.starts_with("command") && err.detail().is_some_and(|text| text.contains("key"))
        };
        for ((what, _), reply) in asked.iter().zip(replies) {
            let Err(err) = reply else { continue };
            if err.code() != Some("NOPERM") {
                continue;
            }
            let what = if lacks_own_key(what, &err) {
                format!("key {}", self.keys.umbel("*"))
            } else {
                what.clone()
            };
            if !missing.contains(&what) {
                missing.push(what);
            }
        }
        Ok(missing)
    }
}
