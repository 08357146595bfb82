//! The tasks of Celery's own integration tests (`t/integration/tasks.py`), in this library: under the same names, with
//! the same arguments and outcomes.
//!
//! ```sh
//! cargo run -p umbel-example-worker --example integration_tasks -- --redis-url redis://localhost:6379/0 --standalone
//! ```
//!
//! Those that talk to Redis themselves take the server's address from `REDIS_HOST` and `REDIS_PORT`, as there.

use std::io::Write as _;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use umbel_testkit::redis::{self, AsyncCommands};
use umbel_worker::{Arguments, Failed, Failure, JobContext, Json, Retry, Signature, Stop, TaskOptions, Worker};

/// The module of the tasks, and of the exceptions in it.
const MODULE: &str = "t.integration.tasks";

fn named(task: &str) -> String {
    format!("{MODULE}.{task}")
}

/// A call of one of these tasks.
fn sig<A: Serialize + ?Sized>(task: &str, args: &A) -> Signature {
    Signature::call(&named(task), args)
}

fn wrong(err: impl std::fmt::Display) -> Failure {
    Failure::permanent("ValueError", err.to_string())
}

/// A sum as Python adds: whole where all are.
fn sum<'a>(numbers: impl IntoIterator<Item = &'a Value>) -> Result<Value, Failure> {
    let (mut whole, mut real, mut is_whole) = (0_i64, 0.0, true);
    for number in numbers {
        let Some(value) = number.as_f64() else {
            return Err(Failure::type_error(format!(
                "unsupported operand type(s) for +: 'int' and {number}"
            )));
        };
        real += value;
        match number.as_i64() {
            Some(number) => whole += number,
            None => is_whole = false,
        }
    }
    Ok(if is_whole { json!(whole) } else { json!(real) })
}

/// `x + y` as Python has it for numbers, text and lists.
fn plus(x: &Value, y: &Value) -> Result<Value, Failure> {
    match (x, y) {
        (Value::String(x), Value::String(y)) => Ok(json!(format!("{x}{y}"))),
        (Value::Array(x), Value::Array(y)) => Ok(x.iter().chain(y).cloned().collect()),
        _ => sum([x, y]),
    }
}

async fn identity(_ctx: JobContext, (x,): (Json,)) -> Result<Json, Failure> {
    Ok(x)
}

#[derive(Deserialize)]
struct Add {
    x: Value,
    y: Value,
    #[serde(default)]
    z: Option<Value>,
}

async fn add(_ctx: JobContext, Add { x, y, z }: Add) -> Result<Value, Failure> {
    let two = plus(&x, &y)?;
    z.map_or(Ok(two.clone()), |z| plus(&two, &z))
}

async fn mul(_ctx: JobContext, (x, y): (i64, i64)) -> Result<i64, Failure> {
    Ok(x * y)
}

async fn write_to_file_and_return_int(_ctx: JobContext, (name, i): (String, i64)) -> Result<i64, Failure> {
    let file = std::fs::OpenOptions::new().append(true).create(true).open(&name);
    let mut file = file.map_err(|err| Failure::permanent("OSError", name).caused_by(&err))?;
    writeln!(file, "{i}").map_err(wrong)?;
    Ok(i)
}

async fn raise_error(_ctx: JobContext, _args: Arguments) -> Result<(), Failure> {
    Err(Failure::permanent("ValueError", "deliberate error"))
}

async fn chain_add(ctx: JobContext, (x, y): (i64, i64)) -> Result<(), Stop> {
    ctx.send(&Signature::chain(&[sig("add", &(x, x)), sig("add", &(y,))]))
        .await?;
    Ok(())
}

async fn chord_add(ctx: JobContext, (x, y): (i64, i64)) -> Result<(), Stop> {
    let header = Signature::group(&[sig("add", &(x, x))]);
    ctx.send(&Signature::chord(&header, &sig("add", &(y,)))).await?;
    Ok(())
}

