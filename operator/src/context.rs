//! What every reconcile can reach: clients, the copies of the cluster's objects, and the jobs that run.

use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::header::{ACCEPT, HeaderValue};
use k8s_openapi::api::core::v1::{Namespace, Node, PersistentVolumeClaim, Pod};
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kiln_crds::image_build::{BuildWarning, TagStatus};
use kiln_crds::{BuilderPool, ImageBuild, ImageBuildRun};
use kube::Client;
use kube::api::{Api, ListParams, ObjectList, ObjectMeta, PartialObjectMeta, Patch, PatchParams, PostParams};
use kube::runtime::events::EventType;
use kube::runtime::reflector::Store;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{Notify, Semaphore};
use tracing::warn;

use crate::agent::{Connections, Described, Jobs};
use crate::builder::Authority;
use crate::builder::node::NodeFacts;
use crate::cluster_network::ClusterAddresses;
use crate::condition::cut;
use crate::config::Settings;
use crate::image_build_run::replaced::Replaced;
use crate::leader::LeaderToken;
use crate::metrics::Metrics;
use crate::outage::Outages;
use crate::reason::Reason;
use crate::tags::claims::Claims;
use crate::tags::moving::Moving;
use crate::trace::Traces;
use crate::watches::{Synced, Wake};
use kiln_registry::RegistryClients;
use kiln_registry::http_client::Clients;
use kiln_registry::room::Room;

/// The field manager of everything that Kiln applies.
pub const FIELD_MANAGER: &str = "kiln";

/// How many objects are in memory with their files at once.
const LARGE: usize = 2;
/// How many jobs are.
const SENDING: usize = 4;

/// How many Events wait to be written at most: one more is left out, and the log says so.
const WAITING_EVENTS: usize = 1_000;
/// How many are written at once: each takes a connection.
const EVENTS_AT_ONCE: usize = 16;

/// Copies of the cluster's objects, kept by watches.
pub struct Stores {
    /// All ImageBuilds.
    pub image_builds: Store<ImageBuild>,
    /// All ImageBuildRuns.
    pub runs: Store<ImageBuildRun>,
    /// All BuilderPools.
    pub pools: Store<BuilderPool>,
    /// The builder pods.
    pub pods: Store<Pod>,
    /// The builders' volumes.
    pub claims: Store<PersistentVolumeClaim>,
    /// The nodes.
    pub nodes: Store<Node>,
    /// The namespaces.
    pub namespaces: Store<Namespace>,
    /// Whether the copies are whole: a reconcile that saw half of the objects would decide wrongly.
    pub synced: Synced,
}

