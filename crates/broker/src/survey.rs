//! What a server is and what it promises: program and version, how durable its writes are, whether it throws keys away.

use std::collections::HashMap;

use redis::{RedisError, Value};

use crate::{Broker, Error};

/// How much of what was acknowledged a server's settings can lose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Durability {
    /// No append-only file: everything since the last snapshot goes with the process.
    Volatile,
    /// Written to disk every second: about the last second goes with the process, two with the machine.
    Basic,
    /// Written to disk before the reply: nothing goes with the process; everything since the backup goes with the disk.
    Local,
    /// As basic, and no write without a replica: what was confirmed by `WAIT` outlives the server.
    Replicated,
    /// Written to disk before the reply, and no write without a replica.
    Strict,
}

impl Durability {
    /// All, the weakest first.
    pub const ALL: [Durability; 5] = [
        Durability::Volatile,
        Durability::Basic,
        Durability::Local,
        Durability::Replicated,
        Durability::Strict,
    ];

    /// Its name, for people, statuses and metrics.
    pub fn word(self) -> &'static str {
        match self {
            Durability::Volatile => "Volatile",
            Durability::Basic => "Basic",
            Durability::Local => "Local",
            Durability::Replicated => "Replicated",
            Durability::Strict => "Strict",
        }
    }

    /// What can be lost, in a sentence.
    pub fn loses(self) -> &'static str {
        match self {
            Durability::Volatile => "no append-only file: a restart loses everything since the last snapshot",
            Durability::Basic => "append-only file, written every second: a crash loses up to two seconds",
            Durability::Local => {
                "append-only file, written before each reply: a crash loses nothing, a lost disk everything"
            }
            Durability::Replicated => {
                "written every second and on a replica: a failover loses only what WAIT has not confirmed"
            }
            Durability::Strict => "written before each reply, and on a replica",
        }
    }

    fn derive(has_file: bool, is_always: bool, is_replicated: bool) -> Durability {
        match (has_file, is_always, is_replicated) {
            (false, _, _) => Durability::Volatile,
            (true, false, false) => Durability::Basic,
            (true, true, false) => Durability::Local,
            (true, false, true) => Durability::Replicated,
            (true, true, true) => Durability::Strict,
        }
    }
}

/// What was learned of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Survey {
    /// The program: `redis`, `valkey` or another.
    pub software: String,
    /// Its version.
    pub version: String,
    /// What its settings promise; `None` where it tells neither CONFIG nor INFO.
    pub durability: Option<Durability>,
    /// The policy by which it throws keys away when its memory is full; `None` for `noeviction`, or where it does not say.
    pub eviction: Option<String>,
    /// Bytes of memory it may use; 0 = no limit, so nothing is thrown away yet.
    pub memory_limit: u64,
    /// Whether it knows `WAITAOF`.
    pub can_wait_for_disk: bool,
    /// Published weaknesses of this version; a distribution may have mended them under the same number.
    pub weaknesses: Vec<&'static str>,
}

impl Survey {
    /// Why messages may vanish; `None` where the server throws nothing away.
    pub fn eviction_risk(&self) -> Option<String> {
        let policy = self.eviction.as_ref()?;
        let what = if policy.starts_with("volatile") {
            "keys with a time to live (results, heartbeats, gates)"
        } else {
            "any key, messages too,"
        };
        let when = if self.memory_limit == 0 {
            "once it has a maxmemory".to_owned()
        } else {
            format!("when its memory of {} bytes is full", self.memory_limit)
        };
        Some(format!(
            "maxmemory-policy is {policy}: the server throws away {what} {when}; it must be noeviction"
        ))
    }
}

type Facts = HashMap<String, String>;

fn facts_of(info: &str) -> Facts {
    let pairs = info.lines().filter_map(|line| line.trim_end().split_once(':'));
    pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

fn version_of(text: &str) -> (u32, u32, u32) {
    let mut parts = text
        .split(['.', '-'])
        .map(|part| part.parse().unwrap_or(0))
        .chain(std::iter::repeat(0));
    let mut part = || parts.next().unwrap_or(0);
    (part(), part(), part())
}

/// The oldest server whose scripts can be told to run without memory, and whose streams and tracking are as we use them.
const OLDEST: (u32, u32, u32) = (7, 0, 0);

/// Weaknesses by program: the first version of each line in which they are mended; lines below the first have no remedy.
fn weaknesses(software: &str, version: (u32, u32, u32)) -> Vec<&'static str> {
    // What a script of somebody with a password can do to the server.
    const LUA: &str = "CVE-2025-49844, -46817, -46818, -46819: scripts can take over or stop the server";
    const UNBLOCK: &str = "CVE-2026-23479: unblocking a client can corrupt the server's memory";
    let lua: &[(u32, u32, u32)] = match software {
        "redis" => &[(7, 2, 11), (7, 4, 6), (8, 0, 4), (8, 2, 2)],
        "valkey" => &[(7, 2, 11), (8, 0, 6), (8, 1, 4)],
        _ => return Vec::new(),
    };
    let is_mended = |mended: &[(u32, u32, u32)]| {
        let line = mended.iter().find(|fixed| (fixed.0, fixed.1) == (version.0, version.1));
        match line {
            Some(fixed) => version >= *fixed,
            None => mended.last().is_some_and(|newest| version > *newest),
        }
    };
    let mut found = Vec::new();
    if !is_mended(lua) {
        found.push(LUA);
    }
    if software == "redis" && version < (8, 6, 3) {
        found.push(UNBLOCK);
    }
    found
}

