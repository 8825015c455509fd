//! Registries and Git servers that are away: an outage is asked about by one request at a time, not by a thousand.
//!
//! What counts is no connection, no answer in time, a failure of the server and too many requests, of one host and port: no
//! tenant's credential, and no name that he misspells, keeps others waiting. Who waits sends no request, and it is no failure
//! of his. It is told to nobody what others had asked for.

mod circuits;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kiln_crds::{GitUrl, ImageBuild, ImageBuildRun};
use kiln_registry::{Repository, Scheme};
use kube::ResourceExt as _;
use kube::runtime::reflector::ObjectRef;
use tokio::time::Instant;
use tracing::{info, warn};

use self::circuits::{Circuits, Next};
use crate::context::backoff;
use crate::delay;
use crate::reason::Reason;
use crate::references::Fault;
use crate::watches::Wake;
use kiln_registry::http_client::FailureClass;

/// How often it is looked whose turn it is while a server is away.
const LOOK: Duration = Duration::from_secs(1);
/// Within what time all go on that have waited, once the server is back.
const SPREAD: Duration = Duration::from_secs(3);
/// Who is to come later than this, as the server asks, comes by itself.
const SOON: Duration = Duration::from_mins(1);

/// A server, as it is told apart from others.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Server {
    kind: Kind,
    /// Scheme and host, with the port where one is named.
    address: String,
}

#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
enum Kind {
    Registry,
    Git,
}

impl Server {
    /// That of a repository.
    #[must_use]
    pub fn registry(scheme: Scheme, repository: &Repository) -> Self {
        let scheme = if scheme == Scheme::Http { "http" } else { "https" };
        Self { kind: Kind::Registry, address: format!("{scheme}://{}", repository.registry) }
    }

    /// That of a Git URL.
    #[must_use]
    pub fn git(url: &GitUrl) -> Self {
        let scheme = if url.ssh().is_some() { "ssh" } else { "https" };
        Self { kind: Kind::Git, address: format!("{scheme}://{}:{}", url.host(), url.port()) }
    }

    /// Whether a fault is about it: publishing asks several registries.
    fn is_met_by(&self, fault: &Fault) -> bool {
        let host = self.address.split_once("://").map_or("", |(_, host)| host);
        self.kind == Kind::Git || fault.about.as_deref() == Some(host)
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.kind == Kind::Registry { "registry" } else { "Git server" };
        write!(f, "the {kind} {}", self.address)
    }
}

/// That a fault is a server's which gave no answer, or failed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Outage {
    /// How long the server asks to wait; at most an hour.
    pub retry_after: Option<Duration>,
    /// Whether it only has too many requests of somebody, and does what others ask.
    pub limits: bool,
    /// Where it is known to be away: once it is back, who has met this is woken.
    pub waits_for: Option<Server>,
    /// Whether it was asked. A server that is known to be away was not.
    pub asked: bool,
}

impl Outage {
    /// That of a question which failed.
    #[must_use]
    pub fn met(retry_after: Option<Duration>, limits: bool) -> Box<Self> {
        Box::new(Self { retry_after, limits, waits_for: None, asked: true })
    }
}

/// Whose reconcile asks.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Asker {
    namespace: String,
    name: String,
    is_run: bool,
}

impl From<&ImageBuild> for Asker {
    fn from(build: &ImageBuild) -> Self {
        Self { namespace: build.namespace().unwrap_or_default(), name: build.name_any(), is_run: false }
    }
}

impl From<&ImageBuildRun> for Asker {
    fn from(run: &ImageBuildRun) -> Self {
        Self { namespace: run.namespace().unwrap_or_default(), name: run.name_any(), is_run: true }
    }
}

tokio::task_local! {
    /// Whose questions those of this task are.
    static ASKING: (Outages, Asker);
}

/// What is known of servers that are away.
#[derive(Clone)]
pub struct Outages {
    circuits: Arc<Mutex<Circuits>>,
    wake: Wake,
}

impl Outages {
    /// Every server is there.
    #[must_use]
    pub fn new(wake: Wake) -> Self {
        Self { circuits: Arc::default(), wake }
    }

    /// Does `work`, whose questions are this one's.
    pub async fn asking<T>(&self, asker: impl Into<Asker>, work: impl Future<Output = T>) -> T {
        ASKING.scope((self.clone(), asker.into()), work).await
    }

    /// Whether this one still waits for the server that its fault is about. `false`: it need not wait for a delay of its own.
    #[must_use]
    pub fn holds(&self, fault: Option<&Fault>, asker: impl Into<Asker>) -> bool {
        let server = fault.and_then(|fault| fault.outage.as_ref()?.waits_for.as_ref());
        server.is_none_or(|server| self.with(|circuits| circuits.is_away_for(server, &asker.into())))
    }

    fn with<T>(&self, change: impl FnOnce(&mut Circuits) -> T) -> T {
        change(&mut self.circuits.lock().unwrap_or_else(PoisonError::into_inner))
    }

