//! Claims: a run says in its status which tags it is about to move before it looks whether it may, so of two that want the
//! same tag at once at least one sees the other.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kiln_crds::ImageBuildRun;
use kiln_crds::image_build::TagStatus;
use kiln_crds::image_build_run::RunPhase;
use kube::ResourceExt;

use super::Asker;
use super::ownership::{Conflict, Place, wanted};
use super::template::Values;

/// The tags that one run is about to move.
#[derive(Clone, Debug)]
pub struct Claim {
    at: Timestamp,
    /// The ImageBuild's.
    uid: String,
    namespace: String,
    name: String,
    places: BTreeSet<Place>,
}

impl Claim {
    fn new(run: &ImageBuildRun, tags: &[TagStatus], at: Timestamp) -> Self {
        Self {
            at,
            uid: run.spec.image_build.uid.clone(),
            namespace: run.namespace().unwrap_or_default(),
            name: run.spec.image_build.name.clone(),
            places: tags.iter().map(Place::of).collect(),
        }
    }

    /// What a run's status claims; nothing where it does not publish. Whoever wrote the status claims no more than the run's
    /// spec can give.
    #[must_use]
    pub fn of(run: &ImageBuildRun) -> Option<Self> {
        let status = run.status.as_ref().filter(|status| status.phase == RunPhase::Publishing)?;
        let at = status.publishing_at.as_ref()?.0;
        let given: BTreeSet<Place> = wanted(&run.spec.build, Values::of(run)).ok()?.iter().map(Place::of).collect();
        let claim = Self::new(run, &status.tags, at);
        let places: BTreeSet<Place> = claim.places.intersection(&given).cloned().collect();
        (!places.is_empty()).then_some(Self { places, ..claim })
    }
}

/// The first of the wanted tags that another ImageBuild has claimed before: of two claims the earlier one stands, of two of
/// the same time that of the smaller UID.
#[must_use]
pub fn claimant(wanted: &[TagStatus], asker: Asker<'_>, claims: &[Claim]) -> Option<Conflict> {
    let stands = |claim: &&Claim| {
        claim.uid != asker.uid && asker.claimed_at.is_none_or(|at| (claim.at, claim.uid.as_str()) < (at, asker.uid))
    };
    let standing: Vec<&Claim> = claims.iter().filter(stands).collect();
    wanted.iter().find_map(|tag| {
        let place = Place::of(tag);
        let claim = standing.iter().find(|claim| claim.places.contains(&place))?;
        Some(Conflict {
            tag: tag.clone(),
            namespace: claim.namespace.clone(),
            name: claim.name.clone(),
            is_claim: true,
        })
    })
}

/// The claims that this process has made, by the run's UID: the copy of the runs may not show them yet.
#[derive(Default)]
pub struct Claims {
    by_run: Mutex<HashMap<String, Claim>>,
}

impl Claims {
    /// Claims these tags for a run, later than every claim before, those of `runs` too. What is returned belongs into the
    /// run's status.
    pub fn claim(
        &self,
        run: &ImageBuildRun,
        tags: &[TagStatus],
        runs: &[Arc<ImageBuildRun>],
        now: Timestamp,
    ) -> Timestamp {
        let mut claims = self.by_run.lock().unwrap_or_else(PoisonError::into_inner);
        // As the status holds it.
        let now = Timestamp::from_microsecond(now.as_microsecond()).unwrap_or(now);
        // Those of another operator's clock; what is far from this one is no clock's.
        let latest = now.checked_add(SignedDuration::from_mins(1)).unwrap_or(now);
        let told = runs.iter().filter_map(|run| Claim::of(run)).map(|claim| claim.at).filter(|at| *at <= latest);
        let last = claims.values().map(|claim| claim.at).chain(told).max();
        let after = last.and_then(|last| last.checked_add(SignedDuration::from_micros(1)).ok());
        let at = after.map_or(now, |after| after.max(now));
        claims.insert(run.uid().unwrap_or_default(), Claim::new(run, tags, at));
        at
    }

