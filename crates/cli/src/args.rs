//! Flags and commands.

mod cluster;
mod periodic;
mod pool;
mod queue;
mod server;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use umbel_api::Span;
use umbel_client::Replicas;

pub(crate) use cluster::{ClusterCommand, ClusterLs, ClusterTest, Join, Leave, Rotate};
pub(crate) use periodic::{Import, PeriodicCommand, PeriodicLs, PeriodicRun};
pub(crate) use pool::{PoolCommand, PoolDrain, PoolLs};
pub(crate) use queue::{
    AsideCommand, AsideLs, AsidePurge, AsideReplay, Names, Peek, Purge, QueueCommand, QueueLs, Recover, Which,
};

pub(crate) use server::Server;

use crate::signing::Signing;

/// Send tasks, look at queues and worker pools, join target clusters.
#[derive(Debug, Parser)]
#[command(
    name = "umbel",
    version,
    max_term_width = 100,
    arg_required_else_help = true,
    after_help = "Examples:\n  umbel task send proj.add --args '[2, 3]' --wait\n  umbel queue ls\n  umbel pool explain workers\n  \
                  umbel cluster join eu-1 --from-context eu-1-admin --label env=prod"
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Flags that every command takes.
#[derive(Debug, Args)]
pub(crate) struct Global {
    /// Namespace; without it the one of the context
    #[arg(short, long, global = true, help_heading = "Global")]
    pub(crate) namespace: Option<String>,
    /// Context of the kubeconfig
    #[arg(long, global = true, help_heading = "Global")]
    pub(crate) context: Option<String>,
    /// Kubeconfig of the cluster that Umbel runs in; without it as kubectl finds it
    #[arg(long, global = true, value_name = "FILE", help_heading = "Global")]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// How to print
    #[arg(short, long, global = true, value_enum, default_value_t, help_heading = "Global")]
    pub(crate) output: Format,
    #[command(flatten)]
    pub(crate) server: Server,
    /// Prefix of all keys in the Redis that --redis-url names (kombu's `global_keyprefix`)
    #[arg(
        long,
        global = true,
        env = "UMBEL_KEY_PREFIX",
        hide_env_values = true,
        value_name = "PREFIX",
        default_value = "",
        hide_default_value = true,
        help_heading = "Global"
    )]
    pub(crate) key_prefix: String,
    /// Priority steps of the broker that --redis-url names (kombu's `priority_steps`)
    #[arg(
        long,
        global = true,
        env = "UMBEL_PRIORITY_STEPS",
        value_name = "STEPS",
        default_value = "0,3,6,9",
        help_heading = "Global"
    )]
    pub(crate) priority_steps: String,
    /// Separator of the broker that --redis-url names (kombu's `sep`); without it the two bytes 06 16
    #[arg(
        long,
        global = true,
        env = "UMBEL_SEPARATOR",
        value_name = "TEXT",
        help_heading = "Global"
    )]
    pub(crate) separator: Option<String>,
    /// Prefix of the results' keys: `global_keyprefix` of Celery's `result_backend_transport_options`
    #[arg(
        long,
        global = true,
        env = "UMBEL_RESULT_KEY_PREFIX",
        value_name = "PREFIX",
        default_value = "",
        hide_default_value = true,
        help_heading = "Global"
    )]
    pub(crate) result_key_prefix: String,
    /// What the exchanges of remote control are named after (Celery's `control_exchange`), as the workers have it
    #[arg(
        long,
        global = true,
        env = "UMBEL_CONTROL_EXCHANGE",
        value_name = "NAME",
        default_value = "celery",
        hide_short_help = true,
        value_parser = exchange,
        help_heading = "Global"
    )]
    pub(crate) control_exchange: String,
    /// What channels begin with (kombu's `fanout_prefix`), as the workers have it; empty where it is off
    #[arg(
        long,
        global = true,
        env = "UMBEL_FANOUT_PREFIX",
        value_name = "TEXT",
        default_value = umbel_broker::FANOUT_PREFIX,
        hide_short_help = true,
        help_heading = "Global"
    )]
    pub(crate) fanout_prefix: String,
    /// Routing keys are no part of the names of channels (kombu's `fanout_patterns` is off)
    #[arg(
        long,
        global = true,
        env = "UMBEL_NO_FANOUT_PATTERNS",
        hide_short_help = true,
        help_heading = "Global"
    )]
    pub(crate) no_fanout_patterns: bool,
}

