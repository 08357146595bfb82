//! Outcomes of tasks as a real Celery client sees them: values, exceptions, retries, rejections, replacements, limits.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde_json::{Value, json};
use umbel_testkit::redis::AsyncCommands;
use umbel_testkit::{Celery, Event, History, Process, Redis, Signal, eventually};

use crate::support::{LATER, SOON, admitted, broker, depth, laid_aside, start, test_worker, umbel_worker};

/// The example with Celery's integration tasks. Cargo builds it with all tests, but not for this package alone.
fn integration_tasks() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| {
        let folder = Path::new(env!("CARGO_BIN_EXE_umbel-worker")).parent();
        let path = folder
            .expect("a binary is in a folder")
            .join("examples/integration_tasks");
        let build = [
            "build",
            "--quiet",
            "-p",
            "umbel-example-worker",
            "--example",
            "integration_tasks",
        ];
        let done = path.exists() || {
            let status = std::process::Command::new(env!("CARGO")).args(build).status();
            status.is_ok_and(|status| status.success())
        };
        assert!(done, "build the example integration_tasks");
        path
    })
}

/// A worker with Celery's integration tasks.
pub(crate) fn integration_worker(redis: &Redis, flags: &[&str]) -> Process {
    let port = redis.port().to_string();
    let env = [("REDIS_HOST", "127.0.0.1"), ("REDIS_PORT", port.as_str())];
    start(integration_tasks(), &redis.url(), flags, &env)
}

/// A client with the helpers of `outcomes.py`.
pub(crate) async fn client(redis: &Redis) -> Celery {
    let settings = json!({"result_extended": true});
    let mut celery = Celery::client_with(&redis.url(), &redis.url(), &settings).await;
    celery
        .script(include_str!("outcomes.py"), SOON)
        .await
        .expect("the helpers are valid");
    celery
}

/// Evaluates each expression; answers those that are not as expected.
pub(crate) async fn different(celery: &mut Celery, cases: &[(&str, Value)]) -> BTreeMap<String, Value> {
    let mut different = BTreeMap::new();
    for (expression, expected) in cases {
        let lines = format!("answer = {expression}");
        let found = celery.script(&lines, LATER).await;
        let found = found.unwrap_or_else(|raised| json!(format!("{raised:?}")));
        if found != *expected {
            different.insert((*expression).to_owned(), found);
        }
    }
    different
}

#[track_caller]
fn none_differ(different: &BTreeMap<String, Value>) {
    assert!(
        different.is_empty(),
        "{}",
        serde_json::to_string_pretty(different).expect("it is JSON")
    );
}

