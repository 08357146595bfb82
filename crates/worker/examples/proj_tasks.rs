//! The worker with the tasks of the wire captures: what Celery's worker ran when they were made.

use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use serde_json::Value;
use umbel_worker::{
    Arguments, Failed, Failure, Job, JobContext, Json, Outcome, Retry, Signature, Stop, TaskOptions, Worker,
};

/// A sum of numbers, as Python adds: whole where all are. The error is what is no number.
fn sum<'a>(numbers: impl IntoIterator<Item = &'a Value>) -> Result<Value, &'a Value> {
    let (mut whole, mut real, mut is_whole) = (0_i64, 0.0, true);
    for number in numbers {
        let value = number.as_f64().ok_or(number)?;
        match number.as_i64() {
            Some(number) => whole += number,
            None => is_whole = false,
        }
        real += value;
    }
    Ok(if is_whole {
        Value::from(whole)
    } else {
        Value::from(real)
    })
}

fn no_number(value: &Value) -> Failure {
    Failure::type_error(format!("unsupported operand type(s) for +: {value}"))
}

async fn add(_ctx: JobContext, (x, y): (Value, Value)) -> Result<Value, Failure> {
    sum([&x, &y]).map_err(no_number)
}

async fn mul(_ctx: JobContext, (x, y): (i64, i64)) -> Result<i64, Failure> {
    Ok(x * y)
}

async fn tsum(_ctx: JobContext, (numbers,): (Vec<Value>,)) -> Result<Value, Failure> {
    sum(&numbers).map_err(no_number)
}

async fn fail(_ctx: JobContext, (message,): (String,)) -> Result<(), Failure> {
    Err(Failure::permanent("ValueError", message))
}

/// Sleeps, and answers its second argument.
async fn sleeps(_ctx: JobContext, args: Vec<Value>) -> Result<Value, Failure> {
    let seconds = args.first().and_then(Value::as_f64).unwrap_or(0.0);
    tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
    Ok(args.get(1).cloned().unwrap_or(Value::from(0)))
}

async fn errback_old(_ctx: JobContext, (id,): (String,)) -> Result<String, Failure> {
    Ok(format!("old:{id}"))
}

/// Says what it was told.
async fn errback_new(failed: Failed, (): ()) -> Result<(), Failure> {
    let args = failed.arguments.map_or_else(Json::null, |arguments| arguments.args);
    println!("errback: {} {} {} {args}", failed.id, failed.task, failed.failure);
    Ok(())
}

/// A command of the application's own.
async fn doubled(arguments: Doubled) -> Result<Value, Failure> {
    if arguments.number < 0 {
        return Err(Failure::permanent("ValueError", "below zero"));
    }
    Ok(serde_json::json!({"ok": arguments.number * 2}))
}

#[derive(serde::Deserialize)]
struct Doubled {
    number: i64,
}

async fn noresult(_ctx: JobContext, (): ()) -> Result<u32, Failure> {
    Ok(1)
}

/// Fails until it was retried so many times.
async fn autoretry(ctx: JobContext, (ok_at,): (u32,)) -> Result<u32, Failure> {
    if ctx.retries < ok_at {
        let why = Failure::permanent("ZeroDivisionError", "division by zero");
        return Err(Failure {
            is_retryable: true,
            ..why
        });
    }
    Ok(ctx.retries)
}

/// Waits for longer than any limit.
async fn hardie(_ctx: JobContext, (): ()) -> Result<(), Failure> {
    tokio::time::sleep(Duration::from_secs(60)).await;
    Ok(())
}

/// Asks to be run again twice, and then fails.
async fn retryer(_ctx: JobContext, (): ()) -> Result<(), Stop> {
    let again = Failure::permanent("KeyError", "again");
    Err(Retry::new()
        .max_retries(2)
        .after(Duration::from_millis(10))
        .because(again)
        .into())
}

async fn progress(ctx: JobContext, (): ()) -> Result<&'static str, Stop> {
    let meta = serde_json::json!({"done": 3, "total": 10});
    ctx.update_state("PROGRESS", &meta).await?;
    Ok("ok")
}

async fn started(_ctx: JobContext, (): ()) -> Result<&'static str, Stop> {
    Ok("ok")
}

/// Ends without a result.
async fn ignorer(_ctx: JobContext, (): ()) -> Result<(), Stop> {
    Err(Stop::Ignore)
}

/// Refuses its message; when it comes back, takes it.
async fn rejecter(ctx: JobContext, (requeue,): (bool,)) -> Result<&'static str, Stop> {
    if ctx.is_redelivered().await? {
        return Ok("second");
    }
    Err(Stop::Reject {
        reason: Some("no".into()),
        requeue,
    })
}

