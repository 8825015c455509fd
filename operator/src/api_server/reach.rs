//! Since when the API server has not answered.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Whether the API server answers, as those know who ask it anyway. A clone tells the same.
#[derive(Clone, Debug, Default)]
pub struct Reach(Arc<Mutex<Option<Instant>>>);

impl Reach {
    /// A request that was sent then has come to an end.
    pub(super) fn told(&self, answered: bool, sent: Instant) {
        let mut since = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match (answered, *since) {
            (true, _) => *since = None,
            (false, None) => *since = Some(sent),
            (false, Some(_)) => {}
        }
    }

    /// For how long no request has had an answer; nothing while they have.
    #[must_use]
    pub fn lost_for(&self) -> Duration {
        let since = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        since.map_or(Duration::ZERO, |since| since.elapsed())
    }
}
