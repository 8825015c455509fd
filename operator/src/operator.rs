//! The operator as a whole: waits until it leads, then watches and reconciles until it is told to stop or leads no more.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use k8s_openapi::api::core::v1::{Namespace, Node, PersistentVolumeClaim, Pod};
use kiln_crds::{BuilderPool, ImageBuild, ImageBuildRun};
use kube::runtime::controller::{self, Action, Controller};
use kube::runtime::reflector::ObjectRef;
use kube::runtime::watcher;
use kube::{Api, Client, Resource, ResourceExt};
use prometheus_client::registry::Registry;
use tokio::sync::Notify;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, debug, error, info, info_span, warn};

use crate::builder::Authority;
use crate::builder::authority::renewal;
use crate::builder::identity::SELECTOR;
use crate::cluster_network::{ClusterAddresses, Named};
use crate::config::Settings;
use crate::context::{Context, Remembered, Stores};
use crate::leader::Elector;
use crate::metrics::Metrics;
use crate::server::{Health, serve};
use crate::trace::Traces;
use crate::trim;
use crate::turns::{self, Turns};
use crate::watches::{Changes, PAGE, Synced, Wake, drive, stream, tell, wakes, watch};
use crate::{builder_pool, cluster_network, image_build, image_build_run, network_policy};

/// Why the operator stopped.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server's address or credential cannot be found or used.
    #[error("finding the API server: {0}")]
    Client(String),
    /// The log filter is none.
    #[error("reading the log filter: {0}")]
    Log(#[from] tracing_subscriber::filter::ParseError),
    /// No certificates.
    #[error(transparent)]
    Authority(#[from] crate::builder::authority::Error),
    /// The collector of traces cannot be reached so.
    #[error("reading OTEL_EXPORTER_OTLP_ENDPOINT, which should be such as http://otel-collector.monitoring:4317: {0}")]
    Traces(#[from] opentelemetry_otlp::ExporterBuildError),
    /// /livez could not be served.
    #[error("serving /livez, /readyz and /metrics: {0}")]
    Server(#[from] std::io::Error),
    /// Another replica leads, or may soon: this one must not go on.
    #[error("the Lease was lost: another replica may lead now")]
    LeaseLost,
}

/// The program: reads its settings, then runs until it is told to stop; its exit code.
///
/// It stands in the library, so that the whole is compiled once and the binary only calls it. Unit tests do without.
///
/// # Panics
/// Where no thread can be started.
#[cfg(not(test))]
#[must_use]
// What it does waits for others; each further thread would keep a heap of its own.
#[tokio::main(worker_threads = 2)]
pub async fn main() -> std::process::ExitCode {
    use std::process::ExitCode;

    let settings = Settings::from_args();
    if let Err(problem) = crate::telemetry::start(&settings.log, settings.log_format) {
        eprintln!("kiln-operator: reading the log filter {:?}: {problem}", settings.log);
        return ExitCode::from(2);
    }
    match Box::pin(run(settings, crate::shutdown::signal())).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            error!(error = %problem, "the operator ends");
            ExitCode::FAILURE
        }
    }
}

/// Runs until `shutdown`, or until it leads no more.
pub async fn run(settings: Settings, shutdown: impl Future<Output = ()> + Send + 'static) -> Result<(), Error> {
    let client = client().await?;
    let traces = settings.otlp_endpoint.as_deref().map(Traces::new).transpose()?;
    let mut registry = Registry::default();
    let metrics = Metrics::new(&mut registry);
    let health = Health::new(registry);
    let stop = CancellationToken::new();
    let server = tokio::spawn(serve(settings.listen, health.clone(), stop.clone().cancelled_owned()));
    {
        let stop = stop.clone();
        tokio::spawn(async move {
            shutdown.await;
            info!("stopping");
            stop.cancel();
        });
    }
    tokio::select! {
        () = kinds_there(&client) => health.ready(),
        () = stop.cancelled() => return Ok(()),
    }
    let elector = Elector::new(client.clone(), &settings.namespace, "kiln-operator", &settings.identity);
    let Some(leadership) = elector.acquire(stop.cancelled()).await else { return Ok(()) };
    metrics.leads(true);
    info!(identity = settings.identity, "leading");
    let authority = Arc::new(Authority::load(&client, &settings.namespace, settings.certificate_lifetime).await?);
    let controllers = control(client, settings, authority, metrics, traces, leadership.token(), stop.clone());
    let lost = tokio::select! {
        () = controllers => false,
        () = leadership.lost() => true,
    };
    stop.cancel();
    if lost {
        return Err(Error::LeaseLost);
    }
    leadership.release().await;
    match server.await {
        Ok(result) => result?,
        Err(error) => warn!(%error, "the server for /livez ended"),
    }
    Ok(())
}

async fn client() -> Result<Client, Error> {
    let mut config = kube::Config::infer().await.map_err(|error| Error::Client(error.to_string()))?;
    let agent = concat!("kiln-operator/", env!("CARGO_PKG_VERSION"));
    config.headers.push((http::header::USER_AGENT, http::HeaderValue::from_static(agent)));
    Client::try_from(config).map_err(|error| Error::Client(error.to_string()))
}

/// Waits until the API server answers and knows Kiln's kinds.
async fn kinds_there(client: &Client) {
    let mut said = false;
    loop {
        let params = kube::api::ListParams::default().limit(1);
        let image_builds = Api::<ImageBuild>::all(client.clone());
        let runs = Api::<ImageBuildRun>::all(client.clone());
        let pools = Api::<BuilderPool>::all(client.clone());
        match futures::try_join!(
            image_builds.list_metadata(&params),
            runs.list_metadata(&params),
            pools.list_metadata(&params)
        ) {
            Ok(_) => return,
            Err(error) if !said => {
                warn!(%error, "waiting for the API server and Kiln's CustomResourceDefinitions");
                said = true;
            }
            Err(error) => debug!(%error, "still waiting"),
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

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
    let all = watcher::Config::default();
    let in_pages = all.clone().page_size(PAGE);
    let of_builders = all.clone().labels(SELECTOR);
    let image_builds = Api::<ImageBuild>::all(client.clone());
    let image_builds = watch(image_builds, in_pages.clone(), trim::image_build, &mut synced);
    let runs = watch(Api::<ImageBuildRun>::all(client.clone()), in_pages, trim::run, &mut synced);
    let pools = Api::<BuilderPool>::all(client.clone());
    let pools = watch(pools, all.clone(), trim::managed_fields, &mut synced);
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
async fn control(
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
    let turns = Turns::new(wake);
    let went_on = turns.clone();
    let each = move |object: Arc<K>, context: Arc<Context>| {
        let (failures, turns) = (failures.clone(), turns.clone());
        async move {
            context.stores.synced.wait().await;
            // Who waits is woken.
            let Some(_turn) = turns.take(&ObjectRef::from_obj(&*object), waits_for(&object)) else {
                return Ok(Action::await_change());
            };
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
                    forgets.remove(&format!("{namespace}/{}", gone.name));
                    let object = ObjectRef::new(&gone.name);
                    went_on.gone(&if namespace.is_empty() { object } else { object.within(namespace) });
                }
                Err(problem) => error!(controller = name, error = %problem, "a controller's stream failed"),
            }
        })
        .await;
}
