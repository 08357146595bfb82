//! The scripts against a model, on a real Redis: random histories of two workers, a leader and producers, and after
//! each step the whole of Redis compared with what the model says, plus the invariants read from Redis alone.

#![allow(clippy::panic, clippy::trivially_copy_pass_by_ref)] // Tests stop at what they did not expect.

mod model;
mod world;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, TestRunner};
use umbel_testkit::Redis;

use crate::world::{Op, World};

/// Ends of a delivery, by number.
const ENDS: u8 = 8;

fn op() -> impl Strategy<Value = Op> {
    let worker = || 0..2_usize;
    let lease = || any::<prop::sample::Index>();
    prop_oneof![
        8 => (0..2_usize, 0..10_u8, prop::bool::weighted(0.05))
            .prop_map(|(queue, priority, is_oversized)| Op::Publish { queue, priority, is_oversized }),
        8 => (worker(), 1..6_usize).prop_map(|(worker, count)| Op::Reserve { worker, count }),
        2 => (worker(), 1..6_usize, 0..400_u64).prop_map(|(worker, count, micros)| Op::CancelledReserve { worker, count, micros }),
        5 => worker().prop_map(Op::ReserveSuspect),
        2 => (worker(), vec(lease(), 1..4)).prop_map(|(worker, leases)| Op::Ack { worker, leases }),
        6 => (lease(), 0..ENDS).prop_map(|(lease, end)| Op::End { lease, end }),
        2 => (0..ENDS).prop_map(Op::LateEnd),
        1 => worker().prop_map(Op::LateAck),
        6 => lease().prop_map(Op::Overdue),
        1 => lease().prop_map(Op::Renew),
        2 => Just(Op::Sweep),
        6 => lease().prop_map(Op::Death),
        2 => Just(Op::Promote),
        1 => any::<bool>().prop_map(Op::Janitor),
        2 => (worker(), lease()).prop_map(|(worker, forgotten)| Op::Reconnect { worker, forgotten }),
        1 => worker().prop_map(Op::OldReserve),
        3 => worker().prop_map(Op::Open),
        1 => worker().prop_map(Op::Drain),
        1 => worker().prop_map(Op::StaleOpen),
        1 => Just(Op::NewLeader),
        1 => worker().prop_map(Op::Step),
        1 => worker().prop_map(Op::AdmitSelf),
    ]
}

#[test]
fn the_third_death_buries() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let server = runtime.block_on(Redis::start());
    let any_lease = any::<prop::sample::Index>().new_tree(&mut TestRunner::deterministic());
    let lease = any_lease.expect("an index").current();
    let history = [
        Op::Reserve { worker: 0, count: 1 }, // says hello, and meets a closed gate
        Op::Open(0),
        Op::Publish {
            queue: 0,
            priority: 0,
            is_oversized: false,
        },
        Op::Reserve { worker: 0, count: 1 },
        Op::Death(lease),
        Op::Reserve { worker: 0, count: 1 },
        Op::Death(lease),
        Op::ReserveSuspect(0),
        Op::Death(lease),
    ];
    runtime.block_on(async {
        let mut world = World::new(&server).await;
        for op in &history {
            world.step(op).await;
        }
        assert_eq!(world.buried(), 1);
    });
}

#[test]
fn random_histories_keep_the_invariants() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let server = runtime.block_on(Redis::start());
    let cases = std::env::var("PROPTEST_CASES")
        .ok()
        .and_then(|cases| cases.parse().ok())
        .unwrap_or(40);
    let mut runner = TestRunner::new(Config {
        cases,
        failure_persistence: None,
        ..Config::default()
    });
    let checked = runner.run(&vec(op(), 1..70), |ops| {
        runtime.block_on(async {
            let mut world = World::new(&server).await;
            for op in &ops {
                world.step(op).await;
            }
        });
        Ok(())
    });
    if let Err(failure) = checked {
        panic!("{failure}");
    }
}
