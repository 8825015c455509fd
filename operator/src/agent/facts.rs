//! What builders say of themselves: asked when a builder has come up, after each of its jobs, and where a build needs to
//! know what it emulates now; never on a clock.
//!
//! Kept in memory alone: a new operator asks the builders that there are.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::jiff::Timestamp;
use kiln_agent_proto as proto;
use kiln_crds::BuilderPool;
use kube::runtime::reflector::ObjectRef;
use tokio::sync::mpsc::UnboundedSender;
use tracing::debug;

use kiln_registry::text::plain_text;

use super::connection::{Agent, Connections};

/// How long after the end of a job its builder is left alone: the push of index and tags comes first, and jobs that end
/// together are asked about once.
const SETTLE: Duration = Duration::from_secs(1);
/// How long an answer may take: an agent waits for its buildkitd.
const CALL: Duration = Duration::from_secs(70);
/// The delays before a builder that does not answer is asked again; then it is left until its next job has ended.
const AGAIN: [Duration; 5] = [
    Duration::from_millis(500),
    Duration::from_secs(2),
    Duration::from_secs(5),
    Duration::from_secs(15),
    Duration::from_mins(1),
];

/// The longest account of a missing sandbox, in bytes.
const LONGEST_PROBLEM: usize = 512;

/// How long an answer is fresh: a little longer than buildkitd itself waits before it looks anew for its node's emulators.
const FRESH: Duration = Duration::from_secs(21);

/// What a builder has said of itself.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Facts {
    /// The version of its BuildKit.
    pub buildkit: String,
    /// OCI platform strings that it can build.
    pub platforms: Vec<String>,
    /// Bytes that its cache holds.
    pub cache_used: u64,
    /// Bytes that its cache may hold; 0: unknown.
    pub cache_limit: u64,
    /// Why it handles other people's files without a sandbox; empty where it has one.
    pub sandbox_problem: String,
    /// The largest id of a user or group that files of its builds may have; 0: unknown.
    pub largest_id: u32,
}

impl From<proto::DescribeResponse> for Facts {
    fn from(answer: proto::DescribeResponse) -> Self {
        Self {
            buildkit: answer.buildkit_version,
            platforms: answer.platforms,
            cache_used: answer.cache_used_bytes,
            cache_limit: answer.cache_size_bytes,
            sandbox_problem: plain_text(&answer.sandbox_problem, LONGEST_PROBLEM),
            largest_id: answer.largest_id,
        }
    }
}

struct Entry {
    /// When the builder had last been active when it was asked.
    asked: Timestamp,
    /// When it was asked last.
    asked_at: Instant,
    facts: Option<Facts>,
}

/// The facts of the builders, by the UIDs of their pods.
#[derive(Clone)]
pub struct Described {
    connections: Connections,
    entries: Arc<Mutex<HashMap<String, Entry>>>,
    wake: UnboundedSender<ObjectRef<BuilderPool>>,
}

impl Described {
    /// Knows nothing yet. `wake` is sent each pool of which a builder has said something new.
    #[must_use]
    pub fn new(connections: Connections, wake: UnboundedSender<ObjectRef<BuilderPool>>) -> Self {
        Self { connections, entries: Arc::default(), wake }
    }

    /// What the builder with this pod has said last.
    #[must_use]
    pub fn facts(&self, pod_uid: &str) -> Option<Facts> {
        self.with(|entries| entries.get(pod_uid)?.facts.clone())
    }

    /// Asks a builder, if it has been active since it was asked last. The answer is not waited for: it wakes the pool.
    pub fn ask(&self, pod_uid: &str, pool: &str, agent: Agent, last_active: Timestamp) {
        let asked = self.with(|entries| match entries.get_mut(pod_uid) {
            Some(entry) if entry.asked == last_active => true,
            Some(entry) => {
                entry.asked = last_active;
                entry.asked_at = Instant::now();
                false
            }
            None => {
                let entry = Entry { asked: last_active, asked_at: Instant::now(), facts: None };
                entries.insert(pod_uid.to_owned(), entry);
                false
            }
        });
        if !asked {
            let settle = if self.facts(pod_uid).is_some() { SETTLE } else { Duration::ZERO };
            self.listen(pod_uid, pool, agent, last_active, settle);
        }
    }

    /// Asks a builder that has answered before once more, unless its answer is fresh.
    pub fn ask_again(&self, pod_uid: &str, pool: &str, agent: Agent) {
        let asked = self.with(|entries| {
            let entry = entries.get_mut(pod_uid)?;
            (entry.facts.is_some() && entry.asked_at.elapsed() >= FRESH).then(|| {
                entry.asked_at = Instant::now();
                entry.asked
            })
        });
        if let Some(asked) = asked {
            self.listen(pod_uid, pool, agent, asked, Duration::ZERO);
        }
    }

    fn listen(&self, pod_uid: &str, pool: &str, agent: Agent, asked: Timestamp, settle: Duration) {
        let (described, pod_uid, pool) = (self.clone(), pod_uid.to_owned(), pool.to_owned());
        tokio::spawn(async move {
            tokio::time::sleep(settle).await;
            if let Some(facts) = described.answer(&pod_uid, &agent, asked).await
                && described.keep(&pod_uid, facts)
            {
                // The receiver lives as long as the controllers do.
                let _ = described.wake.send(ObjectRef::new(&pool));
            }
        });
    }

    /// Forgets all builders but these.
    pub fn retain(&self, pod_uids: &HashSet<&str>) {
        self.with(|entries| entries.retain(|uid, _| pod_uids.contains(uid.as_str())));
    }

    async fn answer(&self, pod_uid: &str, agent: &Agent, asked: Timestamp) -> Option<Facts> {
        for delay in AGAIN {
            // A job that has ended since has it asked anew, and a builder that is gone answers nobody.
            if self.with(|entries| entries.get(pod_uid).is_none_or(|entry| entry.asked != asked)) {
                return None;
            }
            let status = match self.connections.client(agent) {
                Ok(mut client) => match tokio::time::timeout(CALL, client.describe(proto::DescribeRequest {})).await {
                    Ok(Ok(answer)) => return Some(answer.into_inner().into()),
                    Ok(Err(status)) => status.to_string(),
                    Err(_) => "no answer".to_owned(),
                },
                Err(error) => error.to_string(),
            };
            debug!(builder = agent.builder, status, "the builder did not describe itself");
            tokio::time::sleep(delay).await;
        }
        None
    }

    fn keep(&self, pod_uid: &str, facts: Facts) -> bool {
        self.with(|entries| match entries.get_mut(pod_uid) {
            Some(entry) if entry.facts.as_ref() != Some(&facts) => {
                entry.facts = Some(facts);
                true
            }
            _ => false,
        })
    }

    fn with<T>(&self, change: impl FnOnce(&mut HashMap<String, Entry>) -> T) -> T {
        change(&mut self.entries.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
