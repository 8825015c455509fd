//! Which builder takes which job; pure.
//!
//! Jobs are served in the order of their runs. A job goes to the slot of its trust domain where it was last, for there is
//! its cache, if that has room or can be opened; else to the lowest slot that has room, for the lower a slot, the warmer
//! its cache. It prefers another than where it has just failed for the infrastructure's sake, and a builder that is silent gets
//! none. A new slot is opened only where all are full and the limits allow it, if need be in the place of an idle
//! builder of somebody else. A job that is to be alone takes an idle builder, and keeps others from it. A namespace at its
//! limit of volumes gives up the one that it has not used for longest, as a cache does.

use std::collections::BTreeMap;

use k8s_openapi::jiff::Timestamp;

use super::identity::{BuilderId, TrustDomain};

/// A job that wants a builder.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Request {
    /// Who it builds for.
    pub domain: TrustDomain,
    /// What it must run on.
    pub architecture: String,
    /// The CA bundles that it needs, as [`super::config::Bundle::hash`] names them.
    pub bundles: Vec<String>,
    /// The name of the builder that its ImageBuild had last for the same platform.
    pub last: Option<String>,
    /// Whether no other is to build there meanwhile.
    pub alone: bool,
    /// The name of the builder on which the infrastructure failed its last attempt: another one, if there is any.
    pub avoids: Option<String>,
}

impl Request {
    fn was_last_on(&self, id: &BuilderId) -> bool {
        self.last.as_ref().is_some_and(|last| *last == id.name()) && !self.avoids(id)
    }

    fn avoids(&self, id: &BuilderId) -> bool {
        self.avoids.as_ref().is_some_and(|avoided| *avoided == id.name())
    }
}

/// A builder pod as it stands.
#[derive(Clone, Debug, Eq, PartialEq)]
#[allow(clippy::struct_excessive_bools, reason = "five facts that can be true together")]
pub struct Builder {
    /// Which one it is.
    pub id: BuilderId,
    /// Jobs that it holds.
    pub jobs: u32,
    /// CA bundles that it trusts.
    pub bundles: Vec<String>,
    /// Whether one job has it for itself.
    pub taken: bool,
    /// Whether it was made from the pool as it is now.
    pub current: bool,
    /// Whether it is on its way out.
    pub terminating: bool,
    /// Whether it should have been gone long since, as on a lost node.
    pub stuck: bool,
    /// Whether its agent is silent: it may be lost, with what it is given.
    pub suspect: bool,
}

impl Builder {
    /// Whether there is room for a request.
    fn is_open(&self, request: &Request, jobs: u32) -> bool {
        !self.taken && !self.suspect && self.jobs < if request.alone { 1 } else { jobs } && self.serves(request)
    }

    fn serves(&self, request: &Request) -> bool {
        self.current && !self.terminating && request.bundles.iter().all(|bundle| self.bundles.contains(bundle))
    }
}

/// A cache volume as it stands.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Volume {
    /// Whose it is.
    pub id: BuilderId,
    /// What it asks for, in bytes.
    pub size: u64,
    /// When it was last known to be in use, or was made.
    pub last_used: Timestamp,
    /// Whether it is on its way out.
    pub terminating: bool,
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
    /// Cache volumes of one namespace.
    pub volumes_per_namespace: Option<u32>,
    /// What the cache volumes of one namespace ask for together, in bytes.
    pub storage_per_namespace: Option<u64>,
    /// What a new builder's volume asks for, in bytes. 0: builders have none.
    pub volume_size: u64,
}

/// What a request waits for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Wait {
    /// A slot that is on its way out.
    Slot,
    /// One of the namespace's builders, which are all at work.
    BuildersPerNamespace,
    /// One of the pool's builders, which are all at work.
    Builders,
    /// One of the namespace's volumes, which are all in use.
    VolumesPerNamespace,
    /// Room among the namespace's volumes, which are all in use.
    StoragePerNamespace,
}

