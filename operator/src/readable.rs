//! Objects that a newer version of Kiln has written, and that this one cannot read whole: after a rollback, a value or the form
//! of a field may be one that it does not know. One such object is no reason to stop the watch of all: of it is kept what can be
//! read, so that what belongs to it (tags, builders, runs) is nobody else's, it says so, and nothing is done with it.

use std::borrow::Cow;
use std::fmt::Debug;

use futures::TryStreamExt as _;
use kiln_crds::image_build::{ImageBuildStatus, ImageCopy, ImageTarget};
use kiln_crds::image_build_run::{ImageBuildRunStatus, PlatformPhase, PlatformStatus};
use kiln_crds::{BuilderPool, BuilderPoolSpec, ImageBuild, ImageBuildRun, ImageBuildRunSpec, ImageBuildSpec};
use kube::api::ObjectMeta;
use kube::runtime::reflector::Store;
use kube::runtime::watcher::Event;
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client, Resource, ResourceExt as _};
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value, json};

use crate::image_build_run::hold::FINALIZER;
use crate::watches::{Changes, Synced, keep};

#[cfg(test)]
mod tests;

/// In the copy alone: what of the object cannot be read.
const UNREADABLE: &str = "kiln.build/in-memory-unreadable";
/// As much of that is kept.
const KEPT: usize = 1024;

/// What of the object cannot be read. `None`: it is whole.
#[must_use]
pub fn unreadable<K: Resource>(object: &K) -> Option<&str> {
    object.annotations().get(UNREADABLE).map(String::as_str)
}

/// Why nothing is done with an object. One that is being deleted is let go of all the same.
#[must_use]
pub fn skipped<K: Resource>(object: &K) -> Option<&str> {
    let is_to_go = object.meta().deletion_timestamp.is_some() && object.finalizers().iter().any(|of| of == FINALIZER);
    unreadable(object).filter(|_| !is_to_go)
}

/// One of Kiln's kinds.
pub trait Partial: Resource + DeserializeOwned {
    /// The least that a spec of this kind has to have.
    #[must_use]
    fn bare() -> Value {
        json!({})
    }

    /// Leaves out what cannot be read.
    fn prune(object: &mut Value, pruned: &mut Pruned);
}

/// An object, as far as it can be read.
#[derive(Clone, Debug)]
pub struct Read<K> {
    object: K,
    problem: Option<String>,
}

impl<'de, K: Partial> Deserialize<'de> for Read<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut value = Value::deserialize(deserializer)?;
        if let Ok(object) = K::deserialize(&value) {
            return Ok(Self { object, problem: None });
        }
        let mut pruned = Pruned::default();
        K::prune(&mut value, &mut pruned);
        let object = K::deserialize(&value).or_else(|error| {
            pruned.0.push(error.to_string());
            let metadata = value["metadata"].take();
            let bare = json!({
                "apiVersion": value["apiVersion"], "kind": value["kind"], "metadata": metadata, "spec": K::bare(),
            });
            K::deserialize(bare)
        });
        let problem: String = pruned.0.join("; ").chars().take(KEPT).collect();
        Ok(Self { object: object.map_err(D::Error::custom)?, problem: Some(problem) })
    }
}

impl<K: Resource> Resource for Read<K> {
    type DynamicType = K::DynamicType;
    type Scope = K::Scope;

    fn kind(of: &K::DynamicType) -> Cow<'_, str> {
        K::kind(of)
    }

    fn group(of: &K::DynamicType) -> Cow<'_, str> {
        K::group(of)
    }

    fn version(of: &K::DynamicType) -> Cow<'_, str> {
        K::version(of)
    }

    fn plural(of: &K::DynamicType) -> Cow<'_, str> {
        K::plural(of)
    }

    fn meta(&self) -> &ObjectMeta {
        self.object.meta()
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        self.object.meta_mut()
    }
}

impl<K: Resource> Read<K> {
    /// The copy of it, as `trim` leaves it. One that cannot be read whole is marked.
    #[must_use]
    pub fn copy(self, trim: fn(&mut K)) -> K {
        let Self { mut object, problem } = self;
        // Whoever writes the mark is not asked.
        if let Some(annotations) = &mut object.meta_mut().annotations {
            annotations.remove(UNREADABLE);
        }
        trim(&mut object);
        if let Some(problem) = problem {
            object.annotations_mut().insert(UNREADABLE.to_owned(), problem);
        }
        object
    }
}

/// [`crate::watches::watch`] of one of Kiln's own kinds in the whole cluster.
pub fn watch_own<K>(
    client: &Client,
    config: watcher::Config,
    trim: fn(&mut K),
    synced: &mut Synced,
) -> (Store<K>, Changes<K>)
where
    K: Partial + Resource<DynamicType = ()> + Clone + Debug + Send + Sync + 'static,
{
    let api = Api::<Read<K>>::all(client.clone());
    keep(watcher(api, config).default_backoff().map_ok(move |event| copied(event, trim)), synced)
}

