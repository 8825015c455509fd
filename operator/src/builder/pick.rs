//! Which builder takes which job; pure.
//!
//! Jobs are served in the order of their runs. A job goes to the lowest slot of its trust domain that has room, for the
//! lower a slot, the warmer its cache; a new slot is opened only where all are full and the limits allow it, if need be
//! in the place of an idle builder of somebody else.

use std::collections::BTreeMap;

use super::identity::{BuilderId, TrustDomain};

/// A job that wants a builder.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Request {
    /// Who it builds for.
    pub domain: TrustDomain,
    /// What it must run on.
    pub architecture: String,
    /// The CA bundles that it needs, as [`super::config::bundle_hash`] names them.
    pub bundles: Vec<String>,
}

/// A builder pod as it stands.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Builder {
    /// Which one it is.
    pub id: BuilderId,
    /// Jobs that it holds.
    pub jobs: u32,
    /// CA bundles that it trusts.
    pub bundles: Vec<String>,
    /// Whether it was made from the pool as it is now.
    pub current: bool,
    /// Whether it is on its way out.
    pub terminating: bool,
    /// Whether it should have been gone long since, as on a lost node.
    pub stuck: bool,
}

impl Builder {
    fn serves(&self, request: &Request) -> bool {
        self.current && !self.terminating && request.bundles.iter().all(|bundle| self.bundles.contains(bundle))
    }
}

/// The pool's limits.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Limits {
    /// Jobs on one builder at once.
    pub jobs_per_builder: u32,
    /// Builders of the pool.
    pub builders: u32,
    /// Builders of one namespace, for each architecture.
    pub builders_per_namespace: u32,
}

/// What becomes of a request.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Choice {
    /// This builder takes it; it exists.
    Existing(BuilderId),
    /// This builder takes it; it is to be made.
    New(BuilderId),
    /// This idle builder must go first: it stands in the way.
    Evict(BuilderId),
    /// It waits until another job ends.
    Wait,
}

/// A choice for each request to a pool, in the same order.
#[must_use]
pub fn pick(pool: &str, requests: &[Request], builders: &[Builder], limits: Limits) -> Vec<Choice> {
    let mut builders: BTreeMap<BuilderId, (Builder, bool)> =
        builders.iter().map(|builder| (builder.id.clone(), (builder.clone(), true))).collect();
    requests
        .iter()
        .map(|request| {
            let choice = pick_one(pool, request, &builders, limits);
            match &choice {
                Choice::Existing(id) | Choice::New(id) => {
                    let fresh = || Builder {
                        id: id.clone(),
                        jobs: 0,
                        bundles: request.bundles.clone(),
                        current: true,
                        terminating: false,
                        stuck: false,
                    };
                    let (builder, _) = builders.entry(id.clone()).or_insert_with(|| (fresh(), false));
                    builder.jobs += 1;
                }
                Choice::Evict(id) => {
                    if let Some((builder, _)) = builders.get_mut(id) {
                        builder.terminating = true;
                    }
                }
                Choice::Wait => {}
            }
            choice
        })
        .collect()
}