#[derive(Deserialize)]
struct DelayedSum {
    numbers: Vec<Value>,
    #[serde(default = "one")]
    pause_time: f64,
}

fn one() -> f64 {
    1.0
}

async fn delayed_sum(ctx: JobContext, args: DelayedSum) -> Result<Value, Failure> {
    ctx.until_soft_limit(tokio::time::sleep(Duration::from_secs_f64(args.pause_time)))
        .await?;
    sum(&args.numbers)
}

async fn delayed_sum_with_soft_guard(ctx: JobContext, args: DelayedSum) -> Result<Value, Failure> {
    let pause = tokio::time::sleep(Duration::from_secs_f64(args.pause_time));
    match ctx.until_soft_limit(pause).await {
        Ok(()) => sum(&args.numbers),
        Err(_soft_time_limit_exceeded) => Ok(json!(0)),
    }
}

async fn tsum(_ctx: JobContext, (nums,): (Vec<Value>,)) -> Result<Value, Failure> {
    sum(&nums)
}

/// Sum of numbers and lists of numbers.
async fn xsum(_ctx: JobContext, (nums,): (Vec<Value>,)) -> Result<Value, Failure> {
    let sums: Vec<Value> = nums
        .iter()
        .map(|num| match num {
            Value::Array(inner) => sum(inner),
            number => Ok(number.clone()),
        })
        .collect::<Result<_, _>>()?;
    sum(&sums)
}

/// The sum of what a group answered, and a note that this task ran.
async fn sum_and_record(ctx: JobContext, (values, redis_key): (Vec<Value>, String)) -> Result<Value, Failure> {
    push(&redis_key, ctx.request.id()).await?;
    sum(&values)
}

async fn add_replaced(ctx: JobContext, (x, y): (Value, Value)) -> Result<(), Stop> {
    Err(ctx.replace(sig("add", &(x, y))))
}

async fn add_replaced_with_chain(ctx: JobContext, (x, y): (Value, Value)) -> Result<(), Stop> {
    Err(ctx.replace(Signature::chain(&[sig("add", &(x, y)), sig("identity", &())])))
}

/// A chain of `identity` and `last`, with a message to Redis linked by `link`.
fn linked_chain(
    args: &Arguments,
    last: &str,
    link: impl FnOnce(Signature, &Signature) -> Result<Signature, Failure>,
) -> Result<Signature, Failure> {
    let chain = Signature::chain(&[
        Signature::task(&named("identity"), args.args.clone(), Json::of(&json!({}))),
        sig(last, &()),
    ]);
    let message = args.kwargs.get("link_msg").filter(|message| !message.is_null());
    let callback = match message {
        Some(message) => sig("redis_echo", &(message,)).immutable(),
        None => sig("redis_echo", &()),
    };
    link(chain, &callback)
}

async fn replace_with_chain(ctx: JobContext, args: Arguments) -> Result<(), Stop> {
    let chain = linked_chain(&args, "identity", |chain, callback| chain.link(callback).map_err(wrong))?;
    Err(ctx.replace(chain))
}

async fn replace_with_chain_which_raises(ctx: JobContext, args: Arguments) -> Result<(), Stop> {
    let chain = linked_chain(&args, "raise_error", |chain, errback| {
        chain.link_error(errback).map_err(wrong)
    })?;
    Err(ctx.replace(chain))
}

async fn replace_with_chain_which_contains_a_group(ctx: JobContext, (): ()) -> Result<(), Stop> {
    let group = Signature::group(&[sig("add", &(1,)), sig("add", &(1,))]);
    Err(ctx.replace(Signature::chain(&[sig("add", &(1, 2)), group])))
}

async fn replace_with_empty_chain(ctx: JobContext, _args: Arguments) -> Result<(), Stop> {
    Err(ctx.replace(Signature::chain(&[])))
}

