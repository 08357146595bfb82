//! Sentinels: who is the primary now, and hearing of it when that changes.
//!
//! All are asked at once and the answer of the highest epoch is believed as soon as most have answered; the server it
//! names must itself say that it is a primary. A subscription to one of them tells of a failover, so that connections
//! to a server that hangs are left at once.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use redis::{RedisConnectionInfo, RedisResult};

use crate::Config;
use crate::address::{Address, Place as Where};
use crate::open::{self, Stream};
use crate::place::{Place, Primary};
use crate::trouble::{Refusal, Trouble};

/// A Sentinel that takes longer to answer is passed over.
const PATIENCE: Duration = Duration::from_secs(1);
/// A silent Sentinel is asked whether it is there so often.
const ALIVE_ASKED: Duration = Duration::from_secs(2);
/// Before the next one is tried.
const AGAIN: Duration = Duration::from_millis(250);

fn places(address: &Address) -> &[(String, u16)] {
    match &address.place {
        Where::Sentinels(places) => places,
        Where::Tcp(..) | Where::Socket(_) => &[],
    }
}

/// The name of the primary.
pub(crate) fn master<'a>(config: &'a Config, address: &'a Address) -> RedisResult<&'a str> {
    let named = Some(config.sentinel.master.as_str()).filter(|name| !name.is_empty());
    named.or(address.master.as_deref()).ok_or_else(|| {
        let reason = "the name under which the sentinels know the primary is missing (master name)";
        Refusal::error(Trouble::Other, reason)
    })
}

fn settings(config: &Config, address: &Address) -> RedisConnectionInfo {
    let mut info = RedisConnectionInfo::default();
    if let Some(user) = config.sentinel.user.as_ref().or(address.sentinel_user.as_ref()) {
        info = info.set_username(user);
    }
    if let Some(password) = config.sentinel.password.as_ref().or(address.sentinel_password.as_ref()) {
        info = info.set_password(password);
    }
    info
}

async fn stream(config: &Config, address: &Address, host: &str, port: u16) -> RedisResult<Stream> {
    open::tcp(config, address, host, port).await
}

/// Asks one Sentinel.
async fn ask(config: &Config, address: &Address, master: &str, host: &str, port: u16) -> RedisResult<Primary> {
    let stream = stream(config, address, host, port).await?;
    let info = settings(config, address);
    let (mut connection, driver) = redis::aio::MultiplexedConnection::new(&info, stream).await?;
    let mut asked = redis::cmd("SENTINEL");
    asked.arg("MASTER").arg(master);
    let answer: HashMap<String, String> = tokio::select! {
        answer = asked.query_async(&mut connection) => answer?,
        () = driver => return Err(Refusal::error(Trouble::Connection, format!("{host}:{port} ended the connection"))),
    };
    let number = |name: &str| answer.get(name).and_then(|text| text.parse::<u64>().ok());
    let (Some(ip), Some(to)) = (
        answer.get("ip"),
        number("port").and_then(|port| u16::try_from(port).ok()),
    ) else {
        return Err(Refusal::error(
            Trouble::Other,
            format!("{host}:{port} names no address of {master}"),
        ));
    };
    Ok(Primary {
        epoch: number("config-epoch").unwrap_or(0),
        host: ip.clone(),
        port: to,
    })
}

