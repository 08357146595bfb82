//! What these tests share: a producer that knows what Redis has acknowledged, and the numbers that a worker shows.

use std::time::Duration;

use umbel_protocol::json::Json;
use umbel_protocol::message::NewTask;
use umbel_testkit::redis::aio::MultiplexedConnection;
use umbel_testkit::redis::{self, AsyncCommands, RedisResult};
use umbel_testkit::{Event, History, Verdict, eventually, free_port};

use crate::support::{SOON, borrowed};

/// A message for `test.work`, which lasts so many seconds.
pub(crate) fn message(task: &str, id: &str, args: &str) -> Vec<u8> {
    let task = NewTask {
        id: id.into(),
        task: task.into(),
        queue: "celery".into(),
        args: Json::parse(args).expect("valid"),
        delivery_tag: id.into(),
        ..NewTask::default()
    };
    task.encode()
}

/// Ids that nobody else uses.
pub(crate) fn ids(name: &str, count: usize) -> Vec<String> {
    (0..count).map(|n| format!("{name}-{n:05}")).collect()
}

/// Sends one task for each id, each lasting so many seconds, and notes those that the server has acknowledged.
pub(crate) async fn send(
    connection: &mut MultiplexedConnection,
    history: &History,
    ids: &[String],
    seconds: f64,
) -> RedisResult<()> {
    for part in ids.chunks(200) {
        let messages: Vec<Vec<u8>> = part
            .iter()
            .map(|id| message("test.work", id, &format!("[{seconds}]")))
            .collect();
        connection.lpush::<_, _, ()>("celery", messages).await?;
        history.enqueued(borrowed(part));
    }
    Ok(())
}

/// Waits until all that was acknowledged is done, and answers the verdict.
pub(crate) async fn all_done(history: &History, deadline: Duration) -> Verdict {
    eventually(deadline, "everything that was sent is done", async || {
        history.verdict(&[]).lost.is_empty()
    })
    .await;
    history.verdict(&[])
}

/// Waits until the server holds nothing for anybody.
pub(crate) async fn settled(connection: &mut MultiplexedConnection) {
    eventually(SOON, "nothing waits or is held", async || {
        let (held, waiting): (RedisResult<usize>, RedisResult<usize>) =
            (connection.hlen("umbel:unacked").await, connection.llen("celery").await);
        held == Ok(0) && waiting == Ok(0)
    })
    .await;
}

/// Waits until one more task goes through, and answers how long that took.
pub(crate) async fn goes_through(connection: &mut MultiplexedConnection, history: &History, id: &str) -> Duration {
    let begin = std::time::Instant::now();
    send(connection, history, &[id.to_owned()], 0.0)
        .await
        .expect("the server takes a message");
    eventually(SOON, "a task goes through", async || history.count(Event::Done, id) > 0).await;
    begin.elapsed()
}

/// The admin port of a worker under test.
pub(crate) struct Admin(String);

impl Admin {
    pub(crate) fn new() -> Admin {
        Admin(format!("127.0.0.1:{}", free_port()))
    }

    /// What to put behind `--admin-addr`.
    pub(crate) fn address(&self) -> &str {
        &self.0
    }

    /// Sum of a metric's samples whose labels contain this text.
    pub(crate) async fn metric(&self, name: &str, label: &str) -> f64 {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let Ok(mut stream) = tokio::net::TcpStream::connect(&self.0).await else {
            return 0.0;
        };
        let request = "GET /metrics HTTP/1.1\r\nHost: worker\r\nConnection: close\r\n\r\n";
        let mut text = String::new();
        if stream.write_all(request.as_bytes()).await.is_err() || stream.read_to_string(&mut text).await.is_err() {
            return 0.0;
        }
        text.lines()
            .filter(|line| line.starts_with(name) && line.contains(label))
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }
}

/// One command whose reply does not matter.
pub(crate) async fn told(connection: &mut MultiplexedConnection, words: &[&str]) {
    let mut command = redis::cmd(words[0]);
    command.arg(&words[1..]);
    command
        .query_async::<redis::Value>(connection)
        .await
        .unwrap_or_else(|err| panic!("{words:?}: {err}"));
}
