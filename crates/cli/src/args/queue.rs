//! Flags of `umbel queue`.

use clap::{Args, Subcommand, ValueEnum};
use umbel_broker::Place;

#[derive(Debug, Subcommand)]
pub(crate) enum QueueCommand {
    /// List queues with what is in them
    #[command(
        after_help = "Examples:\n  umbel queue ls --live\n  umbel --redis-url redis://127.0.0.1:6379/0 queue ls celery mail"
    )]
    Ls(QueueLs),
    /// Look at messages without taking them; arguments only with --args
    #[command(
        after_help = "Examples:\n  umbel queue peek mail\n  umbel queue peek mail --in in-flight -o wide\n  \
                            umbel queue peek mail --in dead --args -o json"
    )]
    Peek(Peek),
    /// Remove what waits; running tasks go on, and nothing is stored as a result
    #[command(
        after_help = "Examples:\n  umbel queue purge mail --dry-run\n  umbel queue purge mail --in waiting --yes\n\n\
                            It removes as many messages as there were when it began, the oldest first. Members of a\n\
                            schedule's run are settled as revoked. Interrupted, it has removed what it says."
    )]
    Purge(Purge),
    /// Stop consuming queues, everywhere; running tasks go on, and so does sending
    Pause(Names),
    /// Consume paused queues again
    Resume(Names),
    /// Hand back at once what workers hold that do not live any more, instead of when their leases end
    #[command(
        after_help = "A worker that has sent no heartbeat for 15 s counts as gone. What it held goes to the head of\n\
                      its list, uncharged. With --all everything goes back, as before Umbel is uninstalled: tasks\n\
                      that run are then run a second time.\n\nExamples:\n  umbel queue recover mail --dry-run\n  umbel queue recover mail"
    )]
    Recover(Recover),
    /// Dead letters: what failed for good
    #[command(subcommand)]
    Dead(AsideCommand),
    /// The quarantine: what could not even be read
    #[command(subcommand)]
    Quarantine(AsideCommand),
}

/// Which queues to list.
#[derive(Debug, Args)]
pub(crate) struct QueueLs {
    /// TaskQueues; with --redis-url queues on the broker
    pub(crate) names: Vec<String>,
    /// All namespaces
    #[arg(short = 'A', long)]
    pub(crate) all_namespaces: bool,
    /// Ask the brokers instead of the status, which may be 15 s old
    #[arg(long)]
    pub(crate) live: bool,
}

/// Where messages are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Where {
    /// In the queue's lists
    Waiting,
    /// Not yet due: ETAs and retries
    Delayed,
    /// Killed a worker twice; wait for a worker of their own
    Suspect,
    /// With a worker
    InFlight,
    /// Failed for good
    Dead,
    /// Could not be read
    Quarantine,
}

impl Where {
    pub(crate) fn place(self) -> Place {
        match self {
            Where::Waiting => Place::Waiting,
            Where::Delayed => Place::Delayed,
            Where::Suspect => Place::Suspect,
            Where::InFlight => Place::InFlight,
            Where::Dead => Place::Dead,
            Where::Quarantine => Place::Quarantine,
        }
    }
}

/// Which messages to look at.
#[derive(Debug, Args)]
pub(crate) struct Peek {
    /// TaskQueue; with --redis-url the queue's name on the broker
    pub(crate) name: String,
    /// Where
    #[arg(long = "in", value_enum, default_value = "waiting", value_name = "PLACE")]
    pub(crate) place: Where,
    /// Messages at most
    #[arg(long, default_value_t = 20, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=100_000))]
    pub(crate) limit: u64,
    /// Show arguments
    #[arg(long)]
    pub(crate) args: bool,
}

/// What a purge removes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Waits {
    Waiting,
    Delayed,
    Suspect,
}

impl Waits {
    pub(crate) fn place(self) -> Place {
        match self {
            Waits::Waiting => Place::Waiting,
            Waits::Delayed => Place::Delayed,
            Waits::Suspect => Place::Suspect,
        }
    }
}