    // A send fails only when the controllers have ended, and then nobody needs waking.
    fn wake(&self, Asker { namespace, name, is_run }: &Asker) {
        if *is_run {
            let _ = self.wake.runs.send(ObjectRef::new(name).within(namespace));
        } else {
            let _ = self.wake.image_builds.send(ObjectRef::new(name).within(namespace));
        }
    }

    /// Has one after the other ask, until the server is back.
    async fn look_after(self, server: Server) {
        loop {
            tokio::time::sleep(LOOK).await;
            match self.with(|circuits| circuits.next(&server, Instant::now())) {
                Next::Wake(asker) => self.wake(&asker),
                Next::Wait => {}
                Next::Over => return,
            }
        }
    }

    fn failed(&self, server: &Server, asker: &Asker, outage: &Outage) {
        if self.with(|circuits| circuits.failed(server, asker, outage.retry_after, Instant::now())) {
            warn!(%server, "several requests in a row have failed; from now on it is asked by one at a time");
            tokio::spawn(self.clone().look_after(server.clone()));
        }
    }

    fn answered(&self, server: &Server) {
        let waiting = self.with(|circuits| circuits.answered(server));
        let Ok(count @ 1..) = u32::try_from(waiting.len()) else { return };
        info!(%server, count, "it is back, and those who waited go on");
        let outages = self.clone();
        tokio::spawn(async move {
            for asker in waiting {
                outages.wake(&asker);
                tokio::time::sleep(SPREAD / count).await;
            }
        });
    }
}

/// A question that may be given up before it has an answer.
struct Question<'a> {
    outages: &'a Outages,
    server: &'a Server,
    asker: &'a Asker,
}

impl Drop for Question<'_> {
    fn drop(&mut self) {
        self.outages.with(|circuits| circuits.left(self.server, self.asker));
    }
}

/// Asks a server, unless it is away and another one asks whether it is back.
pub async fn ask<T>(server: Server, question: impl Future<Output = Result<T, Fault>>) -> Result<T, Fault> {
    let question = Box::pin(question);
    let Ok((outages, asker)) = ASKING.try_with(Clone::clone) else { return question.await };
    if !outages.with(|circuits| circuits.enter(&server, &asker, Instant::now())) {
        return Err(not_asked(&server));
    }
    let asked = Question { outages: &outages, server: &server, asker: &asker };
    let mut outcome = question.await;
    match &mut outcome {
        Ok(_) => outages.answered(&server),
        Err(fault) if server.is_met_by(fault) => {
            // A limit (429) is that of an account: others may ask.
            if let Some(outage) = fault.outage.as_mut().filter(|outage| outage.asked && !outage.limits) {
                outages.failed(&server, &asker, outage);
                let is_soon = outage.retry_after.is_none_or(|wait| wait <= SOON);
                let is_away = is_soon && outages.with(|circuits| circuits.is_away_for(&server, &asker));
                outage.waits_for = is_away.then(|| server.clone());
            }
        }
        Err(_) => {}
    }
    drop(asked);
    outcome
}

/// How long to wait after a fault before it is tried again. A server that is away was not asked, so that is no failure: who
/// met it is woken, and comes by itself at the latest when it would if it had failed often.
#[must_use]
pub fn delay(fault: &Fault, failures: &mut u32, of: &str) -> Duration {
    let outage = fault.outage.as_deref();
    if outage.is_some_and(|outage| !outage.asked) {
        return delay::of_server(u32::MAX, None, of);
    }
    *failures = failures.saturating_add(1);
    match outage {
        Some(outage) => delay::of_server(*failures, outage.retry_after, of),
        None => backoff(*failures),
    }
}

/// What is told of a fault after another. Of a server that is still away, what it said when it was asked: there is more in it,
/// and nothing has to be written.
#[must_use]
pub fn told(former: Option<Fault>, fault: Fault) -> Fault {
    let is_asked = fault.outage.as_deref().is_none_or(|outage| outage.asked);
    match former {
        Some(former) if !is_asked && former.reason == fault.reason => Fault { outage: fault.outage, ..former },
        _ => fault,
    }
}

/// What it is about stands in the condition of every tenant who names the server, so nothing of another one's request does.
fn not_asked(server: &Server) -> Fault {
    let reason = if server.kind == Kind::Registry { Reason::RegistryUnavailable } else { Reason::GitUnavailable };
    let message = format!(
        "{server} is away: several requests in a row got no answer from it, or it failed; one at a time asks whether it is \
         back, and then this goes on"
    );
    let outage = Outage { retry_after: None, limits: false, waits_for: Some(server.clone()), asked: false };
    Fault { class: FailureClass::Infrastructure, outage: Some(Box::new(outage)), ..Fault::user(reason, message) }
}

#[cfg(test)]
mod tests;