async fn add_to_all(ctx: JobContext, (nums, val): (Vec<Value>, Value)) -> Result<(), Stop> {
    let subtasks: Vec<Signature> = nums.iter().map(|num| sig("add", &(num, &val))).collect();
    Err(ctx.replace(Signature::group(&subtasks)))
}

async fn add_to_all_to_chord(ctx: JobContext, (nums, val): (Vec<i64>, i64)) -> Result<i64, Stop> {
    for num in nums {
        ctx.add_to_chord(&sig("add", &(num, val))).await?;
    }
    Ok(0)
}

async fn add_chord_to_chord(ctx: JobContext, (nums, val): (Vec<i64>, i64)) -> Result<i64, Stop> {
    let subtasks: Vec<Signature> = nums.iter().map(|num| sig("add", &(num, val))).collect();
    let chord = Signature::chord(&Signature::group(&subtasks), &sig("tsum", &()));
    ctx.add_to_chord(&chord).await?;
    Ok(0)
}

#[derive(Deserialize)]
struct PrintUnicode {
    #[serde(default = "log_message")]
    log_message: String,
    #[serde(default = "print_message")]
    print_message: String,
}

fn log_message() -> String {
    "håå®ƒ valmuefrø".into()
}

fn print_message() -> String {
    "hiöäüß".into()
}

async fn print_unicode(_ctx: JobContext, args: PrintUnicode) -> Result<(), Failure> {
    let mut out = std::io::stdout();
    writeln!(out, "{}\n{}", args.log_message, args.print_message).map_err(wrong)
}

async fn return_exception(_ctx: JobContext, (e,): (Json,)) -> Result<(Json, bool), Failure> {
    Ok((e, true))
}

async fn sleeping(_ctx: JobContext, args: Arguments) -> Result<(), Failure> {
    let (seconds,): (f64,) = args.positional()?;
    tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
    Ok(())
}

/// Root and parent, and the argument.
type Ids = (String, Option<String>, Json);

fn own_ids(ctx: &JobContext, i: Json) -> Ids {
    let parent = ctx.request.parent_id().map(str::to_owned);
    (ctx.request.root_id().to_owned(), parent, i)
}

#[derive(Deserialize)]
struct OwnIds {
    i: Json,
}

async fn ids(ctx: JobContext, OwnIds { i }: OwnIds) -> Result<Ids, Failure> {
    Ok(own_ids(&ctx, i))
}

#[derive(Deserialize)]
struct CollectIds {
    res: Json,
    i: Json,
}

async fn collect_ids(ctx: JobContext, CollectIds { res, i }: CollectIds) -> Result<(Json, Ids), Failure> {
    Ok((res, own_ids(&ctx, i)))
}

fn expected_exception(args: &[Value]) -> Failure {
    Failure::raise(MODULE, "ExpectedException", args)
}

/// Fails and is retried three times; then it returns its argument, or fails for good.
async fn retry(ctx: JobContext, args: Arguments) -> Result<Json, Stop> {
    let value = args.args.elements().and_then(|args| args.into_iter().next());
    let value = value
        .or_else(|| args.kwargs.get("return_value"))
        .filter(|value| !value.is_null());
    match value {
        Some(value) if ctx.retries >= 3 => Ok(value),
        _ => Err(Retry::new()
            .because(expected_exception(&[]))
            .after(Duration::from_secs(5))
            .into()),
    }
}

#[derive(Deserialize)]
struct RetryUnpickleable {
    foo: Json,
    bar: Json,
    retry_kwargs: RetryKwargs,
}

#[derive(Deserialize, Default)]
struct RetryKwargs {
    countdown: Option<f64>,
    max_retries: Option<u32>,
    expires: Option<f64>,
}

