//! Budget, turns and circuit of a target cluster, as all workers see them.

use std::time::{Duration, Instant};

use umbel_broker::{Broker, Config, TargetCall, TargetLimits, TargetRules, TargetSaid, TargetState, TargetWord};
use umbel_testkit::Redis;
use umbel_testkit::redis::AsyncCommands;

const RULES: TargetRules = TargetRules {
    longest_wait: Duration::from_secs(5),
    turn: Duration::from_millis(400),
    same: Duration::from_secs(1),
    longest_pause: Duration::from_secs(60),
    halved: 0.5,
    least: 0.03125,
    recovery: 0.02,
    threshold: 3,
    first: Duration::from_millis(200),
    longest: Duration::from_millis(300),
    probe: Duration::from_secs(30),
};
const LIMITS: TargetLimits = TargetLimits {
    qps: 10,
    burst: 4,
    tasks: 2,
};

async fn broker(redis: &Redis) -> Broker {
    Broker::connect(&Config::new(&redis.url())).await.expect("it connects")
}

async fn call(broker: &Broker, call: TargetCall<'_>) -> TargetState {
    broker.target("ns", "c", call, &RULES).await.expect("it answers")
}

fn begin(turn: &str) -> TargetCall<'_> {
    TargetCall::Begin {
        turn,
        limits: LIMITS,
        want: 1,
    }
}

fn take(want: u32) -> TargetCall<'static> {
    TargetCall::Take {
        turn: "t",
        limits: LIMITS,
        want,
    }
}

#[tokio::test]
async fn a_burst_then_the_rate_whoever_asks() {
    let redis = Redis::start().await;
    let (one, other) = (broker(&redis).await, broker(&redis).await);
    assert_eq!(call(&one, take(3)).await.tokens, 3);
    assert_eq!(call(&other, take(3)).await.tokens, 1);
    let begin = Instant::now();
    let mut waits = Vec::new();
    for broker in [&one, &other, &one, &other] {
        let state = call(broker, take(1)).await;
        assert_eq!((state.word, state.tokens), (TargetWord::Go, 1));
        waits.push(state.wait);
    }
    let last = waits[3] + begin.elapsed();
    assert!(
        (Duration::from_millis(300)..Duration::from_millis(600)).contains(&last),
        "four tokens on credit are 400 ms: {waits:?}"
    );
    // Far ahead there is nothing to be had.
    let mut far = call(&one, take(1)).await;
    for _ in 0..60 {
        far = call(&one, take(1)).await;
    }
    assert_eq!((far.word, far.tokens), (TargetWord::Wait, 0));
    let unused = TargetCall::End {
        turn: "t",
        limits: LIMITS,
        unused: 1000,
    };
    call(&one, unused).await;
    assert_eq!(call(&one, take(9)).await.tokens, 4, "back, up to the burst");
}

#[tokio::test]
async fn t11_a_429_is_one_for_all() {
    let redis = Redis::start().await;
    let (one, other) = (broker(&redis).await, broker(&redis).await);
    let slow = TargetCall::Slow {
        limits: LIMITS,
        pause: Duration::from_secs(2),
    };
    for broker in [&one, &other, &one] {
        call(broker, slow).await;
    }
    let state = call(&other, take(1)).await;
    assert!(state.wait > Duration::from_millis(1800), "{state:?}");
    let factor: String = redis
        .connection()
        .await
        .hget("umbel:target:ns/c", "factor")
        .await
        .expect("it is there");
    let factor: f64 = factor.parse().expect("a number");
    assert!((0.5..0.55).contains(&factor), "halved once: {factor}");
    let long = TargetCall::Slow {
        limits: LIMITS,
        pause: Duration::from_secs(600),
    };
    call(&one, long).await;
    let state = call(&other, take(1)).await;
    assert_eq!((state.word, state.tokens), (TargetWord::Wait, 0));
    assert!(state.wait <= RULES.longest_pause, "{state:?}");
}

