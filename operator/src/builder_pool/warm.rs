//! `minBuilders`: which builders are kept up though nobody builds, which are missing, and which have nobody left to build
//! for; pure.

use std::collections::BTreeSet;

use crate::builder::pick::{Builder, Limits, Volume};
use crate::builder::{BuilderId, TrustDomain};

/// What the ImageBuilds of a pool want to be there.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Demand {
    /// How many builders are kept up at each place. 0: none, and idle ones go by time alone.
    pub least: usize,
    /// The trust domains of the pool's ImageBuilds.
    pub domains: BTreeSet<TrustDomain>,
    /// These, with each architecture that they build on.
    pub places: BTreeSet<(TrustDomain, String)>,
    /// The namespaces in which a build waits for a builder of the pool: a place is left for each, or what is kept warm would
    /// take the place that was made free for a build.
    pub waiting: BTreeSet<String>,
}

/// Where an idle builder stands.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Standing {
    /// It goes when it has been idle for long enough.
    #[default]
    Idle,
    /// It stays.
    Kept,
    /// It goes at once: its domain has no ImageBuild any more, or it is to be made anew from the pool as it is now.
    Surplus,
}

impl Demand {
    /// Where a builder stands among `all` of the pool.
    #[must_use]
    pub fn standing(&self, builder: &Builder, all: &[Builder]) -> Standing {
        if self.least == 0 {
            return Standing::Idle;
        }
        if !self.domains.contains(&builder.id.domain) {
            return Standing::Surplus;
        }
        if !self.places.contains(&place(&builder.id)) {
            return Standing::Idle;
        }
        if !builder.current {
            return Standing::Surplus;
        }
        let before = all.iter().filter(|other| {
            other.current
                && !other.terminating
                && place(&other.id) == place(&builder.id)
                && other.id.slot < builder.id.slot
        });
        if before.count() < self.least { Standing::Kept } else { Standing::Idle }
    }

    /// The builders that are to be made, within the pool's limits: nobody's builder or volume is taken for them.
    #[must_use]
    pub fn missing(&self, pool: &str, builders: &[Builder], volumes: &[Volume], limits: Limits) -> Vec<BuilderId> {
        let mut missing: Vec<BuilderId> = Vec::new();
        for (domain, architecture) in &self.places {
            let here = |id: &BuilderId| id.domain == *domain && id.architecture == *architecture;
            // The slot of one that is on its way out, and with it the warm volume, is free in a moment.
            let there = builders.iter().filter(|builder| here(&builder.id) && !builder.stuck).count();
            for _ in there..self.least {
                let id = |slot| BuilderId {
                    pool: pool.to_owned(),
                    domain: domain.clone(),
                    architecture: architecture.clone(),
                    slot,
                };
                let taken = |id: &BuilderId| missing.contains(id) || builders.iter().any(|builder| builder.id == *id);
                let free = (0..=limits.builders)
                    .map(id)
                    .find(|id| !taken(id) && !volumes.iter().any(|volume| volume.id == *id && volume.terminating));
                match free.filter(|id| self.has_room(id, &missing, builders, volumes, limits)) {
                    Some(id) => missing.push(id),
                    None => break,
                }
            }
        }
        missing
    }

    fn has_room(
        &self,
        id: &BuilderId,
        missing: &[BuilderId],
        builders: &[Builder],
        volumes: &[Volume],
        limits: Limits,
    ) -> bool {
        let namespace = |other: &BuilderId| other.domain.namespace_uid == id.domain.namespace_uid;
        let all = builders.iter().map(|builder| &builder.id).chain(missing);
        let alike = all.clone().filter(|other| namespace(other) && other.architecture == id.architecture).count();
        let in_turn = usize::from(self.waiting.contains(&id.domain.namespace));
        if all.count() + self.waiting.len() >= limits.builders as usize
            || alike + in_turn >= limits.builders_per_namespace as usize
        {
            return false;
        }
        if limits.volume_size == 0 || volumes.iter().any(|volume| volume.id == *id) {
            return true;
        }
        let theirs = volumes.iter().filter(|volume| namespace(&volume.id)).map(|volume| (&volume.id, volume.size));
        let known: BTreeSet<&BuilderId> = theirs.clone().map(|(id, _)| id).collect();
        let to_come = missing.iter().filter(|id| namespace(id) && !known.contains(id));
        let sizes = theirs.map(|(_, size)| size).chain(to_come.map(|_| limits.volume_size));
        let (count, size) =
            sizes.fold((1, limits.volume_size), |(count, all), size| (count + 1, all.saturating_add(size)));
        limits.volumes_per_namespace.is_none_or(|most| count <= most)
            && limits.storage_per_namespace.is_none_or(|most| size <= most)
    }
}

