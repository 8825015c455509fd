//! Where a build's time goes and why it failed: steps and times in the run's status, the pool's builders, metrics, Events.

use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kiln_crds::builder_pool::SourceSandbox;
use kiln_crds::image_build_run::{ImageBuildRunStatus, PlatformStatus, StepStatus};
use kiln_crds::{BuilderPool, ImageBuildRun};
use kiln_e2e::audit::{Audit, is_write};
use kiln_e2e::build::file;
use kiln_e2e::cluster::operator_namespace;
use kiln_e2e::tenant::condition;
use kiln_e2e::{Build, Tenant, wait};
use kube::runtime::watcher;
use kube::{Api, ResourceExt as _};

kiln_e2e::tests![
    steps_tell_what_was_cached_and_what_missed_first,
    steps_are_told_while_they_run,
    a_cached_build_is_not_a_write_a_step,
    a_failure_says_what_where_and_why_in_condition_and_event,
    a_pool_tells_what_its_builders_are_and_do,
    metrics_have_their_names_and_no_tenants
];

fn only_platform(run: &ImageBuildRun) -> PlatformStatus {
    run.status.as_ref().unwrap().platforms[0].clone()
}

/// The step of the Dockerfile with this instruction.
fn step<'a>(platform: &'a PlatformStatus, instruction: &str) -> &'a StepStatus {
    platform
        .steps
        .iter()
        .find(|step| step.name.ends_with(&format!("] {instruction}")))
        .unwrap_or_else(|| panic!("a step {instruction:?}: {:#?}", platform.steps))
}

fn seconds(step: &StepStatus) -> f64 {
    step.seconds
        .as_deref()
        .and_then(|seconds| seconds.parse().ok())
        .unwrap_or_else(|| panic!("it has ended: {step:#?}"))
}

async fn steps_tell_what_was_cached_and_what_missed_first() {
    Tenant::fresh("steps", async |tenant| {
        let dockerfile = "FROM busybox\nRUN echo first > /first\nCOPY file /\nRUN echo behind > /behind\n";
        let build = Build::inline(tenant, "app", &[("Dockerfile", dockerfile), ("file", "one")]).amd64();
        let finished = tenant.build(&build).await;
        let first = only_platform(&tenant.run_of(&finished).await);
        assert_eq!(first.steps.iter().filter(|step| step.cached).count(), 0, "a cold cache: {:#?}", first.steps);
        assert_eq!(first.first_cache_miss.as_deref(), Some("[2/4] RUN echo first > /first"));

        tenant.edit("app", |build| "two".clone_into(file(&mut build.spec, "file"))).await;
        let run = tenant.run_of(&tenant.built("app").await).await;
        assert_eq!(run.name_any(), "app-2");
        let second = only_platform(&run);
        let shown: Vec<_> = ["RUN echo first > /first", "COPY file /", "RUN echo behind > /behind"]
            .map(|instruction| (instruction, step(&second, instruction).cached))
            .to_vec();
        assert_eq!(shown.iter().map(|(_, cached)| *cached).collect::<Vec<_>>(), [true, false, false], "{shown:?}");
        assert_eq!(second.first_cache_miss.as_deref(), Some("[3/4] COPY file /"));

        // Each time is behind the one before it: all of this cluster's nodes have one clock.
        let status = run.status.unwrap();
        let ImageBuildRunStatus { queued_at, started_at, publishing_at, finished_at, .. } = &status;
        let own = [queued_at, started_at, publishing_at, finished_at];
        let PlatformStatus { started_at, fetching_at, building_at, pushing_at, finished_at, .. } = &second;
        let of_platform = [queued_at, started_at, fetching_at, building_at, pushing_at, finished_at, publishing_at];
        for times in [own.as_slice(), &of_platform] {
            let times: Vec<_> =
                times.iter().map(|time: &&Option<MicroTime>| time.as_ref().expect("it is told").0).collect();
            assert!(times.is_sorted(), "{times:?}");
        }
    })
    .await;
}

