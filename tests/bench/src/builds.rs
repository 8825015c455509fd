//! Builds that are timed from the request that asks for them to the digest in the ImageBuild's status.

use jiff::Timestamp;
use kiln_crds::{ImageBuild, ImageBuildRun, REBUILD_ANNOTATION};
use kiln_e2e::tenant::run_of;
use kiln_e2e::{Build, Tenant};
use kube::ResourceExt as _;
use kube::api::{Patch, PatchParams};
use kube::runtime::watcher;
use serde_json::{Value, json};

use crate::observer::{Objects, Observer, Seen, is_built};
use crate::phases::{Phases, between, of_run};

/// The ImageBuilds of a tenant.
pub struct Builds<'a> {
    /// Their namespace.
    pub tenant: &'a Tenant,
    observer: Observer<ImageBuild>,
}

/// A build that was timed.
pub struct Timed {
    /// When it was asked for.
    pub begin: Timestamp,
    /// From then to the digest in the status.
    pub seconds: f64,
    /// Where the time went.
    pub phases: Phases,
    /// Its run.
    pub run: ImageBuildRun,
}

impl<'a> Builds<'a> {
    /// Watches the tenant's ImageBuilds.
    pub async fn of(tenant: &'a Tenant) -> Self {
        Self { tenant, observer: Observer::new(tenant.builds(), watcher::Config::default()).await }
    }

    /// Creates an ImageBuild and times its first build.
    pub async fn create(&mut self, build: &Build) -> Timed {
        let begin = Timestamp::now();
        self.tenant.create_build(build).await;
        self.finished(&build.object.name_any(), "", begin).await
    }

    /// Times the build that the annotation asks for.
    pub async fn rebuild(&mut self, name: &str, value: &str) -> Timed {
        self.change(name, json!({"metadata": {"annotations": {REBUILD_ANNOTATION: value}}})).await
    }

    /// Times the build that a change asks for.
    pub async fn change(&mut self, name: &str, patch: Value) -> Timed {
        let former = run_of(&self.tenant.builds().get(name).await.expect("the ImageBuild is there"));
        let begin = Timestamp::now();
        self.patch(name, patch).await;
        self.finished(name, &former, begin).await
    }

    async fn patch(&self, name: &str, patch: Value) {
        let patched = self.tenant.builds().patch(name, &PatchParams::default(), &Patch::Merge(patch)).await;
        patched.unwrap_or_else(|error| panic!("ImageBuild {name}: {error}"));
    }

    async fn finished(&mut self, name: &str, former: &str, begin: Timestamp) -> Timed {
        let key = (self.tenant.namespace.clone(), name.to_owned());
        let built = |seen: &Seen<ImageBuild>| is_built(&seen.object, former);
        let what = format!("ImageBuild {name}: built");
        let mut objects = self.observer.wait(&what, |objects| objects.get(&key).is_some_and(built)).await;
        let seen = objects.remove(&key).expect("the condition holds for an object that is there");
        let run = self.tenant.run_of(&seen.object).await;
        Timed { begin, seconds: between(begin, seen.last), phases: of_run(begin, &run, seen.last), run }
    }

    /// Changes many at once, each by the patch that `patch` gives for its name; when each had its image, in seconds.
    pub async fn change_all(&mut self, names: &[String], patch: impl Fn(&str) -> Value) -> Vec<f64> {
        let former = self.observer.wait("ImageBuilds", |_| true).await;
        let begin = Timestamp::now();
        futures::future::join_all(names.iter().map(|name| self.patch(name, patch(name)))).await;
        let key = |name: &String| (self.tenant.namespace.clone(), name.clone());
        let keys: Vec<_> = names.iter().map(key).collect();
        let built = |objects: &Objects<ImageBuild>, key| {
            let run = former.get(key).map(|seen| run_of(&seen.object)).unwrap_or_default();
            objects.get(key).is_some_and(|seen| is_built(&seen.object, &run))
        };
        let all_built = |objects: &Objects<ImageBuild>| keys.iter().all(|key| built(objects, key));
        let objects = self.observer.wait("all ImageBuilds: built", all_built).await;
        keys.iter().map(|key| between(begin, objects[key].last)).collect()
    }
}
