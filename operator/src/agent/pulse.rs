//! Whether a builder lives, by how long nothing was heard of its agent.
//!
//! Agents send heartbeats beside the events of their jobs. A connection that breaks tells nothing, for it is taken up again,
//! and neither does a step that prints nothing: only silence does. After a while of it a builder is suspect and gets no new
//! job; one that speaks again is trusted again; in the end it is lost, and another takes its place.
//!
//! Time counts while somebody listens, and in small steps: an operator that was given no time itself has missed nothing.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use kiln_crds::BuilderPool;
use kube::runtime::reflector::ObjectRef;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tracing::{info, warn};

use super::connection::Agent;

/// How long an agent may be silent.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// How often silence is looked at.
    pub tick: Duration,
    /// Until its stream is given up for another: three heartbeats.
    pub mute: Duration,
    /// Until its builder gets no new job.
    pub suspect: Duration,
    /// Until its builder is lost.
    pub lost: Duration,
    /// The same, where it is there and one does not trust the other's certificate: a new one takes a while to arrive.
    pub untrusted: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            tick: Duration::from_secs(1),
            mute: Duration::from_secs(15),
            suspect: Duration::from_secs(30),
            lost: Duration::from_secs(90),
            untrusted: Duration::from_mins(2),
        }
    }
}

/// What is to be thought of a builder.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Trust {
    /// It was heard a moment ago.
    #[default]
    Trusted,
    /// It is silent; it may come back.
    Suspect,
    /// It has been silent for too long. It does not come back.
    Lost,
}

/// For how long nothing was heard; pure.
#[derive(Clone, Copy, Debug, Default)]
struct Silence {
    lasts: Duration,
    /// Whether the last thing that came back was that a certificate is not trusted.
    is_untrusted: bool,
    trust: Trust,
}

impl Silence {
    /// It ends.
    fn heard(&mut self) {
        if self.trust != Trust::Lost {
            *self = Self::default();
        }
    }

    /// It goes on: whoever looks has slept for so long since he last did. Longer than he meant to, and he was given no time.
    fn goes_on(&mut self, slept: Duration, patience: Patience) {
        self.lasts += slept.min(patience.tick * 2);
        let lost = if self.is_untrusted { patience.untrusted } else { patience.lost };
        self.trust = match self.lasts {
            lasts if self.trust == Trust::Lost || lasts >= lost => Trust::Lost,
            lasts if lasts >= patience.suspect => Trust::Suspect,
            _ => Trust::Trusted,
        };
    }
}

/// What is known of a silence, and since when its builder is suspect.
type Known = (Silence, Option<Timestamp>);

/// One agent's, shared by all who follow a job there.
#[derive(Debug)]
pub struct Pulse {
    pub(super) agent: Agent,
    pub(super) patience: Patience,
    known: watch::Sender<Known>,
    /// How many of those who listen wait for something else now.
    paused: AtomicUsize,
}

/// Time that is not the agent's.
#[must_use]
pub struct Pause<'a>(&'a Pulse);

impl Drop for Pause<'_> {
    fn drop(&mut self) {
        self.0.paused.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Pulse {
    /// Begins to look at it, for as long as anybody holds it. `wake` is sent the agent's pool where it gets suspect, and where
    /// it is trusted again.
    pub(super) fn start(
        agent: Agent,
        patience: Patience,
        pool: ObjectRef<BuilderPool>,
        wake: UnboundedSender<ObjectRef<BuilderPool>>,
    ) -> Arc<Self> {
        let pulse = Arc::new(Self { agent, patience, known: watch::Sender::default(), paused: AtomicUsize::default() });
        tokio::spawn(look(Arc::downgrade(&pulse), patience, pool, wake));
        pulse
    }

    /// The agent has said something, whatever it is.
    pub fn heard(&self) {
        // Who waits for its loss has no interest.
        self.known.send_if_modified(|(silence, _)| {
            silence.heard();
            false
        });
    }

    /// The agent could not be reached. `untrusted`: for a certificate.
    pub fn missed(&self, untrusted: bool) {
        self.known.send_if_modified(|(silence, _)| {
            silence.is_untrusted = untrusted;
            false
        });
    }

    /// Until this is dropped, the one who calls does not listen.
    pub fn pause(&self) -> Pause<'_> {
        self.paused.fetch_add(1, Ordering::Relaxed);
        Pause(self)
    }

    /// Listens; ends once the builder is lost.
    pub async fn lost(&self) {
        // Its sender is there as long as this is.
        let _ = self.known.subscribe().wait_for(|(silence, _)| silence.trust == Trust::Lost).await;
    }

    /// What is to be thought of the builder.
    #[must_use]
    pub fn trust(&self) -> Trust {
        self.known.borrow().0.trust
    }

    /// Since when it is not trusted.
    #[must_use]
    pub fn suspect_since(&self) -> Option<Timestamp> {
        self.known.borrow().1
    }

    /// For how long nothing was heard.
    #[must_use]
    pub fn silence(&self) -> Duration {
        self.known.borrow().0.lasts
    }

    /// Whether what is thought of the builder has changed.
    fn look(&self, slept: Duration, now: Timestamp) -> bool {
        let is_heeded = self.known.receiver_count() > self.paused.load(Ordering::Relaxed);
        let mut is_news = false;
        self.known.send_if_modified(|(silence, since)| {
            let former = silence.trust;
            if is_heeded {
                silence.goes_on(slept, self.patience);
            }
            let is_suspect = silence.trust != Trust::Trusted;
            is_news = is_suspect != since.is_some();
            if is_news {
                *since = is_suspect.then_some(now);
            }
            silence.trust != former
        });
        is_news
    }
}

