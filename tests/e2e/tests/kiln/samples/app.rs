//! A folder of `examples/apps` in a tenant's namespace: in a Git repository, and with its own ImageBuild.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kiln_crds::image_build::ImageBuildSpec;
use kiln_crds::image_build_run::StepStatus;
use kiln_crds::{CaRef, ImageBuild, REBUILD_ANNOTATION};
use kiln_e2e::build::{git, image, repository};
use kiln_e2e::tenant::{CA, REGISTRY_SECRET, condition, is_current, run_of};
use kiln_e2e::{Build, Repository, Tenant};
use kube::ResourceExt as _;

/// For base images, downloads and a compiler, while others do the same.
const LIMIT: Duration = Duration::from_mins(15);

/// An application, being built again and again.
pub struct App<'a> {
    /// Whose namespace it is in.
    pub tenant: &'a Tenant,
    folder: &'static str,
    registries: &'static [&'static str],
    repository: Repository,
    commit: String,
    name: String,
    run: String,
}

/// A change of one file.
#[derive(Clone, Copy)]
pub struct Change {
    /// The file, in the application's folder.
    pub file: &'static str,
    /// What is replaced.
    pub from: &'static str,
    /// What stands there instead.
    pub to: &'static str,
}

impl<'a> App<'a> {
    /// Commits the folder, and makes its ImageBuild for these of its platforms. `registries`: what its steps download from.
    pub async fn create(
        tenant: &'a Tenant,
        folder: &'static str,
        platforms: &[&str],
        registries: &'static [&'static str],
    ) -> Self {
        let repository = Repository::public(tenant, "apps");
        let commit = repository.write_directory(&directory(folder), &path(folder));
        // Base images and caches of a language take more than the small volumes of other tests.
        let pool = tenant
            .pool("apps", |spec| spec.cache.get_or_insert_default().size = Some(Quantity("10Gi".to_owned())))
            .await;
        let build = image_build(tenant, folder, platforms, &repository.url).pool(&pool);
        let name = build.object.name_any();
        tenant.create_build(&build).await;
        Self { tenant, folder, registries, repository, commit, name, run: String::new() }
    }

    /// Commits a change of one file and another one of the ImageBuild's spec, and asks for a build.
    pub async fn change(&mut self, change: Change, mut spec: impl FnMut(&mut ImageBuildSpec)) {
        let Change { file, from, to } = change;
        let former = read(&directory(self.folder).join(file));
        assert_eq!(former.matches(from).count(), 1, "{file} holds {from:?} once");
        let changed = former.replace(from, to);
        self.commit = self.repository.write(&[(&format!("{}/{file}", path(self.folder)), &changed)]);
        let commit = self.commit.clone();
        self.tenant
            .edit(&self.name, |build| {
                spec(&mut build.spec);
                build.annotations_mut().insert(REBUILD_ANNOTATION.to_owned(), commit.clone());
            })
            .await;
    }

    /// Waits for the image of the newest commit; how long that took, too.
    pub async fn built(&mut self) -> (ImageBuild, f64) {
        let begin = Instant::now();
        let what = format!("ended, by another run than {:?}", self.run);
        let build = self
            .tenant
            .wait_build(&self.name, &what, LIMIT, |build| {
                let ended = |type_| condition(build, type_).is_some_and(|condition| condition.status == "True");
                Ok(is_current(build) && run_of(build) != self.run && (ended("Ready") || ended("Stalled")))
            })
            .await;
        let seconds = begin.elapsed().as_secs_f64();
        if let Some(ready) = condition(&build, "Ready").filter(|ready| ready.status == "False") {
            let failure = build.status.as_ref().and_then(|status| status.failure.clone()).unwrap_or_default();
            panic!(
                "examples/apps/{} cannot be built: {}: {}\nIts steps download from {:?}: builder pods have to reach that. \
                 The last lines of {:?}:\n{}",
                self.folder,
                ready.reason,
                ready.message,
                self.registries,
                failure.step.unwrap_or_default(),
                failure.log_tail.join("\n")
            );
        }
        self.run = run_of(&build);
        let run = self.tenant.run_of(&build).await;
        assert_eq!(run.spec.commit.as_ref(), Some(&self.commit), "the run is of the newest commit");
        (build, seconds)
    }

    /// The steps of a build whose name holds `part`, of all platforms. Platforms on one builder share what is the same.
    pub async fn steps(&self, build: &ImageBuild, part: &str) -> Vec<StepStatus> {
        let platforms = self.tenant.run_of(build).await.status.expect("a finished run has a status").platforms;
        let of_all = platforms.iter().flat_map(|platform| &platform.steps);
        let found: Vec<_> = of_all.filter(|step| step.name.contains(part)).cloned().collect();
        assert!(!found.is_empty(), "a step {part:?} is in the run's status: {platforms:#?}");
        found
    }
}

/// The example's own object, with this cluster's addresses.
fn image_build(tenant: &Tenant, folder: &str, platforms: &[&str], url: &str) -> Build {
    let file = directory(folder).join("imagebuild.yaml");
    let object: ImageBuild =
        serde_yaml_ng::from_str(&read(&file)).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let name = object.name_any();
    let ca: CaRef = serde_json::from_value(serde_json::json!({"name": CA})).expect("a reference needs a name only");
    Build { object }.with(|spec| {
        let source = git(spec);
        assert_eq!(source.path, Some(path(folder)), "the source is where the example is");
        url.clone_into(&mut source.url);
        source.ca_ref = Some(ca.clone());
        let target = image(spec);
        target.repository = repository(tenant, &name);
        target.secret_ref.as_mut().expect("the example has a credential").name = REGISTRY_SECRET.to_owned();
        target.ca_ref = Some(ca);
        let named = spec.platforms.as_mut().expect("the example names its platforms");
        named.retain(|platform| platforms.contains(&platform.name.as_str()));
        assert_eq!(named.len(), platforms.len(), "the example is for {platforms:?}");
    })
}

fn path(folder: &str) -> String {
    format!("examples/apps/{folder}")
}

fn directory(folder: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path(folder))
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