#[tokio::test]
async fn celerys_integration_tasks_end_as_they_do_there() {
    let redis = Redis::start().await;
    let _worker = integration_worker(&redis, &["--result-extended", "--retry-initial-backoff", "100ms"]);
    let mut celery = client(&redis).await;
    let cases = [
        // Arguments as of a Python function.
        ("run(sig('add', 1, 2))", json!(3)),
        ("run(sig('add', 1, y=2, z=3))", json!(6)),
        ("named(run(sig('mul', 1)))", json!("builtins.TypeError")),
        ("named(run(sig('add', 1, x=2)))", json!("builtins.TypeError")),
        ("run(sig('delayed_sum', [1, 2], pause_time=0))", json!(3)),
        ("run(sig('xsum', [1, [2, 3]]))", json!(6)),
        ("run(sig('print_unicode'))", json!(null)),
        ("run(sig('add_pydantic', {'x': 1, 'y': 2}))", json!({"result": 3})),
        // Exceptions with their class, module and arguments.
        (
            "run(sig('raise_error'))",
            json!(["builtins.ValueError", ["deliberate error"]]),
        ),
        (
            "run(sig('fail', 'x', 5))",
            json!([
                "t.integration.tasks.ExpectedException",
                ["Task expected to fail", "x", 5]
            ]),
        ),
        (
            "named(run(sig('fail_unpickleable', 'foo', 'bar')))",
            json!("celery.utils.serialization.UnpickleableExceptionWrapper"),
        ),
        (
            "named(run(sig('no_such_task')))",
            json!("celery.exceptions.NotRegistered"),
        ),
        (
            "(lambda r: [named(ended(r)), r.traceback])(sig('raise_error').apply_async())[1]",
            json!(
                "Traceback (most recent call last):\n  File \"t.integration.tasks.raise_error\", line 1, in \
                   t.integration.tasks.raise_error\nValueError: deliberate error\n"
            ),
        ),
        // Limits.
        (
            "run(sig('delayed_sum_with_soft_guard', [1], pause_time=30), soft_time_limit=0.2)",
            json!(0),
        ),
        (
            "run(sig('delayed_sum', [1], pause_time=30), soft_time_limit=0.2)",
            json!(["billiard.exceptions.SoftTimeLimitExceeded", []]),
        ),
        (
            "run(sig('sleeping', 30), time_limit=1)",
            json!(["billiard.exceptions.TimeLimitExceeded", [1]]),
        ),
        (
            "run(sig('return_request_time_limits'), time_limit=60, soft_time_limit=45)",
            json!({"time_limit": 60, "soft_time_limit": 45}),
        ),
        (
            "run(sig('task_with_declared_time_limits'))",
            json!({"time_limit": 60, "soft_time_limit": 45}),
        ),
        // The request.
        ("run(sig('return_priority'), priority=3)", json!("Priority: 3")),
        (
            "(lambda r: r.get(timeout=SOON)['correlation_id'] == r.id)(sig('return_properties').apply_async())",
            json!(true),
        ),
        (
            "(lambda r: r.get(timeout=SOON) == [r.parent.id, r.parent.id, 2])(chain(si('ids', 1), si('ids', 2)).apply_async())",
            json!(true),
        ),
        // Results.
        (
            "meta(chain(sig('add_ignore_result', 1, 2), si('add', 1, 1)).apply_async().parent)['status']",
            json!("PENDING"),
        ),
        (
            "run(sig('add', 1, 1), expires=-5)",
            json!(["celery.exceptions.TaskRevokedError", ["expired"]]),
        ),
        (
            "(lambda r: [r.get(timeout=SOON), r.forget(), r.state])(sig('add', 1, 1).apply_async())",
            json!([2, null, "PENDING"]),
        ),
        (
            "(lambda m: [m['name'], m['args'], m['retries'], m['queue'], '@' in m['worker']])((lambda r: [r.get(timeout=SOON), meta(r)])(sig('add', 1, 1).apply_async())[1])",
            json!(["t.integration.tasks.add", [1, 1], 0, "celery", true]),
        ),
        (
            "(lambda g: [g.save(), GroupResult.restore(g.id, backend=app.backend).join(timeout=SOON), g.delete(), GroupResult.restore(g.id, backend=app.backend)][1::2])(group(sig('add', 1, 1), sig('add', 2, 2)).apply_async())",
            json!([[2, 4], null]),
        ),
    ];
    none_differ(&different(&mut celery, &cases).await);
}

