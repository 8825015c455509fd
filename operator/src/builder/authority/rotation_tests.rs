use super::*;
use proptest::prelude::*;

const LIFETIME: Duration = Duration::from_secs(90);

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + second).unwrap()
}

fn dates(made: i64, life: i64) -> Dates {
    Dates { made: at(made), expires: at(made + life) }
}

fn alone(signing: Dates) -> Authorities {
    Authorities { signing, next: None, former: None, distributed_at: None }
}

#[test]
fn each_phase_ends_when_everybody_has_had_the_time_to_follow() {
    let signing = dates(0, 360);
    let both = Authorities { next: Some(dates(240, 360)), ..alone(signing) };
    let after = Authorities { former: Some(signing), ..alone(dates(240, 360)) };
    let told = |authorities: Authorities, second| Authorities { distributed_at: Some(at(second)), ..authorities };
    let (act, wait) = (Decision::Do, |second| Decision::Wait(at(second)));
    for (authorities, now, expected) in [
        (alone(signing), 0, wait(240)),
        (alone(signing), 240, act(Step::Introduce)),
        // The operator was away while it expired.
        (alone(signing), 360, act(Step::StartOver)),
        (both, 240, act(Step::Distributed)),
        (told(both, 245), 245, wait(275)),
        (told(both, 245), 275, act(Step::Promote)),
        // It could not be distributed, and what signs is of no use any more.
        (both, 360, act(Step::Promote)),
        (told(both, 350), 355, wait(360)),
        (after, 275, act(Step::Distributed)),
        (told(after, 276), 300, wait(306)),
        (told(after, 276), 306, act(Step::Retire)),
        // It expires before the others have had the time to follow.
        (told(Authorities { former: Some(dates(0, 300)), ..after }, 276), 301, act(Step::Retire)),
        // From when certificates lived much longer: the CA is as old as one of today's when it is replaced.
        (alone(dates(0, 315_360_000)), 239, wait(240)),
        (alone(dates(0, 315_360_000)), 241, act(Step::Introduce)),
        // And from when they lived a third as long.
        (alone(dates(0, 120)), 79, wait(80)),
    ] {
        assert_eq!(decide(&authorities, at(now), LIFETIME), expected, "{authorities:?} at {now}");
    }
}

#[test]
fn a_certificate_is_renewed_at_two_thirds_where_that_gains_time() {
    let signing = dates(0, 360);
    let certificate = Dates::of_certificate(at(10), LIFETIME, signing);
    assert_eq!(certificate, dates(10, 90));
    assert_eq!(certificate.renewed_at(LIFETIME, signing), Some(at(70)));
    let last = Dates::of_certificate(at(300), LIFETIME, signing);
    assert_eq!(last, dates(300, 60));
    assert_eq!(last.renewed_at(LIFETIME, signing), None, "a new one would expire at the same time");
    assert_eq!(dates(0, 31_536_000).renewed_at(LIFETIME, dates(0, 315_360_000)), Some(at(60)));
}

/// A CA by a number, for the property below.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Ca {
    id: u32,
    dates: Dates,
}

#[derive(Clone, Debug, PartialEq)]
struct Shown {
    signed_by: u32,
    dates: Dates,
    trusts: Vec<u32>,
}

/// What is in the authority's Secret.
#[derive(Clone, Debug)]
struct Kept {
    signing: Ca,
    next: Option<Ca>,
    former: Option<Ca>,
    distributed_at: Option<Timestamp>,
}

impl Kept {
    fn trust(&self) -> Vec<u32> {
        [Some(self.signing), self.next, self.former].into_iter().flatten().map(|ca| ca.id).collect()
    }

    fn issue(&self, now: Timestamp) -> Shown {
        let dates = Dates::of_certificate(now, LIFETIME, self.signing.dates);
        Shown { signed_by: self.signing.id, dates, trusts: self.trust() }
    }