impl RetryKwargs {
    fn retry(self) -> Retry {
        let mut retry = Retry::new();
        if let Some(countdown) = self.countdown {
            retry = retry.after(Duration::from_secs_f64(countdown));
        }
        if let Some(max_retries) = self.max_retries {
            retry = retry.max_retries(max_retries);
        }
        if let Some(expires) = self.expires {
            retry = retry.expires(Duration::from_secs_f64(expires));
        }
        retry
    }
}

/// An exception whose class takes two arguments and keeps one: what there is of it when it is read again.
fn unpickleable(first: &Json, second: &Json) -> Failure {
    Failure::raise(
        "celery.utils.serialization",
        "UnpickleableExceptionWrapper",
        &[
            &json!(MODULE),
            &json!("UnpickleableException"),
            &json!([first.text().unwrap_or_else(|| first.to_string())]),
            &json!(format!("UnpickleableException({first}, {second})")),
        ],
    )
}

async fn retry_unpickleable(_ctx: JobContext, args: RetryUnpickleable) -> Result<(), Stop> {
    Err(args
        .retry_kwargs
        .retry()
        .because(unpickleable(&args.foo, &args.bar))
        .into())
}

async fn retry_once(ctx: JobContext, args: Arguments) -> Result<u32, Stop> {
    once(&ctx, &args)?;
    Ok(ctx.retries)
}

/// The first run is retried with positional arguments where it had keywords, and the other way round. A Python worker
/// knows which parameter each fills; here both kinds are given.
async fn retry_with_args_after_kwargs(ctx: JobContext, args: Labelled) -> Result<Value, Stop> {
    if ctx.retries == 0 {
        let again = Retry::new().after(Duration::ZERO).max_retries(1);
        return Err(again
            .args(&(args.foo + 1, args.bar + 1))
            .kwargs(&json!({"label": args.label}))
            .into());
    }
    Ok(json!({"foo": args.foo, "bar": args.bar, "label": args.label, "retries": ctx.retries, "is_eager": false}))
}

async fn retry_with_kwargs_after_args(ctx: JobContext, args: Labelled) -> Result<Value, Stop> {
    if ctx.retries == 0 {
        let again = Retry::new().after(Duration::ZERO).max_retries(1);
        return Err(again
            .args(&json!([]))
            .kwargs(&json!({"foo": args.foo + 1, "bar": args.bar}))
            .into());
    }
    Ok(json!({"foo": args.foo, "bar": args.bar, "retries": ctx.retries, "is_eager": false}))
}

#[derive(Deserialize)]
struct Labelled {
    foo: i64,
    bar: i64,
    #[serde(default)]
    label: Option<String>,
}

#[derive(Deserialize)]
struct Nesting {
    replacements: u32,
    #[serde(default)]
    nesting: Option<Vec<u32>>,
}

/// How deep it was replaced, in each of its lives.
async fn record_replaced_task_nesting(ctx: JobContext, args: Nesting) -> Result<Vec<u32>, Stop> {
    let mut nesting = args.nesting.unwrap_or_default();
    nesting.push(ctx.request.replaced_task_nesting());
    if args.replacements == 0 {
        return Ok(nesting);
    }
    Err(ctx.replace(sig("record_replaced_task_nesting", &(args.replacements - 1, nesting))))
}

async fn retry_once_at_once(ctx: JobContext, (): ()) -> Result<u32, Stop> {
    if ctx.retries == 0 {
        return Err(Retry::new().after(Duration::ZERO).into());
    }
    Ok(ctx.retries)
}

async fn retry_once_priority(ctx: JobContext, args: Arguments) -> Result<u8, Stop> {
    once(&ctx, &args)?;
    Ok(ctx.request.priority())
}

async fn retry_once_headers(ctx: JobContext, args: Arguments) -> Result<Value, Stop> {
    once(&ctx, &args)?;
    let headers = ctx.request.custom_headers();
    Ok(headers.into_iter().map(|(name, value)| (name, json!(value))).collect())
}

