//! When certificates and their CAs are made anew; pure.
//!
//! A CA is known to everybody before it signs, and trusted until nothing that it signed is in use: it is *introduced*
//! beside the one that signs, *promoted* once every builder has had the time to see it, and its predecessor *retired*
//! once every builder has had the time to show a certificate of the new one. That time is a third of a certificate's
//! life, for the kubelet brings a changed Secret to a pod only after a while. Everything is renewed at two thirds of its
//! life, so a third of it is left for whatever may be late.

use std::time::Duration;

use k8s_openapi::jiff::{SignedDuration, Timestamp};

/// How many lives of a certificate the life of a CA is.
const CA_LIVES: i32 = 4;

/// The life of a certificate.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Dates {
    /// When it was made.
    pub made: Timestamp,
    /// Until when it is accepted.
    pub expires: Timestamp,
}

impl Dates {
    /// The life of a CA that is made now.
    #[must_use]
    pub fn of_ca(now: Timestamp, lifetime: Duration) -> Self {
        Self { made: now, expires: after(now, signed(lifetime) * CA_LIVES) }
    }

    /// The life of a certificate that is signed now: never longer than its CA's.
    #[must_use]
    pub fn of_certificate(now: Timestamp, lifetime: Duration, signing: Self) -> Self {
        Self { made: now, expires: after(now, signed(lifetime)).min(signing.expires) }
    }

    fn life(self) -> SignedDuration {
        self.expires.duration_since(self.made)
    }

    /// When a certificate is to be renewed; `None` where a new one would not live longer. One that was made to live
    /// longer than certificates do by now is renewed as if it were one of today's.
    #[must_use]
    pub fn renewed_at(self, lifetime: Duration, signing: Self) -> Option<Timestamp> {
        let life = self.life().min(signed(lifetime));
        (self.expires < signing.expires).then(|| after(self.made, life * 2 / 3))
    }
}

/// The CAs that there are.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Authorities {
    /// The one that signs.
    pub signing: Dates,
    /// Its successor, which is trusted and does not sign yet.
    pub next: Option<Dates>,
    /// Its predecessor, which is trusted and does not sign any more.
    pub former: Option<Dates>,
    /// Since when every builder's Secret holds what belongs to these CAs.
    pub distributed_at: Option<Timestamp>,
}

/// A change of the CAs.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Step {
    /// A successor is made.
    Introduce,
    /// Every builder's Secret holds what belongs to the CAs.
    Distributed,
    /// The successor signs from now on.
    Promote,
    /// The predecessor is trusted no more.
    Retire,
    /// The one that signs has expired without a successor: nothing that it signed is of use.
    StartOver,
}

/// What is to be done about the CAs.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Decision {
    /// This, now. [`Step::Distributed`] only after every builder's Secret has been brought up to date.
    Do(Step),
    /// Nothing before then.
    Wait(Timestamp),
}

/// Decides about the CAs.
#[must_use]
pub fn decide(authorities: &Authorities, now: Timestamp, lifetime: Duration) -> Decision {
    let Authorities { signing, next, former, distributed_at } = *authorities;
    if signing.expires <= now {
        return Decision::Do(if next.is_some() { Step::Promote } else { Step::StartOver });
    }
    // Of a CA from when certificates lived longer, or not as long, what counts is the shorter life.
    let unit = signing.life().min(signed(lifetime) * CA_LIVES) / CA_LIVES;
    let settled = distributed_at.map(|at| after(at, unit / 3));
    let (step, due) = match (next, former) {
        (None, None) => (Step::Introduce, Some(after(signing.made, unit * CA_LIVES * 2 / 3))),
        (Some(_), _) => (Step::Promote, settled.map(|at| at.min(signing.expires))),
        // With it, all that it signed expires.
        (None, Some(former)) => (Step::Retire, settled.map(|at| at.min(former.expires))),
    };
    match due {
        None => Decision::Do(Step::Distributed),
        Some(due) if due <= now => Decision::Do(step),
        Some(due) => Decision::Wait(due),
    }
}

fn signed(duration: Duration) -> SignedDuration {
    SignedDuration::try_from(duration).unwrap_or(SignedDuration::MAX / (CA_LIVES * 2))
}

fn after(at: Timestamp, duration: SignedDuration) -> Timestamp {
    at.checked_add(duration).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
#[path = "rotation_tests.rs"]
mod tests;