/// An exception of the application's own.
async fn failmy(_ctx: JobContext, (): ()) -> Result<(), Failure> {
    Err(Failure::raise("proj", "MyErr", &("a", serde_json::json!({"b": 5}))))
}

fn add_of(x: i64, y: i64) -> Signature {
    Signature::task("proj.add", Json::of(&(x, y)), Json::empty_object())
}

async fn replacer(ctx: JobContext, (x, y): (i64, i64)) -> Result<(), Stop> {
    Err(ctx.replace(add_of(x, y)))
}

async fn replacer_group(ctx: JobContext, (count,): (i64,)) -> Result<(), Stop> {
    let members: Vec<Signature> = (0..count).map(|number| add_of(number, number)).collect();
    Err(ctx.replace(Signature::group(&members)))
}

/// A member that makes its chord larger.
async fn addchord(ctx: JobContext, (x, y): (i64, i64)) -> Result<i64, Stop> {
    ctx.add_to_chord(&add_of(x * 100, y * 100)).await?;
    Ok(x + y)
}

/// Sends tasks, and answers their ids.
async fn spawn(ctx: JobContext, (count,): (i64,)) -> Result<Vec<String>, Stop> {
    let mut ids = Vec::new();
    for number in 0..count {
        ids.push(ctx.send(&add_of(number, number)).await?.id);
    }
    Ok(ids)
}

/// Kills its worker.
async fn suicide(_ctx: JobContext, (): ()) -> Result<(), Failure> {
    std::process::abort()
}

/// A task that works on the arguments' own text: integers of any size and NaN come back as they went in.
struct Verbatim {
    name: &'static str,
    run: fn(&Arguments) -> String,
}

impl Job for Verbatim {
    fn name(&self) -> &str {
        self.name
    }

    fn run<'a>(&'a self, _ctx: &'a JobContext, args: Arguments) -> BoxFuture<'a, Outcome> {
        let outcome = match Json::parse(&(self.run)(&args)) {
            Ok(value) => Outcome::Done(value),
            Err(err) => Outcome::Failed(Failure::type_error(err.to_string())),
        };
        std::future::ready(outcome).boxed()
    }
}

/// The first argument.
fn ident(args: &Arguments) -> String {
    let first = args.args.elements().and_then(|elements| elements.into_iter().next());
    first.map_or_else(|| "null".to_owned(), |first| first.to_string())
}

/// All arguments.
fn echo(args: &Arguments) -> String {
    format!("[{}, {}]", args.args, args.kwargs)
}

/// Names of captures whose tasks only show that they ran.
const SHOWN: [&str; 40] = [
    "demo.a",
    "demo.add",
    "demo.b",
    "demo.c",
    "demo.cb",
    "demo.cb2",
    "demo.d",
    "demo.dir",
    "demo.e",
    "demo.eb",
    "demo.fan",
    "demo.g",
    "demo.h",
    "demo.inner",
    "demo.l",
    "demo.lnk",
    "demo.m",
    "demo.minute",
    "demo.noargs",
    "demo.o",
    "demo.old",
    "demo.outer",
    "demo.p",
    "demo.prio",
    "demo.q",
    "demo.qe",
    "demo.s",
    "demo.secret",
    "demo.st",
    "demo.sum",
    "demo.t",
    "demo.tick",
    "demo.tock",
    "demo.top",
    "demo.u",
    "demo.x",
    "demo.y",
    "demo.z",
    "other.add",
    "proj.echo",
];

fn main() -> anyhow::Result<()> {
    let mut worker = Worker::builder()
        .task("proj.add", add)
        .task("proj.mul", mul)
        .task("proj.tsum", tsum)
        .task("proj.fail", fail)
        .task("proj.sleeps", sleeps)
        .task("proj.late", sleeps)
        .task("proj.errback_old", errback_old)
        .errback("proj.errback_new", errback_new)
        .command("doubled", doubled)
        .task("proj.noresult", noresult)
        .task("proj.autoretry", autoretry)
        .task("proj.hardie", hardie)
        .task("proj.suicide", suicide)
        .task("proj.retryer", retryer)
        .task("proj.progress", progress)
        .task_with("proj.started", TaskOptions::new().track_started(), started)
        .task("proj.ignorer", ignorer)
        .task("proj.rejecter", rejecter)
        .task("proj.failmy", failmy)
        .task("proj.replacer", replacer)
        .task("proj.replacer_group", replacer_group)
        .task("proj.addchord", addchord)
        .task("proj.spawn", spawn)
        .job(Verbatim {
            name: "proj.ident",
            run: ident,
        });
    for name in SHOWN {
        worker = worker.job(Verbatim { name, run: echo });
    }
    worker.run()
}