/// Asks for one retry, soon, unless this is it.
fn once(ctx: &JobContext, args: &Arguments) -> Result<(), Stop> {
    if ctx.retries > 0 {
        return Ok(());
    }
    let asked: RetryKwargs = args.keywords()?;
    let asked = RetryKwargs {
        countdown: asked.countdown.or(Some(0.1)),
        max_retries: asked.max_retries.or(Some(1)),
        ..asked
    };
    Err(asked.retry().into())
}

async fn redis_connection() -> Result<redis::aio::MultiplexedConnection, Failure> {
    let variable = |name: &str, default: &str| std::env::var(name).unwrap_or_else(|_| default.to_owned());
    let url = format!(
        "redis://{}:{}/0",
        variable("REDIS_HOST", "localhost"),
        variable("REDIS_PORT", "6379")
    );
    let client = redis::Client::open(url).map_err(wrong)?;
    client
        .get_multiplexed_async_connection()
        .await
        .map_err(|err| Failure::transient(err.to_string()))
}

async fn push(key: &str, message: &str) -> Result<(), Failure> {
    let mut connection = redis_connection().await?;
    connection.rpush::<_, _, ()>(key, message).await.map_err(wrong)
}

#[derive(Deserialize)]
struct RedisEcho {
    message: Json,
    #[serde(default)]
    redis_key: Option<String>,
}

/// Text, or what Celery's JSON makes of bytes that are text.
fn echoed(message: &Json) -> String {
    let bytes = message.get("__value__").and_then(|value| value.text());
    bytes.or_else(|| message.text()).unwrap_or_else(|| message.to_string())
}

async fn redis_echo(_ctx: JobContext, args: RedisEcho) -> Result<(), Failure> {
    let message = echoed(&args.message);
    push(args.redis_key.as_deref().unwrap_or("redis-echo"), &message).await
}

async fn redis_echo_group_id(ctx: JobContext, args: RedisEcho) -> Result<(), Failure> {
    let key = args.redis_key.as_deref().unwrap_or("redis-group-ids");
    push(key, ctx.request.group().unwrap_or_default()).await
}

#[derive(Deserialize)]
struct RedisCount {
    #[serde(default = "count_key")]
    redis_key: String,
}

fn count_key() -> String {
    "redis-count".into()
}

async fn count(key: &str) -> Result<(), Failure> {
    let mut connection = redis_connection().await?;
    connection.incr::<_, _, ()>(key, 1).await.map_err(wrong)
}

async fn redis_count(_ctx: JobContext, args: RedisCount) -> Result<(), Failure> {
    count(&args.redis_key).await
}

#[derive(Deserialize)]
struct SecondOrder {
    #[serde(default)]
    state: bool,
}

#[derive(Serialize)]
struct Out {
    state: bool,
}

async fn second_order_replace1(ctx: JobContext, args: Arguments) -> Result<(), Stop> {
    if args.keywords::<SecondOrder>()?.state {
        return Ok(push("redis-echo", "Out A").await?);
    }
    push("redis-echo", "In A").await?;
    let out = sig("second_order_replace1", &())
        .with_kwargs(&Out { state: true })
        .immutable();
    Err(ctx.replace(Signature::chain(&[sig("second_order_replace2", &()), out])))
}

async fn second_order_replace2(ctx: JobContext, args: Arguments) -> Result<(), Stop> {
    if args.keywords::<SecondOrder>()?.state {
        return Ok(push("redis-echo", "Out B").await?);
    }
    push("redis-echo", "In B").await?;
    let out = sig("second_order_replace2", &())
        .with_kwargs(&Out { state: true })
        .immutable();
    Err(ctx.replace(Signature::chain(&[sig("redis_echo", &("In/Out C",)), out])))
}