/// What every reconcile can reach.
pub struct Context {
    /// The API server.
    pub client: Client,
    /// The operator's settings.
    pub settings: Settings,
    /// Copies of the cluster's objects.
    pub stores: Stores,
    /// The addresses of the cluster's own network.
    pub cluster: ClusterAddresses,
    /// HTTP clients for registries and Git servers.
    pub http: Clients,
    /// Registry clients, with the tokens that they hold.
    pub registries: RegistryClients,
    /// The registries and Git servers that are away.
    pub outages: Outages,
    /// Jobs on agents.
    pub jobs: Jobs,
    /// What builders have said of themselves.
    pub described: Described,
    /// Certificates of builders.
    pub authority: Arc<Authority>,
    /// Whether this replica leads.
    pub leader: LeaderToken,
    /// Counts.
    pub metrics: Metrics,
    /// The way to the collector of traces, where there is one.
    pub traces: Option<Traces>,
    /// Held while builders are chosen for jobs, and while idle ones are removed.
    pub placing: tokio::sync::Mutex<()>,
    /// Room for ImageBuilds and runs that are in memory with their files, a megabyte each, for the API server alone to free.
    pub large: Semaphore,
    /// Room for jobs that are being sent, megabytes each, for agents to free.
    pub sending: Arc<Room>,
    /// Room for Events that wait to be written, and for those that are being written.
    pub events: (Arc<Semaphore>, Arc<Semaphore>),
    /// Whether the API server was seen to drop `hostUsers: false`.
    pub api_drops_host_users: AtomicBool,
    /// What is remembered of each ImageBuild between reconciles, by UID.
    pub image_builds: Remembered<crate::image_build::Memory>,
    /// Told when a run is cancelled or deleted: one that is being published stops then.
    pub cancelled: Notify,
    /// The tags that runs are about to move.
    pub claims: Claims,
    /// Whose tags move now.
    pub moving: Moving,
    /// When the tags that a run has moved were looked at again last, by its UID.
    pub looked: Remembered<Option<Timestamp>>,
    /// How the tags of a run that publishes stand, and the warning of those that were elsewhere, by its UID: its status may have
    /// changed before it could say so. Of a run that publishes and has none here, a former operator has written tags.
    pub moved: Remembered<(Vec<TagStatus>, Option<BuildWarning>)>,
    /// What the copy of the runs may still show, though this operator has written something newer.
    pub replaced: Replaced,
    /// How the publishing of a run went, by UID.
    pub publishing: Remembered<crate::image_build_run::Publishing>,
    /// How often an agent was asked in vain to cancel a job, by its id.
    pub cancelling: Remembered<u32>,
    /// UIDs of builder pods and volumes that were removed: the copies of them may not know yet.
    pub removed_pods: Remembered<bool>,
    /// How many pods of a builder have ended since one was up, by its name.
    pub ended_pods: Remembered<u32>,
}

impl Context {
    /// Nothing is remembered yet, and no traces are sent.
    #[must_use]
    pub fn new(
        client: Client,
        settings: Settings,
        stores: Stores,
        authority: Arc<Authority>,
        leader: LeaderToken,
        metrics: Metrics,
        wake: &Wake,
    ) -> Self {
        let connections = Connections::new(authority.clone());
        Self {
            jobs: Jobs::new(connections.clone(), wake.runs.clone(), wake.pools.clone()),
            described: Described::new(connections, wake.pools.clone()),
            client,
            settings,
            stores,
            cluster: ClusterAddresses::default(),
            http: Clients::new(),
            registries: RegistryClients::new(),
            outages: Outages::new(wake.clone()),
            authority,
            leader,
            metrics,
            traces: None,
            placing: tokio::sync::Mutex::default(),
            large: Semaphore::new(LARGE),
            sending: Arc::new(Room::new(SENDING, 1)),
            events: (Arc::new(Semaphore::new(WAITING_EVENTS)), Arc::new(Semaphore::new(EVENTS_AT_ONCE))),
            api_drops_host_users: false.into(),
            image_builds: Remembered::default(),
            cancelled: Notify::new(),
            claims: Claims::default(),
            moving: Moving::default(),
            looked: Remembered::default(),
            moved: Remembered::default(),
            replaced: Replaced::default(),
            publishing: Remembered::default(),
            cancelling: Remembered::default(),
            removed_pods: Remembered::default(),
            ended_pods: Remembered::default(),
        }
    }

    /// The facts of the cluster's Linux nodes.
    #[must_use]
    pub fn nodes(&self) -> Vec<NodeFacts> {
        self.stores.nodes.state().iter().filter_map(|node| NodeFacts::of(node)).collect()
    }