impl Wait {
    /// What is waited for, and what the owner of the pool can do about it.
    #[must_use]
    pub fn explain(self, pool: &str, limits: &Limits) -> String {
        let Limits { builders, builders_per_namespace, .. } = limits;
        match self {
            Self::Slot => "a builder is on its way out, and its place and its cache are free in a moment".to_owned(),
            Self::BuildersPerNamespace => format!(
                "all {builders_per_namespace} builders that this namespace may have for each architecture in the \
                 BuilderPool {pool} are at work: it begins when one is free, or when limits.buildersPerNamespace is raised"
            ),
            Self::Builders => format!(
                "all {builders} builders of the BuilderPool {pool} are at work: it begins when one is free, or when \
                 maxBuilders is raised"
            ),
            Self::VolumesPerNamespace => format!(
                "all {} cache volumes that this namespace may have in the BuilderPool {pool} are in use: it begins when \
                 one is free, or when limits.volumesPerNamespace is raised",
                limits.volumes_per_namespace.unwrap_or_default()
            ),
            Self::StoragePerNamespace if limits.storage_per_namespace.is_some_and(|most| limits.volume_size > most) => {
                format!(
                    "a cache volume of the BuilderPool {pool} is larger than all that a namespace may have: raise \
                     limits.storagePerNamespace, or lower cache.size"
                )
            }
            Self::StoragePerNamespace => format!(
                "another cache volume would be more than limits.storagePerNamespace of the BuilderPool {pool} lets this \
                 namespace have, and all that it has are in use: it begins when one is free, or when that limit is raised"
            ),
        }
    }
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
    /// This volume that nobody uses must go first, with its builder, for the namespace is at its limit.
    Reclaim(BuilderId),
    /// It waits until another job ends.
    Wait(Wait),
}

/// What a pool has.
struct Stock {
    /// The builders, and whether each exists already.
    builders: BTreeMap<BuilderId, (Builder, bool)>,
    volumes: BTreeMap<BuilderId, Volume>,
}

impl Stock {
    /// Has a builder become idle for a request that wants one for itself: those behind it would always find room first.
    fn keep_for(&mut self, request: &Request) {
        let builders = self.builders.values_mut().map(|(builder, _)| builder).filter(|builder| {
            let is_own = builder.id.domain == request.domain && builder.id.architecture == request.architecture;
            request.alone && is_own && !builder.taken && !builder.suspect && builder.serves(request)
        });
        if let Some(builder) = builders.min_by_key(|builder| builder.jobs) {
            builder.taken = true;
        }
    }
}

/// A choice for each request to a pool, in the same order.
#[must_use]
pub fn pick(pool: &str, requests: &[Request], builders: &[Builder], volumes: &[Volume], limits: Limits) -> Vec<Choice> {
    let mut stock = Stock {
        builders: builders.iter().map(|builder| (builder.id.clone(), (builder.clone(), true))).collect(),
        volumes: volumes.iter().map(|volume| (volume.id.clone(), volume.clone())).collect(),
    };
    requests
        .iter()
        .map(|request| {
            let choice = pick_one(pool, request, &stock, limits);
            match &choice {
                Choice::Existing(id) | Choice::New(id) => {
                    let fresh = || Builder {
                        id: id.clone(),
                        jobs: 0,
                        bundles: bundles_of(request, requests),
                        taken: false,
                        current: true,
                        terminating: false,
                        stuck: false,
                        suspect: false,
                    };
                    let (builder, _) = stock.builders.entry(id.clone()).or_insert_with(|| (fresh(), false));
                    builder.jobs += 1;
                    builder.taken |= request.alone;
                    if limits.volume_size > 0 {
                        let last_used = Timestamp::MAX;
                        let fresh =
                            || Volume { id: id.clone(), size: limits.volume_size, last_used, terminating: false };
                        stock.volumes.entry(id.clone()).or_insert_with(fresh);
                    }
                }
                Choice::Evict(id) | Choice::Reclaim(id) => {
                    if let Some((builder, _)) = stock.builders.get_mut(id) {
                        builder.terminating = true;
                    }
                    if let Some(volume) = stock.volumes.get_mut(id).filter(|_| matches!(choice, Choice::Reclaim(_))) {
                        volume.terminating = true;
                    }
                }
                Choice::Wait(Wait::Slot) => {}
                Choice::Wait(_) => stock.keep_for(request),
            }
            choice
        })
        .collect()
}

/// What a builder that is to be made will trust: it is made with the CAs of all in its domain, so that those who ask at
/// the same time share it.
fn bundles_of(request: &Request, requests: &[Request]) -> Vec<String> {
    let alike = |other: &&Request| other.domain == request.domain && other.architecture == request.architecture;
    requests.iter().filter(alike).flat_map(|other| other.bundles.iter().cloned()).collect()
}

