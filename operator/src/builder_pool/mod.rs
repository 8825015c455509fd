//! BuilderPool: removes builders that are idle, ended or nobody's, keeps `minBuilders` up, and reports those that there are.
//!
//! All others are made by the runs that need them ([`crate::image_build_run::place`]); this is where they end.

pub mod activity;
pub mod demand;
pub mod plan;
pub mod select;
pub mod status;
pub mod warm;

use std::collections::HashSet;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kiln_crds::BuilderPool;
use kiln_crds::builder_pool::BuilderPoolStatus;
use kube::ResourceExt;
use kube::runtime::controller::Action;
use kube::runtime::events::EventType;
use kube::runtime::reflector::ObjectRef;

use self::activity::Activity;
use self::plan::{Builder, Fate, Volume};
use self::status::SANDBOXED;
use self::warm::{Demand, Standing};
use crate::builder::pick;
use crate::builder::profile::Profile;
use crate::builder::{BuilderId, TrustDomain};
use crate::builder::{ensure, observe};
use crate::condition::{self, seconds};
use crate::context::{Context, is_conflict, until, write_status};

/// Seconds that a builder without a job gets to end. Not its own, which are for builds that run: a signal that arrives
/// while its containers start is lost.
pub const IDLE_GRACE: u32 = 10;

/// Of how many builders is remembered how many of their pods have ended, at most.
const ENDED_PODS: usize = 1_000;