#[tokio::test]
async fn tasks_send_replace_and_repeat_as_celerys_do() {
    let redis = Redis::start().await;
    let _worker = integration_worker(&redis, &["--result-extended", "--retry-initial-backoff", "100ms"]);
    let mut celery = client(&redis).await;
    let cases = [
        // Sub-tasks.
        (
            "result_from_tuple(run(sig('build_chain_inside_task')), app=app).get(timeout=SOON)",
            json!(15),
        ),
        (
            "(lambda r: [r.get(timeout=SOON), len(r.children), until(lambda: r.children[0].children)[0].get(timeout=SOON)])(sig('chain_add', 1, 2).apply_async())",
            json!([null, 1, 4]),
        ),
        (
            "(lambda r: [r.get(timeout=SOON), len(r.children)])(sig('chord_add', 1, 2).apply_async())",
            json!([null, 1]),
        ),
        // Replacement.
        ("run(sig('add_replaced', 1, 2))", json!(3)),
        ("run(chain(sig('add_replaced', 1, 2), sig('add', 10)))", json!(13)),
        ("run(sig('add_to_all', [1, 2, 3], 5))", json!([6, 7, 8])),
        ("run(sig('add_to_all', [], 5))", json!([])),
        (
            "run(chord([sig('add_replaced', 1, 2), sig('add', 3, 4)], sig('tsum')))",
            json!(10),
        ),
        (
            "run(chord([sig('add_to_all', [1, 2], 1), sig('add', 1, 1)], sig('xsum')))",
            json!(7),
        ),
        ("run(chain(sig('add_to_all', [1, 2], 1), sig('tsum')))", json!(5)),
        (
            "run(sig('fail_replaced', 'x'))",
            json!(["t.integration.tasks.ExpectedException", ["Task expected to fail", "x"]]),
        ),
        (
            "[run(sig('replace_with_chain', 'hello')), echoed(1)]",
            json!(["hello", ["hello"]]),
        ),
        (
            "[run(sig('replace_with_chain', 'hello', link_msg='bye')), echoed(1)]",
            json!(["hello", ["bye"]]),
        ),
        (
            "[run(sig('replace_with_chain_which_raises', 'hello', link_msg='bye')), echoed(1)]",
            json!([["builtins.ValueError", ["deliberate error"]], ["bye"]]),
        ),
        (
            "run(sig('replace_with_empty_chain'))",
            json!([
                "celery.exceptions.ImproperlyConfigured",
                ["Cannot replace with an empty chain"]
            ]),
        ),
        (
            "run(chain(sig('second_order_replace1'), si('identity', 'end')))",
            json!("end"),
        ),
        ("echoed(5)", json!(["In A", "In B", "In/Out C", "Out B", "Out A"])),
        (
            "(lambda r: [r.get(timeout=SOON), meta(r)['stamped_headers'], meta(r)['StampOnReplace']])(sig('replace_with_stamped_task').apply_async())",
            json!([true, ["StampOnReplace"], "This is the replaced task"]),
        ),
        // More members of a chord.
        (
            "run(chord([sig('add_to_all_to_chord', [1, 2, 3], 4)], sig('tsum')))",
            json!(18),
        ),
        (
            "sorted(run(chord([sig('add_chord_to_chord', [1, 2, 3], 4)], sig('identity'))))",
            json!([0, 18]),
        ),
        (
            "named(run(sig('add_to_all_to_chord', [1], 4)))",
            json!("builtins.ValueError"),
        ),
        // Retries.
        ("run(sig('retry_once'))", json!(1)),
        ("run(sig('retry_once_priority'), priority=5)", json!(5)),
        (
            "run(sig('retry_once_headers'), headers={'x-h': 'v'})['x-h']",
            json!("v"),
        ),
        ("run(app.signature('auto_retry_class_task'))", json!(1)),
        (
            "run(chord([sig('retry_once'), sig('retry_once')], sig('tsum')))",
            json!(2),
        ),
        (
            "named(run(sig('retry_unpickleable', 'foo', 'bar', retry_kwargs={'countdown': 0.1, 'max_retries': 1})))",
            json!("celery.utils.serialization.UnpickleableExceptionWrapper"),
        ),
        (
            "(lambda r: [named(ended(r)), str(r.result) == f\"Can't retry t.integration.tasks.retry_once[{r.id}] args:[] kwargs:{{'max_retries': 0}}\"])(sig('retry_once', max_retries=0).apply_async())",
            json!(["celery.exceptions.MaxRetriesExceededError", true]),
        ),
        // Rejections.
        ("run(sig('reject_then_succeed'))", json!("second-pass")),
        (
            "run(sig('store_success_then_reject')) in ('first-pass', 'dedup-pass')",
            json!(true),
        ),
        (
            "run(sig('reject_without_requeue'))",
            json!(["celery.exceptions.Reject", ["rejected", false]]),
        ),
        // Errbacks.
        (
            "(lambda r: [named(ended(r)), until(lambda: server.get(r.id))])(sig('raise_error').on_error(sig('errback_old_style')).apply_async())",
            json!(["builtins.ValueError", "1"]),
        ),
        // Signatures as values.
        (
            "[run(sig('rebuild_signature', run(sig(f'return_nested_signature_{outer}_{inner}')))) for outer in ('chain', 'group', 'chord') for inner in ('chain', 'group', 'chord')]",
            json!(vec![Value::Null; 9]),
        ),
    ];
    none_differ(&different(&mut celery, &cases).await);
    let dead = laid_aside(&redis, "dead", "celery").await;
    assert!(
        dead.iter()
            .any(|(reason, _)| reason == "rejected by its task: rejected"),
        "{dead:?}"
    );
}

