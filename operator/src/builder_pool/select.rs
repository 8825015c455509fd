//! Which pool builds for a namespace; pure but for [`pool`].

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kiln_crds::{BuilderPool, ImageBuildSpec};
use kube::ResourceExt;
use kube::core::{Selector, SelectorExt};
use kube::runtime::reflector::ObjectRef;

use crate::builder::pick::Limits;
use crate::builder::pod::bytes;
use crate::context::Context;
use crate::readable::unreadable;
use crate::reason::Reason;
use crate::references::Fault;

/// The pool that builds for a namespace, by the copies of the cluster's objects.
pub fn pool(context: &Context, namespace: &str, named: Option<&str>) -> Result<Arc<BuilderPool>, Fault> {
    let labels = context.stores.namespaces.get(&ObjectRef::new(namespace));
    let labels = labels.and_then(|namespace| namespace.metadata.labels.clone()).unwrap_or_default();
    select(&context.stores.pools.state(), named, namespace, &labels)
}

/// The pool that an ImageBuild names, if it serves the namespace; else the default pool that does, the first by name.
pub fn select(
    pools: &[Arc<BuilderPool>],
    named: Option<&str>,
    namespace: &str,
    labels: &BTreeMap<String, String>,
) -> Result<Arc<BuilderPool>, Fault> {
    let serves = |pool: &&Arc<BuilderPool>| selects(pool.spec.namespace_selector.as_ref(), labels);
    if let Some(name) = named {
        let Some(pool) = pools.iter().find(|pool| pool.name_any() == name) else {
            let message =
                format!("spec.pool names the BuilderPool {name}, which does not exist: name another, or omit it");
            return Err(Fault::user(Reason::PoolNotFound, message));
        };
        return if serves(&pool) {
            readable(pool.clone())
        } else {
            let message = format!(
                "the BuilderPool {name} does not serve the namespace {namespace}: name another in spec.pool, or ask its \
                 owner to let its namespaceSelector match"
            );
            Err(Fault::user(Reason::PoolNotAllowed, message))
        };
    }
    let default = pools.iter().filter(|pool| pool.spec.default).filter(serves).min_by_key(|pool| pool.name_any());
    let default = default.cloned().ok_or_else(|| {
        let message = format!(
            "no BuilderPool with spec.default serves the namespace {namespace}: make one, or name a pool in spec.pool"
        );
        Fault::user(Reason::PoolNotFound, message)
    });
    default.and_then(readable)
}

/// A pool of which only a part is known makes no builders.
fn readable(pool: Arc<BuilderPool>) -> Result<Arc<BuilderPool>, Fault> {
    match unreadable(&*pool) {
        None => Ok(pool),
        Some(why) => {
            let message = format!(
                "this version of Kiln cannot read the BuilderPool {}, for a newer one has written it: its owner can upgrade \
                 Kiln, or write what this version knows ({why})",
                pool.name_any()
            );
            Err(Fault::user(Reason::PoolNotFound, message))
        }
    }
}

/// Whether the pool has the volume that an ImageBuild writes its image to, or reads a platform's image from.
pub fn archives(build: &ImageBuildSpec, pool: &BuilderPool) -> Result<(), Fault> {
    let reads = build.platforms.iter().flatten().find(|platform| platform.archive.is_some());
    let field = match (&build.archive, reads) {
        _ if pool.spec.archives.is_some() => return Ok(()),
        (Some(_), _) => "archive".to_owned(),
        (None, Some(platform)) => format!("platforms[{}].archive", platform.name),
        (None, None) => return Ok(()),
    };
    let message = format!(
        "{field} needs a volume for archives, which the BuilderPool {} has not: its owner can name one in spec.archives, or \
         name another pool in spec.pool",
        pool.name_any()
    );
    Err(Fault::user(Reason::ArchivesNotConfigured, message))
}

fn selects(selector: Option<&LabelSelector>, labels: &BTreeMap<String, String>) -> bool {
    let Some(selector) = selector else { return true };
    // A selector that cannot be read selects nothing: better no builder than one for everybody.
    Selector::try_from(selector.clone()).is_ok_and(|selector| selector.matches(labels))
}

