//! How fast messages are made and enqueued: `enqueue URL QUEUE COUNT BATCH` prints one line of JSON.

use std::time::Instant;

use anyhow::Context as _;
use umbel_broker::{Broker, Config};
use umbel_protocol::json::Json;
use umbel_protocol::message::NewTask;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().collect();
    let [_, url, queue, count, batch] = args.as_slice() else {
        anyhow::bail!("enqueue URL QUEUE COUNT BATCH")
    };
    let (count, batch): (usize, usize) = (count.parse().context("COUNT")?, batch.parse().context("BATCH")?);
    let broker = Broker::connect(&Config::new(url)).await?;
    let text = "x".repeat(100);
    let begin = Instant::now();
    let mut left = count;
    while left > 0 {
        let size = batch.min(left);
        let messages: Vec<Vec<u8>> = (0..size)
            .map(|_| {
                let task = NewTask {
                    id: uuid::Uuid::new_v4().to_string(),
                    task: "umbel.echo".into(),
                    queue: queue.clone(),
                    args: Json::of(&[&text]),
                    ..NewTask::default()
                };
                task.encode()
            })
            .collect();
        broker.publish(queue, 0, &messages).await?;
        left -= size;
    }
    let rate = count as f64 / begin.elapsed().as_secs_f64();
    println!(r#"{{"name": "enqueue", "parameters": "{batch} a call", "per_second": {rate:.0}}}"#);
    Ok(())
}
