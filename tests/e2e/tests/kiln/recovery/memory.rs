//! What the operator keeps in memory of ten thousand ImageBuilds: not their files, of which each may have a megabyte, nor
//! those of their runs. `make test-all` alone runs this: it takes minutes, and the API server keeps each change of such
//! objects, decoded, and is slow for all tests that follow.

use std::process::Command;

use futures::StreamExt as _;
use kiln_crds::{ImageBuild, ImageBuildRun};
use kiln_e2e::tenant::condition;
use kiln_e2e::{Build, Tenant, wait};
use kube::ResourceExt as _;
use kube::api::{Patch, PatchParams, PostParams};
use kube::runtime::watcher;
use serde_json::json;

use crate::recovery::host::is_local;
use crate::recovery::operator::Operator;

kiln_e2e::tests![alone ignored large_files_are_not_kept];

/// So many ImageBuilds there are.
const ALL: usize = 10_000;
/// So many of them have a megabyte.
const LARGE: usize = 200;
/// So many runs of each of those have ended.
const RUNS: usize = 2;
/// How many change at the end, and are built.
const BUILT: usize = 20;
/// The most that the operator may use beside its program, in MiB: the program takes 17 as it ships (`make bench`), and 100 are
/// to be enough for both. It was seen to use 60 to 82.
const MOST: u64 = 83;
/// How many requests are sent at once.
const AT_ONCE: usize = 16;

async fn large_files_are_not_kept() {
    if !is_local("large_files_are_not_kept") {
        return;
    }
    Tenant::fresh("large", async |tenant| {
        let mut operator = Operator::of(tenant);
        // It would take a run that has no status yet for a new one.
        operator.stop().await;
        let text = "0123456789abcdef".repeat(15_250);
        let large: Vec<_> = ["a", "b", "c", "d"].map(|part| (part, text.as_str())).into();
        let make = |number: usize| {
            // Neighbours by name: a page of a list has many of them.
            let build = if number < LARGE {
                let files = [&[("Dockerfile", "FROM busybox\n")][..], large.as_slice()].concat();
                Build::inline(tenant, &format!("large-{number}"), &files)
            } else {
                let git = json!({"git": {"url": "https://git.example/app.git"}});
                let source = serde_json::from_value(git).expect("it is a source");
                Build::inline(tenant, &format!("small-{number}"), &[]).with(|spec| spec.source = source)
            };
            build.amd64().with(|spec| spec.suspend = true)
        };
        futures::stream::iter(0..ALL)
            .map(async |number| {
                let build = tenant.create_build(&make(number)).await;
                if number < LARGE {
                    for run in 1..=RUNS {
                        plant_run(tenant, &build, run).await;
                    }
                }
            })
            .buffer_unordered(AT_ONCE)
            .collect::<()>()
            .await;

        // One that starts reads them all at once, and works: a neighbour's build is made.
        operator.start(1, None).await;
        tenant.build(&Build::inline(tenant, "neighbour", &[("Dockerfile", "FROM busybox\n")]).amd64()).await;
        is_small(&operator, "after a start").await;

        // As it is with its connections, and with them its watches.
        lose_connections(&operator).await;
        tenant.build(&Build::inline(tenant, "other", &[("Dockerfile", "FROM busybox\n")]).amd64()).await;
        is_small(&operator, "after its watches were lost").await;

        // Those that change come whole, and runs are made of them.
        for number in 0..BUILT {
            let change = Patch::Merge(json!({"spec": {"suspend": false, "args": {"CHANGED": "1"}}}));
            let name = format!("large-{number}");
            tenant.builds().patch(&name, &PatchParams::default(), &change).await.expect("it can be changed");
        }
        for number in 0..BUILT {
            let name = format!("large-{number}");
            let is_built = |build: &ImageBuild| {
                condition(build, "Ready").is_some_and(|ready| ready.reason == "Succeeded")
                    && build.status.as_ref().and_then(|status| status.run.as_deref())
                        == Some(&format!("{name}-{}", RUNS + 1))
            };
            let select = watcher::Config::default().fields(&format!("metadata.name={name}"));
            tenant
                .wait(tenant.builds(), select, &format!("{name} is built"), wait::BUILD, |builds| {
                    Ok(builds.values().any(is_built))
                })
                .await;
            is_small(&operator, "while they are built").await;
        }
    })
    .await;
}

/// A run that ended long ago, with the files that it was made of.
async fn plant_run(tenant: &Tenant, build: &ImageBuild, number: usize) {
    let name = format!("{}-{number}", build.name_any());
    let uid = build.uid().expect("an object has a UID");
    let owner = json!({
        "apiVersion": "kiln.build/v1alpha1", "kind": "ImageBuild", "name": build.name_any(), "uid": uid, "controller": true,
    });
    let run: ImageBuildRun = serde_json::from_value(json!({
        "apiVersion": "kiln.build/v1alpha1",
        "kind": "ImageBuildRun",
        "metadata": {"name": name, "labels": {"kiln.build/image-build": build.name_any()}, "ownerReferences": [owner]},
        "spec": {
            "imageBuild": {"name": build.name_any(), "uid": uid}, "number": number, "inputHash": format!("v1:{number}"),
            "build": {"source": build.spec.source, "image": build.spec.image},
        },
    }))
    .expect("it is a run");
    let runs = tenant.runs();
    runs.create(&PostParams::default(), &run).await.expect("a run can be made");
    let step = json!({"name": "[1/2] FROM busybox", "seconds": "0.50"});
    let platform = json!({"name": "linux/amd64", "phase": "Succeeded", "attempt": 1, "steps": [step]});
    let status = Patch::Merge(json!({"status": {"phase": "Succeeded", "platforms": [platform]}}));
    runs.patch_status(&name, &PatchParams::default(), &status).await.expect("its status can be written");
}

/// Ends the operator's connections to the API server.
async fn lose_connections(operator: &Operator<'_>) {
    let leader = operator.leader().await;
    let process = Operator::processes(&leader)[0].to_string();
    let ended = Command::new("nsenter")
        .args(["--target", &process, "--net", "ss", "-K", "state", "established", "( dport = :443 or dport = :6443 )"])
        .output()
        .expect("nsenter and ss are on the local cluster's machine");
    let ended = String::from_utf8_lossy(&ended.stdout).lines().count();
    assert!(ended > 1, "connections were ended");
}

async fn is_small(operator: &Operator<'_>, when: &str) {
    let now = resident(operator).await;
    eprintln!("{now} MiB {when}");
    assert!(now <= MOST, "the operator has {now} MiB {when}");
}

/// What the operator uses beside its program, in MiB.
async fn resident(operator: &Operator<'_>) -> u64 {
    let leader = operator.leader().await;
    let process = Operator::processes(&leader)[0];
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).expect("the process is there");
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("the kernel tells what it uses");
    let kibibytes: u64 = line.trim().trim_end_matches(" kB").parse().expect("in kB");
    kibibytes >> 10
}