    /// Gives up what a run has claimed.
    pub fn release(&self, run_uid: &str) {
        self.by_run.lock().unwrap_or_else(PoisonError::into_inner).remove(run_uid);
    }

    /// Forgets the claims of all runs but these.
    pub fn retain(&self, keep: impl Fn(&str) -> bool) {
        self.by_run.lock().unwrap_or_else(PoisonError::into_inner).retain(|run_uid, _| keep(run_uid));
    }

    /// All claims that stand: this process's, and those that other runs tell.
    #[must_use]
    pub fn standing(&self, runs: &[Arc<ImageBuildRun>]) -> Vec<Claim> {
        let own = self.by_run.lock().unwrap_or_else(PoisonError::into_inner);
        let others = runs.iter().filter(|run| run.metadata.uid.as_ref().is_none_or(|uid| !own.contains_key(uid)));
        own.values().cloned().chain(others.filter_map(|run| Claim::of(run))).collect()
    }

    /// Whether nothing is claimed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_run.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::super::ownership::tests::{moving, tag};
    use super::*;

    fn at(micro: i64) -> Timestamp {
        Timestamp::from_microsecond(micro).unwrap()
    }

    #[test]
    fn of_two_claims_the_earlier_stands() {
        let (a, b) = (moving("a", "ns-a", &["stable"]), moving("b", "ns-b", &["stable"]));
        let wanted = [tag("r.example/app", "stable")];
        for (now_a, now_b, first) in [(5, 9, "a"), (9, 5, "b"), (7, 7, "a")] {
            for in_status in [false, true] {
                let claims = Claims::default();
                let (mut a, mut b) = (a.clone(), b.clone());
                let (at_a, at_b) = if in_status {
                    (at(now_a), at(now_b))
                } else if now_a <= now_b {
                    let first = claims.claim(&a, &wanted, &[], at(now_a));
                    (first, claims.claim(&b, &wanted, &[], at(now_b)))
                } else {
                    let first = claims.claim(&b, &wanted, &[], at(now_b));
                    (claims.claim(&a, &wanted, &[], at(now_a)), first)
                };
                for (run, at) in [(&mut a, at_a), (&mut b, at_b)] {
                    let status = run.status.as_mut().unwrap();
                    status.publishing_at = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime(at));
                }
                let runs = if in_status { vec![Arc::new(a), Arc::new(b)] } else { Vec::new() };
                let standing = claims.standing(&runs);
                let loses = |uid: &str, at| {
                    let asker = Asker { uid, namespace: "ns", claimed_at: at };
                    claimant(&wanted, asker, &standing).map(|conflict| conflict.name)
                };
                assert_eq!(
                    loses("a", Some(at_a)),
                    (first == "b").then(|| "b".to_owned()),
                    "{now_a} {now_b} {in_status}"
                );
                assert_eq!(
                    loses("b", Some(at_b)),
                    (first == "a").then(|| "a".to_owned()),
                    "{now_a} {now_b} {in_status}"
                );
                assert!(loses("c", None).is_some(), "who has not claimed sees every claim");
            }
        }
    }

    #[test]
    fn claims_of_this_process_are_never_made_at_one_time() {
        let (claims, wanted) = (Claims::default(), [tag("r.example/app", "stable")]);
        let first = claims.claim(&moving("a", "ns", &[]), &wanted, &[], at(7));
        assert!(claims.claim(&moving("b", "ns", &[]), &wanted, &[], at(3)) > first);
        claims.release("a-1");
        assert_eq!(claims.standing(&[]).len(), 1);
        let mut ended = moving("c", "ns", &["stable"]);
        ended.status.as_mut().unwrap().phase = RunPhase::Succeeded;
        assert_eq!(claims.standing(&[Arc::new(ended)]).len(), 1, "what has ended claims nothing");
    }
}
