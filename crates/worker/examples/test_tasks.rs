//! The worker with the tasks of the tests: they write what they do into the history of the test, and misbehave.

use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use umbel_testkit::redis::{self, AsyncCommands};
use umbel_testkit::{Event, Log};
use umbel_worker::{Ack, Arguments, Failure, JobContext, Json, Lost, Retry, Signature, Stop, TaskOptions, Worker};

// As umbel-worker has it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn history() -> Option<&'static Log> {
    static LOG: OnceLock<Option<Log>> = OnceLock::new();
    LOG.get_or_init(Log::of_this_process).as_ref()
}

fn note(ctx: &JobContext, event: Event) {
    if let Some(log) = history() {
        log.write(event, &ctx.id, token(ctx));
    }
}

fn token(ctx: &JobContext) -> u64 {
    let token = ctx.token();
    let micros = token.rsplit('.').next();
    micros.and_then(|micros| micros.parse().ok()).unwrap_or(0)
}

fn lost(lost: Lost) -> Failure {
    Failure::transient(lost.to_string())
}

/// A process that took longer from its look at the lease to the effect was held in between: normally it takes microseconds.
const HELD: Duration = Duration::from_millis(100);

/// One effect after so many seconds.
async fn work(ctx: JobContext, (seconds,): (f64,)) -> Result<f64, Failure> {
    note(&ctx, Event::Started);
    tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
    // The first look may wait for a renewal, the second one does not.
    ctx.checkpoint().await.map_err(lost)?;
    let looked = Instant::now();
    ctx.checkpoint().await.map_err(lost)?;
    if let Some(log) = history() {
        let at = SystemTime::now();
        let event = if looked.elapsed() > HELD {
            Event::Held
        } else {
            Event::Effect
        };
        log.write_at(at, event, &ctx.id, token(&ctx));
    }
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

/// Ends with `test.work` in its place: alone, or behind another one in a chain.
async fn replaced(ctx: JobContext, (seconds, is_chain): (f64, bool)) -> Result<f64, Stop> {
    note(&ctx, Event::Started);
    let work = |seconds: f64| {
        let mut work = Signature::task("test.work", Json::of(&(seconds,)), Json::empty_object());
        work.immutable = true;
        work
    };
    let with = if is_chain {
        Signature::chain(&[work(0.0), work(seconds)])
    } else {
        work(seconds)
    };
    Err(ctx.replace(with))
}

/// The key of `test.keyed`; panics for negative numbers.
#[allow(clippy::panic)]
fn key_of(arguments: &Arguments) -> Option<String> {
    let (seconds,): (f64,) = arguments.positional().ok()?;
    assert!(seconds >= 0.0, "no key for {seconds}");
    Some("k".into())
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

/// Never gives way to anybody, and never ends.
async fn stuck(ctx: JobContext, (): ()) -> Result<(), Failure> {
    note(&ctx, Event::Started);
    loop {
        std::thread::sleep(Duration::from_secs(1)); // As `loop {}` does, without the heat.
    }
}

/// As `stuck`, on a thread of its own.
#[allow(clippy::needless_pass_by_value)] // As tasks are called.
fn stuck_thread(ctx: JobContext, (): ()) -> Result<(), Failure> {
    note(&ctx, Event::Started);
    loop {
        std::thread::sleep(Duration::from_secs(1));
    }
}

/// Ends its worker in one of the ways that no program survives.
async fn violent(ctx: JobContext, (how,): (String,)) -> Result<usize, Failure> {
    #[allow(unconditional_recursion)]
    fn deeper(depth: &[u8; 4096]) -> usize {
        let mut next = *depth;
        next[0] = next[0].wrapping_add(1);
        deeper(std::hint::black_box(&next)) + usize::from(next[1])
    }
    note(&ctx, Event::Started);
    match how.as_str() {
        "stack" => Ok(deeper(&[0; 4096])),
        _ => {
            let mut all = Vec::new();
            loop {
                all.push(std::hint::black_box(Vec::<u8>::with_capacity(64 << 20))); // Asked for, not used.
            }
        }
    }
}

/// Panics with something that panics again when it is dropped, which nobody catches for a task; with `late` after a wait.
#[allow(clippy::panic)]
async fn outside(ctx: JobContext, (late,): (bool,)) -> Result<(), Failure> {
    struct Fragile;
    impl Drop for Fragile {
        fn drop(&mut self) {
            assert!(std::thread::panicking(), "dropped on purpose");
        }
    }
    note(&ctx, Event::Started);
    if late {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    std::panic::panic_any(Fragile)
}

/// Panics; with `late` only when it is dropped at its limit.
#[allow(clippy::panic)]
async fn shatter(ctx: JobContext, (late,): (bool,)) -> Result<(), Failure> {
    struct Fragile;
    impl Drop for Fragile {
        fn drop(&mut self) {
            assert!(std::thread::panicking(), "dropped on purpose");
        }
    }
    note(&ctx, Event::Started);
    let _fragile = Fragile;
    if late {
        return std::future::pending().await;
    }
    panic!("on purpose")
}

/// Writes to a target that compares fences: of one order only the first write has an effect.
async fn fenced(ctx: JobContext, (): ()) -> Result<i64, Failure> {
    const WRITE: &str = "local old = redis.call('HGET', KEYS[1], 'order')
        if old and tonumber(old) >= tonumber(ARGV[1]) then return 0 end
        redis.call('HSET', KEYS[1], 'order', ARGV[1])
        return redis.call('HINCRBY', KEYS[1], 'effects', 1)";
    note(&ctx, Event::Started);
    ctx.checkpoint().await.map_err(lost)?;
    let broken = |err: redis::RedisError| Failure::transient(err.to_string());
    let mut target = target().await.map_err(broken)?;
    let script = redis::Script::new(WRITE);
    let mut call = script.key("target");
    call.arg(ctx.order);
    let is_applied: i64 = call.invoke_async(&mut target).await.map_err(broken)?;
    note(&ctx, Event::Effect);
    note(&ctx, Event::Done);
    Ok(is_applied)
}

/// A connection to the broker's database.
async fn target() -> Result<redis::aio::MultiplexedConnection, redis::RedisError> {
    let url = std::env::args().skip_while(|arg| arg != "--redis-url").nth(1);
    let client = redis::Client::open(url.unwrap_or_default())?;
    client.get_multiplexed_async_connection().await
}

/// Opens files until there are no more to be had, and holds them for so many seconds.
async fn hoard(ctx: JobContext, (seconds,): (f64,)) -> Result<String, Failure> {
    note(&ctx, Event::Started);
    let mut files = Vec::new();
    let err = loop {
        match std::fs::File::open("/dev/null") {
            Ok(file) => files.push(file),
            Err(err) => break err,
        }
        if files.len() > 5000 {
            return Err(Failure::permanent("RuntimeError", "there is no end of them"));
        }
    };
    tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
    note(&ctx, Event::Done);
    Ok(err.to_string())
}

/// Leaves a process behind that ends later and that nobody waits for. Answers its id.
async fn orphan(ctx: JobContext, (): ()) -> Result<String, Failure> {
    note(&ctx, Event::Started);
    let shell = std::process::Command::new("/bin/sh")
        .args(["-c", "sleep 0.2 & echo $!"])
        .output();
    let output = shell.map_err(|err| Failure::transient(err.to_string()))?;
    note(&ctx, Event::Done);
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Says which release of the worker ran it.
async fn release(ctx: JobContext, _args: Arguments) -> Result<u32, Failure> {
    note(&ctx, Event::Started);
    note(&ctx, Event::Done);
    Ok(newest())
}

/// The newest arguments that this release of the worker reads.
fn newest() -> u32 {
    std::env::var("UMBEL_TEST_RELEASE").map_or(1, |release| release.parse().unwrap_or(1))
}

/// What of a name runs at a time.
#[derive(serde::Deserialize)]
struct Exclusive {
    name: String,
    seconds: f64,
    #[allow(dead_code)] // The worker reads it before the task runs.
    key: String,
}

/// Counts in Redis how many of its name run at a time, and in which order they came: `most:`, `ran:`.
async fn exclusive(ctx: JobContext, args: Exclusive) -> Result<i64, Failure> {
    note(&ctx, Event::Started);
    let Exclusive { name, seconds, key: _ } = args;
    let counted = async {
        let url = std::env::args().skip_while(|arg| arg != "--redis-url").nth(1);
        let client = redis::Client::open(url.unwrap_or_default())?;
        let mut connection = client.get_multiplexed_async_connection().await?;
        let script = "redis.call('RPUSH', 'ran:' .. ARGV[1], ARGV[2]) \
            for _, name in ipairs({ ARGV[1], 'every' }) do \
            local n = redis.call('INCR', 'running:' .. name) \
            if n > tonumber(redis.call('GET', 'most:' .. name) or '0') then redis.call('SET', 'most:' .. name, n) end end";
        let _: () = redis::cmd("EVAL")
            .arg(script)
            .arg(0)
            .arg(&name)
            .arg(&ctx.id)
            .query_async(&mut connection)
            .await?;
        tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
        let left: i64 = connection.decr(format!("running:{name}"), 1).await?;
        let _: i64 = connection.decr("running:every", 1).await?;
        Ok::<i64, redis::RedisError>(left)
    };
    let left = counted
        .await
        .map_err(|err| Failure::permanent("RedisError", err.to_string()))?;
    note(&ctx, Event::Done);
    Ok(left)
}

/// When it started, in microseconds since 1970: for measuring.
async fn stamp(_ctx: JobContext, (): ()) -> Result<f64, Failure> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    Ok(since.map_or(0.0, |since| since.as_secs_f64() * 1e6))
}

/// How many results a chord has: for measuring.
async fn count(_ctx: JobContext, (results,): (Vec<Value>,)) -> Result<usize, Failure> {
    Ok(results.len())
}

fn main() -> anyhow::Result<()> {
    Worker::builder()
        .task("test.work", work)
        .task("test.effects", effects)
        .task_with("test.early", TaskOptions::new().ack(Ack::Early), early)
        .task("test.requeue", requeue)
        .task("test.replaced", replaced)
        .task_with("test.keyed", TaskOptions::new().concurrency_key_by(key_of, 1), work)
        .task("test.again", again)
        .task("test.progress", progress)
        .task("test.ignore", ignore)
        .task("test.abort", abort)
        .task("test.fail", fail)
        .task("test.flaky", flaky)
        .task("test.soft", soft)
        .task("test.panic", panics)
        .task("test.spin", spin)
        .task("test.stuck", stuck)
        .blocking_task("test.stuck_thread", stuck_thread)
        .task("test.violent", violent)
        .task("test.shatter", shatter)
        .task("test.outside", outside)
        .task("test.fenced", fenced)
        .task("test.hoard", hoard)
        .task("test.orphan", orphan)
        .task_with("test.release", TaskOptions::new().version(newest()), release)
        .task("bench.stamp", stamp)
        .task("bench.count", count)
        .task_with("test.rated", TaskOptions::new().shared_rate_limit("10/s/20"), stamp)
        .task_with(
            "test.exclusive",
            TaskOptions::new().concurrency_key("key", 1),
            exclusive,
        )
        .run()
}
