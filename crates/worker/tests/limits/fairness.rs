//! Several queues on one worker.

use umbel_client::Task;
use umbel_testkit::{Event, eventually};

use crate::stage::Stage;
use crate::support::SOON;

/// Floods one queue, puts a few messages of two priorities into the other two, and tells in which order they started, by
/// the first letter of their ids.
async fn order(flags: &[&str], goal: usize) -> Vec<String> {
    let redis = umbel_testkit::Redis::start().await;
    let mut stage = Stage::on(redis, 0, &[]).await;
    let task = |queue: &str, priority: i64, at: usize| {
        let id = format!("{queue}-{priority}-{at}");
        Task::new("test.work")
            .args(&(0.002,))
            .queue(queue)
            .priority(priority)
            .id(&id)
    };
    stage.send((0..1500).map(|at| task("flood", 0, at)).collect()).await;
    for queue in ["low", "rare"] {
        stage.send((0..200).map(|at| task(queue, 9, at)).collect()).await;
        stage.send((0..200).map(|at| task(queue, 3, at)).collect()).await;
    }
    let mut all = vec!["--concurrency", "2"];
    all.extend(flags);
    stage.add_worker(&all);
    eventually(SOON, "enough has started", async || {
        stage.history.total(Event::Started) >= goal
    })
    .await;
    let mut order = stage.history.order(Event::Started);
    order.truncate(goal);
    order
}

fn of<'a>(order: &'a [String], queue: &str) -> Vec<&'a str> {
    order
        .iter()
        .map(String::as_str)
        .filter(|id| id.starts_with(queue))
        .collect()
}

/// Within a queue the more urgent come first, in the order in which they were sent.
fn assert_order(order: &[String], queue: &str) {
    let ids = of(order, queue);
    let urgent = ids
        .iter()
        .take_while(|id| id.starts_with(&format!("{queue}-3-")))
        .count();
    assert!(
        urgent >= ids.len().min(200) - 3,
        "{queue}: the less urgent came before the urgent: {ids:?}"
    );
}

#[tokio::test]
async fn w25_a_flooded_queue_leaves_the_others_their_share() {
    let order = order(&["--queue", "flood,low,rare"], 600).await;
    for queue in ["flood", "low", "rare"] {
        let count = of(&order, queue).len();
        assert!((180..=220).contains(&count), "{queue} had {count} of 600");
    }
    assert_order(&order, "low");
    assert_order(&order, "rare");
}

#[tokio::test]
async fn w25_queues_get_the_shares_of_their_weights() {
    let order = order(&["--queue", "flood=6,low=3,rare=1"], 600).await;
    for (queue, share) in [("flood", 360), ("low", 180), ("rare", 60)] {
        let count = of(&order, queue).len();
        assert!(count.abs_diff(share) <= 15, "{queue} had {count} of 600, not {share}");
    }
    assert_order(&order, "low");
}

#[tokio::test]
async fn w25_strict_order_serves_the_first_queue_first_and_starves_nobody() {
    let order = order(&["--queue", "flood,low,rare", "--consumption", "strict"], 1000).await;
    let counts = ["flood", "low", "rare"].map(|queue| of(&order, queue).len());
    assert!(counts[0] >= 900, "{counts:?}");
    assert!(counts[1] >= 15 && counts[2] >= 15, "{counts:?}");
}
