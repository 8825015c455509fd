//! What is built: arguments, stages, labels, what is built afresh, checks.

use kiln_e2e::tenant::{condition, image_of};
use kiln_e2e::wait;

use super::Example;

pub async fn args(example: &mut Example<'_>) {
    example.apply().await;
    let image = example.image("args").await;
    assert_eq!(image.text("args"), "1.2-amd64 for linux/amd64 (linux amd64 ) on linux/amd64");
    assert_eq!(image.text("proxies"), "http://proxy.corp.example:3128 .corp.example");
    let config = serde_json::to_string(&image.config).unwrap();
    assert!(config.contains("\"VERSION=1.2-amd64\""), "{config}");
    assert!(!config.contains("proxy.corp.example"), "a proxy is not in the image: {config}");
}

pub async fn targets(example: &mut Example<'_>) {
    let repository = example.git("app");
    repository.write(&[(
        "Dockerfile",
        "FROM busybox:1.36 AS build\nRUN cat /proc/sys/kernel/random/uuid > /built\n\
         FROM build AS server\nRUN echo server > /name\nFROM build AS worker\nRUN echo worker > /name\n",
    )]);
    example.apply().await;
    let (server, worker) = (example.image("targets-server").await, example.image("targets-worker").await);
    assert_eq!((server.text("name").as_str(), worker.text("name").as_str()), ("server", "worker"));
    assert_eq!(server.text("built"), worker.text("built"), "the stage of both ran once");
}

pub async fn no_cache(example: &mut Example<'_>) {
    example.apply().await;
    let (first, all) = (example.image("no-cache-stages").await, example.image("no-cache").await);
    for name in ["no-cache-stages", "no-cache"] {
        example.tenant.rebuild(name, "1").await;
    }
    let (second, all_again) = (example.image("no-cache-stages").await, example.image("no-cache").await);
    assert_eq!(first.text("tools"), second.text("tools"), "taken from the cache");
    assert_ne!(first.text("news"), second.text("news"), "built afresh");
    assert_ne!(all.text("made"), all_again.text("made"), "built afresh");
}

pub async fn labels(example: &mut Example<'_>) {
    let repository = example.git("app");
    let commit =
        repository.write(&[("Dockerfile", "FROM busybox:1.36\nLABEL com.example.team=db com.example.of=app\n")]);
    repository.tag("v1.2.0", &commit);
    example.apply().await;
    let image = example.image("labels").await;
    let labels = image.config.config().as_ref().unwrap().labels().clone().unwrap();
    for (name, value) in [
        ("org.opencontainers.image.title", "App"),
        ("com.example.team", "web"),
        ("com.example.of", "app"),
        ("org.opencontainers.image.source", repository.url.as_str()),
        ("org.opencontainers.image.revision", commit.as_str()),
        ("org.opencontainers.image.version", "v1.2.0"),
        ("org.opencontainers.image.created", "2023-11-14T22:13:20Z"),
    ] {
        assert_eq!(labels.get(name).map(String::as_str), Some(value), "{name}");
    }
    let pushed = image_of(&example.tenant.built("labels").await);
    let index = example.registry.index(&pushed.repository, &pushed.digest).await;
    for annotations in [index.annotations(), image.manifest.annotations()] {
        let found = annotations.as_ref().and_then(|all| all.get("org.opencontainers.image.description"));
        assert_eq!(found.map(String::as_str), Some("An app, and what it needs"));
    }
}

