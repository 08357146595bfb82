//! The worker with the tasks of the tests: they write what they do into the history of the test, and misbehave.

use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use umbel_testkit::redis::{self, AsyncCommands};
use umbel_testkit::{Event, Log};
use umbel_worker::{Ack, Arguments, Failure, JobContext, Lost, Retry, Stop, TaskOptions, Worker};

fn history() -> Option<&'static Log> {
    static LOG: OnceLock<Option<Log>> = OnceLock::new();
    LOG.get_or_init(Log::of_this_process).as_ref()
}

fn note(ctx: &JobContext, event: Event) {
    let token = ctx.token();
    let micros = token
        .rsplit('.')
        .next()
        .and_then(|micros| micros.parse().ok())
        .unwrap_or(0);
    if let Some(log) = history() {
        log.write(event, &ctx.id, micros);
    }
}

fn lost(lost: Lost) -> Failure {
    Failure::transient(lost.to_string())
}

/// One effect after so many seconds.
async fn work(ctx: JobContext, (seconds,): (f64,)) -> Result<f64, Failure> {
    note(&ctx, Event::Started);
    tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
    ctx.checkpoint().await.map_err(lost)?;
    note(&ctx, Event::Effect);
    note(&ctx, Event::Done);
    Ok(seconds)
}

/// An effect every ten milliseconds, for so many seconds.
async fn effects(ctx: JobContext, (seconds,): (f64,)) -> Result<u64, Failure> {
    note(&ctx, Event::Started);
    let end = Instant::now() + Duration::from_secs_f64(seconds);
    let mut count = 0;
    while Instant::now() < end {
        ctx.checkpoint().await.map_err(lost)?;
        note(&ctx, Event::Effect);
        count += 1;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    note(&ctx, Event::Done);
    Ok(count)
}

/// As `work`, acknowledged before it runs.
async fn early(ctx: JobContext, (seconds, _): (f64, Value)) -> Result<f64, Failure> {
    work(ctx, (seconds,)).await
}

/// Puts its message back the first time.
async fn requeue(ctx: JobContext, _args: Arguments) -> Result<&'static str, Stop> {
    note(&ctx, Event::Started);
    if ctx.is_redelivered().await? {
        return Ok("delivered before");
    }
    Err(Stop::requeue())
}

/// Is retried once with other arguments, in another queue, with another priority, and tells what it got.
async fn again(ctx: JobContext, args: Arguments) -> Result<Value, Stop> {
    if ctx.retries == 0 {
        let wait = Duration::from_millis(200);
        return Err(Retry::new().args(&(2, 3)).queue("other").priority(6).after(wait).into());
    }
    Ok(json!({
        "args": args.args,
        "kwargs": args.kwargs,
        "retries": ctx.retries,
        "queue": ctx.queue,
        "priority": ctx.request.priority(),
        "tenant": ctx.header::<String>("tenant"),
        "parent": ctx.request.parent_id(),
    }))
}

/// Tells how far it is until it may go on.
async fn progress(ctx: JobContext, (): ()) -> Result<&'static str, Stop> {
    ctx.update_state("PROGRESS", &json!({"done": 3, "total": 10})).await?;
    wait_for_go().await.map_err(|err| Failure::transient(err.to_string()))?;
    Ok("ok")
}

/// Waits for the key `go` in the broker's database.
async fn wait_for_go() -> Result<(), redis::RedisError> {
    let url = std::env::args().skip_while(|arg| arg != "--redis-url").nth(1);
    let client = redis::Client::open(url.unwrap_or_default())?;
    let mut connection = client.get_multiplexed_async_connection().await?;
    while !connection.exists("go").await? {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

/// Ends with the state that it told last.
async fn ignore(ctx: JobContext, (): ()) -> Result<(), Stop> {
    ctx.update_state("HALFWAY", &()).await?;
    Err(Stop::Ignore)
}

/// Kills its worker, as running out of memory does.
async fn abort(ctx: JobContext, (): ()) -> Result<(), Failure> {
    note(&ctx, Event::Started);
    std::process::abort()
}

async fn fail(ctx: JobContext, (message,): (String,)) -> Result<(), Failure> {
    note(&ctx, Event::Started);
    Err(Failure::permanent("ValueError", message))
}

/// Succeeds at the so manieth retry.
async fn flaky(ctx: JobContext, (retries,): (u32,)) -> Result<u32, Failure> {
    note(&ctx, Event::Started);
    if ctx.retries < retries {
        return Err(Failure::transient("not yet"));
    }
    note(&ctx, Event::Done);
    Ok(ctx.retries)
}

/// Ends in order at its soft limit.
async fn soft(ctx: JobContext, (): ()) -> Result<&'static str, Failure> {
    ctx.soft_limit.cancelled().await;
    Ok("ended at the soft limit")
}

#[allow(clippy::panic)]
async fn panics(_ctx: JobContext, (): ()) -> Result<(), Failure> {
    panic!("on purpose")
}

/// Keeps a core busy without ever yielding.
async fn spin(ctx: JobContext, (seconds,): (f64,)) -> Result<(), Failure> {
    note(&ctx, Event::Started);
    let end = Instant::now() + Duration::from_secs_f64(seconds);
    while Instant::now() < end {
        std::hint::spin_loop();
    }
    note(&ctx, Event::Effect);
    note(&ctx, Event::Done);
    Ok(())
}

/// When it started, in microseconds since 1970: for measuring.
async fn stamp(_ctx: JobContext, (): ()) -> Result<f64, Failure> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    Ok(since.map_or(0.0, |since| since.as_secs_f64() * 1e6))
}

fn main() -> anyhow::Result<()> {
    Worker::builder()
        .task("test.work", work)
        .task("test.effects", effects)
        .task_with("test.early", TaskOptions::new().ack(Ack::Early), early)
        .task("test.requeue", requeue)
        .task("test.again", again)
        .task("test.progress", progress)
        .task("test.ignore", ignore)
        .task("test.abort", abort)
        .task("test.fail", fail)
        .task("test.flaky", flaky)
        .task("test.soft", soft)
        .task("test.panic", panics)
        .task("test.spin", spin)
        .task("bench.stamp", stamp)
        .run()
}
