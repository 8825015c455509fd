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
const OF_NAMESPACE: usize = 8;
/// How many more of one namespace may wait for transfers, of which a tenant has so many at once.
const TRANSFERRING: usize = 2;

/// What a reconcile may wait for. Each has turns of its own, so that a run whose transfers wait for those of other tenants
/// does not keep its neighbours from being placed, cancelled or deleted.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Kind {
    /// What the object itself names.
    Usual,
    /// Room for transfers, which all tenants share.
    Transfers,
}

impl Kind {
    const ALL: [Self; 2] = [Self::Usual, Self::Transfers];

    fn at_once(self) -> usize {
        match self {
            Self::Usual => OF_NAMESPACE,
            Self::Transfers => TRANSFERRING,
        }
    }
}

/// Gives turns to objects of a kind.
pub struct Turns<K: Resource<DynamicType = ()>> {
    shares: Mutex<HashMap<(String, Kind), Share<K>>>,
    wake: UnboundedSender<ObjectRef<K>>,
}

/// What a namespace has of turns.
struct Share<K: Resource<DynamicType = ()>> {
    at_once: usize,
    going: usize,
    /// Those that were woken: their turns are kept for them.
    promised: HashSet<ObjectRef<K>>,
    /// In the order in which they came; one that went away since is in `waiting` no more.
    queue: VecDeque<ObjectRef<K>>,
    waiting: HashSet<ObjectRef<K>>,
}

impl<K: Resource<DynamicType = ()>> Share<K> {
    fn has_room(&self) -> bool {
        self.going + self.promised.len() < self.at_once
    }

    /// The object wants no turn of this share any more.
    fn withdraw(&mut self, object: &ObjectRef<K>) {
        self.promised.remove(object);
        self.waiting.remove(object);
    }

    /// Wakes who waits longest, as far as there is room.
    fn advance(&mut self, wake: &UnboundedSender<ObjectRef<K>>) {
        while self.has_room() {
            let Some(object) = self.queue.pop_front() else { return };
            if self.waiting.remove(&object) {
                self.promised.insert(object.clone());
                // The receiver lives as long as the controllers do.
                let _ = wake.send(object);
            }
        }
    }

    fn is_idle(&self) -> bool {
        self.going == 0 && self.promised.is_empty() && self.waiting.is_empty()
    }
}

/// Lasts until it is dropped; then the next one of its namespace is woken.
#[must_use]
pub struct Turn<K: Resource<DynamicType = ()>> {
    turns: Arc<Turns<K>>,
    namespace: String,
    kind: Kind,
}

impl<K: Resource<DynamicType = ()>> Drop for Turn<K> {
    fn drop(&mut self) {
        self.turns.with(&self.namespace, self.kind, |share| share.going -= 1);
    }
}

impl<K: Resource<DynamicType = ()>> Turns<K> {
    /// Nobody has one yet. `wake` is sent those whose turn has come.
    #[must_use]
    pub fn new(wake: UnboundedSender<ObjectRef<K>>) -> Arc<Self> {
        Arc::new(Self { shares: Mutex::default(), wake })
    }

    /// The object's turn. `None`: it waits, and is woken.
    pub fn take(self: &Arc<Self>, object: &ObjectRef<K>, kind: Kind) -> Option<Turn<K>> {
        let namespace = object.namespace.clone().unwrap_or_default();
        let mut shares = self.shares();
        // What it waits for may have changed.
        for other in Kind::ALL.into_iter().filter(|other| *other != kind) {
            self.change(&mut shares, &namespace, other, |share| share.withdraw(object));
        }
        let share = shares.entry((namespace.clone(), kind)).or_insert_with(|| Share {
            at_once: kind.at_once(),
            going: 0,
            promised: HashSet::new(),
            queue: VecDeque::new(),
            waiting: HashSet::new(),
        });
        if share.promised.remove(object) || share.has_room() {
            share.going += 1;
            share.waiting.remove(object);
            return Some(Turn { turns: self.clone(), namespace, kind });
        }
        if share.waiting.insert(object.clone()) {
            share.queue.push_back(object.clone());
        }
        None
    }

    /// The object is gone: what it waited for is the next one's.
    pub fn gone(&self, object: &ObjectRef<K>) {
        let namespace = object.namespace.as_deref().unwrap_or_default();
        for kind in Kind::ALL {
            self.with(namespace, kind, |share| share.withdraw(object));
        }
    }