/// The same event, of the copy.
fn copied<K: Resource>(event: Event<Read<K>>, trim: fn(&mut K)) -> Event<K> {
    match event {
        Event::Apply(read) => Event::Apply(read.copy(trim)),
        Event::Delete(read) => Event::Delete(read.copy(trim)),
        Event::InitApply(read) => Event::InitApply(read.copy(trim)),
        Event::Init => Event::Init,
        Event::InitDone => Event::InitDone,
    }
}

/// What was left out of an object, and why.
#[derive(Debug, Default)]
pub struct Pruned(Vec<String>);

impl Pruned {
    /// Leaves out of a value what keeps it from being read as `T`: whole fields of it, but the `required` ones.
    fn keep<T: DeserializeOwned>(&mut self, path: &str, value: &mut Value, required: &[&str]) {
        let Err(error) = T::deserialize(&*value) else { return };
        let Value::Object(fields) = value.take() else {
            self.0.push(format!("{path}: {error}"));
            *value = json!({});
            return;
        };
        let (base, others): (Map<_, _>, Map<_, _>) =
            fields.into_iter().partition(|(name, _)| required.contains(&name.as_str()));
        let mut kept = base.clone();
        if let Err(error) = T::deserialize(&Value::Object(base.clone())) {
            self.0.push(format!("{path}: {error}"));
        } else {
            for (name, field) in others {
                let mut alone = base.clone();
                alone.insert(name.clone(), field);
                match T::deserialize(&Value::Object(alone.clone())) {
                    Ok(_) => kept.extend(alone.remove_entry(&name)),
                    Err(error) => self.0.push(format!("{path}.{name}: {error}")),
                }
            }
        }
        *value = Value::Object(kept);
    }

    /// The same of each element of a list.
    fn keep_each<T: DeserializeOwned>(&mut self, path: &str, list: Option<&mut Value>, required: &[&str]) {
        for (number, element) in list.and_then(Value::as_array_mut).into_iter().flatten().enumerate() {
            self.keep::<T>(&format!("{path}[{number}]"), element, required);
        }
    }

    fn spec_of_build(&mut self, path: &str, spec: &mut Value) {
        let of_image = format!("{path}.image");
        if let Some(image) = spec.get_mut("image") {
            self.keep_each::<ImageCopy>(&format!("{of_image}.copies"), image.get_mut("copies"), &["repository"]);
            self.keep::<ImageTarget>(&of_image, image, &["repository"]);
        }
        self.keep::<ImageBuildSpec>(path, spec, &[]);
    }
}

impl Partial for BuilderPool {
    fn prune(object: &mut Value, pruned: &mut Pruned) {
        if let Some(spec) = object.get_mut("spec") {
            pruned.keep::<BuilderPoolSpec>("spec", spec, &[]);
        }
        if let Some(status) = object.get_mut("status") {
            pruned.keep::<kiln_crds::builder_pool::BuilderPoolStatus>("status", status, &[]);
        }
    }
}

impl Partial for ImageBuild {
    fn prune(object: &mut Value, pruned: &mut Pruned) {
        if let Some(spec) = object.get_mut("spec") {
            pruned.spec_of_build("spec", spec);
        }
        if let Some(status) = object.get_mut("status") {
            pruned.keep::<ImageBuildStatus>("status", status, &[]);
        }
    }
}

impl Partial for ImageBuildRun {
    fn bare() -> Value {
        json!({"imageBuild": {"name": "", "uid": ""}, "number": 0, "inputHash": "", "build": {}})
    }

    fn prune(object: &mut Value, pruned: &mut Pruned) {
        if let Some(spec) = object.get_mut("spec") {
            if let Some(build) = spec.get_mut("build") {
                pruned.spec_of_build("spec.build", build);
            }
            let required = ["imageBuild", "number", "inputHash", "build"];
            pruned.keep::<ImageBuildRunSpec>("spec", spec, &required);
        }
        // One without a status waits for a builder.
        object.as_object_mut().map(|object| object.entry("status").or_insert_with(|| json!({})));
        let Some(status) = object.get_mut("status") else { return };
        if let Some(platforms) = status.get_mut("platforms").and_then(Value::as_array_mut) {
            for (number, platform) in platforms.iter_mut().enumerate() {
                let had_phase = platform.get("phase").is_some();
                pruned.keep::<PlatformStatus>(&format!("status.platforms[{number}]"), platform, &["name"]);
                if had_phase && platform.get("phase").is_none() {
                    // Its builder may be at work for it.
                    let has_ended = platform.get("finishedAt").is_some() || platform.get("builder").is_none();
                    platform["phase"] = json!(if has_ended { "Failed" } else { "Building" });
                }
            }
            // Nor does one wait that nobody places: it would keep the place of those that do.
            let has_begun = |of: PlatformStatus| of.phase != PlatformPhase::Queued;
            platforms.retain(|platform| PlatformStatus::deserialize(platform).is_ok_and(has_begun));
        }
        let had_phase = status.get("phase").is_some();
        pruned.keep::<ImageBuildRunStatus>("status", status, &[]);
        if had_phase && status.get("phase").is_none() {
            status["phase"] = json!(match (status.get("finishedAt"), status.get("image")) {
                (None, _) => "Building",
                (Some(_), None) => "Failed",
                (Some(_), Some(_)) => "Succeeded",
            });
        }
    }
}
