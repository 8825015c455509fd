//! The controllers and their watches: what runs while this replica leads.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::future::Future;
use std::sync::Arc;
use std::time::Instant;

use futures::StreamExt;
use k8s_openapi::api::core::v1::{Namespace, Node, PersistentVolumeClaim, Pod};
use kiln_crds::{BuilderPool, ImageBuild, ImageBuildRun};
use kube::runtime::controller::{self, Action, Controller};
use kube::runtime::events::EventType;
use kube::runtime::reflector::ObjectRef;
use kube::runtime::watcher;
use kube::{Api, Client, Resource, ResourceExt};
use tokio::sync::Notify;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, error, info_span, warn};

use crate::builder::Authority;
use crate::builder::authority::renewal;
use crate::builder::identity::SELECTOR;
use crate::cluster_network::{ClusterAddresses, Named};
use crate::config::Settings;
use crate::context::{Context, Remembered, Stores};
use crate::metrics::Metrics;
use crate::readable::{self, watch_own};
use crate::reason::Reason;
use crate::trace::Traces;
use crate::trim;
use crate::turns::{self, Turns};
use crate::watches::{Changes, PAGE, Synced, WATCH, Wake, drive, stream, tell, wakes, watch};
use crate::{builder_pool, cluster_network, image_build, image_build_run, network_policy};

/// The copies of the cluster's objects, and what changes in them.
struct Watched {
    stores: Stores,
    changes: AllChanges,
}

struct AllChanges {
    image_builds: Changes<ImageBuild>,
    runs: Changes<ImageBuildRun>,
    pools: Changes<BuilderPool>,
    pods: Changes<Pod>,
    claims: Changes<PersistentVolumeClaim>,
    nodes: Changes<Node>,
    namespaces: Changes<Namespace>,
}

/// Watches every kind; of pods and volumes those of builders.
fn watch_all(client: &Client, builders: &str) -> Watched {
    let mut synced = Synced::default();
    let all = watcher::Config::default().timeout(WATCH);
    let in_pages = all.clone().page_size(PAGE);
    let of_builders = all.clone().labels(SELECTOR);
    let image_builds = watch_own(client, in_pages.clone(), trim::image_build, &mut synced);
    let runs = watch_own(client, in_pages, trim::run, &mut synced);
    let pools = watch_own::<BuilderPool>(client, all.clone(), trim::managed_fields, &mut synced);
    let pods = Api::<Pod>::namespaced(client.clone(), builders);
    let pods = watch(pods, of_builders.clone(), trim::managed_fields, &mut synced);
    let claims = Api::<PersistentVolumeClaim>::namespaced(client.clone(), builders);
    let claims = watch(claims, of_builders, trim::managed_fields, &mut synced);
    let nodes = watch(Api::<Node>::all(client.clone()), all.clone(), trim::managed_fields, &mut synced);
    let namespaces = watch(Api::<Namespace>::all(client.clone()), all, trim::managed_fields, &mut synced);
    Watched {
        stores: Stores {
            image_builds: image_builds.0,
            runs: runs.0,
            pools: pools.0,
            pods: pods.0,
            claims: claims.0,
            nodes: nodes.0,
            namespaces: namespaces.0,
            synced,
        },
        changes: AllChanges {
            image_builds: image_builds.1,
            runs: runs.1,
            pools: pools.1,
            pods: pods.1,
            claims: claims.1,
            nodes: nodes.1,
            namespaces: namespaces.1,
        },
    }
}

