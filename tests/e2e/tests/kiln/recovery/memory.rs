//! What the operator keeps in memory: not the files of ImageBuilds, of which each may have a megabyte.

use futures::StreamExt as _;
use kiln_crds::ImageBuild;
use kiln_e2e::tenant::condition;
use kiln_e2e::{Build, Tenant, wait};
use kube::api::{Patch, PatchParams};
use kube::runtime::watcher;
use serde_json::json;

use crate::recovery::host::is_local;
use crate::recovery::operator::Operator;

kiln_e2e::tests![alone large_files_are_not_kept];

/// So many ImageBuilds of a megabyte: more than the operator may use, if it kept them.
const LARGE: usize = 110;
/// How many of them change at once.
const CHANGED: usize = 5;
/// The most that the operator may have, in MiB.
const MOST: u64 = 100;

async fn large_files_are_not_kept() {
    if !is_local("large_files_are_not_kept") {
        return;
    }
    Tenant::fresh("large", async |tenant| {
        let operator = Operator::of(tenant);
        let text = "0123456789abcdef".repeat(15_250);
        let make = |number: usize| {
            let name = format!("large-{number}");
            let parts = ["a", "b", "c", "d"].map(|part| (part, text.as_str()));
            let files = [&[("Dockerfile", "FROM busybox\n")][..], &parts].concat();
            let build = Build::inline(tenant, &name, &files);
            build.amd64().with(|spec| spec.suspend = true)
        };
        futures::stream::iter(0..LARGE)
            .map(async |number| drop(tenant.create_build(&make(number)).await))
            .buffer_unordered(4)
            .collect::<()>()
            .await;
        let with_reason = async |reason: &str, count: usize| {
            let all = watcher::Config::default();
            let told = |build: &ImageBuild| condition(build, "Ready").is_some_and(|ready| ready.reason == reason);
            tenant
                .wait(tenant.builds(), all, &format!("{count} are {reason}"), wait::BUILD, |builds| {
                    Ok(builds.values().filter(|build| told(build)).count() >= count)
                })
                .await;
        };
        with_reason("Suspended", LARGE).await;
        is_small(&operator, "with all of them").await;

        // One that starts reads them all at once, and works: a neighbour's build is made.
        operator.refresh().await;
        tenant.build(&Build::inline(tenant, "small", &[("Dockerfile", "FROM busybox\n")]).amd64()).await;
        is_small(&operator, "after a start").await;

        // Those that change come whole, and runs are made of them.
        for number in 0..CHANGED {
            let change = Patch::Merge(json!({"spec": {"suspend": false}, "metadata": {"annotations": {"x": "y"}}}));
            let name = format!("large-{number}");
            tenant.builds().patch(&name, &PatchParams::default(), &change).await.expect("it can be changed");
        }
        with_reason("Succeeded", CHANGED + 1).await;
        is_small(&operator, "after they were built").await;
    })
    .await;
}

async fn is_small(operator: &Operator<'_>, when: &str) {
    let leader = operator.leader().await;
    let process = Operator::processes(&leader)[0];
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).expect("the process is there");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("the kernel tells what it uses");
    let kibibytes: u64 = line.trim().trim_end_matches(" kB").parse().expect("in kB");
    eprintln!("the operator has {} MiB {when}", kibibytes >> 10);
    assert!(kibibytes >> 10 <= MOST, "the operator has {} MiB {when}", kibibytes >> 10);
}
