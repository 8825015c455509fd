//! How many reconciles of a kind go on at once. When the operator starts, all objects wait for theirs, and each that has
//! begun holds memory and may hold a connection: so few begin, and the others wait, small. Every namespace has a share of
//! its own: one whose Git server or registry is slow waits for itself.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// How many go on at once.
const ALL: usize = 256;
/// How many of them are of one namespace.
const OF_NAMESPACE: usize = 16;

/// Gives turns.
pub struct Turns {
    all: Arc<Semaphore>,
    of_namespace: usize,
    shares: Mutex<HashMap<String, Weak<Semaphore>>>,
}

impl Default for Turns {
    fn default() -> Self {
        Self::new(ALL, OF_NAMESPACE)
    }
}

/// Lasts until it is dropped.
#[must_use]
#[derive(Debug)]
pub struct Turn {
    _share: Option<OwnedSemaphorePermit>,
    _of_all: Option<OwnedSemaphorePermit>,
}

impl Turns {
    fn new(all: usize, of_namespace: usize) -> Self {
        Self { all: Arc::new(Semaphore::new(all)), of_namespace, shares: Mutex::default() }
    }

    /// Waits for a turn of a namespace; `""` is that of objects without one. First come, first served.
    pub async fn take(&self, namespace: &str) -> Turn {
        // The own share first: who waits for it holds nothing that others wait for. A semaphore here is never closed.
        let share = self.share(namespace).acquire_owned().await.ok();
        let of_all = self.all.clone().acquire_owned().await.ok();
        Turn { _share: share, _of_all: of_all }
    }

    fn share(&self, namespace: &str) -> Arc<Semaphore> {
        let mut shares = self.shares.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(share) = shares.get(namespace).and_then(Weak::upgrade) {
            return share;
        }
        // Whoever holds or waits for a turn of a namespace keeps its share.
        shares.retain(|_, share| share.strong_count() > 0);
        let share = Arc::new(Semaphore::new(self.of_namespace));
        shares.insert(namespace.to_owned(), Arc::downgrade(&share));
        share
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt as _;

    fn now(turns: &Turns, namespace: &str) -> Option<Turn> {
        turns.take(namespace).now_or_never()
    }

    #[test]
    fn a_namespace_that_is_slow_waits_for_itself() {
        let turns = Turns::new(4, 2);
        let slow = [now(&turns, "slow"), now(&turns, "slow")];
        assert!(slow.iter().all(Option::is_some));
        assert!(now(&turns, "slow").is_none(), "its share is used up");
        let other = now(&turns, "other");
        assert!(other.is_some(), "another has its own");
        drop(slow);
        assert!(now(&turns, "slow").is_some());
    }

    #[test]
    fn all_together_are_bounded_and_what_is_held_for_the_gone_is_forgotten() {
        let turns = Turns::new(3, 2);
        let held: Vec<_> = ["a", "a", "b"].map(|namespace| now(&turns, namespace)).into();
        assert!(held.iter().all(Option::is_some));
        assert!(now(&turns, "c").is_none());
        drop(held);
        assert!(now(&turns, "d").is_some());
        assert_eq!(turns.shares.lock().unwrap().len(), 1, "that of d");
    }

    #[tokio::test]
    async fn the_first_that_waits_is_the_first_that_goes_on() {
        let turns = Turns::new(1, 1);
        let held = now(&turns, "a");
        let mut first = Box::pin(turns.take("b"));
        assert!((&mut first).now_or_never().is_none());
        let mut second = Box::pin(turns.take("c"));
        assert!((&mut second).now_or_never().is_none());
        drop(held);
        assert!((&mut second).now_or_never().is_none());
        drop(first.await);
        drop(second.await);
    }
}
