//! The signals that ask the operator to stop.

use tokio::signal::unix::{SignalKind, signal as listen};

/// Ends at SIGTERM or SIGINT.
pub async fn signal() {
    match (listen(SignalKind::terminate()), listen(SignalKind::interrupt())) {
        (Ok(mut terminate), Ok(mut interrupt)) => {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        }
        // Without signals the operator runs until it is killed.
        _ => std::future::pending().await,
    }
}