/// What INFO and CONFIG say, put together. An error says why we cannot work with this server.
fn judge(info: &Facts, config: &Facts) -> Result<Survey, String> {
    let text = |name: &str| info.get(name).map(String::as_str);
    let (software, version) = match (text("valkey_version"), text("dragonfly_version"), text("redis_version")) {
        (Some(version), _, _) => ("valkey", version),
        (_, Some(version), _) => ("dragonfly", version),
        (_, _, Some(version)) => ("redis", version),
        _ => ("unknown", ""),
    };
    let parsed = version_of(version);
    if software != "unknown" && software != "dragonfly" && parsed < OLDEST {
        return Err(format!("{software} {version} is too old: 7.0 or newer is needed"));
    }
    if text("cluster_enabled") == Some("1") || text("redis_mode") == Some("cluster") {
        return Err(
            "it is a node of a Redis Cluster, which Celery's transport cannot use either: give one server or Sentinels"
                .into(),
        );
    }
    if text("redis_mode") == Some("sentinel") {
        return Err("it is a Sentinel: write sentinel:// instead of redis://".into());
    }
    let setting = |name: &str| config.get(name).map(String::as_str);
    let has_file = match (setting("appendonly"), text("aof_enabled")) {
        (Some(value), _) => Some(value == "yes"),
        (None, Some(value)) => Some(value == "1"),
        (None, None) => None,
    };
    // Where CONFIG is denied the weaker one is meant: INFO does not tell how often the file is written.
    let is_always = setting("appendfsync") == Some("always");
    let is_replicated = match setting("min-replicas-to-write") {
        Some(value) => value.parse::<u32>().is_ok_and(|count| count > 0),
        // INFO has this line only where writes wait for replicas.
        None => info.contains_key("min_slaves_good_slaves"),
    };
    let policy = setting("maxmemory-policy").or(text("maxmemory_policy"));
    let limit = setting("maxmemory").or(text("maxmemory"));
    Ok(Survey {
        software: software.to_owned(),
        version: version.to_owned(),
        durability: has_file.map(|has_file| Durability::derive(has_file, is_always, is_replicated)),
        eviction: policy.filter(|policy| *policy != "noeviction").map(ToOwned::to_owned),
        memory_limit: limit.and_then(|limit| limit.parse().ok()).unwrap_or(0),
        can_wait_for_disk: matches!(software, "redis" | "valkey") && parsed >= (7, 2, 0),
        weaknesses: weaknesses(software, parsed),
    })
}

/// Settings that tell how durable a server is.
const SETTINGS: [&str; 5] = [
    "appendonly",
    "appendfsync",
    "min-replicas-to-write",
    "maxmemory-policy",
    "maxmemory",
];

/// What our scripts take for granted: reading keys that were not declared, the time before a write.
const PROBE: &str = "redis.call('TIME'); return redis.call('EXISTS', ARGV[1] .. 'umbel:gen') + #redis.sha1hex('')";

