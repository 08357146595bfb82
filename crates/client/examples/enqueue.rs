//! How fast tasks are made and sent: `enqueue URL QUEUE COUNT all|one` prints one line of JSON. `enqueue URL - 0 asked`
//! sends one task into each queue that a line of its input names, and answers with a line.
//!
//! Each task has an id of its own and one argument of 100 characters: a message of 1.1 KiB.

use std::time::Instant;

use umbel_client::{Client, Config, Options, Task};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().collect();
    let [_, url, queue, count, how] = args.as_slice() else {
        return Err("enqueue URL QUEUE COUNT all|one|asked".into());
    };
    // Who waits for each answer gains nothing from a second thread but the way to it and back.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(enqueue(url, queue, count.parse()?, how))
}

async fn enqueue(url: &str, queue: &str, count: usize, how: &str) -> Result<(), Box<dyn std::error::Error>> {
    let client = Client::connect(Config::new(url), Options::default()).await?;
    let text = "x".repeat(100);
    let task = || Task::new("umbel.echo").args(&[text.as_str()]).queue(queue);
    let begin = Instant::now();
    match how {
        "all" => {
            // As many at a time as a program would hold in its hands.
            for chunk in (0..count).collect::<Vec<_>>().chunks(20_000) {
                client.send_all(chunk.iter().map(|_| task())).await?;
            }
        }
        "one" => {
            for _ in 0..count {
                client.send(task()).await?;
            }
        }
        "asked" => {
            for line in std::io::stdin().lines() {
                client
                    .send(Task::new("umbel.echo").args(&[text.as_str()]).queue(&line?))
                    .await?;
                println!("sent");
            }
            return Ok(());
        }
        other => return Err(format!("{other:?} is none of all, one and asked").into()),
    }
    let rate = count as f64 / begin.elapsed().as_secs_f64();
    println!(r#"{{"name": "enqueue", "parameters": "{how}", "per_second": {rate:.0}}}"#);
    Ok(())
}