/// The pool's limits, its silence filled in. `volume_size`: what a builder's volume asks for, in bytes; 0: it has none.
#[must_use]
pub fn limits(pool: &BuilderPool, volume_size: u64) -> Limits {
    let spec = &pool.spec;
    let limits = spec.limits.clone().unwrap_or_default();
    Limits {
        jobs_per_builder: spec.max_jobs_per_builder.unwrap_or(crate::builder::ensure::JOBS_PER_BUILDER),
        builders: spec.max_builders.unwrap_or(20),
        builders_per_namespace: limits.builders_per_namespace.unwrap_or(4),
        volumes_per_namespace: limits.volumes_per_namespace,
        // The schema lets only quantities pass; one that cannot be read allows nothing.
        storage_per_namespace: limits.storage_per_namespace.map(|most| bytes(&most).unwrap_or(0)),
        volume_size,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_crds::BuilderPoolSpec;

    fn pool(name: &str, default: bool, team: Option<&str>) -> Arc<BuilderPool> {
        let namespace_selector = team.map(|team| LabelSelector {
            match_labels: Some([("team".to_owned(), team.to_owned())].into()),
            ..LabelSelector::default()
        });
        Arc::new(BuilderPool::new(name, BuilderPoolSpec { default, namespace_selector, ..BuilderPoolSpec::default() }))
    }

    #[test]
    fn the_named_pool_must_serve_and_the_default_is_the_first_that_does() {
        let pools =
            [pool("b", true, None), pool("a", true, Some("red")), pool("c", false, None), pool("d", true, None)];
        let labels = |team: &str| BTreeMap::from([("team".to_owned(), team.to_owned())]);
        for (named, team, expected) in [
            (None, "red", Ok("a")),
            (None, "blue", Ok("b")),
            (Some("c"), "blue", Ok("c")),
            (Some("a"), "blue", Err(Reason::PoolNotAllowed)),
            (Some("x"), "blue", Err(Reason::PoolNotFound)),
        ] {
            let got = select(&pools, named, "ns", &labels(team));
            assert_eq!(got.map(|pool| pool.name_any()).map_err(|fault| fault.reason), expected.map(str::to_owned));
        }
        // One that cannot be read is no other's place.
        let mut part = Arc::unwrap_or_clone(pools[1].clone());
        part.annotations_mut().insert("kiln.build/in-memory-unreadable".to_owned(), "spec.x: strange".to_owned());
        let pools = [pools[0].clone(), part.into()];
        for named in [None, Some("a")] {
            let fault = select(&pools, named, "ns", &labels("red")).unwrap_err();
            assert!(fault.reason == Reason::PoolNotFound && fault.message.contains("spec.x: strange"), "{fault:?}");
        }
        assert_eq!(select(&[], None, "ns", &labels("red")).map_err(|f| f.reason).err(), Some(Reason::PoolNotFound));
    }

    #[test]
    fn archives_need_a_volume() {
        let archives = serde_json::json!({"archives": {"claimName": "tars"}});
        let with = BuilderPool::new("p", serde_json::from_value(archives).unwrap());
        let without = BuilderPool::new("p", BuilderPoolSpec::default());
        for (build, needs) in [
            (serde_json::json!({"archive": {"path": "app.tar"}}), true),
            (
                serde_json::json!({"platforms": [{"name": "linux/amd64"}, {"name": "linux/arm64", "archive": "a.tar"}]}),
                true,
            ),
            (serde_json::json!({"platforms": [{"name": "linux/amd64"}]}), false),
        ] {
            let build: ImageBuildSpec = serde_json::from_value(build).unwrap();
            let reason = archives_of(&build, &without);
            assert_eq!(reason, needs.then_some(Reason::ArchivesNotConfigured), "{build:?}");
            assert_eq!(archives_of(&build, &with), None);
        }
    }

    fn archives_of(build: &ImageBuildSpec, pool: &BuilderPool) -> Option<Reason> {
        super::archives(build, pool).err().map(|fault| fault.reason)
    }
}
