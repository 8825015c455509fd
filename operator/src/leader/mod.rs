//! Leader election on a `coordination.k8s.io/v1` Lease, with the semantics of client-go's leaderelection package: of
//! several operators one acts, and one that is cut off stops before another can start.
//!
//! [`state`] decides, without clock and client; this file asks the API server and keeps the time.

mod renewal;
mod state;

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, PostParams};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::delay::jittered;
use crate::server::Rounds;
use state::{Machine, Step};

/// The periods of an election.
#[derive(Clone, Copy, Debug)]
struct Timing {
    /// How long others wait for a silent leader.
    lease: Duration,
    /// How long a leader goes on without a renewal; shorter than `lease`, so that it stops before others start.
    renew_deadline: Duration,
    /// Between two attempts to renew.
    retry: Duration,
    /// Between two looks of a candidate: a Lease that is given back is taken soon.
    look: Duration,
}

const TIMING: Timing = Timing {
    lease: Duration::from_secs(15),
    renew_deadline: Duration::from_secs(10),
    retry: Duration::from_secs(2),
    look: Duration::from_secs(1),
};

/// One candidate for a Lease.
#[derive(Clone)]
pub struct Elector {
    api: Api<Lease>,
    name: String,
    identity: String,
    timing: Timing,
    rounds: Rounds,
}

impl Elector {
    /// A candidate called `identity` (the pod's name, say; unique among candidates) for the Lease `name`. `rounds` is told
    /// of each look at the Lease.
    #[must_use]
    pub fn new(client: kube::Client, namespace: &str, name: &str, identity: &str, rounds: Rounds) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
            name: name.to_owned(),
            identity: identity.to_owned(),
            timing: TIMING,
            rounds,
        }
    }

    /// The loop that keeps the Lease has come round.
    fn came_round(&self) {
        self.rounds.came("the Lease");
    }

    /// Waits until this candidate leads; `None` when `shutdown` comes first.
    ///
    /// An API server that does not answer is asked again every few seconds; what it says is logged.
    pub async fn acquire(&self, shutdown: impl Future<Output = ()>) -> Option<Leadership> {
        let leading = async {
            let mut machine = Machine::new(&self.identity, self.timing);
            let mut said = String::new();
            loop {
                self.came_round();
                match self.attempt(&mut machine).await {
                    Ok(Some(lease)) => return Leadership::start(self.clone(), machine, lease),
                    Ok(None) => {}
                    Err(error) => {
                        let error = error.to_string();
                        if error != said {
                            tracing::warn!(lease = self.name, error, "could not take the Lease; trying on");
                            said = error;
                        }
                    }
                }
                tokio::time::sleep(jittered(self.timing.look)).await;
            }
        };
        tokio::select! {
            biased;
            () = shutdown => None,
            leadership = leading => Some(leadership),
        }
    }

    /// Looks at the Lease, and writes it if that is due. The Lease as written, if this candidate now leads.
    async fn attempt(&self, machine: &mut Machine) -> Result<Option<Lease>, Refused> {
        let limit = self.timing.renew_deadline / 2;
        let found = timely(limit, self.api.get_opt(&self.name)).await?;
        machine.observe(found.as_ref().and_then(|lease| lease.spec.as_ref()), Instant::now());
        if machine.step(Instant::now()) != Step::Acquire {
            return Ok(None);
        }
        // The deadline counts from before the write: others may see it from then on.
        let sent = Instant::now();
        let spec = machine.record(jiff::Timestamp::now());
        let parameters = PostParams { field_manager: Some("kiln-operator".into()), ..PostParams::default() };
        let written = if let Some(mut lease) = found {
            lease.spec = Some(spec);
            timely(limit, self.api.replace(&self.name, &parameters, &lease)).await
        } else {
            let metadata = ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() };
            timely(limit, self.api.create(&parameters, &Lease { metadata, spec: Some(spec) })).await
        };
        match written {
            Ok(lease) => {
                machine.written(lease.spec.as_ref(), sent);
                Ok(Some(lease))
            }
            // Another candidate was faster.
            Err(Refused::Api(kube::Error::Api(status))) if status.code == 409 => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Why the Lease could not be read or written.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error(transparent)]
    Api(kube::Error),
    #[error("the API server did not answer in {0:?}")]
    Timeout(Duration),
}

