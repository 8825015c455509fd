//! The watches: one for each kind, each keeping a copy of its objects, and which change wakes which reconcile.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use futures::stream::BoxStream;
use futures::{Stream, StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kiln_crds::image_build::TagStatus;
use kiln_crds::image_build_run::{PlatformPhase, PlatformStatus, RunPhase};
use kiln_crds::{BuilderPool, ImageBuild, ImageBuildRun};
use kube::runtime::reflector::{ObjectRef, Store};
use kube::runtime::{WatchStreamExt, reflector, watcher};
use kube::{Api, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::sync::SetOnce;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tracing::warn;

use crate::builder::identity::POOL;
use crate::builder::node::NodeFacts;
use crate::condition::find;
use crate::context::{Context, Remembered, Stores};
use crate::image_build::resolve::image_build_contexts;
use crate::reason::Reason;

/// A stream of the objects that changed, those that were deleted too.
pub type Changes<K> = BoxStream<'static, Result<K, watcher::Error>>;

/// Set once every copy is whole. `Store::wait_until_ready` is not for this: it wakes only one of its waiters.
#[derive(Clone, Debug, Default)]
pub struct Synced {
    kinds: Vec<Arc<SetOnce<()>>>,
}

impl Synced {
    /// Something else that has to be known before a decision: whoever finds it out sets it.
    pub fn also(&mut self) -> Arc<SetOnce<()>> {
        let known = Arc::new(SetOnce::new());
        self.kinds.push(known.clone());
        known
    }

    /// Waits for every kind that is watched, and for what else there is.
    pub async fn wait(&self) {
        for kind in &self.kinds {
            kind.wait().await;
        }
    }
}

/// How many objects the API server is asked for at once of kinds whose objects may have a megabyte: a page is read whole.
pub const PAGE: u32 = 16;

/// After how many seconds the API server ends a watch, which goes on with the next. One that is mute for five more is taken
/// for dead (kube's own margin): its connection may have been lost without a word.
pub const WATCH: u32 = 50;

/// Watches a kind, and keeps a copy of its objects, as `trim` leaves them.
pub fn watch<K>(api: Api<K>, config: watcher::Config, trim: fn(&mut K), synced: &mut Synced) -> (Store<K>, Changes<K>)
where
    K: Resource + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
    K::DynamicType: Default + Eq + Hash + Clone + Unpin,
{
    keep(watcher(api, config).default_backoff().modify(trim), synced)
}

/// Keeps a copy of the objects that events tell of.
pub fn keep<K>(
    events: impl Stream<Item = watcher::Result<watcher::Event<K>>> + Send + 'static,
    synced: &mut Synced,
) -> (Store<K>, Changes<K>)
where
    K: Resource + Clone + Debug + Send + Sync + 'static,
    K::DynamicType: Default + Eq + Hash + Clone + Unpin,
{
    let (store, writer) = reflector::store();
    let whole = synced.also();
    let changes = events
        .reflect(writer)
        .inspect_ok(move |event| {
            if matches!(event, watcher::Event::InitDone) {
                // Set already: the watch began anew.
                let _ = whole.set(());
            }
        })
        .touched_objects()
        .boxed();
    (store, changes)
}

/// What others wait for in an ImageBuild.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Seen {
    /// The digest of its image.
    image: Option<String>,
    /// A hash of each tag that belongs to it. None does once it is being deleted.
    tags: BTreeSet<u64>,
}

impl Seen {
    fn of(build: &ImageBuild) -> Self {
        let status = build.status.as_ref();
        let hash = |tag: &TagStatus| {
            let mut hasher = DefaultHasher::new();
            (&tag.repository, &tag.tag).hash(&mut hasher);
            hasher.finish()
        };
        let lives = build.metadata.deletion_timestamp.is_none();
        let tags = status.iter().filter(|_| lives).flat_map(|status| &status.tags).map(hash).collect();
        Self { image: status.and_then(|status| Some(status.image.as_ref()?.digest.clone())), tags }
    }
}

/// Wakes reconciles.
#[derive(Clone)]
pub struct Wake {
    /// Of ImageBuilds.
    pub image_builds: UnboundedSender<ObjectRef<ImageBuild>>,
    /// Of runs.
    pub runs: UnboundedSender<ObjectRef<ImageBuildRun>>,
    /// Of pools.
    pub pools: UnboundedSender<ObjectRef<BuilderPool>>,
}

/// What the senders of [`Wake`] send to.
pub struct Woken {
    /// ImageBuilds.
    pub image_builds: UnboundedReceiver<ObjectRef<ImageBuild>>,
    /// Runs.
    pub runs: UnboundedReceiver<ObjectRef<ImageBuildRun>>,
    /// Pools.
    pub pools: UnboundedReceiver<ObjectRef<BuilderPool>>,
}

/// Both ends.
#[must_use]
pub fn wakes() -> (Wake, Woken) {
    let (image_builds, woken_image_builds) = unbounded_channel();
    let (runs, woken_runs) = unbounded_channel();
    let (pools, woken_pools) = unbounded_channel();
    (
        Wake { image_builds, runs, pools },
        Woken { image_builds: woken_image_builds, runs: woken_runs, pools: woken_pools },
    )
}

/// What others go by of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Places {
    phase: Option<RunPhase>,
    is_unwanted: bool,
    /// Phase, attempt and builder of each platform.
    platforms: Vec<(PlatformPhase, u32, Option<String>)>,
}