async fn steps_are_told_while_they_run() {
    Tenant::fresh("running", async |tenant| {
        let dockerfile = "FROM busybox\nRUN echo before\nRUN echo it-begins; sleep 16\n";
        tenant.create_build(&Build::inline(tenant, "app", &[("Dockerfile", dockerfile)]).amd64()).await;
        let run = tenant
            .wait_run("app-1", "the second step runs", wait::BUILD, |run| {
                let platforms = run.status.iter().flat_map(|status| &status.platforms);
                let mut steps = platforms.flat_map(|platform| &platform.steps);
                match steps.find(|step| step.name.ends_with("; sleep 16")) {
                    Some(step) if step.seconds.is_some() => Err("it was told only when it had ended".to_owned()),
                    step => Ok(step.is_some()),
                }
            })
            .await;
        assert!(seconds(step(&only_platform(&run), "RUN echo before")) < 16.0);
        // What it prints is in its log meanwhile.
        let pod = tenant.builders().await[0].name_any();
        while !tenant.in_agent(&pod, "cat /var/lib/kiln/agent/logs/*.log").await.contains(" it-begins\n") {
            assert!(tenant.processes(&pod).await.contains("sleep 16"), "the log is written while the step runs");
        }
        // And in the status, for those who may not read the log.
        tenant
            .wait_run("app-1", "its output is told", wait::BUILD, |run| {
                let step = step(&only_platform(run), "RUN echo it-begins; sleep 16").clone();
                match step.seconds {
                    Some(_) => Err("it was never told".to_owned()),
                    None => Ok(step.output == ["it-begins"]),
                }
            })
            .await;
        let built = tenant.built("app").await;
        let platform = only_platform(&tenant.run_of(&built).await);
        let taken = seconds(step(&platform, "RUN echo it-begins; sleep 16"));
        assert!(taken >= 16.0, "{taken}");
        assert!(platform.steps.iter().all(|step| step.output.is_empty()), "it is the log's: {:#?}", platform.steps);
    })
    .await;
}

/// A status a step would make a build that only looks into its cache wait for the API server.
async fn a_cached_build_is_not_a_write_a_step() {
    Tenant::fresh("writes", async |tenant| {
        let steps = (0..30).map(|step| format!("RUN echo {step}\n")).collect::<Vec<_>>().concat();
        let build = Build::inline(tenant, "app", &[("Dockerfile", &format!("FROM busybox\n{steps}"))]).amd64();
        tenant.build(&build).await;
        let mut audit = Audit::from_now();
        let run = tenant.run_of(&tenant.rebuild("app", "cached").await).await;
        let platform = only_platform(&run);
        assert_eq!(platform.steps.iter().filter(|step| step.cached).count(), 30, "{:#?}", platform.steps);
        assert_eq!(platform.first_cache_miss, None);
        let statuses = audit.of_kiln().into_iter().filter(|entry| {
            let object = &entry["objectRef"];
            is_write(entry)
                && object["name"] == run.name_any().as_str()
                && object["subresource"] == "status"
                && object["namespace"] == tenant.namespace.as_str()
        });
        // Given to its builder, publishing, published; and on a busy machine one or two on the way.
        let statuses = statuses.count();
        assert!((2..=6).contains(&statuses), "{statuses} writes");
    })
    .await;
}