    /// Writes an Event on an object; not waited for, so that no build is. A failure is logged: an Event is news, not state.
    ///
    /// Not kube's Recorder: it counts Events of one reason as one, with the first one's text. Kiln writes an Event only
    /// where something has changed, and its text is what matters.
    pub fn event<K>(&self, object: &K, kind: EventType, reason: &str, message: &str)
    where
        K: kube::Resource<DynamicType = ()>,
    {
        let regarding = object.object_ref(&());
        let (waiting, at_once) = &self.events;
        let Ok(room) = waiting.clone().try_acquire_owned() else {
            warn!(reason, object = regarding.name, "an Event is left out: too many wait to be written");
            return;
        };
        let at_once = at_once.clone();
        let namespace = regarding.namespace.clone().unwrap_or_else(|| "default".to_owned());
        let now = Timestamp::now();
        let event = Event {
            metadata: ObjectMeta {
                // Unique as client-go makes it: the object and the time.
                name: Some(format!("{}.{:x}", regarding.name.as_deref().unwrap_or_default(), now.as_nanosecond())),
                namespace: Some(namespace.clone()),
                ..ObjectMeta::default()
            },
            type_: Some(format!("{kind:?}")),
            reason: Some(reason.to_owned()),
            note: Some(cut(message.to_owned())),
            action: Some("Build".to_owned()),
            event_time: Some(MicroTime(now)),
            regarding: Some(regarding),
            reporting_controller: Some("kiln.build/operator".to_owned()),
            reporting_instance: Some(self.settings.identity.clone()),
            ..Event::default()
        };
        let events = namespaced::<Event>(&self.client, &namespace);
        tokio::spawn(async move {
            let _room = room;
            let _turn = at_once.acquire().await;
            match events.create(&PostParams::default(), &event).await {
                // Its namespace is being deleted: nobody is left to read it.
                Err(kube::Error::Api(status)) if status.is_not_found() || is_terminating(&status) => {}
                Err(error) => warn!(%error, reason = event.reason, "an Event could not be written"),
                Ok(_) => {}
            }
        });
    }
}

/// Whether something could not be made because its namespace is being deleted.
fn is_terminating(status: &kube::core::Status) -> bool {
    let mut causes = status.details.iter().flat_map(|details| &details.causes);
    causes.any(|cause| cause.reason == "NamespaceTerminating")
}

/// Writes a status, if the object is still the one that was read: what was decided on an older one is not written. Its new
/// metadata comes back: the whole object may have a megabyte.
pub async fn write_status<K, S>(context: &Context, object: &K, status: &S) -> Result<ObjectMeta, kube::Error>
where
    K: kube::Resource<DynamicType = ()>,
    S: Serialize,
{
    let meta = object.meta();
    let name = meta.name.as_deref().unwrap_or_default();
    let patch = serde_json::json!({
        "apiVersion": K::api_version(&()),
        "kind": K::kind(&()),
        "metadata": {"name": name, "resourceVersion": meta.resource_version},
        "status": status,
    });
    let params = PatchParams::apply(FIELD_MANAGER).force();
    let url = K::url_path(&(), meta.namespace.as_deref());
    let request = kube::core::Request::new(url);
    let mut request =
        request.patch_subresource("status", name, &params, &Patch::Apply(&patch)).map_err(kube::Error::BuildRequest)?;
    request.headers_mut().insert(ACCEPT, METADATA_ALONE);
    let answer: Result<PartialObjectMeta, _> = context.client.request(request).await;
    let written = answer.map(|answer| ObjectMeta { managed_fields: None, ..answer.metadata });
    if matches!(&written, Err(kube::Error::Api(status)) if status.code == INVALID) {
        reset_status(context, object).await?;
    }
    written
}

/// The object as it is stored: copies leave out what is large. `None`: it is gone, or another of its name is there.
pub async fn whole<K>(client: &Client, object: &K) -> Result<Option<K>, kube::Error>
where
    K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
{
    let api = namespaced::<K>(client, object.meta().namespace.as_deref().unwrap_or_default());
    let found = api.get_opt(object.meta().name.as_deref().unwrap_or_default()).await?;
    Ok(found.filter(|found| found.meta().uid == object.meta().uid))
}

/// What the API server is to answer with.
pub const METADATA_ALONE: HeaderValue =
    HeaderValue::from_static("application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1");