impl Global {
    /// What the names of channels are made of, on whatever broker.
    pub(crate) fn name_channels(&self, config: &mut umbel_broker::Config) {
        config.control.namespace.clone_from(&self.control_exchange);
        config.fanout_prefix.clone_from(&self.fanout_prefix);
        config.fanout_patterns = !self.no_fanout_patterns;
    }
}

/// How to print.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    #[default]
    Table,
    Wide,
    Json,
    Yaml,
    Name,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Send tasks and read their results
    #[command(subcommand)]
    Task(TaskCommand),
    /// Look at queues; purge, pause and recover them; put dead letters back
    #[command(subcommand)]
    Queue(QueueCommand),
    /// Look at worker pools; empty them and start them again
    #[command(subcommand)]
    Pool(PoolCommand),
    /// Look at schedules; run, pause and import them
    #[command(subcommand)]
    Periodic(PeriodicCommand),
    /// Bring clusters in as targets of jobs, test them, renew their credentials, take them out
    #[command(subcommand)]
    Cluster(ClusterCommand),
    /// Print the version of this program and of the cluster
    Version {
        /// Ask no cluster
        #[arg(long)]
        client: bool,
    },
    /// Print a completion script for a shell
    #[command(after_help = "Example:\n  umbel completion bash > /etc/bash_completion.d/umbel")]
    Completion {
        /// The shell
        shell: Shell,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum TaskCommand {
    /// Send a task; prints its id, or with --wait its result
    #[command(after_help = "Examples:\n  umbel task send proj.add --args '[2, 3]' --wait\n  \
                            umbel task send umbel.cluster.sync --kwargs '{\"cluster\": \"eu-1\"}' --countdown 10s\n  \
                            umbel task send proj.add --from calls.jsonl --queue bulk\n\n\
                            A line of --from is a JSON array of arguments, or an object with any of task, args, kwargs and\n\
                            options (task_id, queue, priority, countdown, shadow, headers).")]
    Send(Box<Send>),
    /// Send a workflow, written in JSON; prints the id of its end, or with --wait its result
    #[command(
        after_help = "Forms:\n  \"proj.add\"                                    a task without arguments\n  \
                            {\"task\": NAME, \"args\": […], \"kwargs\": {…}, \"options\": {\"queue\": …}, \"immutable\": true}\n  \
                            {\"chain\": [T, …]}   {\"group\": [T, …]}   {\"chord\": {\"header\": [T, …], \"body\": T}}\n  \
                            {\"map\": T, \"it\": […]}   {\"starmap\": T, \"it\": […]}   {\"chunks\": T, \"it\": […], \"size\": 10}\n\
                            What Celery serialises is read as well.\n\nExample:\n  \
                            echo '{\"chain\": [{\"task\": \"proj.add\", \"args\": [1, 2]}, \"proj.double\"]}' | umbel task canvas - --wait"
    )]
    Canvas(Canvas),
    /// List objects of kind Task: how far they are
    #[command(after_help = "Example:\n  umbel task ls -o wide")]
    Ls(TaskLs),
    /// Print the state and the result of a task, of a saved group, or of an object of kind Task
    #[command(
        after_help = "Examples:\n  umbel task get migrate --wait\n  umbel task get 7f8c2a1e-5d0b-4c5f-9d57-6d0a8a4f0f11 --wait --timeout 5m"
    )]
    Get(Get),
    /// Tell workers not to run tasks, or with --terminate to stop them
    #[command(after_help = "Example:\n  umbel task revoke 7f8c2a1e-5d0b-4c5f-9d57-6d0a8a4f0f11 --terminate")]
    Revoke(Revoke),
    /// Revoke tasks wherever they are, and say what became of them; exit code 1 if one runs on
    #[command(
        after_help = "A task that waits or is delayed is dropped when its turn comes, for a week or until it is due.\n\
                      One that runs goes on without --terminate.\n\nExample:\n  umbel task cancel 7f8c2a1e-5d0b-4c5f-9d57-6d0a8a4f0f11 --terminate"
    )]
    Cancel(Cancel),
    /// Put failed tasks back into their queues, byte for byte, from the dead letters
    #[command(after_help = "Example:\n  umbel task retry 7f8c2a1e-5d0b-4c5f-9d57-6d0a8a4f0f11")]
    Retry(TaskRetry),
    /// Delete the results of tasks
    Forget(Forget),
}

