//! A pool from nothing to work and back, on a real control plane with real workers.

mod common;

use common::{Kubelet, LONG, Stage};
use serde_json::json;
use umbel_testkit::eventually;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pool_follows_demand_from_zero_and_back_to_zero() {
    let stage = Stage::start().await;
    let kubelet = Kubelet::start(&stage.client, &stage.broker, "node-1").await;
    let operator = stage.operator(&[], &[]);
    stage.queue("mail").await;
    stage
        .pool(
            "mail",
            2,
            json!({ "maxReplicas": 3, "down": { "stabilization": "1s", "cooldownToZero": "1s" } }),
        )
        .await;
    eventually(LONG, "the Deployment is made with size 0", async || {
        stage.size("mail").await == Some(0)
    })
    .await;

    stage.send_sleeps("mail", 40, 0.3).await;
    stage.ready("mail", 3).await;
    stage.drained("mail", LONG).await;
    eventually(LONG, "size 0 again", async || stage.size("mail").await == Some(0)).await;
    eventually(LONG, "no pod is left", async || stage.pods_of("mail").await.is_empty()).await;

    let status = stage.status("mail").await;
    let removals = kubelet.removals();
    assert!(
        removals.iter().all(|removal| removal.held == 0 && !removal.open),
        "{removals:#?}\n{}",
        operator.log()
    );
    let counters = status.counters.expect("counters are shown");
    assert_eq!(
        (counters.busy_stopped, counters.wrong_victims),
        (0, 0),
        "{}",
        operator.log()
    );
    let last = status.last_scale.expect("the last change is shown");
    assert_eq!(last.to, 0);
    assert!(
        stage
            .events()
            .await
            .iter()
            .any(|event| event.starts_with("ScaledDown") && event.contains("removed mail-"))
    );
}
