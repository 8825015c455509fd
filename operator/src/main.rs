//! Kiln's operator.

use std::process::ExitCode;

use kiln_operator::config::Settings;
use kiln_operator::{operator, telemetry};
use tracing::error;

#[tokio::main]
async fn main() -> ExitCode {
    let settings = Settings::from_args();
    if let Err(problem) = telemetry::start(&settings.log, settings.log_format) {
        eprintln!("kiln-operator: reading the log filter {:?}: {problem}", settings.log);
        return ExitCode::from(2);
    }
    match operator::run(settings, kiln_operator::shutdown::signal()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            error!(error = %problem, "the operator ends");
            ExitCode::FAILURE
        }
    }
}
