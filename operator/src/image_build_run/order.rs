//! In which order queued work is served, fair between namespaces; pure.
//!
//! Whoever queues a hundred builds must not hold up the one build of another namespace: what a namespace holds already,
//! and what it queued before, counts against its next one. Within a namespace the older goes first.

use std::collections::BTreeMap;

/// Sorts `queued`, which comes in the order of its age, by the work that its namespace has before it: what is `held` by
/// builders, and what was queued earlier. Of two with as much, the older goes first.
#[must_use]
pub fn fair<T>(queued: Vec<T>, namespace: impl Fn(&T) -> String, held: &BTreeMap<String, usize>) -> Vec<T> {
    let mut before = held.clone();
    let mut ranked: Vec<(usize, T)> = queued
        .into_iter()
        .map(|item| {
            let count = before.entry(namespace(&item)).or_default();
            *count += 1;
            (*count, item)
        })
        .collect();
    ranked.sort_by_key(|(rank, _)| *rank);
    ranked.into_iter().map(|(_, item)| item).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn served(queued: &[&str], held: &[(&str, usize)]) -> Vec<String> {
        let held = held.iter().map(|(namespace, count)| ((*namespace).to_owned(), *count)).collect();
        fair(queued.to_vec(), |item| item[..1].to_owned(), &held).into_iter().map(str::to_owned).collect()
    }

    #[test]
    fn namespaces_take_turns_and_what_they_hold_counts() {
        assert_eq!(served(&["a1", "a2", "a3", "b1"], &[]), ["a1", "b1", "a2", "a3"]);
        assert_eq!(served(&["a1", "a2", "b1", "b2"], &[("a", 1)]), ["b1", "a1", "b2", "a2"]);
        assert_eq!(served(&["a1", "a2"], &[("b", 9)]), ["a1", "a2"]);
    }

    proptest! {
        #[test]
        fn nobody_waits_for_another_namespace_longer_than_for_its_own(
            queued in proptest::collection::vec("[a-c]", 0..30),
        ) {
            let items: Vec<(usize, String)> = queued.into_iter().enumerate().collect();
            let order = fair(items.clone(), |(_, namespace)| namespace.clone(), &BTreeMap::new());
            prop_assert_eq!(order.len(), items.len());
            let mut served: BTreeMap<&str, usize> = BTreeMap::new();
            let mut last: BTreeMap<&str, usize> = BTreeMap::new();
            for (age, namespace) in &order {
                // Within a namespace by age.
                prop_assert!(last.insert(namespace, *age).is_none_or(|former| former < *age));
                let own = served.get(namespace.as_str()).copied().unwrap_or_default();
                prop_assert!(served.values().all(|others| *others <= own + 1));
                *served.entry(namespace).or_default() += 1;
            }
        }
    }
}
