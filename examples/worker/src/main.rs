//! A worker with tasks of its own: copy this crate, write your functions, build an image.
//!
//! ```sh
//! cargo run -p umbel-example-worker -- --redis-url redis://localhost:6379/0 --queue celery --standalone
//! ```
//!
//! ```python
//! app.send_task("example.resize", kwargs={"url": "https://example.com/a.png", "width": 320}).get()
//! app.send_task("example.count", args=[1000]).get()
//! ```
//!
//! In a cluster, name its image in a WorkerPool's template: `containers: [{name: worker, image: …}]`. Flags come from
//! the operator as environment variables.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use umbel_worker::{Failure, JobContext, Worker};

/// As `umbel-worker` has it: what one thread takes and another frees costs less than with the system's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Named arguments are the fields of a struct; what is missing has a default or is an error that names it.
#[derive(Deserialize)]
struct Resize {
    url: String,
    #[serde(default = "default_width")]
    width: u32,
}

fn default_width() -> u32 {
    640
}

/// A result is anything that has a JSON form.
#[derive(Serialize)]
struct Resized {
    name: String,
    width: u32,
}

/// An error says whether trying again can help: the queue's policy then says when.
async fn resize(_ctx: JobContext, args: Resize) -> Result<Resized, Failure> {
    let Some((_, name)) = args.url.rsplit_once('/') else {
        return Err(Failure::permanent("ValueError", format!("{} names no file", args.url)));
    };
    if name.is_empty() {
        return Err(Failure::transient("the file has no name yet"));
    }
    Ok(Resized {
        name: format!("{}-{name}", args.width),
        width: args.width,
    })
}

/// Positional arguments are a tuple. Long work asks at each step whether it may go on: a worker that was cut off from
/// the broker must not work on what another one may have taken over.
async fn count(ctx: JobContext, (to,): (u64,)) -> Result<u64, Failure> {
    let mut sum = 0;
    for number in 1..=to {
        if number % 100 == 0 {
            ctx.checkpoint()
                .await
                .map_err(|lost| Failure::transient(lost.to_string()))?;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        sum += number;
    }
    Ok(sum)
}

fn main() -> anyhow::Result<()> {
    Worker::builder()
        .task("example.resize", resize)
        .task("example.count", count)
        .run()
}
