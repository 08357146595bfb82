//! One file a command.

mod cluster_join;
mod pool_explain;
mod queue_ls;
mod task_canvas;
mod task_forget;
mod task_get;
mod task_revoke;
mod task_send;
mod version;

use std::process::ExitCode;

use clap::CommandFactory as _;

use crate::args::{Cli, ClusterCommand, Command, PoolCommand, QueueCommand, TaskCommand};

/// Carries out a command.
pub(crate) async fn run(cli: &Cli) -> anyhow::Result<ExitCode> {
    let Cli { global, command } = cli;
    match command {
        Command::Task(TaskCommand::Send(send)) => return task_send::run(global, send).await,
        Command::Task(TaskCommand::Get(get)) => return task_get::run(global, get).await,
        Command::Task(TaskCommand::Canvas(canvas)) => return task_canvas::run(global, canvas).await,
        Command::Task(TaskCommand::Revoke(revoke)) => task_revoke::run(global, revoke).await?,
        Command::Task(TaskCommand::Forget(forget)) => task_forget::run(global, forget).await?,
        Command::Queue(QueueCommand::Ls(ls)) => return queue_ls::run(global, ls).await,
        Command::Pool(PoolCommand::Explain { name }) => pool_explain::run(global, name).await?,
        Command::Cluster(ClusterCommand::Join(join)) => cluster_join::run(global, join).await?,
        Command::Version { client } => version::run(global, *client).await?,
        Command::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "umbel", &mut script);
            crate::output::line(String::from_utf8_lossy(&script).trim_end())?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