/// A workflow to send.
#[derive(Debug, Args)]
pub(crate) struct Canvas {
    /// File with the workflow, or - for standard input
    pub(crate) file: String,
    /// TaskQueue of the tasks that name no queue; with --redis-url the queue's name on the broker
    #[arg(long)]
    pub(crate) queue: Option<String>,
    /// File with routes as Celery's `task_routes` has them, in JSON: queue or options by names, globs and re:EXPRESSIONs
    #[arg(long, env = "UMBEL_ROUTES", value_name = "FILE")]
    pub(crate) routes: Option<PathBuf>,
    /// Keep the structure of a group, so that its id is enough to read its results
    #[arg(long)]
    pub(crate) save: bool,
    /// How structures of groups are kept: the workers' --result-serializer. Results are read whatever it is
    #[arg(long, env = "UMBEL_RESULT_SERIALIZER", value_parser = ["json", "msgpack", "yaml"], default_value = "json")]
    pub(crate) result_serializer: String,
    /// How bodies are written of tasks that do not say; auth is signed JSON
    #[arg(long, value_parser = ["json", "msgpack", "yaml", "auth"])]
    pub(crate) serializer: Option<String>,
    #[command(flatten)]
    pub(crate) signing: Signing,
    /// Count it as sent only when a replica has it, or when it lies on the disk of the server and of a replica (Redis 7.2, Valkey)
    #[arg(long, value_enum, value_name = "LEVEL", hide_short_help = true)]
    pub(crate) durability: Option<Confirmed>,
    #[command(flatten)]
    pub(crate) wait: Wait,
}

/// Tasks to revoke.
#[derive(Debug, Args)]
pub(crate) struct Revoke {
    /// Ids of the tasks
    #[arg(required = true)]
    pub(crate) ids: Vec<String>,
    /// Stop them if they run
    #[arg(long)]
    pub(crate) terminate: bool,
    /// Signal by which Celery's workers stop a run
    #[arg(long, default_value = "SIGTERM", requires = "terminate")]
    pub(crate) signal: String,
    /// A TaskQueue on the tasks' broker. Needed where the namespace's queues have several brokers
    #[arg(long)]
    pub(crate) queue: Option<String>,
}

/// Tasks to cancel.
#[derive(Debug, Args)]
pub(crate) struct Cancel {
    /// Ids of the tasks; or names of Tasks, which task.umbel.dev/NAME always is
    #[arg(required = true)]
    pub(crate) ids: Vec<String>,
    /// Stop them if they run
    #[arg(long)]
    pub(crate) terminate: bool,
    /// Signal by which Celery's workers stop a run
    #[arg(long, default_value = "SIGTERM", requires = "terminate")]
    pub(crate) signal: String,
    /// The tasks' TaskQueue; with --redis-url its name on the broker, or all queues where none is named
    #[arg(long)]
    pub(crate) queue: Option<String>,
    /// Longest time to wait for their ends
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "5s")]
    pub(crate) timeout: Duration,
    /// Only say where the tasks are
    #[arg(long)]
    pub(crate) dry_run: bool,
}

/// Tasks to run again.
#[derive(Debug, Args)]
pub(crate) struct TaskRetry {
    /// Ids of the tasks
    #[arg(required = true)]
    pub(crate) ids: Vec<String>,
    /// The tasks' TaskQueue; with --redis-url its name on the broker, or all queues where none is named
    #[arg(long)]
    pub(crate) queue: Option<String>,
    /// Only say where the tasks are
    #[arg(long)]
    pub(crate) dry_run: bool,
}