/// Sends a chain and returns its result, in the form that clients rebuild.
async fn build_chain_inside_task(ctx: JobContext, (): ()) -> Result<Json, Stop> {
    let both = Signature::group(&[sig("add", &(3,)), sig("add", &(4,))]);
    let steps = [sig("add", &(1, 1)), sig("add", &(2,)), both, sig("tsum", &())];
    Ok(ctx.send(&Signature::chain(&steps)).await?.to_json())
}

/// Fails, as late as a Python worker would: Celery's client looks for the error of a chord's member first and for that of
/// its body second, and when both come in between it raises the second, which these tests do not expect.
async fn fail(_ctx: JobContext, args: Arguments) -> Result<(), Failure> {
    tokio::time::sleep(Duration::from_millis(50)).await;
    let more: Vec<Value> = args.positional()?;
    let all: Vec<Value> = std::iter::once(json!("Task expected to fail")).chain(more).collect();
    Err(expected_exception(&all))
}

async fn fail_unpickleable(_ctx: JobContext, (first, second): (Json, Json)) -> Result<(), Failure> {
    Err(unpickleable(&first, &second))
}

async fn fail_replaced(ctx: JobContext, args: Arguments) -> Result<(), Stop> {
    let fail = Signature::task(&named("fail"), args.args, Json::of(&json!({})));
    Err(ctx.replace(fail.immutable()))
}

async fn return_priority(ctx: JobContext, _args: Arguments) -> Result<String, Failure> {
    Ok(format!("Priority: {}", ctx.request.priority()))
}

async fn return_request_eta(ctx: JobContext, (): ()) -> Result<Json, Failure> {
    let eta = ctx.headers.get("eta");
    Ok(eta.unwrap_or_else(|| Json::of(&json!(null))))
}

async fn return_properties(ctx: JobContext, (): ()) -> Result<Json, Failure> {
    Ok(ctx.request.properties())
}

/// Retried by the policy of its options.
async fn auto_retry_class_task(ctx: JobContext, (): ()) -> Result<u32, Failure> {
    if ctx.retries > 0 {
        return Ok(ctx.retries);
    }
    Err(Failure::permanent("ValueError", "").retryable())
}

/// The kinds of composites, by the names of Celery's tests.
fn nested(outer: &str, inner: &str) -> Signature {
    let compose = |kind: &str, part: Signature| match kind {
        "chain" => Signature::chain(&[part]),
        "group" => Signature::group(&[part]),
        _ => Signature::chord(&Signature::group(&[part]), &sig("add", &())),
    };
    compose(outer, compose(inner, sig("add", &())))
}

/// Reads a signature and everything in it.
async fn rebuild_signature(_ctx: JobContext, (signature,): (Json,)) -> Result<(), Failure> {
    fn rebuild(signature: &Signature) -> Result<(), Failure> {
        for task in signature.tasks().map_err(wrong)? {
            rebuild(&task)?;
        }
        if signature.kind == umbel_worker::SignatureKind::Chord {
            rebuild(&signature.body().map_err(wrong)?)?;
        }
        Ok(())
    }
    rebuild(&Signature::parse(&signature).map_err(|err| Failure::type_error(err.to_string()))?)
}

/// An errback of the old style is a task that takes the failed id, one of the new style is called with all that is known.
#[derive(Deserialize)]
struct Errback {
    request_id: String,
    label: String,
}

async fn errback_with_args(_ctx: JobContext, args: Errback) -> Result<(), Failure> {
    push(&args.request_id, &args.label).await
}

async fn errback(_ctx: JobContext, args: Arguments) -> Result<String, Failure> {
    let (id,): (String,) = args.positional()?;
    count(&id).await?;
    Ok(id)
}

async fn errback_new_style(failed: Failed, (): ()) -> Result<(), Failure> {
    count(&failed.id).await
}

async fn errback_new_style_with_args(failed: Failed, (label,): (String,)) -> Result<(), Failure> {
    push(&failed.id, &label).await
}

async fn replaced_with_me(_ctx: JobContext, (): ()) -> Result<bool, Failure> {
    Ok(true)
}

