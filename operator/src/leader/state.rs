//! What a candidate may do, from the Lease as it last saw it and from its own monotonic clock alone. Other machines'
//! clocks are never compared with: a Lease expires when it has not changed for its duration, as seen from here.

use std::time::Instant;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::LeaseSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;

use super::Timing;

/// What is to be done now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Try to write the Lease: it is free, or has expired.
    Acquire,
    /// Write it again: it is ours.
    Renew,
    /// It is another's.
    Wait,
    /// It was ours, and is no more, or may not be for long enough.
    Lost,
}

/// A candidate's memory.
#[derive(Clone, Debug)]
pub(super) struct Machine {
    identity: String,
    timing: Timing,
    /// The Lease as last seen, and when it was first seen so.
    observed: Option<(LeaseSpec, Instant)>,
    /// When the last successful write was sent; none before the first.
    renewed: Option<Instant>,
}

impl Machine {
    pub(super) fn new(identity: &str, timing: Timing) -> Self {
        Self { identity: identity.to_owned(), timing, observed: None, renewed: None }
    }

    /// Takes note of the Lease as read; `None` where there is none.
    pub(super) fn observe(&mut self, record: Option<&LeaseSpec>, now: Instant) {
        match (record, &self.observed) {
            (Some(record), Some((known, _))) if record == known => {}
            (Some(record), _) => self.observed = Some((record.clone(), now)),
            (None, _) => self.observed = None,
        }
    }

    /// Takes note of a successful write that was sent at `sent`.
    pub(super) fn written(&mut self, record: Option<&LeaseSpec>, sent: Instant) {
        self.observe(record, sent);
        self.renewed = Some(sent);
    }

    /// Until when this candidate leads without another write.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.renewed.map(|renewed| renewed + self.timing.renew_deadline)
    }

    pub(super) fn step(&self, now: Instant) -> Step {
        let holder = self.observed.as_ref().and_then(|(record, _)| record.holder_identity.as_deref());
        let ours = holder == Some(self.identity.as_str());
        match self.deadline() {
            Some(deadline) if ours && now < deadline => Step::Renew,
            Some(_) => Step::Lost,
            None => match (&self.observed, holder) {
                // Our own from a former life: identities are unique, so nobody else acts by it.
                (None, _) | (_, None | Some("")) => Step::Acquire,
                _ if ours => Step::Acquire,
                (Some((record, since)), _) => {
                    let expires = *since + self.duration(record);
                    if now < expires { Step::Wait } else { Step::Acquire }
                }
            },
        }
    }

    /// How long the holder of `record` asked to be waited for.
    fn duration(&self, record: &LeaseSpec) -> std::time::Duration {
        record
            .lease_duration_seconds
            .and_then(|seconds| u64::try_from(seconds).ok())
            .map_or(self.timing.lease, std::time::Duration::from_secs)
    }

    /// What to write to acquire or renew.
    pub(super) fn record(&self, now: Timestamp) -> LeaseSpec {
        let known = self.observed.as_ref().map(|(record, _)| record);
        let ours = known.is_some_and(|record| record.holder_identity.as_deref() == Some(self.identity.as_str()));
        let transitions = known.and_then(|record| record.lease_transitions).unwrap_or(0);
        let seconds = self.timing.lease.as_secs().max(1);
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: Some(i32::try_from(seconds).unwrap_or(i32::MAX)),
            acquire_time: known
                .filter(|_| ours)
                .and_then(|record| record.acquire_time.clone())
                .or(Some(MicroTime(now))),
            renew_time: Some(MicroTime(now)),
            lease_transitions: Some(if ours || known.is_none() { transitions } else { transitions.saturating_add(1) }),
            ..known.cloned().unwrap_or_default()
        }
    }
}