#[tokio::test]
async fn what_a_task_puts_back_is_what_came_and_goes_to_the_end() {
    let redis = Redis::start().await;
    let history = History::new();
    let mut connection = redis.connection().await;
    let mut celery = Celery::client(&redis.url()).await;
    let options = json!({"headers": {"big": 1.5, "none": null}});
    let first = celery.send("test.requeue", json!([1e300, "ä"]), options).await;
    let raw: Vec<u8> = connection.lindex("celery", 0).await.expect("it waits");
    let second = celery.send("test.work", json!([1.0]), json!({})).await;
    let _worker = test_worker(&redis.url(), &history, &["--concurrency", "1"]);
    eventually(SOON, "the second runs", async || {
        history.count(Event::Started, &second) == 1
    })
    .await;
    let waiting: Vec<Vec<u8>> = connection.lrange("celery", 0, -1).await.expect("the server answers");
    assert_eq!(waiting, [raw]);
    assert_eq!(celery.get(&first, SOON).await, Ok(json!("delivered before")));
}

/// Late: at least once. Early: at most once, and who waits is told.
#[tokio::test]
async fn a_killed_worker_repeats_late_tasks_and_fails_early_ones() {
    for (ack, runs) in [("late", 2), ("early", 1)] {
        let redis = Redis::start().await;
        let history = History::new();
        let mut celery = Celery::client(&redis.url()).await;
        let mut first = test_worker(&redis.url(), &history, &["--ack", ack]);
        admitted(&redis, 1).await;
        let id = celery.send("test.work", json!([3.0]), json!({})).await;
        eventually(SOON, "it runs", async || history.count(Event::Started, &id) == 1).await;
        first.kill();
        let _second = test_worker(&redis.url(), &history, &["--ack", ack]);
        let answer = celery.get(&id, LATER).await;
        assert_eq!(history.count(Event::Started, &id), runs, "{ack}");
        if ack == "late" {
            assert_eq!(answer, Ok(json!(3.0)));
        } else {
            let raised = answer.expect_err("nobody runs it again");
            assert_eq!(raised.exc_type, "WorkerLostError");
        }
        let broker = broker(&redis.url()).await;
        eventually(SOON, "nothing is held", async || {
            depth(&broker, "celery").await.in_flight == 0
        })
        .await;
    }
}

