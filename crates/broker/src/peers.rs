//! Celery's own workers on the same database, asked by its remote control.

use std::time::Duration;

use umbel_protocol::json::Json;

use crate::keys::SEPARATOR;
use crate::{Broker, Error};

/// Exchange that replies to remote control go through.
const REPLIES: &str = "reply.celery.pidbox";

impl Broker {
    /// Does any Celery worker of this database answer that it consumes the queue? Waits up to `patience` for answers,
    /// and no longer than the first yes.
    ///
    /// # Errors
    /// [`Error::Connect`], [`Error::Call`].
    ///
    /// # Cancellation
    /// Leaves a reply list behind that expires after a minute.
    pub async fn celery_consumes(&self, queue: &str, patience: Duration) -> Result<bool, Error> {
        let failed = |source| Error::Call {
            call: "active_queues",
            source,
        };
        let own = uuid::Uuid::new_v4().to_string();
        let binding = format!("{}_kombu.binding.{REPLIES}", self.keys.prefix());
        let list = format!("{own}.reply.celery.pidbox");
        let list_key = format!("{}{list}", self.keys.prefix());
        let member = format!("{own}{SEPARATOR}{SEPARATOR}{list}");
        let db = self.database();
        let channel = format!("{}/{db}.celery.pidbox", self.keys.prefix());
        // A connection of its own: a blocking pop must not hold up everybody else's calls.
        let mut config = self.config.clone();
        config.response_timeout = patience + Duration::from_secs(2);
        let mut connection = config.connection().await?;
        let listeners: i64 = redis::pipe()
            .cmd("SADD")
            .arg(&binding)
            .arg(&member)
            .ignore()
            .cmd("PUBLISH")
            .arg(&channel)
            .arg(request(&own))
            .query_async::<(i64,)>(&mut connection)
            .await
            .map_err(failed)?
            .0;
        let mut answer = false;
        let deadline = tokio::time::Instant::now() + patience;
        let mut replies = 0;
        while replies < listeners && !answer {
            let left = deadline.saturating_duration_since(tokio::time::Instant::now());
            if left.is_zero() {
                break;
            }
            let reply: Option<(String, Vec<u8>)> = redis::cmd("BRPOP")
                .arg(&list_key)
                .arg(left.as_secs_f64())
                .query_async(&mut connection)
                .await
                .map_err(failed)?;
            let Some((_, reply)) = reply else { break };
            replies += 1;
            answer = names_queue(&reply, queue);
        }
        redis::pipe()
            .cmd("SREM")
            .arg(&binding)
            .arg(&member)
            .ignore()
            .cmd("DEL")
            .arg(&list_key)
            .ignore()
            .query_async::<()>(&mut connection)
            .await
            .map_err(failed)?;
        Ok(answer)
    }

    fn database(&self) -> i64 {
        use redis::IntoConnectionInfo;
        self.config
            .url
            .as_str()
            .into_connection_info()
            .map_or(0, |info| info.redis_settings().db())
    }

    /// Counts that a message was handed back as unknown. The count is forgotten ten minutes after the last time.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub async fn count_hand_back(&self, id: &str) -> Result<u64, Error> {
        let key = self.keys.umbel(&format!("handed:{id}"));
        let (times,): (u64,) = redis::pipe()
            .cmd("INCR")
            .arg(&key)
            .cmd("EXPIRE")
            .arg(&key)
            .arg(600)
            .ignore()
            .query_async(&mut self.connection.clone())
            .await
            .map_err(|source| Error::Call {
                call: "INCR handed",
                source,
            })?;
        Ok(times)
    }

    /// How old the leader's last heartbeat is by Redis' clock; `None` where there is none.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub async fn leader_age(&self, install: &str) -> Result<Option<Duration>, Error> {
        let (beat, (seconds, micros)): (Option<String>, (f64, f64)) = redis::pipe()
            .get(self.keys.umbel(&format!("hb:operator:{install}")))
            .cmd("TIME")
            .query_async(&mut self.connection.clone())
            .await
            .map_err(|source| Error::Call {
                call: "GET heartbeat",
                source,
            })?;
        let at = beat
            .as_deref()
            .and_then(|beat| beat.split_once('|'))
            .and_then(|(at, _)| at.parse::<f64>().ok());
        Ok(at.map(|at| Duration::try_from_secs_f64(seconds + micros / 1e6 - at).unwrap_or_default()))
    }
}

/// The remote control command, as kombu's pidbox publishes it.
fn request(own: &str) -> String {
    use base64::Engine;
    let body = format!(
        "{{\"method\": \"active_queues\", \"arguments\": {{}}, \"destination\": null, \"pattern\": null, \"matcher\": null, \
         \"ticket\": \"{own}\", \"reply_to\": {{\"exchange\": \"{REPLIES}\", \"routing_key\": \"{own}\"}}}}"
    );
    let body = base64::engine::general_purpose::STANDARD.encode(body);
    format!(
        "{{\"body\": \"{body}\", \"content-encoding\": \"utf-8\", \"content-type\": \"application/json\", \
         \"headers\": {{\"clock\": 0, \"expires\": 0}}, \"properties\": {{\"delivery_mode\": 2, \"delivery_info\": \
         {{\"exchange\": \"celery.pidbox\", \"routing_key\": \"\"}}, \"priority\": 0, \"body_encoding\": \"base64\", \
         \"delivery_tag\": \"{own}\"}}}}"
    )
}

/// Does a reply (`{node: [queue objects]}` in an envelope) name the queue?
fn names_queue(envelope: &[u8], queue: &str) -> bool {
    use base64::Engine;
    let Some(envelope) = std::str::from_utf8(envelope)
        .ok()
        .and_then(|text| Json::parse(text).ok())
    else {
        return false;
    };
    let Some(body) = envelope.get("body").and_then(|body| body.to::<String>().ok()) else {
        return false;
    };
    let Ok(body) = base64::engine::general_purpose::STANDARD.decode(body) else {
        return false;
    };
    let Some(reply) = String::from_utf8(body).ok().and_then(|text| Json::parse(&text).ok()) else {
        return false;
    };
    reply
        .entries()
        .iter()
        .filter_map(|(_, queues)| queues.elements())
        .flatten()
        .any(|entry| entry.get("name").and_then(|name| name.to::<String>().ok()).as_deref() == Some(queue))
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::Engine;

    #[test]
    fn replies_are_read() {
        let body =
            base64::engine::general_purpose::STANDARD.encode(r#"{"w1@lab": [{"name": "celery", "exclusive": false}]}"#);
        let envelope = format!(r#"{{"body": "{body}", "headers": {{}}}}"#);
        assert!(names_queue(envelope.as_bytes(), "celery"));
        assert!(!names_queue(envelope.as_bytes(), "other"));
        assert!(!names_queue(b"\xff", "celery"));
    }

    #[test]
    fn the_request_is_an_envelope() {
        let message = Json::parse(&request("x")).unwrap();
        assert!(message.get("properties").is_some());
    }
}
