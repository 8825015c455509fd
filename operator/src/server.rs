//! /livez, /readyz and /metrics.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use prometheus_client::registry::Registry;

use crate::api_server::Reach;

/// A loop that has not come round for so long hangs. Each request ends within a quarter of that.
const LATE: Duration = Duration::from_mins(1);
/// An API server that has not answered for so long is away: a request may take half of it.
const AWAY: Duration = Duration::from_secs(30);

/// When each loop last came round that has to. What it asks for may fail: that is a round, too. A clone tells the same.
#[derive(Clone, Debug, Default)]
pub struct Rounds(Arc<Mutex<BTreeMap<&'static str, Instant>>>);

impl Rounds {
    /// The loop has come round, or begun.
    pub fn came(&self, which: &'static str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(which, Instant::now());
    }

    /// The loop that is the longest overdue, and since when.
    fn late(&self, now: Instant) -> Option<(&'static str, Duration)> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let since = known.iter().map(|(which, last)| (*which, now.saturating_duration_since(*last)));
        since.filter(|(_, since)| *since > LATE).max_by_key(|(_, since)| *since)
    }
}

/// What the server tells.
#[derive(Clone)]
pub struct Health {
    ready: Arc<AtomicBool>,
    registry: Arc<Registry>,
    rounds: Rounds,
    reach: Reach,
}

impl Health {
    /// Alive, but not ready.
    #[must_use]
    pub fn new(registry: Registry, rounds: Rounds, reach: Reach) -> Self {
        Self { ready: Arc::default(), registry: Arc::new(registry), rounds, reach }
    }

    /// From now on ready: the API server answers, and Kiln's kinds are there.
    pub fn ready(&self) {
        self.ready.store(true, Ordering::Relaxed);
    }
}

/// Serves until `shutdown`.
///
/// # Errors
/// Where the address cannot be listened on.
pub async fn serve(
    listen: SocketAddr,
    health: Health,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let router = Router::new()
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(health);
    let listener = tokio::net::TcpListener::bind(listen).await?;
    axum::serve(listener, router).with_graceful_shutdown(shutdown).await
}

/// Asks nobody: an outage of anything else is no reason to begin anew.
async fn livez(State(health): State<Health>) -> (StatusCode, String) {
    match health.rounds.late(Instant::now()) {
        None => (StatusCode::OK, "ok\n".to_owned()),
        Some((which, since)) => {
            let text = format!("the loop of {which} has not come round for {} s\n", since.as_secs());
            (StatusCode::SERVICE_UNAVAILABLE, text)
        }
    }
}

async fn readyz(State(health): State<Health>) -> (StatusCode, String) {
    let away = health.reach.lost_for();
    let waits = "waiting for the API server and Kiln's CustomResourceDefinitions\n";
    match health.ready.load(Ordering::Relaxed) {
        false => (StatusCode::SERVICE_UNAVAILABLE, waits.to_owned()),
        true if away > AWAY => {
            let text = format!("the API server has not answered for {} s\n", away.as_secs());
            (StatusCode::SERVICE_UNAVAILABLE, text)
        }
        true => (StatusCode::OK, "ok\n".to_owned()),
    }
}

async fn metrics(State(health): State<Health>) -> impl IntoResponse {
    let mut text = String::new();
    match prometheus_client::encoding::text::encode(&mut text, &health.registry) {
        Ok(()) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            (StatusCode::OK, [(header::CONTENT_TYPE, kind)], text)
        }
        Err(_) => (StatusCode::INTERNAL_SERVER_ERROR, [(header::CONTENT_TYPE, "text/plain")], String::new()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loop_that_is_longest_overdue() {
        let rounds = Rounds::default();
        let now = Instant::now();
        assert_eq!(rounds.late(now + LATE * 9), None, "none has begun");
        rounds.came("the Lease");
        assert_eq!(rounds.late(now + LATE / 2), None);
        rounds.came("the controllers");
        rounds.0.lock().unwrap().insert("the Lease", now);
        let (which, since) = rounds.late(now + LATE * 2).unwrap();
        assert_eq!((which, since), ("the Lease", LATE * 2));
        rounds.came("the Lease");
        rounds.came("the controllers");
        assert_eq!(rounds.late(Instant::now()), None);
    }
}