async fn a_failure_says_what_where_and_why_in_condition_and_event() {
    Tenant::run("failure", async |tenant| {
        let dockerfile =
            "FROM busybox\nRUN true\n# a comment\n\nRUN echo 'no rule to make target' >&2; exit 3\nLABEL a=b\n";
        tenant.create_build(&Build::inline(tenant, "app", &[("Dockerfile", dockerfile)]).amd64()).await;
        let failed = tenant.not_ready("app", "StepFailed").await;
        let failure = failed.status.as_ref().unwrap().failure.clone().expect("it is told");
        assert_eq!((failure.dockerfile.as_deref(), failure.line), (Some("Dockerfile"), Some(5)));
        assert_eq!(
            failure.excerpt,
            ["  3 | # a comment", "  4 |", "> 5 | RUN echo 'no rule to make target' >&2; exit 3", "  6 | LABEL a=b"]
        );
        let run = tenant.run_of(&failed).await;
        let status = run.status.as_ref().unwrap();
        let platform = &status.platforms[0];
        assert!(step(platform, "RUN echo 'no rule to make target' >&2; exit 3").failed, "{:#?}", platform.steps);
        assert_eq!(status.failure.as_ref().unwrap().excerpt, failure.excerpt);
        let once = platform.failure.as_ref().unwrap();
        assert!(once.log_tail.is_empty() && once.excerpt.is_empty(), "they stand in the run's own failure: {once:#?}");

        let of_run = status.conditions.iter().find(|condition| condition.type_ == "Succeeded").unwrap();
        let of_build = condition(&failed, "Ready").unwrap();
        for part in ["linux/amd64", "RUN echo", "exit code 3", "line 5 of Dockerfile", "no rule to make target"] {
            assert!(of_run.message.contains(part), "{part:?} is in {:?}", of_run.message);
        }
        assert_eq!(of_build.message, format!("{}: {}", run.name_any(), of_run.message));
        let stalled = &condition(&failed, "Stalled").unwrap().message;
        assert!(stalled.starts_with("see the message of Ready; another run is made"), "{stalled}");
        for (kind, name, message) in
            [("ImageBuild", "app".to_owned(), &of_build.message), ("ImageBuildRun", run.name_any(), &of_run.message)]
        {
            let fields = format!("regarding.kind={kind},regarding.name={name},reason=StepFailed");
            let select = watcher::Config::default().fields(&fields);
            let what = format!("an Event about the {kind}");
            let events =
                tenant.wait(tenant.api::<Event>(), select, &what, wait::SOON, |events| Ok(!events.is_empty())).await;
            let told: Vec<_> = events.values().map(|event| (event.type_.as_deref(), event.note.as_deref())).collect();
            assert_eq!(told, [(Some("Warning"), Some(message.as_str()))], "{kind}");
        }
    })
    .await;
}

async fn a_pool_tells_what_its_builders_are_and_do() {
    Tenant::fresh("pool-status", async |tenant| {
        let pool = tenant.pool("told", |_| ()).await;
        let dockerfile = "FROM busybox\nRUN dd if=/dev/urandom of=/blob bs=1M count=8; sleep 3\n";
        let build = Build::inline(tenant, "app", &[("Dockerfile", dockerfile)]).amd64().pool(&pool);
        tenant.create_build(&build).await;
        let told = async |what: &str, holds: &dyn Fn(&BuilderPool) -> bool| {
            let pools: Api<BuilderPool> = Api::all(tenant.cluster.client.clone());
            let what = format!("BuilderPool {pool}: {what}");
            let mut found = tenant
                .wait(pools, wait::named(&pool), &what, wait::BUILD, |pools| Ok(pools.get(&pool).is_some_and(holds)))
                .await;
            found.remove(&pool).unwrap().status.unwrap()
        };
        let busy = |pool: &BuilderPool| pool.status.as_ref().is_some_and(|status| status.job_count == 1);
        let status = told("a job runs", &busy).await;
        assert_eq!((status.builder_count, status.builders[0].jobs), (1, 1));

        tenant.built("app").await;
        let rested = |pool: &BuilderPool| {
            let builders = pool.status.iter().flat_map(|status| &status.builders);
            let mut used = builders.filter_map(|builder| builder.cache_used.as_ref());
            used.any(|used| {
                used.0.strip_suffix("Mi").and_then(|used| used.parse::<u32>().ok()).is_some_and(|used| used >= 8)
            })
        };
        let status = told("the cache holds what was built", &rested).await;
        let builder = &status.builders[0];
        let pod = &tenant.builders().await[0];
        assert_eq!((builder.name.clone(), builder.namespace.clone()), (pod.name_any(), tenant.namespace.clone()));
        assert_eq!((status.job_count, builder.jobs), (0, 0));
        assert_eq!((builder.architecture.as_str(), &builder.node), ("amd64", &pod.spec.as_ref().unwrap().node_name));
        assert!(builder.buildkit.as_ref().is_some_and(|version| version.starts_with('v')), "{builder:#?}");
        assert!(builder.platforms.iter().any(|name| name == "linux/amd64"), "{builder:#?}");
        assert!(builder.platforms.iter().all(|name| !name.contains("arm")), "{builder:#?}");
        assert!(builder.emulated_platforms.iter().all(|name| !name.contains("amd64")), "{builder:#?}");
        assert!(builder.cache_limit.is_some() && builder.security_profile.is_some(), "{builder:#?}");
        assert!(builder.largest_id.is_some_and(|largest| largest >= 65_534), "{builder:#?}");
        assert_eq!(builder.sandbox, Some(SourceSandbox::Landlock), "{builder:#?}");
        assert!(builder.last_active_at > pod.creation_timestamp(), "{builder:#?}");
        let summary = status.summary.unwrap();
        assert!(summary.platforms.unwrap().contains("linux/amd64"));
        assert_eq!(summary.nodes, builder.node.as_ref().map(|node| format!("{node}: 1")));
        assert!(summary.cache.is_some_and(|cache| cache.contains("Mi of ")));
    })
    .await;
}