fn pick_one(pool: &str, request: &Request, stock: &Stock, limits: Limits) -> Choice {
    let builders = &stock.builders;
    let siblings: Vec<&(Builder, bool)> = builders
        .values()
        .filter(|(builder, _)| builder.id.domain == request.domain && builder.id.architecture == request.architecture)
        .collect();
    let open = siblings
        .iter()
        .filter(|(builder, _)| builder.is_open(request, limits.jobs_per_builder))
        // The first of those that are alike.
        .min_by_key(|(builder, _)| (request.avoids(&builder.id), !request.was_last_on(&builder.id)));
    let all = || builders.values().map(|(builder, _)| builder);
    let of_namespace = || {
        all().filter(|builder| {
            builder.id.domain.namespace_uid == request.domain.namespace_uid
                && builder.id.architecture == request.architecture
        })
    };
    let namespace_is_full = || of_namespace().count() >= limits.builders_per_namespace as usize;
    let pool_is_full = builders.len() >= limits.builders as usize;
    let id = |slot| BuilderId {
        pool: pool.to_owned(),
        domain: request.domain.clone(),
        architecture: request.architecture.clone(),
        slot,
    };
    let mut free = (0..=limits.builders).map(id).filter(|id| !builders.contains_key(id));
    let mut kept = free.clone().filter(|id| stock.volumes.get(id).is_some_and(|volume| !volume.terminating));
    if let Some((builder, exists)) = open {
        // A builder is up in seconds; what its cache does not have takes as long as it did the first time.
        let last = if request.was_last_on(&builder.id) { None } else { kept.find(|id| request.was_last_on(id)) };
        if let Some(last) = last.filter(|_| !pool_is_full && !namespace_is_full()) {
            return Choice::New(last);
        }
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
        return Choice::Wait(Wait::Slot);
    }
    let idle = |builder: &&Builder| builder.jobs == 0 && !builder.terminating && builder.id.domain != request.domain;
    if namespace_is_full() {
        return evict(of_namespace(), idle, Wait::BuildersPerNamespace);
    }
    if pool_is_full {
        return evict(all(), idle, Wait::Builders);
    }
    // A slot that has its cache already, before one that is to begin without; its own before another's.
    if let Some(id) = kept.min_by_key(|id| !request.was_last_on(id)) {
        return Choice::New(id);
    }
    match free.find(|id| !stock.volumes.contains_key(id)) {
        Some(id) => reclaim(request, stock, limits).unwrap_or(Choice::New(id)),
        None => Choice::Wait(Wait::Slot),
    }
}

fn evict<'a>(
    mut among: impl Iterator<Item = &'a Builder>,
    idle: impl Fn(&&Builder) -> bool,
    otherwise: Wait,
) -> Choice {
    among.find(|builder| idle(builder)).map_or(Choice::Wait(otherwise), |builder| Choice::Evict(builder.id.clone()))
}

/// What must happen before the namespace of a request may have one more volume. `None`: nothing.
fn reclaim(request: &Request, stock: &Stock, limits: Limits) -> Option<Choice> {
    if limits.volume_size == 0 {
        return None;
    }
    let of_namespace = || stock.volumes.values().filter(|v| v.id.domain.namespace_uid == request.domain.namespace_uid);
    // The limit that one more volume would break, beside those that are there and count.
    let broken = |counts: fn(&&Volume) -> bool| {
        let (count, size) = of_namespace()
            .filter(counts)
            .fold((1, limits.volume_size), |(count, size), volume| (count + 1, size.saturating_add(volume.size)));
        if limits.volumes_per_namespace.is_some_and(|most| count > most) {
            Some(Wait::VolumesPerNamespace)
        } else if limits.storage_per_namespace.is_some_and(|most| size > most) {
            Some(Wait::StoragePerNamespace)
        } else {
            None
        }
    };
    let limit = broken(|_| true)?;
    // Enough are on their way out, or none can help.
    let larger_than_all = limits.storage_per_namespace.is_some_and(|most| limits.volume_size > most);
    if larger_than_all || broken(|volume| !volume.terminating).is_none() {
        return Some(Choice::Wait(limit));
    }
    let builder = |volume: &Volume| stock.builders.get(&volume.id).map(|(builder, _)| builder);
    let unused = of_namespace()
        .filter(|volume| !volume.terminating)
        .filter(|volume| builder(volume).is_none_or(|builder| builder.jobs == 0 && !builder.terminating))
        .min_by_key(|volume| (builder(volume).is_some(), volume.last_used));
    Some(unused.map_or(Choice::Wait(limit), |volume| Choice::Reclaim(volume.id.clone())))
}

#[cfg(test)]
#[path = "pick_tests.rs"]
mod tests;