impl Places {
    fn of(run: &ImageBuildRun) -> Self {
        let status = run.status.as_ref();
        let platforms = status.iter().flat_map(|status| &status.platforms).map(|platform| {
            let builder = platform.builder.as_ref().map(|builder| builder.uid.clone());
            (platform.phase, platform.attempt, builder)
        });
        Self {
            phase: status.map(|status| status.phase),
            is_unwanted: run.spec.cancel || run.metadata.deletion_timestamp.is_some(),
            platforms: platforms.collect(),
        }
    }
}

// A send fails only when the controllers have ended, and then nobody needs waking.
impl Wake {
    /// A run changed: its ImageBuild reports it; where a job ended, the queued ones may have its place. `seen` holds what was
    /// seen of each: whoever changes the labels of his runs is not to keep all others busy.
    pub fn run_changed(&self, run: &ImageBuildRun, seen: &Remembered<Option<Places>>, stores: &Stores) {
        if let Some(namespace) = run.namespace() {
            let _ = self.image_builds.send(ObjectRef::new(&run.spec.image_build.name).within(&namespace));
        }
        let uid = run.uid().unwrap_or_default();
        if stores.runs.get(&ObjectRef::from_obj(run)).is_none() {
            seen.remove(&uid);
        } else {
            let now = Some(Places::of(run));
            if seen.get(&uid) == now {
                return;
            }
            seen.set(&uid, now);
        }
        let status = run.status.as_ref();
        let ended = status.is_some_and(|status| {
            let gave_back = |platform: &PlatformStatus| {
                let again = platform.attempt > 0 || platform.finished_at.is_some();
                platform.phase.is_final() || (platform.phase == PlatformPhase::Queued && again)
            };
            status.phase.is_final() || status.platforms.iter().any(gave_back)
        });
        if ended || run.metadata.deletion_timestamp.is_some() {
            self.queued_runs(&stores.runs);
        }
        self.all_pools(&stores.pools);
    }

    /// A builder pod changed: the runs that it works for, and those that wait for a builder.
    pub fn pod_changed(&self, pod: &Pod, runs: &Store<ImageBuildRun>) {
        let name = pod.name_any();
        for run in runs.state() {
            let holds = run.status.iter().flat_map(|status| &status.platforms).any(|platform| {
                platform.phase.is_assigned() && platform.builder.as_ref().is_some_and(|builder| builder.pod == name)
            });
            if holds || is_queued(&run) {
                let _ = self.runs.send(ObjectRef::from_obj(&*run));
            }
        }
        if let Some(pool) = pod.labels().get(POOL) {
            let _ = self.pools.send(ObjectRef::new(pool));
        }
    }

    /// A volume changed: the pools; where it is gone, a namespace at its limit of volumes may have another.
    pub fn claim_changed(&self, claim: &PersistentVolumeClaim, stores: &Stores) {
        self.all_pools(&stores.pools);
        if stores.claims.get(&ObjectRef::from_obj(claim)).is_none() {
            self.queued_runs(&stores.runs);
        }
    }

    /// An ImageBuild or a namespace changed: the pools that keep builders up for those that there are.
    pub fn warm_pools(&self, pools: &Store<BuilderPool>) {
        for pool in pools.state().iter().filter(|pool| pool.spec.min_builders.is_some_and(|least| least > 0)) {
            let _ = self.pools.send(ObjectRef::from_obj(&**pool));
        }
    }

    /// An ImageBuild changed: where it has another image, those of its namespace that have it as a context may go on; where
    /// it has other tags, those that want one that it had. `seen` holds what was seen of each.
    pub fn image_build_changed(&self, build: &ImageBuild, seen: &Remembered<Option<Seen>>, context: &Context) {
        let uid = build.uid().unwrap_or_default();
        if context.stores.image_builds.get(&ObjectRef::from_obj(build)).is_none() {
            seen.remove(&uid);
            self.image_builds_with(&[Reason::TagConflict], context);
            return;
        }
        let now = Seen::of(build);
        let former = seen.get(&uid);
        if former.as_ref() == Some(&now) {
            return;
        }
        seen.set(&uid, Some(now.clone()));
        // What is seen for the first time is there since before the operator was: it looks at everything when it starts.
        let Some(former) = former else { return };
        if !former.tags.is_subset(&now.tags) {
            self.image_builds_with(&[Reason::TagConflict], context);
        }
        if former.image == now.image {
            return;
        }
        let name = build.name_any();
        let depends = |other: &ImageBuild| {
            other.metadata.namespace == build.metadata.namespace && image_build_contexts(other).contains(&name)
        };
        for other in context.stores.image_builds.state_filter(depends) {
            let uid = other.uid().unwrap_or_default();
            context.image_builds.set(&uid, context.image_builds.get(&uid).without_delay());
            let _ = self.image_builds.send(ObjectRef::from_obj(&*other));
        }
    }

