//! How soon a large chord is done: `chord URL QUEUE MEMBERS` prints one line of JSON, with the seconds from when the last
//! member was sent until the result of the body is here.

use std::time::{Duration, Instant};

use umbel_client::{Client, Config, Options, Task, chord};

/// Celery's prefork pool takes most of a minute for 10,000 members.
const PATIENCE: Duration = Duration::from_secs(600);

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().collect();
    let [_, url, queue, members] = args.as_slice() else {
        return Err("chord URL QUEUE MEMBERS".into());
    };
    let members: usize = members.parse()?;
    let client = Client::connect(Config::new(url), Options::default()).await?;
    let parts = (0..members).map(|n| Task::new("umbel.echo").args(&(n,)).queue(queue));
    let body = Task::new("bench.count").queue(queue);
    let handle = client.apply(chord(parts, body)).await?;
    let begin = Instant::now();
    let count: usize = handle.get_as(PATIENCE).await?;
    let seconds = begin.elapsed().as_secs_f64();
    if count != members {
        return Err(format!("the body got {count} results of {members}").into());
    }
    println!(r#"{{"name": "chord", "parameters": "{members}", "seconds": {seconds:.3}}}"#);
    Ok(())
}
