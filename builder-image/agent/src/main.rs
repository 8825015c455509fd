//! The agent of a builder pod: reads its configuration, then serves jobs until it is told to stop.

use std::process::ExitCode;

use clap::Parser as _;
use kiln_agent::config::Config;

#[tokio::main]
async fn main() -> ExitCode {
    let config = Config::parse();
    config.start_logging();
    match kiln_agent::serve(config).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = kiln_agent::chain(&error), "the agent cannot go on");
            ExitCode::FAILURE
        }
    }
}
