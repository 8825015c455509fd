//! Jobs from start to outcome, with no buildkitd to build them.

use clap::Parser as _;
use kiln_agent_proto::{InlineSource, Source, source};

use super::*;

fn registry(root: &Path) -> Arc<Registry> {
    let path = |name: &str| root.join(name).display().to_string();
    let config = Config::parse_from([
        "kiln-agent",
        "--max-jobs=1",
        "--state-dir",
        &path("state"),
        "--credentials-dir",
        &path("memory"),
        "--buildkit-addr",
        &format!("unix://{}", path("none.sock")),
    ]);
    Registry::open(&config, Sandbox::absent("a unit test")).unwrap()
}

/// A job that waits for a buildkitd that is not there.
fn waiting(id: &str) -> Spec {
    let files = [("Dockerfile".to_owned(), "FROM scratch".to_owned())].into();
    Spec {
        id: id.to_owned(),
        source: Some(Source { kind: Some(source::Kind::Inline(InlineSource { files })) }),
        ..Spec::default()
    }
}

async fn failure(registry: &Registry, id: &str) -> kiln_agent_proto::Failure {
    let job = registry.get(id).unwrap();
    let mut changes = job.changes();
    while job.outcome().is_none() {
        changes.changed().await.unwrap();
    }
    let Some(Event { kind: Some(Kind::Failure(failure)), .. }) = job.outcome() else { panic!("the job succeeded") };
    failure
}

#[tokio::test]
async fn a_job_is_started_once_and_known_until_it_is_forgotten() {
    let root = tempfile::tempdir().unwrap();
    let first = registry(root.path());
    assert_eq!(first.start(Spec { id: "a".to_owned(), ..Spec::default() }), Ok(true));
    assert_eq!(first.start(Spec { id: "a".to_owned(), ..Spec::default() }), Ok(false));
    assert_eq!(failure(&first, "a").await.reason, "InvalidJob");
    first.idle().await;

    // Another agent on the same volume answers for it.
    let second = registry(root.path());
    assert_eq!(second.start(Spec { id: "a".to_owned(), ..Spec::default() }), Ok(false));
    assert_eq!(failure(&second, "a").await.reason, "InvalidJob");
    assert!(second.forget("a") && second.get("a").is_none());
    assert!(registry(root.path()).get("a").is_none());
}

#[tokio::test]
async fn a_cancelled_job_leaves_nothing() {
    let root = tempfile::tempdir().unwrap();
    let registry = registry(root.path());
    assert_eq!(registry.start(waiting("a")), Ok(true));
    assert_eq!(registry.start(waiting("b")), Err(StartError::Full(1)));
    assert_eq!(registry.running(), ["a"]);
    assert!(!registry.forget("a"));
    assert!(registry.cancel("a") && !registry.cancel("b"));
    let failure = failure(&registry, "a").await;
    assert_eq!((failure.reason.as_str(), failure.class()), ("Cancelled", kiln_agent_proto::failure::Class::Cancelled));
    registry.idle().await;
    for left in ["state/work", "memory/jobs"] {
        assert_eq!(fs::read_dir(root.path().join(left)).unwrap().count(), 0, "{left}");
    }
}

#[tokio::test]
async fn a_job_ends_with_its_time() {
    let root = tempfile::tempdir().unwrap();
    let registry = registry(root.path());
    registry.start(Spec { timeout_seconds: 1, ..waiting("a") }).unwrap();
    assert_eq!(failure(&registry, "a").await.reason, "BuildTimeout");
}

#[tokio::test]
async fn ballast_is_on_the_volume_until_it_is_full() {
    let root = tempfile::tempdir().unwrap();
    let registry = registry(root.path());
    let ballast = root.path().join("state/ballast");
    assert_eq!(fs::metadata(&ballast).unwrap().len(), BALLAST);
    fs::remove_file(&ballast).unwrap();
    lay_ballast(&registry.config().state_dir);
    assert_eq!(fs::metadata(&ballast).unwrap().len(), BALLAST);
    // Where it cannot be laid, the agent goes on without.
    lay_ballast(&root.path().join("nowhere"));
}

#[tokio::test]
async fn a_draining_agent_refuses_jobs() {
    let root = tempfile::tempdir().unwrap();
    let registry = registry(root.path());
    registry.drain();
    assert_eq!(registry.start(waiting("a")), Err(StartError::Draining));
    assert_eq!(registry.start(waiting("../a")), Err(StartError::Id));
    registry.idle().await;
}

#[test]
fn time_that_a_hung_buildkitd_took_is_not_the_build_s() {
    use Reason::{AgentFailed, BuildTimeout, BuildkitUnavailable, Cancelled};
    for (why, is_hung, expected) in [
        (None, false, AgentFailed),
        (Some(Stop::Cancelled), true, Cancelled),
        (Some(Stop::TimedOut), false, BuildTimeout),
        (Some(Stop::TimedOut), true, BuildkitUnavailable),
        (Some(Stop::BuildkitHung), false, BuildkitUnavailable),
    ] {
        let failure = JobFailure { step: "[2/2] RUN make".into(), ..JobFailure::new(AgentFailed, "stopped") };
        let told = stopped(failure, why, is_hung, Duration::from_secs(9));
        assert_eq!(told.reason, expected, "{why:?} {is_hung}");
        assert_eq!(told.message.contains("spec.timeout"), expected == BuildTimeout, "{told:?}");
        assert_eq!(told.step.is_empty(), expected == Cancelled, "what ran is told");
    }
}

#[tokio::test]
async fn a_hung_buildkitd_gets_no_jobs_and_gives_up_those_that_it_has() {
    use kiln_agent_proto::{StartRequest, agent_server::Agent as _};

    let root = tempfile::tempdir().unwrap();
    let registry = registry(root.path());
    let service = crate::service::Service::new(Arc::clone(&registry));
    let start = async |id| {
        let started = service.start(tonic::Request::new(StartRequest { job: Some(waiting(id)) })).await;
        started.map(|answer| answer.into_inner().started).map_err(|status| status.code())
    };
    // It is not there yet: the job waits for it.
    assert_eq!(start("a").await, Ok(true));
    registry.give_up();
    assert_eq!(failure(&registry, "a").await.reason, "BuildkitUnavailable");
    registry.idle().await;
    // The kernel takes connections for a process that is stopped.
    let _hung = tokio::net::UnixListener::bind(root.path().join("none.sock")).unwrap();
    assert_eq!(start("b").await, Err(tonic::Code::FailedPrecondition));
    assert!(registry.get("b").is_none());
    assert_eq!(start("a").await, Ok(false), "a job that is known is not asked for");
}