/// Why a reconcile failed; it is tried again.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A builder could not be removed.
    #[error(transparent)]
    Builder(#[from] ensure::Error),
    /// The status could not be written.
    #[error("writing the BuilderPool's status: {}", crate::refusal::words(.0))]
    Write(#[from] kube::Error),
    /// Something that the pool names could not be read.
    #[error(transparent)]
    Reference(#[from] crate::references::Error),
}

/// Brings a pool one step on.
pub async fn reconcile(pool: Arc<BuilderPool>, context: Arc<Context>) -> Result<Action, Error> {
    let now = Timestamp::now();
    let nodes = context.nodes();
    // Nobody is given a builder that is being removed.
    let placing = context.placing.lock().await;
    let living = Living::of(&context, &pool);
    let template = observe::template(&context, &pool);
    let demand = demand::demand(&context, &pool, &nodes);
    // A pool that keeps none up, as most do, is spared the look.
    let made = if demand.least > 0 { observe::builders(&context, &pool, template, &nodes, now) } else { Vec::new() };
    let activity = Activity::of(&context.stores.runs.state(), context.jobs.places());
    let builders = builders(&context, &pool, &living, &activity, &demand, &made, now);
    let volumes = volumes(&context, &pool, &living, &activity);
    let decided = plan::plan(&pool.spec, &builders, &volumes, template.has_volume(), now);
    for (id, fate) in decided.fates {
        let builder = builders.iter().find(|builder| builder.id == id);
        match fate {
            Fate::RemovePod => {
                let uid = builder.map(|builder| builder.uid.clone());
                tracing::info!(builder = id.name(), "removing an idle builder");
                observe::remove_pod(&context, &id, uid, Some(IDLE_GRACE)).await?;
            }
            Fate::RemoveAll => {
                tracing::info!(builder = id.name(), "removing a builder and its volume");
                observe::remove_with_volume(&context, &id).await?;
            }
        }
        // Each pod once: it is on its way out from now on.
        if let Some(ended) = builder.filter(|builder| builder.ended) {
            context.ended_pods.set(&id.name(), ended.failures + 1);
        }
    }
    let limits = select::limits(&pool, template.volume_size());
    let missing = demand.missing(&pool.name_any(), &made, &observe::volumes(&context, &pool), limits);
    let started = demand::start(&context, &pool, &nodes, &missing).await;
    drop(placing);
    for id in &decided.to_date {
        ensure::date(&context.client, &context.settings.builders_namespace, id).await?;
    }
    forget_the_gone(&context);
    let profiles: Vec<_> =
        nodes.iter().map(|node| observe::profile(&context, &pool, &node.architecture, &nodes)).collect();
    let status = status::status(&pool, &builders, &nodes, &profiles, now);
    if pool.status.as_ref() != Some(&status) {
        match write_status(&context, &*pool, &status).await {
            Err(error) if is_conflict(&error) => {}
            other => {
                other?;
                tell(&context, &pool, &status);
            }
        }
    }
    started?;
    Ok(decided.look_again.map_or_else(Action::await_change, |at| Action::requeue(until(at, now))))
}

/// Writes an Event where builders have turned out to have no sandbox.
fn tell(context: &Context, pool: &BuilderPool, status: &BuilderPoolStatus) {
    let is_missing = |status: &BuilderPoolStatus| {
        condition::find(&status.conditions, SANDBOXED).filter(|told| told.status == "False").cloned()
    };
    if let Some(missing) = is_missing(status)
        && pool.status.as_ref().and_then(is_missing).is_none()
    {
        context.event(pool, EventType::Warning, &missing.reason, &missing.message);
    }
}

fn builders(
    context: &Context,
    pool: &BuilderPool,
    living: &Living,
    activity: &Activity,
    demand: &Demand,
    made: &[pick::Builder],
    now: Timestamp,
) -> Vec<Builder> {
    let known = pool.status.as_ref().map(|status| status.builders.as_slice()).unwrap_or_default();
    let mut builders: Vec<Builder> = context
        .stores
        .pods
        .state()
        .iter()
        .filter_map(|pod| {
            let id = BuilderId::of(&pod.metadata).filter(|id| id.pool == pool.name_any())?;
            let uid = pod.uid()?;
            let name = pod.name_any();
            let created = pod.creation_timestamp().map_or(now, |time| time.0);
            // A run that history has dropped tells nothing any more: what it told stands in the status.
            let told = known.iter().find(|known| known.name == name).and_then(|known| known.last_active_at.as_ref());
            let ended = activity.ended.get(&uid).copied();
            let last_active = [Some(created), ended, told.map(|time| time.0)].into_iter().flatten().max()?;
            if is_up(pod) {
                context.ended_pods.remove(&name);
                if let Some((agent, _)) = observe::ready(pod) {
                    context.described.ask(&uid, &id.pool, agent, seconds(last_active));
                }
            }
            Some(Builder {
                jobs: activity.jobs.get(&name).copied().unwrap_or(0),
                created,
                failures: context.ended_pods.get(&name),
                last_active,
                wanted: activity.waiting.contains(&id.domain.namespace),
                ended: observe::has_ended(pod),
                suspect_since: context.jobs.suspect_since(&name),
                terminating: observe::is_going(context, &pod.metadata),
                orphaned: living.is_gone(context, &id.domain),
                standing: made
                    .iter()
                    .find(|made| made.id == id)
                    .map_or(Standing::Idle, |builder| demand.standing(builder, made)),
                node: pod.spec.as_ref().and_then(|spec| spec.node_name.clone()),
                profile: match pod.spec.as_ref().and_then(|spec| spec.host_users) {
                    Some(false) => Profile::UserNamespace,
                    _ => Profile::Rootless,
                },
                facts: context.described.facts(&uid),
                uid,
                id,
            })
        })
        .collect();
    builders.sort_by(|a, b| a.id.cmp(&b.id));
    builders
}

/// Whether all containers of a pod that stays have started.
fn is_up(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    pod.metadata.deletion_timestamp.is_none()
        && conditions.into_iter().flatten().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

fn volumes(context: &Context, pool: &BuilderPool, living: &Living, activity: &Activity) -> Vec<Volume> {
    let claims = context.stores.claims.state();
    let staying = claims.iter().filter(|claim| !observe::is_going(context, &claim.metadata));
    let of_pool = staying.filter_map(|claim| {
        let id = BuilderId::of(&claim.metadata).filter(|id| id.pool == pool.name_any())?;
        Some(Volume {
            last_used: observe::last_used(claim)?,
            in_use: activity.jobs.contains_key(&id.name()),
            orphaned: living.is_gone(context, &id.domain),
            id,
        })
    });
    of_pool.collect()
}

/// Forgets what is remembered of ImageBuilds, runs and builders that are gone.
fn forget_the_gone(context: &Context) {
    // Most of the time there is none, and they may be ten thousand.
    if context.image_builds.len() > context.stores.image_builds.len() {
        let builds = context.stores.image_builds.state();
        let uids: HashSet<&str> = builds.iter().filter_map(|build| build.metadata.uid.as_deref()).collect();
        context.image_builds.retain(|uid| uids.contains(uid));
    }
    let of_runs = [
        context.claims.is_empty(),
        context.moved.is_empty(),
        context.looked.is_empty(),
        context.replaced.is_empty(),
        context.publishing.is_empty(),
    ];
    if !of_runs.iter().all(|is_empty| *is_empty) {
        let runs = context.stores.runs.state();
        let runs: HashSet<&str> = runs.iter().filter_map(|run| run.metadata.uid.as_deref()).collect();
        context.claims.retain(|run_uid| runs.contains(run_uid));
        context.publishing.retain(|run_uid| runs.contains(run_uid));
        context.moved.retain(|run_uid| runs.contains(run_uid));
        context.looked.retain(|run_uid| runs.contains(run_uid));
        context.replaced.retain(|run_uid| runs.contains(run_uid));
    }
    if context.ended_pods.len() > ENDED_PODS {
        context.ended_pods.retain(|_| false);
    }
    let pods = context.stores.pods.state();
    context.described.retain(&pods.iter().filter_map(|pod| pod.metadata.uid.as_deref()).collect());
}

/// The ImageBuilds that builders and volumes of a pool belong to, as far as they are there.
struct Living {
    image_builds: HashSet<String>,
}

impl Living {
    fn of(context: &Context, pool: &BuilderPool) -> Self {
        let (pods, claims) = (context.stores.pods.state(), context.stores.claims.state());
        let owned = pods.iter().map(|pod| &pod.metadata).chain(claims.iter().map(|claim| &claim.metadata));
        let named: HashSet<String> = owned
            .filter_map(BuilderId::of)
            .filter(|id| id.pool == pool.name_any())
            .filter_map(|id| id.domain.image_build_uid)
            .collect();
        if named.is_empty() {
            return Self { image_builds: named };
        }
        let builds = context.stores.image_builds.state();
        Self { image_builds: builds.iter().filter_map(|build| build.uid()).filter(|uid| named.contains(uid)).collect() }
    }

    /// Whether the namespace or the ImageBuild of a trust domain is gone. One of the same name is another.
    fn is_gone(&self, context: &Context, domain: &TrustDomain) -> bool {
        let namespace = context.stores.namespaces.get(&ObjectRef::new(&domain.namespace));
        namespace.is_none_or(|found| found.uid().as_deref() != Some(domain.namespace_uid.as_str()))
            || domain.image_build_uid.as_ref().is_some_and(|uid| !self.image_builds.contains(uid))
    }
}