async fn timely<T>(limit: Duration, call: impl Future<Output = kube::Result<T>>) -> Result<T, Refused> {
    match tokio::time::timeout(limit, call).await {
        Ok(answer) => answer.map_err(Refused::Api),
        Err(_) => Err(Refused::Timeout(limit)),
    }
}

/// Until when a leader may act, without asking anybody.
#[derive(Debug)]
struct Term {
    start: Instant,
    /// Milliseconds after `start`; 0 once lost or given up.
    until: AtomicU64,
}

impl Term {
    /// No instant: `until` is at least one millisecond.
    const ENDED: u64 = 0;

    /// Does nothing once the term has ended: a renewal may still have been on its way.
    fn extend(&self, until: Instant) {
        let millis = until.saturating_duration_since(self.start).as_millis();
        let millis = u64::try_from(millis).unwrap_or(u64::MAX);
        let _ = self.until.fetch_update(Ordering::AcqRel, Ordering::Acquire, |former| {
            (former != Self::ENDED).then_some(millis.max(1))
        });
    }

    fn end(&self) {
        self.until.store(Self::ENDED, Ordering::Release);
    }

    fn holds(&self) -> bool {
        self.start.elapsed().as_millis() < u128::from(self.until.load(Ordering::Acquire))
    }
}

/// Says whether this process still leads. Cheap to clone and to ask.
#[derive(Clone, Debug)]
pub struct LeaderToken(Arc<Term>);

impl LeaderToken {
    /// Whether this process leads, by its own clock: false once the renew deadline has passed, even if nobody has
    /// noticed yet.
    #[must_use]
    pub fn is_leader(&self) -> bool {
        self.0.holds()
    }
}

/// This process leads, and renews its Lease in a task of its own until this is released or dropped.
pub struct Leadership {
    elector: Elector,
    term: Arc<Term>,
    lost: watch::Receiver<bool>,
    stop: CancellationToken,
    _stop_on_drop: DropGuard,
    task: JoinHandle<Option<Lease>>,
}

impl Leadership {
    fn start(elector: Elector, machine: Machine, lease: Lease) -> Self {
        let term = Arc::new(Term { start: Instant::now(), until: AtomicU64::new(1) });
        if let Some(deadline) = machine.deadline() {
            term.extend(deadline);
        }
        let (lost_sender, lost) = watch::channel(false);
        let stop = CancellationToken::new();
        tracing::info!(lease = elector.name, identity = elector.identity, "leading");
        let renewal = renewal::Renewal {
            elector: elector.clone(),
            machine,
            lease,
            term: Arc::clone(&term),
            lost: lost_sender,
            stop: stop.clone(),
        };
        Self { elector, term, lost, _stop_on_drop: stop.clone().drop_guard(), stop, task: tokio::spawn(renewal.run()) }
    }

    /// Whether this process leads; see [`LeaderToken::is_leader`].
    #[must_use]
    pub fn is_leader(&self) -> bool {
        self.term.holds()
    }

    /// What those ask who act for the leader.
    #[must_use]
    pub fn token(&self) -> LeaderToken {
        LeaderToken(Arc::clone(&self.term))
    }

    /// Resolves once this process no longer leads. It should exit then: what it does may be another's already.
    pub async fn lost(&self) {
        let mut lost = self.lost.clone();
        // An error means that the renewals have ended, which is a loss, too.
        let _ = lost.wait_for(|lost| *lost).await;
    }

    /// Gives the Lease back, so that another candidate need not wait for its expiry. Nothing may act for the leader
    /// any more when this is called.
    pub async fn release(self) {
        self.term.end();
        self.stop.cancel();
        let Ok(Some(lease)) = self.task.await else { return };
        let Some(spec) = lease.spec.as_ref() else { return };
        let spec = state::released(spec, jiff::Timestamp::now());
        let lease = Lease { spec: Some(spec), ..lease };
        let parameters = PostParams::default();
        let written = self.elector.api.replace(&self.elector.name, &parameters, &lease);
        match timely(self.elector.timing.renew_deadline / 2, written).await {
            Ok(_) => tracing::info!(lease = self.elector.name, "gave the Lease back"),
            Err(error) => {
                tracing::warn!(lease = self.elector.name, %error, "could not give the Lease back; it will expire");
            }
        }
    }
}

#[cfg(test)]
mod tests;
