//! Where workers keep what they know together of target clusters: on their broker.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use futures::FutureExt as _;
use futures::future::BoxFuture;
use umbel_broker::{Broker, TargetCall, TargetLimits, TargetRules, TargetSaid, TargetState, TargetWord};
use umbel_clusters::board::{self, Admission, Away, Board, Facts, Grant, Limits};
use umbel_clusters::circuit::{self, Circuit, State};
use umbel_telemetry::chain;

/// A broker that is away for longer is not waited for: a target's own limits hold then, for each worker by itself.
const ANSWER: Duration = Duration::from_millis(500);

const RULES: TargetRules = TargetRules {
    longest_wait: board::LONGEST_WAIT,
    turn: board::TURN,
    same: board::SAME,
    longest_pause: board::LONGEST_PAUSE,
    halved: board::HALVED,
    least: board::LEAST,
    recovery: board::RECOVERY,
    threshold: circuit::RULES.threshold,
    first: circuit::RULES.first,
    longest: circuit::RULES.longest,
    probe: circuit::RULES.probe,
};

/// The board of a namespace's targets.
pub(crate) struct Targets {
    namespace: String,
    /// There as soon as the worker has connected; it takes no task before.
    broker: OnceLock<Broker>,
}

impl Targets {
    pub(crate) fn new(namespace: &str) -> Targets {
        Targets {
            namespace: namespace.to_owned(),
            broker: OnceLock::new(),
        }
    }

    pub(crate) fn connected(&self, broker: &Broker) {
        let _ = self.broker.set(broker.clone()); // Once.
    }

    async fn call(&self, cluster: &str, call: TargetCall<'_>) -> Result<TargetState, Away> {
        let broker = self.broker.get().ok_or(Away)?;
        let told = tokio::time::timeout(ANSWER, broker.target(&self.namespace, cluster, call, &RULES)).await;
        match told {
            Ok(Ok(state)) => Ok(state),
            Ok(Err(err)) => {
                tracing::debug!(cluster, error = %chain(&err), "limits of the target hold for this worker alone");
                Err(Away)
            }
            Err(_) => Err(Away),
        }
    }
}

fn limits(limits: Limits) -> TargetLimits {
    let Limits { qps, burst, tasks } = limits;
    TargetLimits { qps, burst, tasks }
}

fn circuit(state: &TargetState, now: Instant) -> Circuit {
    Circuit {
        state: State::of(&state.circuit),
        failures: state.failures,
        since: state.since.and_then(|since| now.checked_sub(since)),
        until: state.until.map(|until| now + until),
        pause: state.pause,
    }
}

fn facts(state: &TargetState) -> Facts {
    match &state.said {
        None | Some(TargetSaid::Known) => Facts::default(),
        Some(TargetSaid::Gone(_)) => Facts {
            is_gone: true,
            pin: None,
        },
        Some(TargetSaid::Pinned(uid)) => Facts {
            is_gone: false,
            pin: Some(uid.clone()),
        },
    }
}

fn grant(state: &TargetState) -> Grant {
    Grant {
        tokens: state.tokens,
        wait: state.wait,
    }
}

impl Board for Targets {
    fn begin<'a>(&'a self, cluster: &'a str, turn: &'a str, most: Limits) -> BoxFuture<'a, Result<Admission, Away>> {
        async move {
            let call = TargetCall::Begin {
                turn,
                limits: limits(most),
                want: most.batch(),
            };
            let state = self.call(cluster, call).await?;
            let circuit = circuit(&state, Instant::now());
            Ok(match state.word {
                TargetWord::Busy => Admission::Busy,
                TargetWord::Gone => Admission::Gone,
                TargetWord::Open => Admission::Open(circuit),
                TargetWord::Go | TargetWord::Wait | TargetWord::Opened => Admission::Go {
                    grant: grant(&state),
                    circuit,
                    facts: facts(&state),
                },
            })
        }
        .boxed()
    }

    fn take<'a>(&'a self, cluster: &'a str, turn: &'a str, most: Limits) -> BoxFuture<'a, Result<Grant, Away>> {
        async move {
            let call = TargetCall::Take {
                turn,
                limits: limits(most),
                want: most.batch(),
            };
            Ok(grant(&self.call(cluster, call).await?))
        }
        .boxed()
    }

    fn renew<'a>(&'a self, cluster: &'a str, turn: &'a str) -> BoxFuture<'a, Result<(), Away>> {
        async move { self.call(cluster, TargetCall::Renew { turn }).await.map(drop) }.boxed()
    }

    fn end<'a>(
        &'a self,
        cluster: &'a str,
        turn: &'a str,
        most: Limits,
        unused: u32,
    ) -> BoxFuture<'a, Result<(), Away>> {
        let call = TargetCall::End {
            turn,
            limits: limits(most),
            unused,
        };
        async move { self.call(cluster, call).await.map(drop) }.boxed()
    }

    fn slow<'a>(&'a self, cluster: &'a str, most: Limits, pause: Duration) -> BoxFuture<'a, Result<(), Away>> {
        let call = TargetCall::Slow {
            limits: limits(most),
            pause,
        };
        async move { self.call(cluster, call).await.map(drop) }.boxed()
    }

    fn answered<'a>(&'a self, cluster: &'a str) -> BoxFuture<'a, Result<Circuit, Away>> {
        async move {
            let state = self.call(cluster, TargetCall::Answered).await?;
            Ok(circuit(&state, Instant::now()))
        }
        .boxed()
    }

    fn silent<'a>(&'a self, cluster: &'a str) -> BoxFuture<'a, Result<(Circuit, bool), Away>> {
        async move {
            let state = self.call(cluster, TargetCall::Silent).await?;
            Ok((circuit(&state, Instant::now()), state.word == TargetWord::Opened))
        }
        .boxed()
    }

    fn facts<'a>(&'a self, cluster: &'a str) -> BoxFuture<'a, Result<Facts, Away>> {
        async move { Ok(facts(&self.call(cluster, TargetCall::Facts).await?)) }.boxed()
    }
}