    fn step(&mut self, step: Step, now: Timestamp, ids: &mut u32) {
        *ids += 1;
        let new = Ca { id: *ids, dates: Dates::of_ca(now, LIFETIME) };
        let former = self.clone();
        self.distributed_at = None;
        match step {
            Step::Introduce => self.next = Some(new),
            Step::Distributed => self.distributed_at = Some(now),
            Step::Promote => {
                (self.signing, self.next, self.former) = (former.next.unwrap(), None, Some(former.signing));
            }
            Step::Retire => self.former = None,
            Step::StartOver => panic!("a CA expired: {former:?}"),
        }
    }
}

/// A builder: its Secret, and what the kubelet has brought to the agent, which is what the Secret held some time ago.
#[derive(Clone, Debug)]
struct Builder {
    secret: Shown,
    mounted: Shown,
    /// When the kubelet looks next.
    refreshed: i64,
    delay: i64,
}

proptest! {
    /// Whatever the operator misses and however late the kubelets are, within the third of a certificate's life that is
    /// left for it: agents and operator accept each other at every moment.
    #[test]
    fn each_trusts_what_the_other_shows(
        delays in proptest::collection::vec((0_i64..15, 0_i64..900), 1..4),
        away in proptest::collection::vec((0_i64..900, 0_i64..13), 0..12),
        life in prop_oneof![Just(360_i64), Just(315_360_000), 200_i64..360],
    ) {
        let mut ids = 1;
        let mut kept = Kept {
            signing: Ca { id: 1, dates: dates(0, life) }, next: None, former: None, distributed_at: None,
        };
        let mut client = kept.issue(at(0));
        let mut builders: Vec<Option<Builder>> = delays.iter().map(|_| None).collect();
        let mut promoted = 0;
        for second in 0..900 {
            let now = at(second);
            let is_away = away.iter().any(|(from, seconds)| (*from..from + seconds).contains(&second));
            let comes_back = away.iter().any(|(from, seconds)| from + seconds == second);
            if !is_away {
                // A new process has a new certificate.
                if comes_back { client = kept.issue(now); }
                for (builder, (delay, made)) in builders.iter_mut().zip(&delays) {
                    if builder.is_none() && *made <= second {
                        let secret = kept.issue(now);
                        *builder = Some(Builder {
                            mounted: secret.clone(), secret, refreshed: second + delay, delay: *delay,
                        });
                    }
                }
                loop {
                    let due = |shown: &Shown| {
                        shown.signed_by != kept.signing.id
                            || shown.trusts != kept.trust()
                            || shown.dates.renewed_at(LIFETIME, kept.signing.dates).is_some_and(|due| due <= now)
                    };
                    for builder in builders.iter_mut().flatten() {
                        if due(&builder.secret) { builder.secret = kept.issue(now); }
                    }
                    if due(&client) { client = kept.issue(now); }
                    let authorities = Authorities {
                        signing: kept.signing.dates,
                        next: kept.next.map(|ca| ca.dates),
                        former: kept.former.map(|ca| ca.dates),
                        distributed_at: kept.distributed_at,
                    };
                    let Decision::Do(step) = decide(&authorities, now, LIFETIME) else { break };
                    promoted += u32::from(step == Step::Promote);
                    kept.step(step, now, &mut ids);
                }
            }
            for builder in builders.iter_mut().flatten() {
                if builder.refreshed <= second {
                    builder.mounted = builder.secret.clone();
                    builder.refreshed = second + builder.delay.max(1);
                }
                if is_away { continue; }
                let agent = &builder.mounted;
                prop_assert!(agent.trusts.contains(&client.signed_by), "{second}: the agent refuses {client:?}: {agent:?}");
                prop_assert!(kept.trust().contains(&agent.signed_by), "{second}: the operator refuses {agent:?}: {kept:?}");
                prop_assert!(client.dates.expires > now && agent.dates.expires > now, "{second}: expired");
            }
        }
        prop_assert!(promoted >= 2, "CAs change: {promoted}");
    }
}