#[derive(Deserialize)]
struct AddParameter {
    data: AddParameterModel,
}

#[derive(Deserialize)]
struct AddParameterModel {
    x: i64,
    y: i64,
}

#[derive(Serialize)]
struct AddResultModel {
    result: i64,
}

async fn add_pydantic(_ctx: JobContext, args: AddParameter) -> Result<AddResultModel, Failure> {
    Ok(AddResultModel {
        result: args.data.x + args.data.y,
    })
}

async fn replace_with_stamped_task(ctx: JobContext, args: Arguments) -> Result<(), Stop> {
    let given = args.args.elements().and_then(|args| args.into_iter().next());
    let given = given
        .or_else(|| args.kwargs.get("replace_with"))
        .filter(|with| !with.is_null());
    let with = match given {
        Some(signature) => Signature::parse(&signature).map_err(wrong)?,
        None => sig("replaced_with_me", &()),
    };
    let stamped = with.stamped("StampOnReplace", "This is the replaced task");
    Err(ctx.replace(stamped.map_err(wrong)?))
}

async fn store_success_then_reject(ctx: JobContext, (): ()) -> Result<&'static str, Stop> {
    if ctx.is_redelivered().await? {
        return Ok("dedup-pass");
    }
    ctx.update_state("SUCCESS", "first-pass").await?;
    Err(Stop::requeue())
}

async fn reject_then_succeed(ctx: JobContext, (): ()) -> Result<&'static str, Stop> {
    if ctx.is_redelivered().await? {
        return Ok("second-pass");
    }
    Err(Stop::requeue())
}

async fn reject_without_requeue(_ctx: JobContext, (): ()) -> Result<(), Stop> {
    Err(Stop::reject("rejected"))
}

async fn nothing(_ctx: JobContext, (): ()) -> Result<(), Failure> {
    Ok(())
}

async fn time_limits(ctx: JobContext, (): ()) -> Result<Value, Failure> {
    let seconds = |limit: Option<Duration>| limit.map(|limit| limit.as_secs());
    Ok(json!({
        "time_limit": seconds(ctx.request.time_limit()),
        "soft_time_limit": seconds(ctx.request.soft_time_limit()),
    }))
}

fn plain_tasks(worker: Worker) -> Worker {
    worker
        .task(&named("identity"), identity)
        .task(&named("add"), add)
        .task(&named("add_not_typed"), add)
        .task_with(&named("add_ignore_result"), TaskOptions::new().ignore_result(), add)
        .task(&named("add_with_result"), add)
        .task(&named("mul"), mul)
        .task(&named("write_to_file_and_return_int"), write_to_file_and_return_int)
        .task(&named("raise_error"), raise_error)
        .task(&named("delayed_sum"), delayed_sum)
        .task(&named("delayed_sum_with_soft_guard"), delayed_sum_with_soft_guard)
        .task(&named("tsum"), tsum)
        .task(&named("xsum"), xsum)
        .task(&named("sum_and_record"), sum_and_record)
        .task(&named("print_unicode"), print_unicode)
        .task(&named("return_exception"), return_exception)
        .task(&named("sleeping"), sleeping)
        .task(&named("ids"), ids)
        .task(&named("collect_ids"), collect_ids)
        .task(&named("redis_echo"), redis_echo)
        .task(&named("redis_echo_group_id"), redis_echo_group_id)
        .task(&named("redis_count"), redis_count)
        .task(&named("fail"), fail)
        .task(&named("fail_unpickleable"), fail_unpickleable)
        .task(&named("return_priority"), return_priority)
        .task(&named("return_properties"), return_properties)
        .task(&named("return_request_eta"), return_request_eta)
        .task(&named("rebuild_signature"), rebuild_signature)
        .task(&named("errback_old_style"), errback)
        .task(&named("errback_old_style_with_args"), errback_with_args)
        .errback(&named("errback_new_style"), errback_new_style)
        .errback(&named("errback_new_style_with_args"), errback_new_style_with_args)
        .task(&named("replaced_with_me"), replaced_with_me)
        .task(&named("add_pydantic"), add_pydantic)
        .task(&named("add_pydantic_string_annotations"), add_pydantic)
        .task(&named("return_request_time_limits"), time_limits)
        .task_with(
            &named("task_with_declared_time_limits"),
            TaskOptions::new()
                .time_limit(Duration::from_secs(60))
                .soft_time_limit(Duration::from_secs(45)),
            time_limits,
        )
        .task(&named("soft_time_limit_must_exceed_time_limit"), nothing)
}

