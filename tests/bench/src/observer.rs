//! Watches objects and remembers when each was first and last heard of, so that a wait adds nothing to what it measures.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod};
use kiln_crds::{BuilderPool, ImageBuild};
use kiln_e2e::builder::OF_TENANT;
use kiln_e2e::cluster::builders_namespace;
use kiln_e2e::tenant::{LABEL, condition, is_current, run_of};
use kube::api::{DeleteParams, ListParams};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio::task::AbortHandle;

/// The longest that anything measured may take.
const LIMIT: Duration = Duration::from_mins(4);

/// One object.
pub struct Seen<K> {
    /// When it was first heard of.
    pub first: Timestamp,
    /// When its last change was heard of.
    pub last: Timestamp,
    /// As it is.
    pub object: Arc<K>,
}

impl<K> Clone for Seen<K> {
    fn clone(&self) -> Self {
        Self { first: self.first, last: self.last, object: Arc::clone(&self.object) }
    }
}

/// Objects by namespace and name.
pub type Objects<K> = BTreeMap<(String, String), Seen<K>>;

/// A watch. It ends with the value.
pub struct Observer<K> {
    objects: watch::Receiver<Objects<K>>,
    task: AbortHandle,
}

impl<K> Drop for Observer<K> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl<K> Observer<K>
where
    K: Clone + Debug + DeserializeOwned + Resource + Send + Sync + 'static,
{
    /// Begins to watch; what is there already has been heard of when this returns.
    pub async fn new(api: Api<K>, select: watcher::Config) -> Self {
        let (sender, mut objects) = watch::channel(Objects::new());
        let (synced, is_synced) = tokio::sync::oneshot::channel();
        let task = tokio::spawn(async move {
            let mut stream = pin!(watcher(api, select).default_backoff());
            let mut synced = Some(synced);
            while let Some(event) = stream.next().await {
                let now = Timestamp::now();
                match event {
                    Ok(Event::Apply(object) | Event::InitApply(object)) => sender.send_modify(|objects| {
                        let key = (object.namespace().unwrap_or_default(), object.name_any());
                        let first = objects.get(&key).map_or(now, |seen| seen.first);
                        objects.insert(key, Seen { first, last: now, object: Arc::new(object) });
                    }),
                    Ok(Event::Delete(object)) => sender.send_modify(|objects| {
                        objects.remove(&(object.namespace().unwrap_or_default(), object.name_any()));
                    }),
                    Ok(Event::InitDone) => drop(synced.take().map(|synced| synced.send(()))),
                    Ok(Event::Init) => {}
                    // The watch comes back by itself; the limit ends what does not.
                    Err(error) => eprintln!("watch: {error}"),
                }
            }
        });
        is_synced.await.expect("a watch begins with a list");
        objects.mark_unchanged();
        Self { objects, task: task.abort_handle() }
    }

    /// Waits until the condition holds.
    pub async fn wait(&mut self, what: &str, mut holds: impl FnMut(&Objects<K>) -> bool) -> Objects<K> {
        let waited = tokio::time::timeout(LIMIT, self.objects.wait_for(|objects| holds(objects))).await;
        waited
            .unwrap_or_else(|_| panic!("{what}: not within {} s", LIMIT.as_secs()))
            .expect("the watch goes on")
            .clone()
    }
}

/// Whether an ImageBuild has an image of another run than `former`.
///
/// # Panics
/// Where it never will.
#[must_use]
pub fn is_built(build: &ImageBuild, former: &str) -> bool {
    if !is_current(build) || run_of(build) == former {
        return false;
    }
    let Some(ready) = condition(build, "Ready") else { return false };
    let stalled = condition(build, "Stalled").is_some_and(|stalled| stalled.status == "True");
    assert!(!stalled, "ImageBuild {}: {}: {}", build.name_any(), ready.reason, ready.message);
    ready.status == "True"
}

/// Whether a measurement made a namespace, or something that is called after one.
fn is_ours(name: &str) -> bool {
    name.starts_with("e2e-bench-")
}

/// Removes what an interrupted measurement left.
pub async fn remove_left_over(client: &Client) {
    let (namespaces, pools): (Api<Namespace>, Api<BuilderPool>) = (Api::all(client.clone()), Api::all(client.clone()));
    let bundles: Api<ConfigMap> = Api::namespaced(client.clone(), &builders_namespace());
    futures::join!(remove(namespaces), remove(pools), remove(bundles));
}

async fn remove<K>(api: Api<K>)
where
    K: Clone + Debug + DeserializeOwned + Resource,
{
    let list = api.list_metadata(&ListParams::default()).await.expect("objects can be listed");
    for name in list.iter().map(ResourceExt::name_any).filter(|name| is_ours(name)) {
        println!("removing {name}, left by an interrupted measurement");
        api.delete(&name, &DeleteParams::default()).await.unwrap_or_else(|error| panic!("{name}: {error}"));
    }
}

/// Waits until the namespaces of former measurements are gone, and their builders: neither may disturb.
pub async fn former_are_gone(client: &Client) {
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let mut observer = Observer::new(namespaces, watcher::Config::default().labels(LABEL)).await;
    let none_left = |namespaces: &Objects<Namespace>| !namespaces.keys().any(|(_, name)| is_ours(name));
    observer.wait("the namespaces of former measurements are gone", none_left).await;
    let pods: Api<Pod> = Api::namespaced(client.clone(), &builders_namespace());
    let mut observer = Observer::new(pods, watcher::Config::default().labels(OF_TENANT)).await;
    let serves_ours = |seen: &Seen<Pod>| seen.object.labels().get(OF_TENANT).is_some_and(|tenant| is_ours(tenant));
    observer.wait("their builders are gone", |pods| !pods.values().any(serves_ours)).await;
}