/// Results to delete.
#[derive(Debug, Args)]
pub(crate) struct Forget {
    /// Ids of the tasks
    #[arg(required = true)]
    pub(crate) ids: Vec<String>,
    /// A TaskQueue on the tasks' broker. Needed where the namespace's queues have several brokers
    #[arg(long)]
    pub(crate) queue: Option<String>,
}

/// What a message must have before it counts as sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Confirmed {
    Replicated,
    Strict,
}

impl Confirmed {
    /// As a client is told.
    pub(crate) fn replicas(self) -> Replicas {
        Replicas {
            count: 1,
            patience: Duration::from_secs(5),
            is_on_disk: self == Confirmed::Strict,
        }
    }
}

/// A task to send.
#[derive(Debug, Args)]
pub(crate) struct Send {
    /// Name of the task
    pub(crate) name: String,
    /// TaskQueue; with --redis-url the queue's name on the broker. Needed where there are several
    #[arg(long)]
    pub(crate) queue: Option<String>,
    /// File with routes as Celery's `task_routes` has them, in JSON: queue or options by names, globs and re:EXPRESSIONs
    #[arg(long, env = "UMBEL_ROUTES", value_name = "FILE")]
    pub(crate) routes: Option<PathBuf>,
    /// Positional arguments: a JSON array
    #[arg(long, value_name = "JSON")]
    pub(crate) args: Option<String>,
    /// Keyword arguments: a JSON object
    #[arg(long, value_name = "JSON")]
    pub(crate) kwargs: Option<String>,
    /// Not before this time (RFC 3339)
    #[arg(long, value_name = "TIME", conflicts_with = "countdown")]
    pub(crate) eta: Option<jiff::Timestamp>,
    /// Not before this time has passed, such as 90s
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(crate) countdown: Option<Duration>,
    /// Not at all after this time: a duration, or RFC 3339
    #[arg(long, value_name = "DURATION|TIME")]
    pub(crate) expires: Option<String>,
    /// 0 is first, 9 is last; without it that of the route, else 0
    #[arg(long, value_parser = clap::value_parser!(u8).range(0..=9))]
    pub(crate) priority: Option<u8>,
    /// Id of the task; without it a new one
    #[arg(long)]
    pub(crate) id: Option<String>,
    /// Not while another task with this key is on its way; then that one's id is answered
    #[arg(long, value_name = "KEY", conflicts_with = "exchange")]
    pub(crate) unique: Option<String>,
    /// Until when the key is taken
    #[arg(long, value_name = "END", value_parser = ["started", "done"], default_value = "done", requires = "unique")]
    pub(crate) unique_until: String,
    /// For how long it is taken at most
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "24h", requires = "unique")]
    pub(crate) unique_ttl: Duration,
    /// A named exchange instead of a queue
    #[arg(long, requires = "exchange_type")]
    pub(crate) exchange: Option<String>,
    /// What the exchange does; Redis does not know it
    #[arg(long, value_name = "TYPE", value_parser = ["direct", "topic", "fanout"], requires = "exchange")]
    pub(crate) exchange_type: Option<String>,
    /// Routing key for the exchange
    #[arg(
        long,
        value_name = "KEY",
        requires = "exchange",
        default_value = "",
        hide_default_value = true
    )]
    pub(crate) routing_key: String,
    /// How the body is written; auth is signed JSON
    #[arg(long, value_parser = ["json", "msgpack", "yaml", "auth"])]
    pub(crate) serializer: Option<String>,
    #[command(flatten)]
    pub(crate) signing: Signing,
    /// Count it as sent only when a replica has it, or when it lies on the disk of the server and of a replica (Redis 7.2, Valkey)
    #[arg(long, value_enum, value_name = "LEVEL", hide_short_help = true)]
    pub(crate) durability: Option<Confirmed>,
    /// How the body is compressed
    #[arg(long, value_parser = ["zlib", "bzip2", "lzma", "brotli", "zstd"])]
    pub(crate) compression: Option<String>,
    /// A header of your own: NAME=JSON, or NAME=text; may be repeated
    #[arg(long = "header", value_name = "NAME=VALUE", value_parser = label)]
    pub(crate) headers: Vec<(String, String)>,
    /// A stamp, by which tasks can be revoked: NAME=JSON, or NAME=text; may be repeated
    #[arg(long = "stamp", value_name = "NAME=VALUE", value_parser = label)]
    pub(crate) stamps: Vec<(String, String)>,
    /// Sent when the task succeeds: a task's name, or a workflow as for `task canvas`; may be repeated
    #[arg(long, value_name = "TASK|JSON")]
    pub(crate) link: Vec<String>,
    /// Sent when the task fails, likewise
    #[arg(long, value_name = "TASK|JSON")]
    pub(crate) link_error: Vec<String>,
    /// After this the run is stopped
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(crate) time_limit: Option<Duration>,
    /// After this the run is asked to stop
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(crate) soft_time_limit: Option<Duration>,
    /// Name to show in logs and events
    #[arg(long, value_name = "NAME")]
    pub(crate) shadow: Option<String>,
    /// Store no result
    #[arg(long, conflicts_with = "wait")]
    pub(crate) ignore_result: bool,
    /// Show no arguments in events, logs and `celery inspect`
    #[arg(long)]
    pub(crate) hide_arguments: bool,
    /// Send it so many times
    #[arg(long, value_name = "N", conflicts_with_all = ["from", "id"], value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) count: Option<u64>,
    /// Send a task for each line of a file (- for standard input)
    #[arg(long, value_name = "FILE", conflicts_with_all = ["args", "kwargs", "id"])]
    pub(crate) from: Option<String>,
    #[command(flatten)]
    pub(crate) wait: Wait,
}