#[tokio::test]
async fn an_early_task_is_gone_from_the_broker_while_it_runs_and_counts_all_the_same() {
    let redis = Redis::start().await;
    let history = History::new();
    let mut celery = Celery::client(&redis.url()).await;
    // By the task's own option, under flags that say otherwise.
    let worker = test_worker(&redis.url(), &history, &["--ack", "late", "--grace", "1s"]);
    let id = celery
        .send("test.early", json!([0.4, "a secret argument"]), json!({}))
        .await;
    eventually(SOON, "it runs", async || history.count(Event::Started, &id) == 1).await;
    let mut connection = redis.connection().await;
    let held: Vec<Vec<u8>> = connection.hvals("umbel:unacked").await.expect("the server answers");
    let [held] = held.as_slice() else { panic!("{held:?}") };
    let body = "a secret argument";
    assert!(!String::from_utf8_lossy(held).contains(body), "its arguments are gone");
    let broker = broker(&redis.url()).await;
    assert_eq!(depth(&broker, "celery").await.in_flight, 1, "it counts as demand");
    assert_eq!(celery.get(&id, SOON).await, Ok(json!(0.4)));
    // Cut off by a drain it is not put back, and who waits is told; its bytes are among the dead letters.
    let cut = celery.send("test.early", json!([30.0, body]), json!({})).await;
    eventually(SOON, "it runs", async || history.count(Event::Started, &cut) == 1).await;
    worker.signal(Signal::Term);
    let raised = celery.get(&cut, SOON).await.expect_err("it was cut off");
    assert_eq!(raised.exc_type, "WorkerLostError");
    let dead = laid_aside(&redis, "dead", "celery").await;
    assert!(dead.iter().any(|(_, id)| *id == cut), "{dead:?}");
    let waiting: usize = connection.llen("celery").await.expect("the server answers");
    assert_eq!(waiting, 0);
}

#[tokio::test]
async fn retries_change_what_they_are_asked_to() {
    let redis = Redis::start().await;
    let history = History::new();
    let _worker = test_worker(&redis.url(), &history, &["--queue", "celery,other"]);
    let mut celery = Celery::client(&redis.url()).await;
    let options = json!({"headers": {"tenant": "acme"}, "kwargs": {"kept": 12_345_678_901_234_567_890_u64}});
    let id = celery.send("test.again", json!([1]), options).await;
    let told = celery.get(&id, SOON).await.expect("it succeeds at last");
    assert_eq!(
        told,
        json!({"args": [2, 3], "kwargs": {"kept": 12_345_678_901_234_567_890_u64}, "retries": 1, "queue": "other",
               "priority": 6, "tenant": "acme", "parent": id})
    );
}

#[tokio::test]
async fn a_message_brings_its_own_retry_policy() {
    let redis = Redis::start().await;
    let history = History::new();
    // Whatever runs again soon does so by its message.
    let flags = ["--retry-initial-backoff", "1h", "--retry-max-backoff", "1h"];
    let _worker = test_worker(&redis.url(), &history, &flags);
    let mut celery = Celery::client(&redis.url()).await;
    let mut send = async |retries: u32, policy: Value| {
        let options = json!({"headers": {"umbel_retry": policy}});
        celery.send("test.flaky", json!([retries]), options).await
    };
    let broken = send(1, json!("often")).await;
    let fails = send(99, json!({"max_attempts": 2, "initial_backoff": 0.01})).await;
    let succeeds = send(
        3,
        json!({"initial_backoff": 0.01, "max_attempts": -1, "factor": "much"}),
    )
    .await;
    assert_eq!(celery.get(&succeeds, SOON).await, Ok(json!(3)));
    let raised = celery.get(&fails, SOON).await.expect_err("its attempts end");
    assert_eq!(raised.message, "not yet");
    assert_eq!(history.count(Event::Started, &fails), 2);
    let dead = laid_aside(&redis, "dead", "celery").await;
    assert!(
        dead.len() == 1 && dead[0].1 == fails && dead[0].0.starts_with("failed 2 times"),
        "{dead:?}"
    );
    // What cannot be read leaves it to the queue.
    eventually(SOON, "it waits", async || celery.state(&broken).await.0 == "RETRY").await;
    assert_eq!(history.count(Event::Started, &broken), 1);
}