#[tokio::test]
async fn turns_end_when_they_are_given_back_or_not_renewed() {
    let redis = Redis::start().await;
    let broker = broker(&redis).await;
    assert_eq!(call(&broker, begin("a")).await.word, TargetWord::Go);
    assert_eq!(call(&broker, begin("b")).await.word, TargetWord::Go);
    assert_eq!(call(&broker, begin("c")).await.word, TargetWord::Busy);
    let end = TargetCall::End {
        turn: "a",
        limits: LIMITS,
        unused: 0,
    };
    call(&broker, end).await;
    assert_eq!(call(&broker, begin("c")).await.word, TargetWord::Go);
    let started = Instant::now();
    umbel_testkit::eventually(
        Duration::from_secs(10),
        "the turn of b is over, that of c is not",
        async || {
            call(&broker, TargetCall::Renew { turn: "c" }).await;
            call(&broker, begin("d")).await.word == TargetWord::Go
        },
    )
    .await;
    assert!(
        started.elapsed() > Duration::from_millis(200),
        "{:?}",
        started.elapsed()
    );
    call(&broker, TargetCall::Renew { turn: "c" }).await;
    assert_eq!(call(&broker, begin("e")).await.word, TargetWord::Busy);
}

#[tokio::test]
async fn a_circuit_opens_for_all_and_lets_one_probe_through() {
    let redis = Redis::start().await;
    let (one, other) = (broker(&redis).await, broker(&redis).await);
    let mut words = Vec::new();
    for broker in [&one, &other, &one, &other] {
        words.push(call(broker, TargetCall::Silent).await.word);
    }
    assert_eq!(
        words,
        [TargetWord::Go, TargetWord::Go, TargetWord::Opened, TargetWord::Go]
    );
    let state = call(&other, begin("a")).await;
    assert_eq!((state.word, state.circuit.as_str()), (TargetWord::Open, "Open"));
    assert!(state.until.is_some_and(|until| until <= RULES.first) && state.since.is_some());
    umbel_testkit::eventually(Duration::from_secs(10), "a probe may go", async || {
        call(&other, begin("a")).await.word == TargetWord::Go
    })
    .await;
    let state = call(&one, begin("b")).await;
    assert_eq!((state.word, state.circuit.as_str()), (TargetWord::Open, "HalfOpen"));
    let state = call(&other, TargetCall::Silent).await;
    assert_eq!((state.word, state.pause), (TargetWord::Opened, RULES.longest));
    let state = call(&one, TargetCall::Answered).await;
    assert_eq!((state.circuit.as_str(), state.failures), ("Closed", 0));
    assert_eq!(call(&one, begin("b")).await.word, TargetWord::Go);
}

#[tokio::test]
async fn what_the_operator_says_reaches_each_call_and_nonsense_stops_nobody() {
    let redis = Redis::start().await;
    let broker = broker(&redis).await;
    assert_eq!(call(&broker, TargetCall::Facts).await.said, None);
    for (said, word) in [
        (TargetSaid::Known, TargetWord::Go),
        (TargetSaid::Pinned("a-b".into()), TargetWord::Go),
        (TargetSaid::Gone(7), TargetWord::Gone),
    ] {
        broker.say_target("ns", "c", Some(&said)).await.expect("said");
        let state = call(&broker, begin("a")).await;
        assert_eq!((state.word, state.said.as_ref()), (word, Some(&said)));
        assert_eq!(broker.targets_said("ns").await.expect("read").get("c"), Some(&said));
    }
    broker.say_target("ns", "c", None).await.expect("unsaid");
    let mut connection = redis.connection().await;
    for field in ["tokens", "at", "factor", "until", "failures", "blocked", "pause"] {
        for nonsense in ["", "x", "nan", "-inf", "1e308"] {
            let _: () = connection
                .hset("umbel:target:ns/c", field, nonsense)
                .await
                .expect("set");
            let state = broker.target("ns", "c", take(1), &RULES).await;
            assert!(state.is_ok(), "{field}={nonsense}: {state:?}");
        }
    }
}