/// Watches and reconciles until `stop`; what is being reconciled then is finished.
pub async fn control(
    client: Client,
    settings: Settings,
    authority: Arc<Authority>,
    metrics: Metrics,
    traces: Option<Traces>,
    leader: crate::leader::LeaderToken,
    stop: CancellationToken,
) {
    let Watched { mut stores, changes } = watch_all(&client, &settings.builders_namespace);
    let copies = stores.synced.clone();
    let cluster = ClusterAddresses::new(stores.synced.also());
    let (wake, woken) = wakes();
    let context = Context::new(client, settings, stores, authority, leader, metrics, &wake);
    let context = Arc::new(Context { cluster, traces, ..context });
    let stores = &context.stores;
    context.metrics.observe(stores.pools.clone(), stores.image_builds.clone(), stores.runs.clone());
    let mut known_nodes = Vec::new();
    let (new_builder, node_changed) = (Notify::new(), Notify::new());
    let secondary = futures::future::join4(
        drive(changes.pods, |pod: Pod| {
            wake.pod_changed(&pod, &stores.runs);
            if !context.authority.knows(&pod.name_any()) {
                new_builder.notify_one();
            }
            if stores.pods.get(&ObjectRef::from_obj(&pod)).is_none() {
                context.jobs.builder_gone(&pod.name_any());
            }
        }),
        drive(changes.claims, |claim| wake.claim_changed(&claim, stores)),
        drive(changes.nodes, |_: Node| {
            wake.nodes_changed(&mut known_nodes, &context);
            node_changed.notify_one();
        }),
        drive(changes.namespaces, |namespace: Namespace| {
            if namespace.metadata.deletion_timestamp.is_some() {
                wake.all_pools(&stores.pools);
            } else {
                // Its labels say which pools serve it.
                wake.warm_pools(&stores.pools);
            }
        }),
    );
    let changed_runs = {
        let (wake, context, seen) = (wake.clone(), context.clone(), Remembered::default());
        tell(changes.runs, move |run: &ImageBuildRun| {
            wake.run_changed(run, &seen, &context.stores);
            if image_build_run::is_unwanted(&context, run) {
                context.cancelled.notify_waiters();
            }
        })
    };
    let changed_image_builds = {
        let (wake, context) = (wake.clone(), context.clone());
        let seen = Remembered::default();
        tell(changes.image_builds, move |build| {
            wake.warm_pools(&context.stores.pools);
            wake.image_build_changed(build, &seen, &context);
        })
    };
    let changed_pools = {
        let (wake, context) = (wake.clone(), context.clone());
        let known = KnownPools::default();
        tell(changes.pools, move |pool| pool_changed(pool, &known, &wake, &context))
    };
    let controllers = async {
        futures::future::join3(
            reconcile_all(
                "imagebuild",
                (changed_image_builds, stores.image_builds.clone()),
                (wake.image_builds.clone(), woken.image_builds),
                &context,
                &stop,
                |_| turns::Kind::Usual,
                image_build::reconcile,
            ),
            reconcile_all(
                "imagebuildrun",
                (changed_runs, stores.runs.clone()),
                (wake.runs.clone(), woken.runs),
                &context,
                &stop,
                image_build_run::waits_for,
                image_build_run::reconcile,
            ),
            reconcile_all(
                "builderpool",
                (changed_pools, stores.pools.clone()),
                (wake.pools.clone(), woken.pools),
                &context,
                &stop,
                |_| turns::Kind::Usual,
                builder_pool::reconcile,
            ),
        )
        .await;
    };
    tokio::select! {
        _ = secondary => {}
        () = renewal::run(&context, &new_builder) => {}
        () = keep_network(&context, &copies, &node_changed) => {}
        () = controllers => {}
    }
}

/// Keeps what is known of the cluster's network up to date, and the NetworkPolicy of builders, for ever. `copies`: those of
/// nodes among them are whole once it is set.
async fn keep_network(context: &Context, copies: &Synced, node_changed: &Notify) {
    let egress = context.settings.builders_egress.as_ref();
    let named =
        Named { api_server: egress.map_or(&[], |egress| &egress.api_server), ranges: &context.settings.cluster_ranges };
    let known = &context.cluster;
    let addresses = cluster_network::keep(&context.client, known, named, &context.stores.nodes, copies, node_changed);
    let policy = async {
        if let Some(egress) = egress {
            let namespace = &context.settings.builders_namespace;
            network_policy::keep(&context.client, namespace, egress, known.api_server()).await;
        }
    };
    futures::future::join(addresses, policy).await;
}

/// The generation of each pool's spec, and the platforms that its builders run.
type KnownPools = Remembered<(Option<i64>, BTreeSet<String>)>;

/// Wakes what a pool's change matters to. Pools' statuses change with every job; what their builders can run hardly ever
/// does.
fn pool_changed(pool: &BuilderPool, known: &KnownPools, wake: &Wake, context: &Context) {
    let (name, generation) = (pool.name_any(), pool.metadata.generation);
    let builders = pool.status.iter().flat_map(|status| &status.builders);
    let runs = builders.flat_map(|builder| builder.platforms.iter().chain(&builder.emulated_platforms));
    let now = (generation, runs.cloned().collect());
    if context.stores.pools.get(&ObjectRef::from_obj(pool)).is_none() {
        known.remove(&name);
        wake.pool_changed(context);
    } else if known.get(&name) != now {
        if known.get(&name).0 == generation {
            wake.queued_runs(&context.stores.runs);
        } else {
            wake.pool_changed(context);
        }
        known.set(&name, now);
    }
}

