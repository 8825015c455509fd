//! Room that tenants share: so many places in all, so many of them for one. Who wants more waits for his own.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The room.
#[derive(Debug)]
pub struct Room {
    all: Arc<Semaphore>,
    of_one: usize,
    of_tenant: Mutex<HashMap<String, Weak<Semaphore>>>,
}

/// A place in it, as long as it is held.
#[derive(Debug)]
#[must_use]
pub struct Place {
    _of_tenant: Option<OwnedSemaphorePermit>,
    _of_all: Option<OwnedSemaphorePermit>,
}

impl Room {
    /// With this many places, and this many of them for one tenant.
    #[must_use]
    pub fn new(places: usize, of_one: usize) -> Self {
        Self { all: Arc::new(Semaphore::new(places)), of_one, of_tenant: Mutex::default() }
    }

    /// Waits until there is a place for the tenant.
    pub async fn enter(&self, tenant: &str) -> Place {
        let own = {
            let mut known = self.of_tenant.lock().unwrap_or_else(PoisonError::into_inner);
            known.retain(|_, semaphore| semaphore.strong_count() > 0);
            known.get(tenant).and_then(Weak::upgrade).unwrap_or_else(|| {
                let semaphore = Arc::new(Semaphore::new(self.of_one));
                known.insert(tenant.to_owned(), Arc::downgrade(&semaphore));
                semaphore
            })
        };
        // Its own first: who waits for that holds up nobody else. Neither is ever closed, which alone would give none.
        Place { _of_tenant: own.acquire_owned().await.ok(), _of_all: self.all.clone().acquire_owned().await.ok() }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn one_tenant_has_not_all() {
        let room = Room::new(4, 2);
        let slow = [room.enter("slow").await, room.enter("slow").await];
        let third = tokio::time::timeout(Duration::from_millis(20), room.enter("slow")).await;
        assert!(third.is_err(), "it waits");
        let others = [room.enter("other").await, room.enter("other").await];
        let full = tokio::time::timeout(Duration::from_millis(20), room.enter("third")).await;
        assert!(full.is_err(), "there are no more places");
        drop((slow, others));
        let _again = room.enter("slow").await;
    }
}
