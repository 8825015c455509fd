//! How many reconciles of a namespace go on at once. When the operator starts, ten thousand objects wait for theirs, and
//! each that has begun holds memory and may hold a connection. So few begin, of each namespace its share: one whose Git
//! server or registry is slow waits for itself. Who waits is a name in a queue, and is woken.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fmt::Debug;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kube::Resource;
use kube::runtime::reflector::ObjectRef;
use tokio::sync::mpsc::UnboundedSender;

/// How many reconciles of a kind go on at once.
pub const ALL: u16 = 128;
/// How many of them are of one namespace.
pub const OF_NAMESPACE: usize = 8;

/// Gives turns to objects of a kind.
pub struct Turns<K: Resource<DynamicType = ()>> {
    of_namespace: usize,
    shares: Mutex<HashMap<String, Share<K>>>,
    wake: UnboundedSender<ObjectRef<K>>,
}

/// What a namespace has of turns.
struct Share<K: Resource<DynamicType = ()>> {
    going: usize,
    /// In the order in which they came; one that has had its turn since is in `waiting` no more.
    queue: VecDeque<ObjectRef<K>>,
    waiting: HashSet<ObjectRef<K>>,
}

/// Lasts until it is dropped; then the next one of its namespace is woken.
#[must_use]
pub struct Turn<K: Resource<DynamicType = ()>> {
    turns: Arc<Turns<K>>,
    namespace: String,
}

impl<K: Resource<DynamicType = ()>> Drop for Turn<K> {
    fn drop(&mut self) {
        if let Some(share) = self.turns.shares().get_mut(&self.namespace) {
            share.going -= 1;
        }
        self.turns.next(&self.namespace);
    }
}

impl<K: Resource<DynamicType = ()> + Clone + Debug> Turns<K> {
    /// Nobody has one yet. `wake` is sent those whose turn has come.
    #[must_use]
    pub fn new(of_namespace: usize, wake: UnboundedSender<ObjectRef<K>>) -> Arc<Self> {
        Arc::new(Self { of_namespace, shares: Mutex::default(), wake })
    }

    /// The object's turn. `None`: it waits, and is woken.
    pub fn take(self: &Arc<Self>, object: &ObjectRef<K>) -> Option<Turn<K>> {
        let namespace = object.namespace.clone().unwrap_or_default();
        let mut shares = self.shares();
        let share = shares.entry(namespace.clone()).or_insert_with(|| Share {
            going: 0,
            queue: VecDeque::new(),
            waiting: HashSet::new(),
        });
        if share.going < self.of_namespace {
            share.going += 1;
            share.waiting.remove(object);
            return Some(Turn { turns: self.clone(), namespace });
        }
        if share.waiting.insert(object.clone()) {
            share.queue.push_back(object.clone());
        }
        None
    }
}

impl<K: Resource<DynamicType = ()>> Turns<K> {
    /// Wakes who waits longest in a namespace: a turn has ended, or the object that was woken is gone.
    pub fn next(&self, namespace: &str) {
        let mut shares = self.shares();
        let Some(share) = shares.get_mut(namespace) else { return };
        while let Some(object) = share.queue.pop_front() {
            if share.waiting.remove(&object) {
                // The receiver lives as long as the controllers do.
                let _ = self.wake.send(object);
                return;
            }
        }
        if share.going == 0 {
            shares.remove(namespace);
        }
    }

    fn shares(&self) -> MutexGuard<'_, HashMap<String, Share<K>>> {
        self.shares.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::Pod;
    use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

    fn turns(of_namespace: usize) -> (Arc<Turns<Pod>>, UnboundedReceiver<ObjectRef<Pod>>) {
        let (wake, woken) = unbounded_channel();
        (Turns::new(of_namespace, wake), woken)
    }

    fn object(namespace: &str, name: &str) -> ObjectRef<Pod> {
        ObjectRef::new(name).within(namespace)
    }

    #[test]
    fn a_namespace_that_is_slow_waits_for_itself_and_is_woken_in_order() {
        let (turns, mut woken) = turns(2);
        let [a, b, c, d] = ["a", "b", "c", "d"].map(|name| object("slow", name));
        let (of_a, of_b) = (turns.take(&a), turns.take(&b));
        assert!(of_a.is_some() && of_b.is_some());
        assert!(turns.take(&c).is_none() && turns.take(&d).is_none() && turns.take(&c).is_none());
        assert!(turns.take(&object("other", "x")).is_some(), "another namespace has its own");
        assert!(woken.try_recv().is_err());
        drop(of_a);
        assert_eq!(woken.try_recv(), Ok(c.clone()));
        let of_c = turns.take(&c);
        assert!(of_c.is_some());
        drop((of_b, of_c));
        assert_eq!(woken.try_recv(), Ok(d), "once");
        assert!(woken.try_recv().is_err());
        assert!(turns.shares().is_empty(), "nothing is kept of who has had enough");
    }

    #[test]
    fn one_that_is_gone_holds_up_nobody() {
        let (turns, mut woken) = turns(1);
        let [a, gone, b] = ["a", "gone", "b"].map(|name| object("ns", name));
        let of_a = turns.take(&a);
        assert!(turns.take(&gone).is_none() && turns.take(&b).is_none());
        drop(of_a);
        assert_eq!(woken.try_recv(), Ok(gone));
        turns.next("ns");
        assert_eq!(woken.try_recv(), Ok(b));
    }

    #[test]
    fn one_that_had_its_turn_meanwhile_is_not_woken() {
        let (turns, mut woken) = turns(1);
        let [a, b, c] = ["a", "b", "c"].map(|name| object("ns", name));
        let of_a = turns.take(&a);
        assert!(turns.take(&b).is_none() && turns.take(&c).is_none());
        drop(of_a);
        assert_eq!(woken.try_recv(), Ok(b));
        // It comes by itself, for it has changed.
        let of_c = turns.take(&c);
        assert!(of_c.is_some());
        drop(of_c);
        assert!(woken.try_recv().is_err());
    }
}
