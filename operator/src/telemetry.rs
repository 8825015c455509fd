//! The log.

use tracing_subscriber::EnvFilter;

use crate::config::LogFormat;

/// Begins to log to standard error, with the filter that the settings name.
///
/// # Errors
/// Where the filter is not one.
pub fn start(filter: &str, format: LogFormat) -> Result<(), tracing_subscriber::filter::ParseError> {
    let filter = EnvFilter::builder().parse(filter)?;
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Json => subscriber.json().flatten_event(true).with_current_span(true).with_span_list(false).init(),
        LogFormat::Human => subscriber.compact().init(),
    }
    Ok(())
}