fn pick_one(pool: &str, request: &Request, builders: &BTreeMap<BuilderId, (Builder, bool)>, limits: Limits) -> Choice {
    let siblings: Vec<&(Builder, bool)> = builders
        .values()
        .filter(|(builder, _)| builder.id.domain == request.domain && builder.id.architecture == request.architecture)
        .collect();
    if let Some((builder, exists)) =
        siblings.iter().find(|(builder, _)| builder.serves(request) && builder.jobs < limits.jobs_per_builder)
    {
        let id = builder.id.clone();
        return if *exists { Choice::Existing(id) } else { Choice::New(id) };
    }
    // A builder that lacks the CA, or was made from an older pool, is replaced once it is idle: its volume is kept.
    if let Some((builder, _)) =
        siblings.iter().find(|(builder, _)| !builder.terminating && !builder.serves(request) && builder.jobs == 0)
    {
        return Choice::Evict(builder.id.clone());
    }
    // Its slot, and with it the warm volume, is free in a moment.
    if siblings.iter().any(|(builder, _)| builder.terminating && !builder.stuck) {
        return Choice::Wait;
    }
    let of_namespace: Vec<&Builder> = builders
        .values()
        .map(|(builder, _)| builder)
        .filter(|builder| {
            builder.id.domain.namespace_uid == request.domain.namespace_uid
                && builder.id.architecture == request.architecture
        })
        .collect();
    let idle = |builder: &&&Builder| builder.jobs == 0 && !builder.terminating && builder.id.domain != request.domain;
    if of_namespace.len() >= limits.builders_per_namespace as usize {
        return of_namespace.iter().find(idle).map_or(Choice::Wait, |builder| Choice::Evict(builder.id.clone()));
    }
    if builders.len() >= limits.builders as usize {
        let all: Vec<&Builder> = builders.values().map(|(builder, _)| builder).collect();
        return all.iter().find(idle).map_or(Choice::Wait, |builder| Choice::Evict(builder.id.clone()));
    }
    let taken: Vec<u32> = siblings.iter().map(|(builder, _)| builder.id.slot).collect();
    let slot = (0..=limits.builders).find(|slot| !taken.contains(slot)).unwrap_or_default();
    Choice::New(BuilderId {
        pool: pool.to_owned(),
        domain: request.domain.clone(),
        architecture: request.architecture.clone(),
        slot,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_crds::image_build::CacheScope;
    use proptest::prelude::*;

    const LIMITS: Limits = Limits { jobs_per_builder: 2, builders: 4, builders_per_namespace: 2 };

    fn domain(namespace: &str) -> TrustDomain {
        TrustDomain::new(namespace, namespace, "", CacheScope::Namespace)
    }

    fn id(namespace: &str, slot: u32) -> BuilderId {
        BuilderId { pool: "p".into(), domain: domain(namespace), architecture: "amd64".into(), slot }
    }

    fn request(namespace: &str) -> Request {
        Request { domain: domain(namespace), architecture: "amd64".into(), bundles: vec![] }
    }

    fn builder(namespace: &str, slot: u32, jobs: u32) -> Builder {
        Builder { id: id(namespace, slot), jobs, bundles: vec![], current: true, terminating: false, stuck: false }
    }

    #[test]
    fn jobs_fill_the_lowest_slot_then_open_the_next_then_wait() {
        let requests = vec![request("a"); 5];
        let choices = pick("p", &requests, &[], LIMITS);
        assert_eq!(
            choices,
            [
                Choice::New(id("a", 0)),
                Choice::New(id("a", 0)),
                Choice::New(id("a", 1)),
                Choice::New(id("a", 1)),
                Choice::Wait
            ]
        );
        let choices = pick("p", &requests[..2], &[builder("a", 0, 1), builder("a", 1, 0)], LIMITS);
        assert_eq!(choices, [Choice::Existing(id("a", 0)), Choice::Existing(id("a", 1))]);
    }

    #[test]
    fn an_idle_builder_of_somebody_else_makes_room() {
        let full = [builder("b", 0, 0), builder("c", 0, 2), builder("d", 0, 2), builder("e", 0, 2)];
        assert_eq!(pick("p", &[request("a")], &full, LIMITS), [Choice::Evict(id("b", 0))]);
        let busy = [builder("b", 0, 1), builder("c", 0, 2), builder("d", 0, 2), builder("e", 0, 2)];
        assert_eq!(pick("p", &[request("a")], &busy, LIMITS), [Choice::Wait]);
    }

    #[test]
    fn a_builder_without_the_ca_or_of_an_older_pool_is_replaced_once_idle() {
        let mut wants = request("a");
        wants.bundles = vec!["ca".into()];
        assert_eq!(pick("p", &[wants.clone()], &[builder("a", 0, 0)], LIMITS), [Choice::Evict(id("a", 0))]);
        assert_eq!(pick("p", &[wants], &[builder("a", 0, 1)], LIMITS), [Choice::New(id("a", 1))]);
        let old = Builder { current: false, ..builder("a", 0, 0) };
        assert_eq!(pick("p", &[request("a")], &[old], LIMITS), [Choice::Evict(id("a", 0))]);
    }

    #[test]
    fn a_slot_on_its_way_out_is_waited_for_unless_it_is_stuck() {
        let leaving = Builder { terminating: true, ..builder("a", 0, 0) };
        assert_eq!(pick("p", &[request("a")], std::slice::from_ref(&leaving), LIMITS), [Choice::Wait]);
        let stuck = Builder { stuck: true, ..leaving };
        assert_eq!(pick("p", &[request("a")], &[stuck], LIMITS), [Choice::New(id("a", 1))]);
    }

    proptest! {
        #[test]
        fn limits_hold(
            wants in proptest::collection::vec("[a-c]", 0..20),
            jobs in proptest::collection::vec(0u32..3, 0..3),
        ) {
            let requests: Vec<Request> = wants.iter().map(|namespace| request(namespace)).collect();
            let builders: Vec<Builder> =
                jobs.iter().zip(["a", "b", "c"]).map(|(jobs, namespace)| builder(namespace, 0, *jobs)).collect();
            let choices = pick("p", &requests, &builders, LIMITS);
            prop_assert_eq!(choices.len(), requests.len());
            let mut load: BTreeMap<BuilderId, u32> = builders.iter().map(|b| (b.id.clone(), b.jobs)).collect();
            for (choice, request) in choices.iter().zip(&requests) {
                if let Choice::Existing(id) | Choice::New(id) = choice {
                    prop_assert_eq!(&id.domain, &request.domain);
                    *load.entry(id.clone()).or_default() += 1;
                }
            }
            prop_assert!(load.len() <= LIMITS.builders as usize);
            prop_assert!(load.values().all(|jobs| *jobs <= LIMITS.jobs_per_builder));
            for namespace in ["a", "b", "c"] {
                let count = load.keys().filter(|id| id.domain.namespace == namespace).count();
                prop_assert!(count <= LIMITS.builders_per_namespace as usize);
            }
        }
    }
}
