//! Workflows, retries: each capture's messages are sent, and what follows is Celery's.

use crate::stage::play;

#[tokio::test]
async fn chains_and_callbacks_go_on_as_with_celery() {
    play(
        &[],
        &[
            "canvas-01-chain-run",
            "canvas-02-chain-immutable",
            "canvas-03-chain-failure",
            "canvas-04-link-one",
            "canvas-05-link-two",
            "canvas-06-errback-old-style",
            "canvas-08-errback-unregistered",
            "canvas-09-group-then-link-chain-end",
            "canvas-10-map-run",
            "canvas-11-starmap-run",
        ],
    )
    .await;
}

#[tokio::test]
async fn chords_go_on_as_with_celery() {
    play(
        &[],
        &[
            "canvas-20-chord-run",
            "canvas-21-chord-member-fails",
            "canvas-22-chord-body-errback",
            "canvas-23-chord-nested",
            "canvas-24-chord-body-chain",
            "canvas-25-chain-group-chain",
            "canvas-26-group-of-chains-chord",
            "canvas-33-chord-with-group-member",
            "canvas-35-chord-group-body",
            "canvas-37-chord-empty-header",
            "compat-01-chord-celery-5.6",
        ],
    )
    .await;
}

#[tokio::test]
async fn a_retry_is_sent_as_celery_sends_it() {
    play(
        &["--retry-initial-backoff", "1s"],
        &[
            "retry-01-republish-early-ack",
            "retry-02-inside-chain",
            "canvas-34-chord-member-retries",
        ],
    )
    .await;
}
