//! Results that are not where the messages are, and names that are not the usual ones.

use serde_json::json;
use umbel_testkit::{CeleryVersion, ServerKind};

use crate::cell::{Producer, Runner};
use crate::stage::{Results, Setup};
use crate::table::{rows, run};

const V52: Producer = Producer::Celery(CeleryVersion::V5_2);
const NO_PREFIX: &str = "Celery 5.2 knows no prefix of results";

const ROWS: [&str; 7] = ["plain", "failure", "chain", "group", "chord", "nested chord", "link"];

#[tokio::test]
async fn results_in_another_database() {
    let setup = Setup {
        results: Results::OtherDatabase,
        ..Setup::plain(ServerKind::of_this_run(), &[Runner::Umbel])
    };
    run("results in another database", setup, &rows(&ROWS)).await;
}

#[tokio::test]
async fn results_on_another_server_and_prefixes_on_both() {
    // Celery writes `_` after a prefix of results that has no separator of its own.
    let settings = json!({
        "broker_transport_options": {"global_keyprefix": "shop:", "priority_steps": [0, 5]},
        "result_backend_transport_options": {"global_keyprefix": "results"},
    });
    let flags = [
        "--key-prefix",
        "shop:",
        "--priority-steps",
        "0,5",
        "--result-key-prefix",
        "results",
    ];
    let setup = Setup {
        results: Results::OtherServer,
        flags: flags.map(str::to_owned).to_vec(),
        worker: settings.clone(),
        client: settings,
        ..Setup::plain(ServerKind::of_this_run(), &Runner::ALL)
    };
    let mut cases = rows(&ROWS);
    for case in &mut cases {
        case.gaps = &[(V52, Runner::Umbel, NO_PREFIX), (V52, Runner::Celery57, NO_PREFIX)];
    }
    run("results on another server, prefixes", setup, &cases).await;
}
