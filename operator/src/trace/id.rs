//! The ids of a run's trace and its spans: they follow from the run; pure.

use opentelemetry::trace::{SpanId, TraceId};
use sha2::{Digest, Sha256};

/// The trace of a run: its UID's sixteen bytes.
#[must_use]
pub fn trace_id(run_uid: &str) -> TraceId {
    let hex: String = run_uid.chars().filter(|c| *c != '-').collect();
    match TraceId::from_hex(&hex) {
        Ok(id) if hex.len() == 32 && id != TraceId::INVALID => id,
        // A UID need not be a UUID, though all are.
        _ => TraceId::from_bytes(first(&Sha256::digest(run_uid))),
    }
}

/// A span of a run's trace. `name` tells it from the others, such as `linux/arm64 build`.
#[must_use]
pub fn span_id(run_uid: &str, name: &str) -> SpanId {
    let mut hash = Sha256::new();
    hash.update(run_uid);
    hash.update([0]);
    hash.update(name);
    SpanId::from_bytes(first(&hash.finalize()))
}

/// The span below which BuildKit's own go.
#[must_use]
pub fn build_span(run_uid: &str, platform: &str) -> SpanId {
    span_id(run_uid, &format!("{platform} build"))
}

/// What tells BuildKit its place in the trace: <https://www.w3.org/TR/trace-context/#traceparent-header>.
#[must_use]
pub fn traceparent(run_uid: &str, platform: &str) -> String {
    format!("00-{}-{}-01", trace_id(run_uid), build_span(run_uid, platform))
}

fn first<const N: usize>(hash: &[u8]) -> [u8; N] {
    let mut bytes = [0; N];
    for (byte, of_hash) in bytes.iter_mut().zip(hash) {
        *byte = *of_hash;
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_follow_from_the_run() {
        let uid = "0f0e0d0c-1111-4222-8333-444455556666";
        assert_eq!(trace_id(uid).to_string(), "0f0e0d0c111142228333444455556666");
        let parent = traceparent(uid, "linux/arm64");
        assert_eq!(parent, format!("00-0f0e0d0c111142228333444455556666-{}-01", build_span(uid, "linux/arm64")));
        assert_eq!(parent.len(), 55);
        assert_ne!(build_span(uid, "linux/arm64"), build_span(uid, "linux/amd64"));
        assert_ne!(build_span(uid, "linux/arm64"), build_span("other", "linux/arm64"));
        assert_ne!(trace_id("no uuid"), TraceId::INVALID);
    }
}
