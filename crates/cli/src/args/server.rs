//! Flags that say where the broker is, where no TaskQueue does.

use std::path::PathBuf;

use clap::Args;
use umbel_broker::{Config, ServerOptions};

use crate::usage;

/// The same as of `umbel-worker`.
#[derive(Debug, Args)]
#[command(next_help_heading = "Global")]
pub(crate) struct Server {
    /// Redis of the broker; without it the TaskQueue's Secret says it
    #[arg(
        long,
        global = true,
        env = "UMBEL_REDIS_URL",
        hide_env_values = true,
        value_name = "URL"
    )]
    redis_url: Option<String>,
    /// File with that address, instead
    #[arg(
        long,
        global = true,
        env = "UMBEL_REDIS_URL_FILE",
        value_name = "FILE",
        hide_short_help = true
    )]
    redis_url_file: Option<PathBuf>,
    /// Redis of the results, where that is not the broker
    #[arg(
        long,
        global = true,
        env = "UMBEL_RESULT_URL",
        hide_env_values = true,
        value_name = "URL"
    )]
    result_url: Option<String>,
    /// File with that address, instead
    #[arg(
        long,
        global = true,
        env = "UMBEL_RESULT_URL_FILE",
        value_name = "FILE",
        hide_short_help = true
    )]
    result_url_file: Option<PathBuf>,
    /// Authorities trusted with TLS, PEM; those of the machine if absent
    #[arg(
        long,
        global = true,
        env = "UMBEL_REDIS_CA_FILE",
        value_name = "FILE",
        hide_short_help = true
    )]
    redis_ca_file: Option<PathBuf>,
    /// This client's certificate, PEM
    #[arg(
        long,
        global = true,
        env = "UMBEL_REDIS_CERT_FILE",
        value_name = "FILE",
        hide_short_help = true
    )]
    redis_cert_file: Option<PathBuf>,
    /// Its key, PEM; in the certificate's file if absent
    #[arg(
        long,
        global = true,
        env = "UMBEL_REDIS_KEY_FILE",
        value_name = "FILE",
        hide_short_help = true
    )]
    redis_key_file: Option<PathBuf>,
    /// Name that the broker's certificate must be for; the host of its address if absent
    #[arg(
        long,
        global = true,
        env = "UMBEL_REDIS_SERVER_NAME",
        value_name = "NAME",
        hide_short_help = true
    )]
    redis_server_name: Option<String>,
    /// What the Sentinels of a sentinel:// address call the primary: kombu's `master_name`
    #[arg(
        long,
        global = true,
        env = "UMBEL_REDIS_SENTINEL_MASTER",
        value_name = "NAME",
        hide_short_help = true
    )]
    redis_sentinel_master: Option<String>,
    /// User at the Sentinels themselves
    #[arg(
        long,
        global = true,
        env = "UMBEL_REDIS_SENTINEL_USER",
        value_name = "USER",
        hide_short_help = true
    )]
    redis_sentinel_user: Option<String>,
    /// Password at the Sentinels themselves
    #[arg(
        long,
        global = true,
        env = "UMBEL_REDIS_SENTINEL_PASSWORD",
        hide_env_values = true,
        value_name = "PASSWORD",
        hide_short_help = true
    )]
    redis_sentinel_password: Option<String>,
}

impl Server {
    /// Was an address given, so that no TaskQueue is asked for one?
    pub(crate) fn is_given(&self) -> bool {
        let has_file = self
            .redis_url_file
            .as_ref()
            .is_some_and(|file| !file.as_os_str().is_empty());
        has_file || self.redis_url.as_ref().is_some_and(|url| !url.is_empty())
    }

    fn options(&self) -> ServerOptions {
        ServerOptions {
            url: self.redis_url.clone(),
            url_file: self.redis_url_file.clone(),
            ca_file: self.redis_ca_file.clone(),
            cert_file: self.redis_cert_file.clone(),
            key_file: self.redis_key_file.clone(),
            server_name: self.redis_server_name.clone(),
            sentinel_master: self.redis_sentinel_master.clone(),
            sentinel_user: self.redis_sentinel_user.clone(),
            sentinel_password: self.redis_sentinel_password.clone(),
            ..ServerOptions::default()
        }
    }

    /// The broker's server.
    pub(crate) fn broker(&self) -> anyhow::Result<Config> {
        match self.options().config() {
            Ok(config) => Ok(config),
            Err(err) => usage(format!("--redis-url: {err}")),
        }
    }

    /// The results' server, where one is named.
    pub(crate) fn results(&self) -> anyhow::Result<Option<Config>> {
        let options = self.options();
        match options.beside(self.result_url.as_ref(), self.result_url_file.as_ref()) {
            Ok(config) => Ok(config),
            Err(err) => usage(format!("--result-url: {err}")),
        }
    }
}
