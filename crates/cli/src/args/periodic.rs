//! `umbel periodic`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::duration;

#[derive(Debug, Subcommand)]
pub(crate) enum PeriodicCommand {
    /// List schedules: when they ran, when they run next, and how they fare
    #[command(after_help = "Example:\n  umbel periodic ls -o wide")]
    Ls(PeriodicLs),
    /// Run a schedule now, beside its slots; exit code 1 if it was refused, failed, or is not known in time
    #[command(
        after_help = "It sets the annotation umbel.dev/run-now, and records who asked. Suspended schedules run, too; where an \
                      earlier run goes on, the schedule's overlap policy decides.\n\n\
                      Example:\n  umbel periodic run nightly-report --wait --timeout 10m"
    )]
    Run(PeriodicRun),
    /// Let nothing fire any more; what runs goes on
    Pause {
        /// Names of PeriodicTasks
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// Let slots fire again; those that passed meanwhile are not made up for
    Resume {
        /// Names of PeriodicTasks
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// Print the schedules of celery beat as PeriodicTasks, to be read and applied
    #[command(
        after_help = "A file is what `manage.py dumpdata django_celery_beat` prints. What has no equal is named, and exit code 1 \
                      says that something was left out.\n\n\
                      Examples:\n  umbel periodic import --app proj.celery:app > schedules.yaml\n  \
                      manage.py dumpdata django_celery_beat | umbel periodic import -"
    )]
    Import(Import),
}

/// Schedules to list.
#[derive(Debug, Args)]
pub(crate) struct PeriodicLs {
    /// Names of PeriodicTasks; all if absent
    pub(crate) names: Vec<String>,
    /// In all namespaces
    #[arg(short = 'A', long, conflicts_with = "names")]
    pub(crate) all_namespaces: bool,
}

/// A run to ask for.
#[derive(Debug, Args)]
pub(crate) struct PeriodicRun {
    /// Name of the PeriodicTask
    pub(crate) name: String,
    /// Wait until the run has ended
    #[arg(long)]
    pub(crate) wait: bool,
    /// Longest time to wait for the answer, or with --wait for the end
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "30s")]
    pub(crate) timeout: Duration,
}

/// Where the schedules of celery beat are.
#[derive(Debug, Args)]
pub(crate) struct Import {
    /// A fixture of django_celery_beat as JSON; - reads standard input
    #[arg(required_unless_present = "app", conflicts_with = "app")]
    pub(crate) file: Option<PathBuf>,
    /// A Celery app whose beat_schedule is read by a Python program that imports it
    #[arg(long, value_name = "MODULE:NAME")]
    pub(crate) app: Option<String>,
    /// The Python that can import the app
    #[arg(long, value_name = "PROGRAM", default_value = "python3")]
    pub(crate) python: PathBuf,
    /// TaskQueue of entries that name no queue
    #[arg(long, value_name = "NAME", default_value = "celery")]
    pub(crate) queue: String,
}
