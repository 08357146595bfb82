//! The operator's program.

use std::process::ExitCode;

use clap::Parser;
use umbel_operator::app;
use umbel_operator::args::{Args, Config};
use umbel_telemetry::{cores, logs};

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    logs::init("umbel-operator");
    cores::off();
    let config = match Config::try_from(args) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("umbel-operator: {error}");
            return ExitCode::from(2);
        }
    };
    match app::run(config).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "operator ends");
            ExitCode::FAILURE
        }
    }
}
