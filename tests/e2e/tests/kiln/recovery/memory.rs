//! What the operator keeps in memory: not the files of ImageBuilds, of which each may have a megabyte. `make test-all` alone
//! runs this: the API server keeps each change of such objects, decoded, and is slow for all tests that follow.

use futures::StreamExt as _;
use kiln_crds::ImageBuild;
use kiln_e2e::tenant::condition;
use kiln_e2e::{Build, Tenant, wait};
use kube::api::{Patch, PatchParams};
use kube::runtime::watcher;
use serde_json::json;

use crate::recovery::host::is_local;
use crate::recovery::operator::Operator;

kiln_e2e::tests![alone ignored large_files_are_not_kept];

/// So many ImageBuilds of a megabyte: more than the operator may use, if it kept them.
const LARGE: usize = 110;
/// How many of them are built.
const BUILT: usize = 5;
/// The most that they may cost the operator, in MiB: room for the page that it reads at once, not for all of them.
const MOST: u64 = 30;

async fn large_files_are_not_kept() {
    if !is_local("large_files_are_not_kept") {
        return;
    }
    Tenant::fresh("large", async |tenant| {
        let operator = Operator::of(tenant);
        operator.refresh().await;
        let before = resident(&operator).await;
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
        is_small(&operator, before, "with all of them").await;

        // One that starts reads them all at once, and works: a neighbour's build is made.
        operator.refresh().await;
        tenant.build(&Build::inline(tenant, "small", &[("Dockerfile", "FROM busybox\n")]).amd64()).await;
        is_small(&operator, before, "after a start").await;

        // Those that change come whole, and runs are made of them.
        for number in 0..BUILT {
            let change = Patch::Merge(json!({"spec": {"suspend": false}, "metadata": {"annotations": {"x": "y"}}}));
            let name = format!("large-{number}");
            tenant.builds().patch(&name, &PatchParams::default(), &change).await.expect("it can be changed");
        }
        with_reason("Succeeded", BUILT + 1).await;
        is_small(&operator, before, "after they were built").await;
    })
    .await;
}

async fn is_small(operator: &Operator<'_>, before: u64, when: &str) {
    let now = resident(operator).await;
    assert!(now <= before + MOST, "the operator had {before} MiB, and has {now} MiB {when}");
}

/// What the operator uses, in MiB.
async fn resident(operator: &Operator<'_>) -> u64 {
    let leader = operator.leader().await;
    let process = Operator::processes(&leader)[0];
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).expect("the process is there");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("the kernel tells what it uses");
    let kibibytes: u64 = line.trim().trim_end_matches(" kB").parse().expect("in kB");
    kibibytes >> 10
}
