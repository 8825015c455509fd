//! An application that serves HTTP: built, run, asked, changed, built again.

use kiln_crds::ImageBuild;
use kiln_crds::image_build::Network;
use kiln_e2e::Tenant;
use kiln_e2e::served::Served;
use kiln_e2e::tenant::image_of;

use crate::samples::app::{App, Change};

/// An application, and what is expected of it.
pub struct Service {
    /// Its folder in `examples/apps`.
    pub folder: &'static str,
    /// The platforms of its ImageBuild for which the local cluster has base images.
    pub platforms: &'static [&'static str],
    /// The hosts that its steps download from.
    pub registries: &'static [&'static str],
    /// A part of the name of the step that downloads dependencies.
    pub fetches: &'static str,
    /// A part of the name of a step that depends on the sources.
    pub compiles: &'static str,
    /// A change of a source file.
    pub source: Change,
    /// A change of the file that names dependencies, which changes none of them. Absent where they cannot be had without
    /// network, though they are kept.
    pub manifest: Option<Change>,
}

impl Service {
    /// Builds it, asks it, and does that again after a change of the source, of which `answers` is told. Then dependencies
    /// are wanted again, without a network.
    pub async fn run(&self, answers: impl AsyncFn(&Served<'_>, bool)) {
        Tenant::fresh(&format!("app-{}", self.folder), async |tenant| {
            let mut app = App::create(tenant, self.folder, self.platforms, self.registries).await;
            let (build, first) = app.built().await;
            self.ask(tenant, &build, async |service| answers(service, false).await).await;
            let fetched = app.steps(&build, self.fetches).await;
            assert!(fetched.iter().any(|step| !step.cached), "there is nothing to begin with: {fetched:#?}");

            app.change(self.source, |_| {}).await;
            let (build, second) = app.built().await;
            self.ask(tenant, &build, async |service| answers(service, true).await).await;
            let fetched = app.steps(&build, self.fetches).await;
            assert!(fetched.iter().all(|step| step.cached), "a source file is no dependency: {fetched:#?}");
            let compiled = app.steps(&build, self.compiles).await;
            assert!(compiled.iter().any(|step| !step.cached), "a source file has changed: {compiled:#?}");

            let mut third = String::new();
            if let Some(manifest) = self.manifest {
                // Now each dependency comes from the cache mount, or the step fails.
                app.change(manifest, |spec| spec.network = Some(Network::None)).await;
                let (build, seconds) = app.built().await;
                let fetched = app.steps(&build, self.fetches).await;
                assert!(fetched.iter().any(|step| !step.cached), "{} has changed: {fetched:#?}", manifest.file);
                third = format!(", {seconds:.1} s without network after a change of {}", manifest.file);
            }
            let Self { folder, source: Change { file, .. }, .. } = self;
            println!("{folder}: {first:.1} s at first, {second:.1} s after a change of {file}{third}");
        })
        .await;
    }

    /// Runs the image on a node of each of its architectures.
    async fn ask(&self, tenant: &Tenant, build: &ImageBuild, answers: impl AsyncFn(&Served<'_>)) {
        for platform in self.platforms {
            let (_, architecture) = platform.split_once('/').expect("a platform has an architecture");
            let service = tenant.serve(&image_of(build).reference, architecture).await;
            answers(&service).await;
            service.stop().await;
        }
    }
}