    /// A pool changed: runs that wait for capacity, and ImageBuilds that found no pool, may go on.
    pub fn pool_changed(&self, context: &Context) {
        self.queued_runs(&context.stores.runs);
        // An ImageBuild without a pool may be another one's by now.
        self.warm_pools(&context.stores.pools);
        let faults =
            [Reason::PoolNotFound, Reason::PoolNotAllowed, Reason::PlatformInvalid, Reason::ArchivesNotConfigured];
        self.image_builds_with(&faults, context);
    }

    /// ImageBuilds that are not ready for one of these faults may go on.
    fn image_builds_with(&self, faults: &[Reason], context: &Context) {
        for build in context.stores.image_builds.state() {
            let conditions = build.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
            let waits = find(conditions, "Ready")
                .is_some_and(|ready| faults.iter().any(|fault| fault.as_str() == ready.reason));
            if let Some(uid) = build.uid().filter(|_| waits) {
                context.image_builds.set(&uid, context.image_builds.get(&uid).without_delay());
                let _ = self.image_builds.send(ObjectRef::from_obj(&*build));
            }
        }
    }

    /// A node changed. That happens with every heartbeat; what matters of nodes hardly ever does.
    pub fn nodes_changed(&self, known: &mut Vec<NodeFacts>, context: &Context) {
        let facts = context.nodes();
        if *known != facts {
            *known = facts;
            self.all_pools(&context.stores.pools);
            self.queued_runs(&context.stores.runs);
        }
    }

    /// Every pool: what they report may have changed.
    pub fn all_pools(&self, pools: &Store<BuilderPool>) {
        for pool in pools.state() {
            let _ = self.pools.send(ObjectRef::from_obj(&*pool));
        }
    }

    /// Every run that waits for a builder.
    pub fn queued_runs(&self, runs: &Store<ImageBuildRun>) {
        for run in runs.state().iter().filter(|run| is_queued(run)) {
            let _ = self.runs.send(ObjectRef::from_obj(&**run));
        }
    }
}

/// Whether a platform of the run waits for a builder.
#[must_use]
pub fn is_queued(run: &ImageBuildRun) -> bool {
    match &run.status {
        None => true,
        Some(status) => {
            !status.phase.is_final() && status.platforms.iter().any(|platform| platform.phase == PlatformPhase::Queued)
        }
    }
}

/// The same changes, each told to somebody else first.
pub fn tell<K: Send + 'static>(changes: Changes<K>, on_change: impl Fn(&K) + Send + 'static) -> Changes<K> {
    changes.inspect_ok(on_change).boxed()
}

/// Drives a watch that feeds no controller of its own.
pub async fn drive<K>(changes: Changes<K>, mut on_change: impl FnMut(K)) {
    let mut changes = changes;
    loop {
        match changes.try_next().await {
            Ok(Some(object)) => on_change(object),
            Ok(None) => return,
            // The watch goes on by itself, with a growing delay.
            Err(error) => warn!(%error, "a watch was interrupted"),
        }
    }
}

/// The receiver as a stream.
pub fn stream<T: Send + 'static>(receiver: UnboundedReceiver<T>) -> impl Stream<Item = T> + Send + 'static {
    tokio_stream::wrappers::UnboundedReceiverStream::new(receiver)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn others_go_by_phases_attempts_and_builders() {
        let run = |change: &str, value: Value| {
            let mut run = json!({
                "metadata": {"name": "app-1", "labels": {}},
                "spec": {"imageBuild": {"name": "app", "uid": "u"}, "number": 1, "inputHash": "x", "build": {}},
                "status": {"phase": "Building", "platforms": [{
                    "name": "linux/amd64", "phase": "Building", "attempt": 1,
                    "builder": {"pod": "p", "uid": "u", "node": "n"},
                }]},
            });
            if let Some(place) = run.pointer_mut(change) {
                *place = value;
            }
            Places::of(&serde_json::from_value(run).unwrap())
        };
        let before = run("/", json!(null));
        assert_eq!(run("/metadata/labels", json!({"a": "b"})), before);
        for (change, value) in [
            ("/status/phase", json!("Succeeded")),
            ("/status/platforms/0/phase", json!("Queued")),
            ("/status/platforms/0/attempt", json!(2)),
            ("/status/platforms/0/builder/uid", json!("other")),
            (
                "/spec",
                json!({
                    "imageBuild": {"name": "app", "uid": "u"}, "number": 1, "inputHash": "x", "build": {}, "cancel": true,
                }),
            ),
        ] {
            assert_ne!(run(change, value), before, "{change}");
        }
    }
}
