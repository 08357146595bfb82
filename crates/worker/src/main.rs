//! `umbel-worker`: the worker with the built-in tasks and nothing else.

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> anyhow::Result<()> {
    umbel_worker::Worker::builder().run()
}