/// The status code of what the schema refuses.
const INVALID: u16 = 422;

/// Removes a status that somebody else wrote into: his part stays when Kiln applies its own, and the two together may be
/// nothing that the schema lets pass. The change wakes the reconcile, which finds out anew how things stand.
async fn reset_status<K>(context: &Context, object: &K) -> Result<(), kube::Error>
where
    K: kube::Resource<DynamicType = ()>,
{
    let meta = object.meta();
    let name = meta.name.as_deref().unwrap_or_default();
    let url = K::url_path(&(), meta.namespace.as_deref());
    let itself = ListParams::default().fields(&format!("metadata.name={name}"));
    let request = kube::core::Request::new(&url).list_metadata(&itself).map_err(kube::Error::BuildRequest)?;
    let found: ObjectList<PartialObjectMeta> = context.client.request(request).await?;
    let managed = found.items.into_iter().flat_map(|object| object.metadata.managed_fields.unwrap_or_default());
    let others = managed.filter(|fields| {
        fields.subresource.as_deref() == Some("status") && fields.manager.as_deref() != Some(FIELD_MANAGER)
    });
    if others.count() == 0 {
        return Ok(());
    }
    tracing::warn!(kind = %K::kind(&()), namespace = meta.namespace, name, "a status that somebody else wrote into is reset");
    let patch = serde_json::json!({"metadata": {"resourceVersion": meta.resource_version}, "status": null});
    let request = kube::core::Request::new(url);
    let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
    let request = request.patch_subresource("status", name, &params, &Patch::Merge(&patch));
    context.client.request::<serde_json::Value>(request.map_err(kube::Error::BuildRequest)?).await?;
    let reason = Reason::StatusReset.as_str();
    let message = "somebody else had written into the status what Kiln cannot have written; it was reset, and is found out anew; see who may write to the subresource \"status\"";
    context.event(object, EventType::Warning, reason, message);
    Ok(())
}

/// Whether a write failed because the object had changed: the newer one is on its way, and wakes the reconcile by itself.
#[must_use]
pub fn is_conflict(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.is_conflict() || status.is_not_found())
}

/// An Api for the objects of one namespace.
#[must_use]
pub fn namespaced<K>(client: &Client, namespace: &str) -> Api<K>
where
    K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
{
    Api::namespaced(client.clone(), namespace)
}

/// What is remembered between reconciles and may be lost at any time.
pub struct Remembered<V> {
    values: Mutex<HashMap<String, V>>,
}

impl<V> Default for Remembered<V> {
    fn default() -> Self {
        Self { values: Mutex::default() }
    }
}

impl<V: Clone + Default> Remembered<V> {
    /// What is remembered under this key.
    #[must_use]
    pub fn get(&self, key: &str) -> V {
        self.values.lock().unwrap_or_else(PoisonError::into_inner).get(key).cloned().unwrap_or_default()
    }

    /// Remembers it.
    pub fn set(&self, key: &str, value: V) {
        self.values.lock().unwrap_or_else(PoisonError::into_inner).insert(key.to_owned(), value);
    }

    /// Of how much something is remembered.
    #[must_use]
    pub fn len(&self) -> usize {
        self.values.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Whether nothing is remembered.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Forgets all but these.
    pub fn retain(&self, keep: impl Fn(&str) -> bool) {
        self.values.lock().unwrap_or_else(PoisonError::into_inner).retain(|key, _| keep(key));
    }

    /// Forgets it.
    pub fn remove(&self, key: &str) {
        self.values.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }
}

/// The delay before the next try: doubling from a second, at most five minutes.
#[must_use]
pub fn backoff(failures: u32) -> Duration {
    Duration::from_secs((1_u64 << failures.saturating_sub(1).min(9)).min(300))
}

/// How long from `now` to `then`; nothing where it has passed.
#[must_use]
pub fn until(then: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(then.duration_since(now)).unwrap_or_default()
}
