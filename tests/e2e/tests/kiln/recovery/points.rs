//! The operator is killed at fifteen points of a build for two platforms. Each time the next one finishes the same run,
//! once, and all have the digest of a build that nothing disturbed.
//!
//! Where it is at a point is no guess: a proxy holds the very request that leads to it or from it. Builds wait at
//! different points at the same time, so that few kills do.

use std::collections::BTreeMap;
use std::time::Instant;

use axum::http::Method;
use kiln_crds::image_build_run::{ImageBuildRunStatus, PlatformPhase, RunPhase};
use kiln_e2e::cluster::builders_namespace;
use kiln_e2e::{Repository, Tenant, wait};

use crate::recovery::host::{self, is_local};
use crate::recovery::operator::Operator;
use crate::recovery::proxy::{Held, Proxy, Seen, When};
use crate::recovery::stage::{PLATFORMS, Stage, platforms, status_of};

kiln_e2e::tests![alone the_operator_is_killed_at_fifteen_points];

const DOCKERFILE: &str = "FROM busybox\nCOPY Dockerfile /app/\nRUN uname -m > /machine\n";
/// Its step is still at work when the operator is killed.
const LONG: &str = "FROM busybox\nCOPY Dockerfile /app/\nRUN sleep 8; uname -m > /machine\n";

/// Where a build is when the operator dies.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Point {
    /// The ImageBuild is there; the run is about to be made.
    BeforeRun,
    /// The run is made; its operator has not heard of it, and nothing is in its status.
    RunMade,
    /// A builder pod is made, and nobody has written what for.
    BuilderMade,
    /// Attempt and builder are in the status; the job is not sent.
    AttemptWritten,
    /// The agent works; the status does not say so yet.
    JobStarted,
    /// The agents fetch the commit.
    Fetching,
    /// Both platforms build.
    Building,
    /// One platform is in the registry and in the status; the other one's manifest is on its way.
    Pushing,
    /// The agents know digests; the status does not.
    Pushed,
    /// The status says that all platforms are done; the index is not pushed.
    Publishing,
    /// The index is in the registry, and the operator has not heard so; no tag is written.
    IndexPushed,
    /// The first of two tags is written.
    BetweenTags,
    /// Both tags are written; the status does not say so.
    Tagged,
    /// The run has succeeded; the ImageBuild does not say so.
    Succeeded,
    /// All jobs have ended, and the run is about to be let go of; index and tags are pushed meanwhile.
    LettingGo,
}

/// Who waits together: no more than a builder takes jobs, so that there is one for each platform. The first ones find no
/// builder, all later ones a warm one.
const ROUNDS: [&[Point]; 4] = [
    &[Point::BeforeRun, Point::BuilderMade],
    &[Point::RunMade, Point::AttemptWritten, Point::JobStarted, Point::Building],
    &[Point::Fetching, Point::Pushing, Point::Pushed, Point::Publishing],
    &[Point::IndexPushed, Point::BetweenTags, Point::Tagged, Point::Succeeded, Point::LettingGo],
];

impl Point {
    /// The build's name.
    fn name(self) -> String {
        let words = format!("{self:?}");
        let spaced =
            words.chars().flat_map(|c| c.is_uppercase().then_some('-').into_iter().chain([c.to_ascii_lowercase()]));
        spaced.collect::<String>().trim_start_matches('-').to_owned()
    }

