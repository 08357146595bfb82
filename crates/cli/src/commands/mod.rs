//! One file a command.

mod cluster_join;
mod cluster_leave;
mod cluster_ls;
mod cluster_rotate;
mod cluster_test;
mod periodic_import;
mod periodic_ls;
mod periodic_run;
mod pool_drain;
mod pool_explain;
mod pool_ls;
mod queue_aside;
mod queue_ls;
mod queue_pause;
mod queue_peek;
mod queue_purge;
mod queue_recover;
mod task_cancel;
mod task_canvas;
mod task_forget;
mod task_get;
mod task_object;
mod task_retry;
mod task_revoke;
mod task_send;
mod version;

use std::process::ExitCode;

use clap::CommandFactory as _;
use umbel_broker::AsideKind;

use crate::args::{Cli, ClusterCommand, Command, PeriodicCommand, PoolCommand, QueueCommand, TaskCommand};

/// Carries out a command.
pub(crate) async fn run(cli: &Cli) -> anyhow::Result<ExitCode> {
    let Cli { global, command } = cli;
    match command {
        Command::Task(TaskCommand::Send(send)) => return task_send::run(global, send).await,
        Command::Task(TaskCommand::Ls(ls)) => task_object::ls(global, ls).await?,
        Command::Task(TaskCommand::Get(get)) => return task_get::run(global, get).await,
        Command::Task(TaskCommand::Canvas(canvas)) => return task_canvas::run(global, canvas).await,
        Command::Task(TaskCommand::Revoke(revoke)) => task_revoke::run(global, revoke).await?,
        Command::Task(TaskCommand::Forget(forget)) => task_forget::run(global, forget).await?,
        Command::Task(TaskCommand::Cancel(cancel)) => return task_cancel::run(global, cancel).await,
        Command::Task(TaskCommand::Retry(retry)) => return task_retry::run(global, retry).await,
        Command::Queue(QueueCommand::Ls(ls)) => return queue_ls::run(global, ls).await,
        Command::Queue(QueueCommand::Peek(peek)) => queue_peek::run(global, peek).await?,
        Command::Queue(QueueCommand::Purge(purge)) => return queue_purge::run(global, purge).await,
        Command::Queue(QueueCommand::Pause(names)) => queue_pause::run(global, names, true).await?,
        Command::Queue(QueueCommand::Resume(names)) => queue_pause::run(global, names, false).await?,
        Command::Queue(QueueCommand::Recover(recover)) => return queue_recover::run(global, recover).await,
        Command::Queue(QueueCommand::Dead(command)) => {
            return queue_aside::run(global, AsideKind::Dead, command).await;
        }
        Command::Queue(QueueCommand::Quarantine(command)) => {
            return queue_aside::run(global, AsideKind::Quarantine, command).await;
        }
        Command::Pool(PoolCommand::Ls(ls)) => pool_ls::run(global, ls).await?,
        Command::Pool(PoolCommand::Explain { name }) => pool_explain::run(global, name).await?,
        Command::Pool(PoolCommand::Drain(drain)) => return pool_drain::run(global, drain).await,
        Command::Pool(PoolCommand::Resume { name }) => pool_drain::resume(global, name).await?,
        Command::Periodic(PeriodicCommand::Ls(ls)) => periodic_ls::run(global, ls).await?,
        Command::Periodic(PeriodicCommand::Run(run)) => return periodic_run::run(global, run).await,
        Command::Periodic(PeriodicCommand::Pause { names }) => periodic_run::suspend(global, names, true).await?,
        Command::Periodic(PeriodicCommand::Resume { names }) => periodic_run::suspend(global, names, false).await?,
        Command::Periodic(PeriodicCommand::Import(import)) => return periodic_import::run(global, import),
        Command::Cluster(ClusterCommand::Ls(ls)) => cluster_ls::run(global, ls).await?,
        Command::Cluster(ClusterCommand::Join(join)) => cluster_join::run(global, join).await?,
        Command::Cluster(ClusterCommand::Test(test)) => return cluster_test::run(global, test).await,
        Command::Cluster(ClusterCommand::Rotate(rotate)) => cluster_rotate::run(global, rotate).await?,
        Command::Cluster(ClusterCommand::Leave(leave)) => return cluster_leave::run(global, leave).await,
        Command::Version { client } => version::run(global, *client).await?,
        Command::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "umbel", &mut script);
            crate::output::line(String::from_utf8_lossy(&script).trim_end())?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
