//! The task that keeps a Lease renewed, and that says when it is lost.

use std::sync::Arc;
use std::time::Instant;

use k8s_openapi::api::coordination::v1::Lease;
use kube::api::PostParams;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::state::{Machine, Step};
use super::{Elector, Refused, Term, timely};

pub(super) struct Renewal {
    pub(super) elector: Elector,
    pub(super) machine: Machine,
    /// The Lease as last read or written; its resourceVersion guards the next write.
    pub(super) lease: Lease,
    pub(super) term: Arc<Term>,
    pub(super) lost: watch::Sender<bool>,
    pub(super) stop: CancellationToken,
}

impl Renewal {
    /// Renews until stopped, which gives the Lease as it stands, or until the Lease is lost.
    pub(super) async fn run(mut self) -> Option<Lease> {
        loop {
            self.elector.came_round();
            let wake = Instant::now() + self.elector.timing.retry;
            let wake = self.machine.deadline().map_or(wake, |deadline| wake.min(deadline));
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return Some(self.lease),
                () = tokio::time::sleep_until(wake.into()) => {}
            }
            if self.machine.step(Instant::now()) == Step::Renew
                && let Err(error) = self.renew().await
            {
                tracing::warn!(lease = self.elector.name, %error, "could not renew the Lease; trying on");
            }
            match self.machine.step(Instant::now()) {
                Step::Renew => {}
                step => {
                    self.term.end();
                    tracing::error!(lease = self.elector.name, ?step, "lost the Lease");
                    self.lost.send_replace(true);
                    return None;
                }
            }
        }
    }

    async fn renew(&mut self) -> Result<(), Refused> {
        let sent = Instant::now();
        // No answer may come after the deadline: by then this process has stopped.
        let Some(left) = self.machine.deadline().map(|deadline| deadline.saturating_duration_since(sent)) else {
            return Ok(());
        };
        let spec = self.machine.record(jiff::Timestamp::now());
        let lease = Lease { spec: Some(spec), ..self.lease.clone() };
        let parameters = PostParams { field_manager: Some("kiln-operator".into()), ..PostParams::default() };
        match timely(
            left.min(self.elector.timing.renew_deadline / 2),
            self.elector.api.replace(&self.elector.name, &parameters, &lease),
        )
        .await
        {
            Ok(lease) => {
                self.machine.written(lease.spec.as_ref(), sent);
                if let Some(deadline) = self.machine.deadline() {
                    self.term.extend(deadline);
                }
                self.lease = lease;
                Ok(())
            }
            // Somebody else wrote it, or an earlier write of ours arrived although it was not answered.
            Err(Refused::Api(kube::Error::Api(status))) if status.code == 409 || status.code == 404 => {
                let left = self.machine.deadline().map_or(left, |d| d.saturating_duration_since(Instant::now()));
                let found = timely(left, self.elector.api.get_opt(&self.elector.name)).await?;
                self.machine.observe(found.as_ref().and_then(|lease| lease.spec.as_ref()), Instant::now());
                if let Some(found) = found {
                    self.lease = found;
                }
                Ok(())
            }
            Err(error) => Err(error),
        }
    }
}
