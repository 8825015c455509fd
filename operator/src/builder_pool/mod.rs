//! BuilderPool: removes builders that are idle, ended or nobody's, and reports those that there are.
//!
//! Builders are made by the runs that need them ([`crate::image_build_run::place`]); this is where they end.

pub mod plan;
pub mod select;
pub mod status;

use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;
use kiln_crds::BuilderPool;
use kube::ResourceExt;
use kube::runtime::controller::Action;
use kube::runtime::reflector::ObjectRef;

use self::plan::{Builder, Fate, Volume};
use crate::builder::pod::LAST_USED;
use crate::builder::{BuilderId, TrustDomain};
use crate::builder::{ensure, observe};
use crate::context::{Context, is_conflict, until, write_status};
use crate::watches::is_queued;

/// Seconds that a builder without a job gets to end. Not its own, which are for builds that run: a signal that arrives
/// while its containers start is lost.
pub const IDLE_GRACE: u32 = 10;

/// Why a reconcile failed; it is tried again.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A builder could not be removed.
    #[error(transparent)]
    Builder(#[from] ensure::Error),
    /// The status could not be written.
    #[error("writing the BuilderPool's status: {0}")]
    Write(#[from] kube::Error),
}

/// Brings a pool one step on.
pub async fn reconcile(pool: Arc<BuilderPool>, context: Arc<Context>) -> Result<Action, Error> {
    let now = Timestamp::now();
    let namespace = &context.settings.builders_namespace;
    let nodes = context.nodes();
    // Nobody is given a builder that is being removed.
    let placing = context.placing.lock().await;
    let builders = builders(&context, &pool, now);
    let volumes = volumes(&context, &pool);
    let decided = plan::plan(&pool.spec, &builders, &volumes, observe::template(&context, &pool).has_volume(), now);
    for (id, fate) in decided.fates {
        match fate {
            Fate::RemovePod => {
                let uid = builders.iter().find(|builder| builder.id == id).map(|builder| builder.uid.clone());
                tracing::info!(builder = id.name(), "removing an idle builder");
                observe::remove_pod(&context, &id, uid, Some(IDLE_GRACE)).await?;
            }
            Fate::RemoveAll => {
                tracing::info!(builder = id.name(), "removing a builder and its volume");
                ensure::remove(&context.client, namespace, &id).await?;
                context.jobs.builder_gone(&id.name());
            }
        }
    }
    drop(placing);
    context
        .image_builds
        .retain(|uid| context.stores.image_builds.find(|build| build.metadata.uid.as_deref() == Some(uid)).is_some());
    let profiles: Vec<_> =
        nodes.iter().map(|node| observe::profile(&context, &pool, &node.architecture, &nodes)).collect();
    let status = status::status(&pool, &builders, &profiles, now);
    if pool.status.as_ref() != Some(&status) {
        match write_status(&context.client, &*pool, &status).await {
            Err(error) if is_conflict(&error) => {}
            other => drop(other?),
        }
    }
    Ok(decided.look_again.map_or_else(Action::await_change, |at| Action::requeue(until(at, now))))
}

fn builders(context: &Context, pool: &BuilderPool, now: Timestamp) -> Vec<Builder> {
    let held = observe::held(context);
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
            Some(Builder {
                jobs: held.iter().filter(|(_, builder)| *builder == name).count(),
                last_active: last_active(context, &uid).unwrap_or(created).max(created),
                wanted: is_wanted(context, &id),
                ended: observe::has_ended(pod),
                terminating: pod.metadata.deletion_timestamp.is_some(),
                orphaned: is_gone(context, &id.domain),
                node: pod.spec.as_ref().and_then(|spec| spec.node_name.clone()),
                uid,
                id,
            })
        })
        .collect();
    builders.sort_by(|a, b| a.id.cmp(&b.id));
    builders
}

fn volumes(context: &Context, pool: &BuilderPool) -> Vec<Volume> {
    let claims = context.stores.claims.state();
    let of_pool = claims.iter().filter_map(|claim| {
        let id = BuilderId::of(&claim.metadata).filter(|id| id.pool == pool.name_any())?;
        let used = claim.annotations().get(LAST_USED).and_then(|time| time.parse().ok());
        let created = claim.creation_timestamp().map(|time| time.0);
        Some(Volume { last_used: used.into_iter().chain(created).max()?, orphaned: is_gone(context, &id.domain), id })
    });
    of_pool.collect()
}

/// When a builder's last job ended, as the runs tell it.
fn last_active(context: &Context, pod_uid: &str) -> Option<Timestamp> {
    let runs = context.stores.runs.state();
    let platforms = runs.iter().flat_map(|run| run.status.iter().flat_map(|status| status.platforms.iter()));
    platforms
        .filter(|platform| platform.builder.as_ref().is_some_and(|builder| builder.uid == pod_uid))
        .filter_map(|platform| Some(platform.finished_at.as_ref()?.0))
        .max()
}

/// Whether somebody waits for a builder of this one's namespace.
fn is_wanted(context: &Context, id: &BuilderId) -> bool {
    context
        .stores
        .runs
        .find(|run| run.metadata.namespace.as_ref() == Some(&id.domain.namespace) && is_queued(run))
        .is_some()
}

/// Whether the namespace or the ImageBuild of a trust domain is gone. One of the same name is another.
fn is_gone(context: &Context, domain: &TrustDomain) -> bool {
    let namespace = context.stores.namespaces.get(&ObjectRef::new(&domain.namespace));
    let namespace_gone = namespace.is_none_or(|found| found.uid().as_deref() != Some(domain.namespace_uid.as_str()));
    let build_gone = domain
        .image_build_uid
        .as_ref()
        .is_some_and(|uid| context.stores.image_builds.find(|build| build.uid().as_ref() == Some(uid)).is_none());
    namespace_gone || build_gone
}