async fn metrics_have_their_names_and_no_tenants() {
    Tenant::fresh("metrics", async |tenant| {
        let pool = tenant.pool("counted", |_| ()).await;
        tenant
            .build(&Build::inline(tenant, "uncounted", &[("Dockerfile", "FROM busybox\n")]).amd64().pool(&pool))
            .await;
        let bad = Build::inline(tenant, "bad", &[("Dockerfile", "FROM busybox\nRUN exit 1\n")]).amd64().pool(&pool);
        tenant.create_build(&bad).await;
        tenant.not_ready("bad", "StepFailed").await;
        let metrics = metrics(tenant).await;
        for series in [
            "kiln_runs_ended_total{outcome=\"Succeeded\",reason=\"Succeeded\"}",
            "kiln_runs_ended_total{outcome=\"Failed\",reason=\"StepFailed\"}",
            "kiln_run_duration_seconds_count{outcome=\"Succeeded\"}",
            "kiln_run_phase_seconds_count{phase=\"queue\"}",
            "kiln_run_phase_seconds_count{phase=\"start\"}",
            "kiln_run_phase_seconds_count{phase=\"fetch\"}",
            "kiln_run_phase_seconds_count{phase=\"build\"}",
            "kiln_run_phase_seconds_count{phase=\"push\"}",
            "kiln_run_phase_seconds_count{phase=\"publish\"}",
            "kiln_reconcile_seconds_count{controller=\"imagebuildrun\"}",
            "kiln_leader",
            "kiln_build_info{version=",
            "kiln_imagebuilds{ready=\"True\"}",
            &format!("kiln_builders{{pool=\"{pool}\",architecture=\"amd64\""),
        ] {
            let value = value(&metrics, series);
            assert!(value.is_some_and(|value| value > 0.0), "{series}: {value:?} in\n{metrics}");
        }
        for series in [
            "kiln_reconcile_errors_total{controller=\"imagebuild\"}",
            "kiln_runs{phase=\"Building\"}",
            &format!("kiln_jobs{{pool=\"{pool}\"}}"),
        ] {
            assert!(value(&metrics, series).is_some(), "{series} in\n{metrics}");
        }
        assert!(!metrics.contains("uncounted"), "an object of a tenant is named:\n{metrics}");
    })
    .await;
}

/// What the operator that leads exposes, asked for through the API server.
async fn metrics(tenant: &Tenant) -> String {
    use k8s_openapi::api::core::v1::Pod;
    let namespace = operator_namespace();
    let pods: Api<Pod> = Api::namespaced(tenant.cluster.client.clone(), &namespace);
    let operators = kube::api::ListParams::default().labels("app.kubernetes.io/component=operator");
    let pods = pods.list(&operators).await.expect("the operator's pods can be listed");
    let mut last = String::new();
    for pod in pods {
        let path = format!("/api/v1/namespaces/{namespace}/pods/{}:8080/proxy/metrics", pod.name_any());
        let request = http::Request::get(path).body(Vec::new()).expect("a request without a body");
        last = tenant.cluster.client.request_text(request).await.unwrap_or_default();
        if value(&last, "kiln_leader") == Some(1.0) {
            break;
        }
    }
    last
}

/// The value of the first series that begins so.
fn value(metrics: &str, series: &str) -> Option<f64> {
    metrics.lines().find(|line| line.starts_with(series))?.rsplit(' ').next()?.parse().ok()
}