fn sending_tasks(worker: Worker) -> Worker {
    worker
        .task(&named("chain_add"), chain_add)
        .task(&named("chord_add"), chord_add)
        .task(&named("add_replaced"), add_replaced)
        .task(&named("replace_with_chain"), replace_with_chain)
        .task(
            &named("replace_with_chain_which_raises"),
            replace_with_chain_which_raises,
        )
        .task(&named("add_replaced_with_chain"), add_replaced_with_chain)
        .task(&named("replace_with_empty_chain"), replace_with_empty_chain)
        .task(
            &named("replace_with_chain_which_contains_a_group"),
            replace_with_chain_which_contains_a_group,
        )
        .task(&named("add_to_all"), add_to_all)
        .task(&named("add_to_all_to_chord"), add_to_all_to_chord)
        .task(&named("add_chord_to_chord"), add_chord_to_chord)
        .task(&named("second_order_replace1"), second_order_replace1)
        .task(&named("second_order_replace2"), second_order_replace2)
        .task(&named("build_chain_inside_task"), build_chain_inside_task)
        .task(&named("fail_replaced"), fail_replaced)
        .task(&named("replace_with_stamped_task"), replace_with_stamped_task)
}

fn repeating_tasks(worker: Worker) -> Worker {
    let once = TaskOptions::new().max_retries(1);
    worker
        .task_with(&named("retry"), TaskOptions::new().max_retries(3), retry)
        .task_with(
            &named("retry_unpickleable"),
            TaskOptions::new().max_retries(3),
            retry_unpickleable,
        )
        .task_with(&named("retry_once"), once.clone(), retry_once)
        .task_with(
            &named("retry_with_args_after_kwargs"),
            once.clone(),
            retry_with_args_after_kwargs,
        )
        .task_with(
            &named("retry_with_kwargs_after_args"),
            once.clone(),
            retry_with_kwargs_after_args,
        )
        .task_with(
            &named("retry_once_ignore_result"),
            once.clone().ignore_result(),
            retry_once_at_once,
        )
        .task_with(&named("retry_once_with_result"), once.clone(), retry_once_at_once)
        .task(&named("record_replaced_task_nesting"), record_replaced_task_nesting)
        .task_with(&named("retry_once_priority"), once.clone(), retry_once_priority)
        .task_with(&named("retry_once_headers"), once.clone(), retry_once_headers)
        .task_with(
            "auto_retry_class_task",
            once.retry_delay(Duration::from_millis(100)),
            auto_retry_class_task,
        )
        .task(&named("store_success_then_reject"), store_success_then_reject)
        .task(&named("reject_then_succeed"), reject_then_succeed)
        .task(&named("reject_without_requeue"), reject_without_requeue)
}

fn main() -> anyhow::Result<()> {
    let mut worker = repeating_tasks(sending_tasks(plain_tasks(Worker::builder())));
    for outer in ["chain", "group", "chord"] {
        for inner in ["chain", "group", "chord"] {
            let name = named(&format!("return_nested_signature_{outer}_{inner}"));
            worker = worker.task(&name, move |_ctx: JobContext, (): ()| async move {
                Ok::<Json, Failure>(nested(outer, inner).to_json())
            });
        }
    }
    worker.run()
}
