//! `umbel-worker`: the worker with the built-in tasks and nothing else.

fn main() -> anyhow::Result<()> {
    umbel_worker::Worker::builder().run()
}