pub async fn instructions(example: &mut Example<'_>) {
    example.apply().await;
    let image = example.image("instructions").await;
    let config = serde_json::to_value(&image.config).unwrap();
    let of = &config["config"];
    assert_eq!(config["author"], "you <you@example.com>");
    assert_eq!(of["User"], "1000:1000");
    assert_eq!(of["WorkingDir"], "/srv");
    assert_eq!(of["StopSignal"], "SIGINT");
    assert_eq!(of["Entrypoint"], serde_json::json!(["httpd", "-f"]));
    assert_eq!(of["Cmd"], serde_json::json!(["-p", "8080"]));
    assert_eq!(of["Volumes"], serde_json::json!({"/data": {}, "/logs": {}}));
    assert_eq!(of["ExposedPorts"], serde_json::json!({"8080/tcp": {}, "8443/tcp": {}}));
    assert_eq!(of["Labels"]["com.example.team"], "web");
    let environment = of["Env"].to_string();
    assert!(environment.contains("\"GREETING=hello\"") && environment.contains("\"LANG=C.UTF-8\""), "{environment}");
    // What the OCI specification does not know is Docker's, and there all the same.
    let raw: serde_json::Value = example
        .registry
        .json(&example.repository("instructions"), &format!("blobs/{}", image.manifest.config().digest()))
        .await;
    assert_eq!(raw["config"]["OnBuild"], serde_json::json!(["COPY . /srv"]));
    assert_eq!(raw["config"]["Shell"], serde_json::json!(["/bin/sh", "-eu", "-c"]));
    assert_eq!(raw["config"]["Healthcheck"]["Retries"], 2);
    assert_eq!(image.text("srv/greeting"), "hello");
    let file = image.entry("srv/app.conf").unwrap();
    assert_eq!((file.mode, file.uid, file.gid), (0o640, 1000, 1000));
    assert!(image.entry("srv/other.conf").is_some());
    assert!(image.entry("srv/other.secret").is_none(), "Dockerfile.dockerignore holds");
}

pub async fn warnings(example: &mut Example<'_>) {
    example.apply().await;
    let built = example.tenant.built("warnings").await;
    let warnings = built.status.unwrap().warnings;
    let found: Vec<_> = warnings.iter().map(|warning| (warning.rule.as_str(), warning.line)).collect();
    assert!(found.contains(&("FromAsCasing", Some(1))), "{warnings:?}");
    assert!(found.contains(&("JSONArgsRecommended", Some(2))), "{warnings:?}");

    let failed = example.tenant.not_ready("warnings-fail", "LintFailed").await;
    let failure = failed.status.unwrap().failure.unwrap();
    assert!(failure.message.contains("FromAsCasing") && failure.line == Some(1), "{failure:?}");
    assert_eq!(example.registry.digest(&example.repository("warnings-fail"), "latest").await, None);
}

pub async fn check(example: &mut Example<'_>) {
    let repository = example.git("app");
    let commit = repository.write(&[(
        "Dockerfile",
        "FROM busybox:1.36 AS app\nRUN echo app > /app\nFROM app AS test\nARG RESULT=0\nRUN exit $RESULT\n",
    )]);
    repository.point("refs/pull/7/head", &commit);
    example.tenant.account_pulls_with("registry-login").await;
    example.apply().await;
    let good = example.tenant.built("check").await;
    assert_eq!(good.status.as_ref().unwrap().image, None, "nothing is pushed");
    assert_eq!(good.status.as_ref().unwrap().source.as_ref().and_then(|source| source.commit.clone()), Some(commit));

    example.tenant.edit("check", |build| drop(build.spec.args.insert("RESULT".to_owned(), "3".to_owned()))).await;
    let failed = example.tenant.not_ready("check", "StepFailed").await;
    assert_eq!(failed.status.unwrap().failure.unwrap().exit_code, Some(3));
}

pub async fn cache_age(example: &mut Example<'_>) {
    example.set("168h", "10s");
    example.apply().await;
    let first = example.tenant.built("cache-age").await;
    let made = example.image("cache-age").await.text("updates");
    let again = example
        .tenant
        .wait_build("cache-age", "built afresh by itself", wait::BUILD, |build| {
            let digest =
                |build: &kiln_crds::ImageBuild| build.status.as_ref()?.image.as_ref().map(|image| image.digest.clone());
            Ok(digest(build).is_some() && digest(build) != digest(&first))
        })
        .await;
    assert!(condition(&again, "Stalled").is_none_or(|stalled| stalled.status == "False"));
    let image = image_of(&again);
    let image = example.registry.image_for(&image.repository, &image.digest, "linux/amd64").await;
    assert_ne!(image.text("updates"), made);
}