/// Whether to wait for a task's end.
#[derive(Debug, Args)]
pub(crate) struct Wait {
    /// Wait for the end; exit code 1 if the task fails or does not end in time
    #[arg(long)]
    pub(crate) wait: bool,
    /// Longest time to wait
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "60s")]
    pub(crate) timeout: Duration,
}

/// Tasks to list.
#[derive(Debug, Args)]
pub(crate) struct TaskLs {
    /// Names of Tasks; all if absent
    pub(crate) names: Vec<String>,
    /// In all namespaces
    #[arg(short = 'A', long, conflicts_with = "names")]
    pub(crate) all_namespaces: bool,
}

/// A task to look at.
#[derive(Debug, Args)]
pub(crate) struct Get {
    /// Id of the task; or the name of a Task, which task.umbel.dev/NAME always is
    pub(crate) id: String,
    /// A TaskQueue on the task's broker. Needed where the namespace's queues have several brokers
    #[arg(long)]
    pub(crate) queue: Option<String>,
    #[command(flatten)]
    pub(crate) wait: Wait,
}

/// As the worker takes it.
fn exchange(text: &str) -> Result<String, String> {
    let is_name =
        (1..=200).contains(&text.len()) && text.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
    let name = is_name.then(|| text.to_owned());
    name.ok_or_else(|| "must have 1 to 200 letters, digits, dots, dashes and underscores".into())
}

/// Whole or broken seconds, or a duration as Kubernetes writes it.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    if let Ok(seconds) = text.parse::<f64>() {
        return Duration::try_from_secs_f64(seconds).map_err(|err| err.to_string());
    }
    text.parse::<Span>()
        .map(Duration::from)
        .map_err(|_| "neither seconds nor a duration such as 1m30s".to_owned())
}

fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("not of the form key=value")?;
    if key.is_empty() {
        Err("the key is empty".to_owned())
    } else {
        Ok((key.to_owned(), value.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flags_contradict_each_other_nowhere() {
        use clap::CommandFactory as _;
        Cli::command().debug_assert();
    }

    #[test]
    fn durations_are_seconds_or_words() {
        for (text, expected) in [("5", 5_000), ("0.25", 250), ("1m30s", 90_000), ("250ms", 250)] {
            assert_eq!(duration(text), Ok(Duration::from_millis(expected)), "{text}");
        }
        for text in ["", "-5", "5 minutes", "NaN", "inf", "1y"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }
}
