//! ImageBuilds as a test writes them.

use kiln_crds::image_build::{ImageBuildSpec, ImageTarget, PlatformSpec};
use kiln_crds::{ImageBuild, SecretRef};
use serde_json::json;

use crate::tenant::{CA, GIT_SECRET, REGISTRY_SECRET};
use crate::{Repository, Tenant};

/// An ImageBuild to be created.
pub struct Build {
    /// The object.
    pub object: ImageBuild,
}

impl Build {
    /// One from files written into it.
    #[must_use]
    pub fn inline(tenant: &Tenant, name: &str, files: &[(&str, &str)]) -> Self {
        let files: serde_json::Map<_, _> =
            files.iter().map(|(path, content)| ((*path).to_owned(), json!(content))).collect();
        Self::new(tenant, name, &json!({"inline": {"files": files}}))
    }

    /// One from a public Git repository.
    #[must_use]
    pub fn git(tenant: &Tenant, name: &str, repository: &Repository) -> Self {
        Self::new(tenant, name, &json!({"git": {"url": repository.url, "caRef": {"name": CA}}}))
    }

    /// One from a Git repository that needs the credential in [`GIT_SECRET`].
    #[must_use]
    pub fn private_git(tenant: &Tenant, name: &str, repository: &Repository) -> Self {
        Self::git(tenant, name, repository)
            .with(|spec| git(spec).secret_ref = Some(SecretRef { name: GIT_SECRET.to_owned() }))
    }

    fn new(tenant: &Tenant, name: &str, source: &serde_json::Value) -> Self {
        let spec = json!({
            "source": source,
            "image": {
                "repository": repository(tenant, name),
                "secretRef": {"name": REGISTRY_SECRET},
                "caRef": {"name": CA},
            },
        });
        Self { object: ImageBuild::new(name, serde_json::from_value(spec).expect("the spec is one")) }
    }

    /// For these platforms, in place of the operator's default list.
    #[must_use]
    pub fn platforms(self, names: &[&str]) -> Self {
        self.with(|spec| spec.platforms = Some(names.iter().map(|name| platform(name)).collect()))
    }

    /// For linux/amd64 alone: where a test is not about platforms, the emulated one only costs time.
    #[must_use]
    pub fn amd64(self) -> Self {
        self.platforms(&["linux/amd64"])
    }

    /// With these tags, in place of `latest`.
    #[must_use]
    pub fn tags(self, tags: &[&str]) -> Self {
        self.with(|spec| image(spec).tags = tags.iter().map(|tag| (*tag).to_owned()).collect())
    }

    /// In this BuilderPool.
    #[must_use]
    pub fn pool(self, name: &str) -> Self {
        self.with(|spec| spec.pool = Some(name.to_owned()))
    }

    /// With any change to the spec.
    #[must_use]
    pub fn with(mut self, change: impl FnOnce(&mut ImageBuildSpec)) -> Self {
        change(&mut self.object.spec);
        self
    }
}

/// Where the image of an ImageBuild of this name goes.
#[must_use]
pub fn repository(tenant: &Tenant, name: &str) -> String {
    format!("{}/e2e/{}/{name}", tenant.cluster.registry, tenant.id)
}

/// A platform with nothing of its own.
#[must_use]
pub fn platform(name: &str) -> PlatformSpec {
    serde_json::from_value(json!({"name": name})).expect("a platform needs a name only")
}

/// Where a spec's image goes.
///
/// # Panics
/// Where it goes nowhere.
pub fn image(spec: &mut ImageBuildSpec) -> &mut ImageTarget {
    spec.image.as_mut().expect("the image is pushed")
}

/// The Git source of a spec.
///
/// # Panics
/// Where it has none.
pub fn git(spec: &mut ImageBuildSpec) -> &mut kiln_crds::image_build::GitSource {
    spec.source.as_mut().and_then(|source| source.git.as_mut()).expect("the source is Git")
}

/// A file of an inline source.
///
/// # Panics
/// Where the source is not inline.
pub fn file<'a>(spec: &'a mut ImageBuildSpec, path: &str) -> &'a mut String {
    spec.source
        .as_mut()
        .and_then(|source| source.inline.as_mut())
        .expect("the source is inline")
        .files
        .entry(path.to_owned())
        .or_default()
}
