//! Targets that were deleted.

use serde_json::json;
use umbel_broker::TargetSaid;
use umbel_testkit::eventually;

use crate::stage::{SOON, Scene, target};

#[tokio::test]
async fn t10_queued_tasks_of_a_deleted_target_are_dead_lettered_with_that_reason() {
    let scene = Scene::new("t10").await;
    scene
        .secret("c", &std::fs::read_to_string(target().await).unwrap())
        .await;
    for name in ["c", "d"] {
        let gone = TargetSaid::Gone(1);
        scene.broker.say_target("t10", name, Some(&gone)).await.unwrap();
    }
    // Before any worker: of one that its pool has still, of one that it has no more, of one that it never had.
    let ids = [
        scene.apply("c", "m").await,
        scene.apply("d", "m").await,
        scene.apply("never", "m").await,
    ];
    let _worker = scene.worker(&[("c", json!({}))], &[]).await;
    for id in &ids {
        scene.result(id).await.unwrap_err();
    }
    let mut reasons = Vec::new();
    eventually(SOON, "all are laid aside", async || {
        reasons = scene.dead().await;
        reasons.sort();
        reasons.len() == 3
    })
    .await;
    assert_eq!(
        reasons[..2],
        [
            "failed: LookupError: target gone: there is no TargetCluster `c` any more",
            "failed: LookupError: target gone: there is no TargetCluster `d` any more",
        ]
    );
    assert!(
        reasons[2].contains("may not touch a cluster named `never`"),
        "{reasons:?}"
    );
}