impl Broker {
    /// Learns what the server is, and refuses one that we cannot work with.
    ///
    /// # Errors
    /// [`Error::Unsupported`]; [`Error::Call`] where it does not answer. What a user may not ask is left open.
    ///
    /// # Cancellation
    /// Safe.
    pub async fn survey(&self) -> Result<Survey, Error> {
        let failed = |source| Error::Call { call: "INFO", source };
        let mut pipe = redis::pipe();
        pipe.ignore_errors();
        pipe.cmd("INFO");
        for setting in SETTINGS {
            pipe.cmd("CONFIG").arg("GET").arg(setting);
        }
        pipe.cmd("EVAL").arg(PROBE).arg(0).arg(self.keys.prefix());
        let replies: Vec<Result<Value, RedisError>> =
            pipe.query_async(&mut self.connection.clone()).await.map_err(failed)?;
        let mut replies = replies.into_iter();
        let info = match replies.next() {
            Some(Ok(value)) => facts_of(&redis::from_redis_value::<String>(value).unwrap_or_default()),
            Some(Err(err)) if err.code() != Some("NOPERM") => return Err(failed(err)),
            Some(Err(_)) | None => Facts::new(),
        };
        let mut config = Facts::new();
        // The others are of a user without the right, or of a server without the command.
        for value in replies.by_ref().take(SETTINGS.len()).flatten() {
            config.extend(redis::from_redis_value::<Facts>(value).unwrap_or_default());
        }
        let unsupported = |reason| Error::Unsupported {
            server: self.server(),
            reason,
        };
        let survey = judge(&info, &config).map_err(unsupported)?;
        if let Some(Err(err)) = replies.next()
            && crate::Trouble::of(&err) == crate::Trouble::Other
        {
            return Err(unsupported(format!("it does not run our scripts: {err}")));
        }
        Ok(survey)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(text: &str) -> Facts {
        facts_of(&text.replace(' ', "\n"))
    }

    #[test]
    fn levels_follow_the_settings() {
        let table = [
            ("appendonly:no", Some(Durability::Volatile)),
            ("appendonly:no min-replicas-to-write:1", Some(Durability::Volatile)),
            ("appendonly:yes appendfsync:everysec", Some(Durability::Basic)),
            ("appendonly:yes appendfsync:no", Some(Durability::Basic)),
            (
                "appendonly:yes appendfsync:always min-replicas-to-write:0",
                Some(Durability::Local),
            ),
            (
                "appendonly:yes appendfsync:everysec min-replicas-to-write:1",
                Some(Durability::Replicated),
            ),
            (
                "appendonly:yes appendfsync:always min-replicas-to-write:2",
                Some(Durability::Strict),
            ),
            ("", None),
        ];
        for (settings, level) in table {
            let survey = judge(&facts("redis_version:7.2.11"), &facts(settings)).unwrap();
            assert_eq!(survey.durability, level, "{settings}");
        }
        // CONFIG is denied: INFO alone.
        let info = facts(
            "redis_version:7.2.11 aof_enabled:1 min_slaves_good_slaves:1 maxmemory:9 maxmemory_policy:allkeys-lru",
        );
        let survey = judge(&info, &Facts::new()).unwrap();
        assert_eq!(survey.durability, Some(Durability::Replicated));
        assert!(
            survey
                .eviction_risk()
                .is_some_and(|risk| risk.contains("allkeys-lru") && risk.contains("any key"))
        );
        assert!(Durability::ALL.is_sorted());
    }

    #[test]
    fn who_can_wait_for_the_disk_is_known() {
        let can = |info| judge(&facts(info), &Facts::new()).unwrap().can_wait_for_disk;
        let valkey = "redis_version:7.2.4 valkey_version:8.1.1";
        assert_eq!(
            ["redis_version:7.0.15", "redis_version:7.2.0", valkey, ""].map(can),
            [false, true, true, false]
        );
    }

    #[test]
    fn eviction_is_told_and_noeviction_is_not() {
        let of = |settings| {
            judge(&facts("redis_version:7.0.1"), &facts(settings))
                .unwrap()
                .eviction_risk()
        };
        assert_eq!(of("maxmemory-policy:noeviction maxmemory:1"), None);
        assert_eq!(of(""), None);
        assert!(
            of("maxmemory-policy:allkeys-random")
                .unwrap()
                .contains("once it has a maxmemory")
        );
        assert!(
            of("maxmemory-policy:volatile-ttl maxmemory:5")
                .unwrap()
                .contains("time to live")
        );
    }

    #[test]
    fn servers_that_cannot_serve_us_are_named() {
        let cases = [
            ("redis_version:6.2.20", "too old"),
            ("redis_version:7.2.4 cluster_enabled:1", "Redis Cluster"),
            ("redis_version:7.2.4 redis_mode:sentinel", "sentinel://"),
        ];
        for (info, part) in cases {
            let reason = judge(&facts(info), &Facts::new()).expect_err(info);
            assert!(reason.contains(part), "{reason}");
        }
        for info in [
            "redis_version:7.0.0",
            "redis_version:7.2.4 valkey_version:8.1.1",
            "dragonfly_version:1.3",
            "",
        ] {
            assert!(judge(&facts(info), &Facts::new()).is_ok(), "{info}");
        }
    }

    #[test]
    fn b05_versions_with_published_weaknesses_are_reported() {
        let of = |info: &str| {
            let survey = judge(&facts(info), &Facts::new()).unwrap();
            let has = |name: &str| survey.weaknesses.iter().any(|weakness| weakness.contains(name));
            (has("49844"), has("23479"))
        };
        let table = [
            ("redis_version:7.0.15", (true, true)),
            ("redis_version:7.2.10", (true, true)),
            ("redis_version:7.4.6", (false, true)),
            ("redis_version:8.2.1", (true, true)),
            ("redis_version:8.4.0", (false, true)),
            ("redis_version:8.6.3", (false, false)),
            ("redis_version:7.2.4 valkey_version:8.1.3", (true, false)),
            ("redis_version:7.2.4 valkey_version:8.1.4", (false, false)),
            ("redis_version:7.2.4 valkey_version:9.0.0", (false, false)),
        ];
        for (info, expected) in table {
            assert_eq!(of(info), expected, "{info}");
        }
    }
}
