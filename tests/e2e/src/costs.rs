//! What the tests cost: of each the time and what its builder pods used of processors, from their cgroups.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, ResourceExt as _};

use crate::Cluster;
use crate::builder::OF_TENANT;
use crate::cluster::builders_namespace;

/// How many tests are told one by one.
const TOLD: usize = 20;
/// How often the cgroups are read: a pod's is gone with the pod, and what it used since the last look with it.
const LOOK: Duration = Duration::from_secs(1);

/// What a test took.
#[derive(Clone, Copy, Debug, Default)]
pub struct Took {
    /// From its begin to its end.
    pub wall: Duration,
    /// What its builder pods used of processors.
    pub builders: Duration,
}

/// A builder pod: its tenant's namespace, its cgroup's file, what it has used.
#[derive(Debug, Default)]
struct Builder {
    namespace: String,
    file: Option<PathBuf>,
    used: Duration,
}

/// All builder pods that were there, by UID.
static BUILDERS: Mutex<BTreeMap<String, Builder>> = Mutex::new(BTreeMap::new());

/// What the processors had done before the first test.
static BUSY_BEFORE: Mutex<Option<Duration>> = Mutex::new(None);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn builders() -> MutexGuard<'static, BTreeMap<String, Builder>> {
    lock(&BUILDERS)
}

/// Begins to watch builder pods. Where this machine does not run them, nothing is known.
pub fn watch() {
    if roots().next().is_none() || std::env::var_os("KILN_LOCAL_CLUSTER").is_none() {
        return;
    }
    *lock(&BUSY_BEFORE) = busy();
    std::thread::spawn(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime can be made").block_on(async {
            let pods: Api<Pod> = Api::namespaced(Cluster::new().await.client, &builders_namespace());
            let mut stream = std::pin::pin!(watcher(pods, watcher::Config::default().labels(OF_TENANT)));
            let mut look = tokio::time::interval(LOOK);
            loop {
                tokio::select! {
                    event = stream.next() => if let Some(Ok(Event::Apply(pod) | Event::InitApply(pod))) = event {
                        note(&pod);
                    },
                    _ = look.tick() => builders().iter_mut().for_each(|(uid, builder)| builder.look(uid)),
                }
            }
        });
    });
}

fn note(pod: &Pod) {
    if let (Some(uid), Some(namespace)) = (pod.uid(), pod.labels().get(OF_TENANT)) {
        builders().entry(uid).or_default().namespace.clone_from(namespace);
    }
}

impl Builder {
    fn look(&mut self, uid: &str) {
        // The pod is told of before its cgroup is made.
        if self.file.is_none() {
            self.file = file_of(uid);
        }
        let text = self.file.as_deref().and_then(|file| std::fs::read_to_string(file).ok());
        if let Some(used) = text.as_deref().and_then(used_of) {
            self.used = used;
        }
    }
}

/// What a cgroup has used: `cpuacct.usage` of version 1 (nanoseconds), `cpu.stat` of version 2 (`usage_usec`).
fn used_of(text: &str) -> Option<Duration> {
    match text.trim().parse() {
        Ok(nanoseconds) => Some(Duration::from_nanos(nanoseconds)),
        Err(_) => text
            .lines()
            .find_map(|line| line.strip_prefix("usage_usec ")?.trim().parse().ok())
            .map(Duration::from_micros),
    }
}

/// Where the nodes' cgroups are.
fn roots() -> impl Iterator<Item = PathBuf> {
    ["/sys/fs/cgroup/cpuacct", "/sys/fs/cgroup"]
        .into_iter()
        .flat_map(|root| ["kiln-amd64", "kiln-arm64"].map(|node| Path::new(root).join(node)))
        .filter(|root| root.is_dir())
}

/// What the builder pods of a namespace have used so far.
pub fn used(namespace: &str) -> Duration {
    let mut builders = builders();
    let own = builders.iter_mut().filter(|(_, builder)| builder.namespace == namespace);
    own.map(|(uid, builder)| {
        builder.look(uid);
        builder.used
    })
    .sum()
}

/// The file with what a pod has used.
fn file_of(uid: &str) -> Option<PathBuf> {
    let names = [format!("pod{uid}"), format!("kubepods-pod{}.slice", uid.replace('-', "_"))];
    for root in roots() {
        for class in ["kubepods", "kubepods/burstable", "kubepods/besteffort"] {
            for name in &names {
                let directory = root.join(class).join(name);
                for file in ["cpuacct.usage", "cpu.stat"] {
                    if directory.join(file).exists() {
                        return Some(directory.join(file));
                    }
                }
            }
        }
    }
    None
}

/// Prints the dearest tests.
pub fn tell(took: &BTreeMap<&str, Took>) {
    if took.len() <= 1 {
        return;
    }
    let speed: f64 = std::env::var("KILN_SPEED").ok().and_then(|speed| speed.parse().ok()).unwrap_or(1.0);
    let mut tests: Vec<_> = took.iter().collect();
    tests.sort_by_key(|(_, took)| std::cmp::Reverse((took.builders, took.wall)));
    println!("the dearest tests (s of wall time, reference s of their builder pods):");
    for (name, took) in tests.iter().take(TOLD) {
        println!("  {:6.1} {:6.1}  {name}", took.wall.as_secs_f64(), took.builders.as_secs_f64() * speed);
    }
    if let (Some(all), Some(before)) = (busy(), *lock(&BUSY_BEFORE)) {
        let told: Duration = tests.iter().take(TOLD).map(|(_, took)| took.builders).sum();
        let shared = all.saturating_sub(before + told).as_secs_f64() * speed;
        let others = tests.len().saturating_sub(TOLD);
        println!(
            "         {shared:6.1}  shared: API server, nodes, registries, the operator, the builders of {others} others"
        );
    }
}

/// What this machine's processors have done so far (man 5 `proc_stat`): user, nice, system, irq and softirq time.
fn busy() -> Option<Duration> {
    let text = std::fs::read_to_string("/proc/stat").ok()?;
    let ticks: Vec<u64> = text.lines().next()?.split(' ').filter_map(|word| word.parse().ok()).collect();
    // The kernel counts in hundredths of a second for programs, whatever it does itself.
    Some(Duration::from_millis([0, 1, 2, 5, 6].iter().filter_map(|&field| ticks.get(field)).sum::<u64>() * 10))
}