/// What to write to give the Lease `held` back.
pub(super) fn released(held: &LeaseSpec, now: Timestamp) -> LeaseSpec {
    LeaseSpec {
        holder_identity: Some(String::new()),
        lease_duration_seconds: Some(1),
        renew_time: Some(MicroTime(now)),
        ..held.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::super::TIMING;
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    fn held_by(holder: &str, renewed: i64) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(holder.into()),
            lease_duration_seconds: Some(15),
            renew_time: Some(MicroTime(Timestamp::from_second(renewed).unwrap())),
            lease_transitions: Some(3),
            ..LeaseSpec::default()
        }
    }

    fn at(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    #[test]
    fn a_candidate_waits_for_a_silent_leader_only() {
        let start = Instant::now();
        let mut machine = Machine::new("me", TIMING);
        assert_eq!(machine.step(start), Step::Acquire);
        machine.observe(Some(&held_by("other", 0)), start);
        assert_eq!(machine.step(at(start, 14)), Step::Wait);
        assert_eq!(machine.step(at(start, 15)), Step::Acquire);
        // A renewal starts the wait anew, whatever the other's clock says.
        machine.observe(Some(&held_by("other", -1000)), at(start, 14));
        assert_eq!(machine.step(at(start, 28)), Step::Wait);
        // Seeing the same again does not.
        machine.observe(Some(&held_by("other", -1000)), at(start, 28));
        assert_eq!(machine.step(at(start, 29)), Step::Acquire);
    }

    #[test]
    fn a_released_lease_is_free_at_once() {
        let start = Instant::now();
        let mut machine = Machine::new("me", TIMING);
        machine.observe(Some(&released(&held_by("other", 0), Timestamp::UNIX_EPOCH)), start);
        assert_eq!(machine.step(start), Step::Acquire);
        let record = machine.record(Timestamp::UNIX_EPOCH);
        assert_eq!((record.lease_transitions, record.lease_duration_seconds), (Some(4), Some(15)));
    }

    #[test]
    fn a_leader_renews_until_its_deadline() {
        let start = Instant::now();
        let mut machine = Machine::new("me", TIMING);
        machine.written(Some(&held_by("me", 0)), start);
        assert_eq!(machine.step(at(start, 9)), Step::Renew);
        assert_eq!(machine.step(at(start, 10)), Step::Lost);
        machine.written(Some(&held_by("me", 9)), at(start, 9));
        assert_eq!(machine.step(at(start, 18)), Step::Renew);
        assert_eq!(machine.record(Timestamp::UNIX_EPOCH).lease_transitions, Some(3));
        machine.observe(Some(&held_by("other", 10)), at(start, 10));
        assert_eq!(machine.step(at(start, 10)), Step::Lost);
        machine.observe(None, at(start, 10));
        assert_eq!(machine.step(at(start, 10)), Step::Lost);
    }

    /// One tick of the simulation below: which candidate acts, whether the API server answers it, and how long it
    /// took since the last tick.
    fn ticks() -> impl Strategy<Value = Vec<(bool, bool, u64)>> {
        proptest::collection::vec((any::<bool>(), any::<bool>(), 1u64..6), 1..200)
    }

    proptest! {
        /// Two candidates on one Lease, either of which may be cut off for any time: they never lead at once.
        #[test]
        fn never_two_leaders(ticks in ticks()) {
            let start = Instant::now();
            let mut now = start;
            let mut lease: Option<LeaseSpec> = None;
            let mut machines = [Machine::new("a", TIMING), Machine::new("b", TIMING)];
            for (which, reachable, seconds) in ticks {
                now += Duration::from_secs(seconds);
                let machine = &mut machines[usize::from(which)];
                if reachable {
                    machine.observe(lease.as_ref(), now);
                    if matches!(machine.step(now), Step::Acquire | Step::Renew) {
                        let wall = Timestamp::from_second(i64::try_from((now - start).as_secs()).unwrap()).unwrap();
                        lease = Some(machine.record(wall));
                        machine.written(lease.as_ref(), now);
                    }
                }
                if machine.step(now) == Step::Lost {
                    // The process exits, and another starts in its place.
                    *machine = Machine::new(if which { "b" } else { "a" }, TIMING);
                }
                let leaders = machines.iter().filter(|m| m.step(now) == Step::Renew).count();
                prop_assert!(leaders <= 1);
            }
        }
    }
}