    fn with(&self, namespace: &str, kind: Kind, change: impl FnOnce(&mut Share<K>)) {
        self.change(&mut self.shares(), namespace, kind, change);
    }

    /// Changes a share where there is one, and wakes whom that gives a turn.
    fn change(
        &self,
        shares: &mut HashMap<(String, Kind), Share<K>>,
        namespace: &str,
        kind: Kind,
        change: impl FnOnce(&mut Share<K>),
    ) {
        let key = (namespace.to_owned(), kind);
        let Some(share) = shares.get_mut(&key) else { return };
        change(share);
        share.advance(&self.wake);
        if share.is_idle() {
            shares.remove(&key);
        }
    }

    fn shares(&self) -> MutexGuard<'_, HashMap<(String, Kind), Share<K>>> {
        self.shares.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::Pod;
    use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

    fn turns() -> (Arc<Turns<Pod>>, UnboundedReceiver<ObjectRef<Pod>>) {
        let (wake, woken) = unbounded_channel();
        (Turns::new(wake), woken)
    }

    fn object(namespace: &str, name: impl Into<String>) -> ObjectRef<Pod> {
        ObjectRef::new(&name.into()).within(namespace)
    }

    /// All turns of a kind.
    fn all(turns: &Arc<Turns<Pod>>, namespace: &str, kind: Kind) -> Vec<Turn<Pod>> {
        (0..kind.at_once()).map(|number| turns.take(&object(namespace, number.to_string()), kind).unwrap()).collect()
    }

    #[test]
    fn a_namespace_that_is_slow_waits_for_itself_and_is_woken_in_order() {
        let (turns, mut woken) = turns();
        let mut going = all(&turns, "slow", Kind::Usual);
        let [c, d] = ["c", "d"].map(|name| object("slow", name));
        let take = |object: &ObjectRef<Pod>| turns.take(object, Kind::Usual);
        assert!(take(&c).is_none() && take(&d).is_none() && take(&c).is_none());
        assert!(take(&object("other", "x")).is_some(), "another namespace has its own");
        assert!(woken.try_recv().is_err());
        going.pop();
        assert_eq!(woken.try_recv(), Ok(c.clone()));
        assert!(take(&object("slow", "new")).is_none(), "the turn is kept for who was woken");
        going.push(take(&c).unwrap());
        drop(going);
        assert_eq!([woken.try_recv(), woken.try_recv()], [Ok(d.clone()), Ok(object("slow", "new"))]);
        assert!(woken.try_recv().is_err(), "once");
        assert!(take(&d).is_some() && take(&object("slow", "new")).is_some());
        assert!(turns.shares().is_empty(), "nothing is kept of who has had enough");
    }

    #[test]
    fn one_that_is_gone_holds_up_nobody() {
        let (turns, mut woken) = turns();
        let mut going = all(&turns, "ns", Kind::Usual);
        let [gone, never, b] = ["gone", "never", "b"].map(|name| object("ns", name));
        assert!([&gone, &never, &b].iter().all(|object| turns.take(object, Kind::Usual).is_none()));
        turns.gone(&never);
        turns.gone(&object("ns", "unknown"));
        going.pop();
        assert_eq!(woken.try_recv(), Ok(gone.clone()));
        turns.gone(&gone);
        assert_eq!(woken.try_recv(), Ok(b.clone()));
        assert!(turns.take(&b, Kind::Usual).is_some());
        drop(going);
        assert!(woken.try_recv().is_err() && turns.shares().is_empty());
    }

    #[test]
    fn transfers_hold_up_nothing_else() {
        let (turns, mut woken) = turns();
        let going = all(&turns, "ns", Kind::Transfers);
        let [a, b] = ["a", "b"].map(|name| object("ns", name));
        assert!(turns.take(&a, Kind::Transfers).is_none() && turns.take(&b, Kind::Transfers).is_none());
        assert!(turns.take(&a, Kind::Usual).is_some(), "it has been cancelled");
        drop(going);
        assert_eq!(woken.try_recv(), Ok(b.clone()));
        assert!(woken.try_recv().is_err());
        assert!(turns.take(&b, Kind::Transfers).is_some() && turns.shares().is_empty());
    }
}