async fn look(
    pulse: Weak<Pulse>,
    patience: Patience,
    pool: ObjectRef<BuilderPool>,
    wake: UnboundedSender<ObjectRef<BuilderPool>>,
) {
    let mut ticks = interval(patience.tick);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks.tick().await;
    let mut looked = Instant::now();
    loop {
        ticks.tick().await;
        let slept = looked.elapsed();
        looked = Instant::now();
        let Some(pulse) = pulse.upgrade() else { return };
        if pulse.look(slept, Timestamp::now()) {
            let builder = &pulse.agent.builder;
            if pulse.trust() == Trust::Trusted {
                info!(builder, "a suspect builder has answered again");
            } else {
                warn!(builder, silent = ?pulse.silence(), "a builder is silent: it gets no new job");
            }
            // The receiver lives as long as the controllers do.
            let _ = wake.send(pool.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// What is thought after each part: `.` is a second of silence, `!` something heard, `u` that a certificate is not
    /// trusted, `z` an hour in which the operator itself was stopped.
    fn after(story: &str) -> Trust {
        let mut silence = Silence::default();
        for sign in story.chars() {
            match sign {
                '.' => silence.goes_on(SECOND, Patience::default()),
                'z' => silence.goes_on(SECOND * 3600, Patience::default()),
                'u' => silence.is_untrusted = true,
                _ => silence.heard(),
            }
        }
        silence.trust
    }

    #[test]
    fn silence_makes_suspect_and_then_lost_and_a_word_makes_good() {
        use Trust::{Lost, Suspect, Trusted};
        let quiet = |seconds: usize| ".".repeat(seconds);
        for (story, expected) in [
            (quiet(29), Trusted),
            (quiet(30), Suspect),
            (quiet(89), Suspect),
            (quiet(90), Lost),
            (quiet(89) + "!", Trusted),
            (quiet(89) + "!" + &quiet(29), Trusted),
            // Its pod is being removed.
            (quiet(90) + "!" + &quiet(1), Lost),
            ("u".to_owned() + &quiet(119), Suspect),
            ("u".to_owned() + &quiet(120), Lost),
            ("u".to_owned() + &quiet(80) + "!" + &quiet(90), Lost),
            // The operator had no time: it has missed nothing.
            ("z".repeat(14), Trusted),
            (quiet(29) + "z", Suspect),
        ] {
            assert_eq!(after(&story), expected, "{story}");
        }
    }

    #[tokio::test]
    async fn silence_counts_while_somebody_listens() {
        let (wake, _woken) = tokio::sync::mpsc::unbounded_channel();
        let agent = Agent { builder: "b".into(), address: Ipv4Addr::LOCALHOST.into() };
        let pulse = Pulse::start(agent, Patience::default(), ObjectRef::new("p"), wake);
        let now = Timestamp::UNIX_EPOCH;
        let for_a_minute = || (0..60).filter(|_| pulse.look(SECOND, now)).count();
        assert_eq!((for_a_minute(), pulse.silence()), (0, Duration::ZERO), "nobody does");
        let listener = pulse.known.subscribe();
        let pause = pulse.pause();
        assert_eq!((for_a_minute(), pulse.silence()), (0, Duration::ZERO), "he waits for the API server");
        drop(pause);
        assert_eq!((for_a_minute(), pulse.trust()), (1, Trust::Suspect), "it is told once");
        assert_eq!(pulse.suspect_since(), Some(now));
        pulse.heard();
        assert!(pulse.look(SECOND, now), "so is that it is trusted again");
        assert_eq!((pulse.trust(), pulse.suspect_since()), (Trust::Trusted, None));
        drop(listener);
    }
}