/// What to remove.
#[derive(Debug, Args)]
pub(crate) struct Purge {
    /// TaskQueues; with --redis-url queues on the broker
    #[arg(required = true)]
    pub(crate) names: Vec<String>,
    /// Only from there
    #[arg(
        long = "in",
        value_enum,
        value_delimiter = ',',
        default_value = "waiting,delayed,suspect",
        value_name = "PLACES"
    )]
    pub(crate) places: Vec<Waits>,
    #[command(flatten)]
    pub(crate) care: Care,
}

/// For what cannot be undone.
#[derive(Debug, Args)]
pub(crate) struct Care {
    /// Only say what would be done
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Do not ask; needed where nobody can be asked
    #[arg(short = 'y', long)]
    pub(crate) yes: bool,
}

/// Queues.
#[derive(Debug, Args)]
pub(crate) struct Names {
    /// TaskQueues; with --redis-url queues on the broker
    #[arg(required = true)]
    pub(crate) names: Vec<String>,
}

/// Leases to hand back.
#[derive(Debug, Args)]
pub(crate) struct Recover {
    /// TaskQueues; with --redis-url queues on the broker
    #[arg(required = true)]
    pub(crate) names: Vec<String>,
    /// Also what workers hold that live: it will run twice
    #[arg(long)]
    pub(crate) all: bool,
    #[command(flatten)]
    pub(crate) care: Care,
}

#[derive(Debug, Subcommand)]
pub(crate) enum AsideCommand {
    /// List them, the newest first
    #[command(after_help = "Example:\n  umbel queue dead ls mail --task 'mail.*' --reason '*Timeout*'")]
    Ls(AsideLs),
    /// Put messages back to the end of their lists, byte for byte, with their deaths forgotten
    #[command(
        after_help = "Each message is moved in one step: never lost, never twice. What fails again while this\n\
                      goes on is not put back again.\n\nExamples:\n  umbel queue dead replay mail --id 7f8c2a1e-5d0b-4c5f-9d57-6d0a8a4f0f11\n  \
                      umbel queue dead replay mail --task 'mail.*' --rate 50\n  umbel queue dead replay mail --all --dry-run"
    )]
    Replay(AsideReplay),
    /// Remove messages for good
    #[command(after_help = "Example:\n  umbel queue dead purge mail --reason 'unknown task*' --yes")]
    Purge(AsidePurge),
}

/// Which of them.
#[derive(Debug, Args)]
pub(crate) struct Which {
    /// Only of these tasks: their ids, or ids of entries; may be repeated
    #[arg(long = "id", value_name = "ID")]
    pub(crate) ids: Vec<String>,
    /// Only of tasks whose name matches
    #[arg(long, value_name = "GLOB")]
    pub(crate) task: Option<String>,
    /// Only where the reason matches; without *, ? or [ anywhere in it
    #[arg(long, value_name = "GLOB")]
    pub(crate) reason: Option<String>,
}

/// Which to list.
#[derive(Debug, Args)]
pub(crate) struct AsideLs {
    /// TaskQueue; with --redis-url the queue's name on the broker
    pub(crate) name: String,
    #[command(flatten)]
    pub(crate) which: Which,
    /// Messages at most
    #[arg(long, default_value_t = 50, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub(crate) limit: u64,
}

/// Which to put back.
#[derive(Debug, Args)]
pub(crate) struct AsideReplay {
    /// TaskQueue; with --redis-url the queue's name on the broker
    pub(crate) name: String,
    #[command(flatten)]
    pub(crate) which: Which,
    /// All of them
    #[arg(long, conflicts_with_all = ["ids", "task", "reason"])]
    pub(crate) all: bool,
    /// So many a second at most
    #[arg(long, value_name = "N", value_parser = rate)]
    pub(crate) rate: Option<f64>,
    /// Only say what would be done
    #[arg(long)]
    pub(crate) dry_run: bool,
}

/// Which to remove.
#[derive(Debug, Args)]
pub(crate) struct AsidePurge {
    /// TaskQueue; with --redis-url the queue's name on the broker
    pub(crate) name: String,
    #[command(flatten)]
    pub(crate) which: Which,
    /// All of them
    #[arg(long, conflicts_with_all = ["ids", "task", "reason"])]
    pub(crate) all: bool,
    #[command(flatten)]
    pub(crate) care: Care,
}

fn rate(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(rate) if (0.001..=1_000_000.0).contains(&rate) => Ok(rate),
        _ => Err("no number from 0.001 to 1000000".to_owned()),
    }
}