/// Runs one controller. Every error is logged and counted, and the object tried again with a growing delay.
async fn reconcile_all<K, E, F>(
    name: &'static str,
    (changes, store): (crate::watches::Changes<K>, kube::runtime::reflector::Store<K>),
    (wake, woken): (UnboundedSender<ObjectRef<K>>, UnboundedReceiver<ObjectRef<K>>),
    context: &Arc<Context>,
    stop: &CancellationToken,
    waits_for: fn(&K) -> turns::Kind,
    reconcile: fn(Arc<K>, Arc<Context>) -> F,
) where
    K: Resource<DynamicType = ()> + Clone + Debug + serde::de::DeserializeOwned + Send + Sync + 'static,
    E: std::error::Error + Send + Sync + 'static,
    F: Future<Output = Result<Action, E>> + Send + 'static,
{
    let failures: Arc<Remembered<u32>> = Arc::default();
    let key = |object: &K| format!("{}/{}", object.namespace().unwrap_or_default(), object.name_any());
    let (policy, forgets) = (failures.clone(), failures.clone());
    let on_error = move |object: Arc<K>, problem: &E, _: Arc<Context>| {
        let failed = policy.get(&key(&object)) + 1;
        policy.set(&key(&object), failed);
        warn!(controller = name, object = key(&object), error = %problem, failed, "a reconcile failed");
        Action::requeue(crate::context::backoff(failed))
    };
    // Of each object that cannot be read, why: once is enough.
    let told: Arc<Remembered<String>> = Arc::default();
    let (turns, forgets_told) = (Turns::new(wake), told.clone());
    let went_on = turns.clone();
    let each = move |object: Arc<K>, context: Arc<Context>| {
        let (failures, turns, told) = (failures.clone(), turns.clone(), told.clone());
        async move {
            context.stores.synced.wait().await;
            // Who waits is woken.
            let Some(_turn) = turns.take(&ObjectRef::from_obj(&*object), waits_for(&object)) else {
                return Ok(Action::await_change());
            };
            if let Some(why) = readable::skipped(&*object) {
                if told.get(&key(&object)) != why {
                    told.set(&key(&object), why.to_owned());
                    warn!(controller = name, object = key(&object), why, "an object cannot be read, and is skipped");
                    let message = format!(
                        "this version of Kiln cannot read it, for a newer one has written it: upgrade Kiln, or write what \
                         this version knows; until then nothing is done with it, and what belongs to it stays: {why}"
                    );
                    context.event(&*object, EventType::Warning, Reason::Unreadable.as_str(), &message);
                }
                return Ok(Action::await_change());
            }
            told.remove(&key(&object));
            let begun = Instant::now();
            let span = info_span!("reconcile", controller = name, object = key(&object));
            let work = reconcile(object.clone(), context.clone()).instrument(span);
            let result = kiln_registry::transfer::of_tenant(&object.namespace().unwrap_or_default(), work).await;
            context.metrics.reconciled(name, begun.elapsed().as_secs_f64(), result.is_err());
            if result.is_ok() {
                failures.remove(&key(&object));
            }
            result
        }
    };
    Controller::for_stream(changes, store)
        .with_config(controller::Config::default().concurrency(turns::ALL))
        .reconcile_on(stream(woken))
        .graceful_shutdown_on(stop.clone().cancelled_owned())
        .run(each, on_error, context.clone())
        .for_each(async |result| {
            match result {
                // The error policy has told these.
                Ok(_) | Err(controller::Error::ReconcilerFailed(..)) => {}
                Err(controller::Error::ObjectNotFound(gone)) => {
                    let namespace = gone.namespace.as_deref().unwrap_or_default();
                    let key = format!("{namespace}/{}", gone.name);
                    forgets.remove(&key);
                    forgets_told.remove(&key);
                    let object = ObjectRef::new(&gone.name);
                    went_on.gone(&if namespace.is_empty() { object } else { object.within(namespace) });
                }
                Err(problem) => error!(controller = name, error = %problem, "a controller's stream failed"),
            }
        })
        .await;
}