fn place(id: &BuilderId) -> (TrustDomain, String) {
    (id.domain.clone(), id.architecture.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::jiff::Timestamp;
    use kiln_crds::image_build::CacheScope;

    const LIMITS: Limits = Limits {
        jobs_per_builder: 4,
        builders: 20,
        builders_per_namespace: 4,
        volumes_per_namespace: None,
        storage_per_namespace: None,
        volume_size: 10,
    };

    fn domain(namespace: &str) -> TrustDomain {
        TrustDomain::new(namespace, namespace, "", CacheScope::Namespace)
    }

    fn id(namespace: &str, slot: u32) -> BuilderId {
        BuilderId { pool: "p".into(), domain: domain(namespace), architecture: "amd64".into(), slot }
    }

    fn builder(namespace: &str, slot: u32) -> Builder {
        Builder {
            id: id(namespace, slot),
            jobs: 0,
            bundles: vec![],
            taken: false,
            current: true,
            terminating: false,
            stuck: false,
            suspect: false,
        }
    }

    fn volume(namespace: &str, slot: u32) -> Volume {
        Volume { id: id(namespace, slot), size: 10, last_used: Timestamp::UNIX_EPOCH, terminating: false }
    }

    fn demand(least: usize, namespaces: &[&str]) -> Demand {
        let domains: BTreeSet<_> = namespaces.iter().map(|namespace| domain(namespace)).collect();
        let places = domains.iter().map(|domain| (domain.clone(), "amd64".to_owned())).collect();
        Demand { least, domains, places, waiting: BTreeSet::new() }
    }

    fn names(ids: &[BuilderId]) -> String {
        ids.iter().map(|id| format!("{}{}", id.domain.namespace, id.slot)).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn each_place_has_as_many_as_the_pool_says_within_its_limits() {
        let two = demand(2, &["a", "b"]);
        let missing = |demand: &Demand, builders: &[Builder], volumes: &[Volume], limits| {
            names(&demand.missing("p", builders, volumes, limits))
        };
        assert_eq!(missing(&two, &[], &[], LIMITS), "a0 a1 b0 b1");
        assert_eq!(missing(&demand(0, &["a"]), &[], &[], LIMITS), "");
        assert_eq!(missing(&two, &[builder("a", 1), builder("b", 0), builder("b", 1)], &[], LIMITS), "a0");
        let leaving = Builder { terminating: true, ..builder("a", 0) };
        assert_eq!(
            missing(&demand(1, &["a"]), std::slice::from_ref(&leaving), &[], LIMITS),
            "",
            "its slot is free in a moment"
        );
        let stuck = Builder { stuck: true, ..leaving };
        assert_eq!(missing(&demand(1, &["a"]), &[stuck], &[], LIMITS), "a1");
        let going = Volume { terminating: true, ..volume("a", 0) };
        assert_eq!(missing(&demand(1, &["a"]), &[], &[going], LIMITS), "a1");

        assert_eq!(missing(&two, &[builder("c", 0)], &[], Limits { builders: 3, ..LIMITS }), "a0 a1");
        assert_eq!(missing(&two, &[], &[], Limits { builders_per_namespace: 1, ..LIMITS }), "a0 b0");
        let volumes = Limits { volumes_per_namespace: Some(1), ..LIMITS };
        assert_eq!(missing(&two, &[], &[], volumes), "a0 b0");
        assert_eq!(missing(&two, &[], &[volume("a", 0), volume("a", 1)], volumes), "a0 a1 b0", "there already");
        assert_eq!(missing(&two, &[], &[], Limits { storage_per_namespace: Some(15), ..LIMITS }), "a0 b0");
        assert_eq!(missing(&two, &[], &[], Limits { volume_size: 0, ..volumes }), "a0 a1 b0 b1", "none has a volume");
    }

    #[test]
    fn a_build_that_waits_goes_first() {
        let waits = Demand { waiting: ["b".to_owned()].into(), ..demand(1, &["a", "b"]) };
        let missing = |limits| names(&waits.missing("p", &[], &[], limits));
        assert_eq!(missing(LIMITS), "a0 b0");
        assert_eq!(missing(Limits { builders: 2, ..LIMITS }), "a0");
        assert_eq!(missing(Limits { builders: 1, ..LIMITS }), "");
        assert_eq!(missing(Limits { builders_per_namespace: 1, ..LIMITS }), "a0");
    }

    #[test]
    fn the_lowest_slots_are_kept_and_those_of_nobody_go() {
        use Standing::{Idle, Kept, Surplus};
        let all = [
            Builder { terminating: true, ..builder("a", 0) },
            builder("a", 1),
            builder("a", 2),
            Builder { current: false, ..builder("b", 0) },
            builder("c", 0),
            Builder { id: BuilderId { architecture: "arm64".into(), ..id("a", 0) }, ..builder("a", 0) },
        ];
        let stand = |demand: Demand| all[1..].iter().map(|builder| demand.standing(builder, &all)).collect::<Vec<_>>();
        assert_eq!(stand(demand(1, &["a", "b"])), [Kept, Idle, Surplus, Surplus, Idle]);
        assert_eq!(stand(demand(2, &["a", "b"])), [Kept, Kept, Surplus, Surplus, Idle]);
        assert_eq!(stand(demand(0, &[])), [Idle; 5]);
    }
}