/// Where the primary may be, the likeliest first.
///
/// # Errors
/// No Sentinel knows it: what the last one said.
pub(crate) async fn candidates(config: &Config, address: &Address) -> RedisResult<Vec<Primary>> {
    let master = master(config, address)?;
    let places = places(address);
    let mut asked: FuturesUnordered<_> = places
        .iter()
        .map(|(host, port)| async move {
            let answer = tokio::time::timeout(PATIENCE, ask(config, address, master, host, *port)).await;
            answer.unwrap_or_else(|_| {
                let reason = format!("sentinel {host}:{port} does not answer within {PATIENCE:?}");
                Err(Refusal::error(Trouble::Timeout, reason))
            })
        })
        .collect();
    let (mut answers, mut refused) = (Vec::new(), None);
    while answers.len() * 2 <= places.len()
        && let Some(answer) = asked.next().await
    {
        match answer {
            Ok(answer) => answers.push(answer),
            Err(err) => refused = Some(err),
        }
    }
    if answers.is_empty() {
        let why = refused.map_or_else(|| "there are none".to_owned(), |err| err.to_string());
        let reason = format!("no sentinel knows the primary {master}: {why}");
        return Err(Refusal::error(Trouble::Connection, reason));
    }
    // What was told last may not have reached those who answered first.
    answers.extend(config.place.state().primary);
    answers.sort_by_key(|answer| std::cmp::Reverse(answer.epoch));
    let mut candidates: Vec<Primary> = Vec::new();
    for answer in answers {
        if candidates
            .iter()
            .all(|known| (&known.host, known.port) != (&answer.host, answer.port))
        {
            candidates.push(answer);
        }
    }
    Ok(candidates)
}

/// Says that nobody listens any more, however the listening ended.
struct Listening(Weak<Place>);

impl Drop for Listening {
    fn drop(&mut self) {
        if let Some(place) = self.0.upgrade() {
            place.is_followed.store(false, Ordering::Release);
        }
    }
}

/// Listens to the Sentinels as long as anybody uses the configuration, unless somebody does already.
pub(crate) fn follow(config: &Config) {
    if config.place.is_followed.swap(true, Ordering::AcqRel) {
        return;
    }
    let place = Arc::downgrade(&config.place);
    // Not the place itself, or the listener would keep alive what it waits for the end of.
    let mut config = config.clone();
    config.place = Arc::default();
    let listening = Listening(place);
    tokio::spawn(async move {
        let mut turn = 0;
        while listening.0.strong_count() > 0 {
            let Ok(address) = config.address() else {
                tokio::time::sleep(AGAIN).await;
                continue;
            };
            let places = places(&address);
            if places.is_empty() {
                return;
            }
            let (host, port) = &places[turn % places.len()];
            if let Err(err) = listen(&listening.0, &config, &address, host, *port).await {
                tracing::debug!(sentinel = %format!("{host}:{port}"), error = %err, "listening to the next sentinel");
            }
            turn += 1;
            tokio::time::sleep(AGAIN).await;
        }
    });
}

async fn listen(place: &Weak<Place>, config: &Config, address: &Address, host: &str, port: u16) -> RedisResult<()> {
    let master = master(config, address)?;
    let gone = || Refusal::error(Trouble::Timeout, "no answer");
    let connect = async {
        let stream = stream(config, address, host, port).await?;
        let mut pubsub = redis::aio::PubSub::new(&settings(config, address), stream).await?;
        pubsub.subscribe("+switch-master").await?;
        RedisResult::Ok(pubsub)
    };
    let pubsub = tokio::time::timeout(PATIENCE, connect).await.map_err(|_| gone())??;
    let (mut sink, mut messages) = pubsub.split();
    // What happened while nobody listened.
    tell(place, config, address, host, port).await?;
    while place.strong_count() > 0 {
        match tokio::time::timeout(ALIVE_ASKED, messages.next()).await {
            Ok(Some(message)) => {
                let text: String = message.get_payload().unwrap_or_default();
                if text.split(' ').next() == Some(master) {
                    tracing::info!(master, news = text, "the primary has moved");
                    tell(place, config, address, host, port).await?;
                }
            }
            Ok(None) => return Err(Refusal::error(Trouble::Connection, "the connection has ended")),
            Err(_) => {
                tokio::time::timeout(PATIENCE, sink.ping::<redis::Value>())
                    .await
                    .map_err(|_| gone())??;
            }
        }
    }
    Ok(())
}

/// Passes on whom this Sentinel takes for the primary.
async fn tell(place: &Weak<Place>, config: &Config, address: &Address, host: &str, port: u16) -> RedisResult<()> {
    let asked = ask(config, address, master(config, address)?, host, port);
    let primary = tokio::time::timeout(PATIENCE, asked)
        .await
        .map_err(|_| Refusal::error(Trouble::Timeout, "no answer"))??;
    if let Some(place) = place.upgrade() {
        place.told(&primary);
    }
    Ok(())
}