#[tokio::test]
async fn a_task_tells_states_of_its_own() {
    let redis = Redis::start().await;
    let history = History::new();
    let _worker = test_worker(&redis.url(), &history, &["--track-started"]);
    let mut celery = Celery::client(&redis.url()).await;
    let id = celery.send("test.progress", json!([]), json!({})).await;
    eventually(SOON, "it tells", async || {
        celery.state(&id).await == ("PROGRESS".into(), "{'done': 3, 'total': 10}".into())
    })
    .await;
    redis
        .connection()
        .await
        .set::<_, _, ()>("go", "1")
        .await
        .expect("the server answers");
    assert_eq!(celery.get(&id, SOON).await, Ok(json!("ok")));
    // Ignored: what it told last stays.
    let ignored = celery.send("test.ignore", json!([]), json!({})).await;
    eventually(SOON, "it is gone", async || celery.state(&ignored).await.0 == "HALFWAY").await;
    let broker = broker(&redis.url()).await;
    eventually(SOON, "nothing is held", async || {
        depth(&broker, "celery").await.in_flight == 0
    })
    .await;
    assert_eq!(celery.state(&ignored).await.0, "HALFWAY");
    // STARTED, with process and node.
    let started = celery.send("test.work", json!([1.0]), json!({})).await;
    eventually(SOON, "it has started", async || {
        let (state, info) = celery.state(&started).await;
        state == "STARTED" && info.contains("'pid': ") && info.contains("'hostname': ")
    })
    .await;
}

#[tokio::test]
async fn what_is_not_allowed_is_unknown_and_goes_where_the_queue_says() {
    let redis = Redis::start().await;
    let mut celery = Celery::client(&redis.url()).await;
    // Somebody who knows the task, but takes nothing for the moment.
    let all = umbel_worker(&redis.url(), &["--lease", "10s"]);
    admitted(&redis, 1).await;
    let known = celery.send("umbel.echo", json!([1]), json!({})).await;
    celery.get(&known, SOON).await.expect("it works");
    eventually(SOON, "its heartbeat tells its tasks", async || {
        let mut connection = redis.connection().await;
        let keys: Vec<String> = connection.keys("umbel:hb:worker:*").await.unwrap_or_default();
        !keys.is_empty()
    })
    .await;
    all.signal(Signal::Stop);
    let some = ["--allowed-tasks", "umbel.e*,proj.*"];
    let mut strict = umbel_worker(
        &redis.url(),
        &[some.as_slice(), &["--on-unknown-task", "DeadLetter"]].concat(),
    );
    let buried = celery.send("umbel.sleep", json!([0]), json!({})).await;
    let raised = celery.get(&buried, SOON).await.expect_err("it is not allowed here");
    assert_eq!(
        (raised.exc_type.as_str(), raised.message.as_str()),
        ("NotRegistered", "'umbel.sleep'")
    );
    assert_eq!(laid_aside(&redis, "dead", "celery").await.len(), 1);
    strict.kill();
    let _polite = umbel_worker(&redis.url(), &some);
    let handed = celery.send("umbel.sleep", json!([0]), json!({})).await;
    let mut connection = redis.connection().await;
    eventually(SOON, "it is handed back", async || {
        let waiting: usize = connection.zcard("umbel:delayed:celery").await.unwrap_or(0);
        waiting == 1
    })
    .await;
    all.signal(Signal::Cont);
    assert_eq!(celery.get(&handed, SOON).await, Ok(json!(0)));
    assert_eq!(laid_aside(&redis, "dead", "celery").await.len(), 1);
}

#[tokio::test]
async fn what_a_task_sends_inherits_its_priority_when_asked() {
    for (flags, expected) in [
        (&[] as &[&str], "Priority: 0"),
        (&["--inherit-priority"], "Priority: 3"),
    ] {
        let redis = Redis::start().await;
        let _worker = integration_worker(&redis, flags);
        let mut celery = client(&redis).await;
        let workflow = "run(chain(sig('return_priority').set(priority=3), sig('return_priority')))";
        let cases = [(workflow, json!(expected))];
        none_differ(&different(&mut celery, &cases).await);
    }
}