    fn dockerfile(self) -> &'static str {
        // A build that is all cached may be over before a status says that it has begun.
        if matches!(self, Self::Building | Self::JobStarted) { LONG } else { DOCKERFILE }
    }

    /// Has the requests held that lead to this point or from it.
    fn holds(self, stage: &Stage<'_>, api: &Proxy) -> Vec<Held> {
        let (name, namespace) = (self.name(), stage.tenant.namespace.clone());
        let what = format!("{self:?}");
        let run = format!("{name}-1");
        let runs = format!("/apis/kiln.build/v1alpha1/namespaces/{namespace}/imagebuildruns");
        let made = move |seen: &Seen| {
            seen.method == Method::POST
                && seen.target() == runs
                && seen.json()["spec"]["imageBuild"]["name"] == name.as_str()
        };
        let status = |when, holds: fn(&ImageBuildRunStatus) -> bool| {
            let (namespace, run) = (namespace.clone(), run.clone());
            api.hold(&what, when, move |seen| status_of(seen, &namespace, &run).is_some_and(|status| holds(&status)))
        };
        let registry = |when, reference: &'static str, by_operator: bool| {
            let path = format!("{}manifests/{reference}", stage.registry_path(&self.name()));
            stage.registry.hold(&what, when, move |seen| {
                let is_index = seen.header("content-type").contains("index");
                seen.method == Method::PUT && seen.path.starts_with(&path) && is_index == by_operator
            })
        };
        match self {
            Self::BeforeRun => vec![api.hold(&what, When::Before, made)],
            Self::RunMade => vec![api.hold(&what, When::After, made), status(When::Before, |_| true)],
            Self::BuilderMade => {
                let pods = format!("/api/v1/namespaces/{}/pods", builders_namespace());
                vec![api.hold(&what, When::After, move |seen| seen.method == Method::POST && seen.target() == pods)]
            }
            Self::AttemptWritten => vec![status(When::After, |status| any(status, PlatformPhase::Starting))],
            Self::JobStarted => vec![status(When::Before, |status| {
                [PlatformPhase::Fetching, PlatformPhase::Building].into_iter().any(|phase| any(status, phase))
            })],
            Self::Fetching => {
                let path = format!("/{namespace}-{}.git/info/refs", self.name());
                let of_agent =
                    move |seen: &Seen| seen.path.starts_with(&path) && seen.header("user-agent").starts_with("git/");
                PLATFORMS.iter().map(|_| stage.git.hold(&what, When::Before, of_agent.clone())).collect()
            }
            Self::Building => Vec::new(),
            Self::Pushing => vec![registry(When::Before, "sha256:", false)],
            Self::Pushed => vec![status(When::Before, |status| any(status, PlatformPhase::Succeeded))],
            Self::Publishing => vec![status(When::After, |status| status.phase == RunPhase::Publishing)],
            Self::IndexPushed => vec![registry(When::After, "sha256:", true)],
            Self::BetweenTags => vec![registry(When::Before, "two", true)],
            Self::Tagged => vec![status(When::Before, |status| status.phase == RunPhase::Succeeded)],
            Self::Succeeded => {
                let path =
                    format!("/apis/kiln.build/v1alpha1/namespaces/{namespace}/imagebuilds/{}/status", self.name());
                let says = move |seen: &Seen| seen.target() == path && seen.json()["status"]["image"].is_object();
                vec![api.hold(&what, When::Before, says)]
            }
            Self::LettingGo => {
                let path = format!("/apis/kiln.build/v1alpha1/namespaces/{namespace}/imagebuildruns/{run}");
                let frees = move |seen: &Seen| {
                    let finalizers = &seen.json()["metadata"]["finalizers"];
                    seen.method == Method::PATCH
                        && seen.target() == path
                        && finalizers.as_array().is_some_and(Vec::is_empty)
                };
                vec![api.hold(&what, When::Before, frees)]
            }
        }
    }

    /// Makes the build and waits until the operator is at this point with it.
    async fn reach(self, stage: &Stage<'_>, api: &Proxy) -> (Repository, Vec<Held>) {
        let mut held = self.holds(stage, api);
        let (build, repository) = stage.build(&self.name(), self.dockerfile());
        stage.tenant.create_build(&build).await;
        for held in &mut held {
            held.caught().await;
        }
        let run = format!("{}-1", self.name());
        let wanted: &[PlatformPhase] = match self {
            Self::Building => &[PlatformPhase::Building; 2],
            Self::Pushing => &[PlatformPhase::Succeeded],
            _ => &[],
        };
        if !wanted.is_empty() {
            stage
                .tenant
                .wait_run(&run, &format!("{wanted:?}"), wait::BUILD, |run| {
                    let phases = platforms(run).iter().map(|platform| platform.phase);
                    Ok(phases.filter(|phase| wanted.contains(phase)).count() >= wanted.len())
                })
                .await;
        }
        (repository, held)
    }
}

fn any(status: &ImageBuildRunStatus, phase: PlatformPhase) -> bool {
    status.platforms.iter().any(|platform| platform.phase == phase)
}

async fn the_operator_is_killed_at_fifteen_points() {
    if !is_local("the_operator_is_killed_at_fifteen_points") {
        return;
    }
    Tenant::fresh("points", async |tenant| {
        let stage = Stage::new(tenant).await;
        let api = host::before_api_server(&tenant.cluster).await;
        let mut operator = Operator::of(tenant);
        operator.start(1, Some(api.address)).await;
        let mut repositories = Vec::new();
        let mut digests = BTreeMap::new();
        for (number, points) in ROUNDS.into_iter().enumerate() {
            if number > 0 {
                operator.refresh().await;
            }
            let mut held = Vec::new();
            for point in points {
                let (repository, requests) = point.reach(&stage, &api).await;
                repositories.push(repository);
                held.extend(requests);
            }
            let killed = Instant::now();
            let dead = operator.kill().await;
            // What builders sent goes on while nobody leads; what the operator sent is dropped with its connections.
            let of_builders = held.into_iter().filter(|held| held.peer != Some(dead));
            of_builders.for_each(Held::release);
            operator.back(killed).await;
            for point in points {
                let digest = stage.made_once(&point.name()).await;
                digests.insert(format!("{point:?}"), (point.dockerfile(), digest));
            }
            let builders: Vec<_> = tenant.builders().await.iter().map(kube::ResourceExt::name_any).collect();
            assert_eq!(builders.len(), PLATFORMS.len(), "a builder for each platform, and no other: {builders:?}");
        }
        for (name, dockerfile) in [("undisturbed", DOCKERFILE), ("undisturbed-long", LONG)] {
            let (build, _repository) = stage.build(name, dockerfile);
            tenant.create_build(&build).await;
            let digest = stage.made_once(name).await;
            for (point, (of, other)) in &digests {
                assert!(*of != dockerfile || *other == digest, "{point}: {other}, undisturbed: {digest}");
            }
        }
    })
    .await;
}
