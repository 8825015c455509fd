//! The operator itself: how fast it is ready, what memory it holds, how large its image is.

use std::io::Read as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use flate2::read::GzDecoder;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Pod;
use kiln_e2e::Cluster;
use kiln_e2e::cluster::operator_namespace;
use kiln_e2e::registry::Registry;
use kube::api::{DeleteParams, ListParams};
use kube::runtime::watcher;
use kube::{Api, Client, ResourceExt};
use oci_spec::image::ImageManifest;
use tokio::net::TcpListener;

use crate::figures::{Figure, Target, Unit};
use crate::observer::Observer;

const GROUP: &str = "operator";
/// The label of the operator's pods.
const OPERATOR: &str = "app.kubernetes.io/component=operator";
/// What a started operator needs to have looked at everything, and to have given memory back.
const SETTLED: Duration = Duration::from_secs(5);

/// Starts it `runs` times.
pub async fn measure(runs: usize) -> Vec<Figure> {
    let cluster = Cluster::new().await;
    let mut figures = Vec::new();
    if let Some(program) = program() {
        let mut seconds = Vec::new();
        for _ in 0..runs {
            seconds.push(start(&program).await);
        }
        figures.push(
            Figure::new(GROUP, "process started → ready", Unit::Seconds, seconds)
                .target(Target::AtMost(0.5))
                .note("on this machine, as a second replica"),
        );
    }
    let (mut resident, mut own) = (Vec::new(), Vec::new());
    for _ in 0..runs {
        let pod = restart(&cluster.client).await;
        tokio::time::sleep(SETTLED).await;
        let Some(usage) = usage(&pod) else { break };
        resident.push(usage.resident);
        own.push(usage.anonymous);
    }
    if !resident.is_empty() {
        let own = Figure::new(GROUP, "", Unit::MiB, own);
        figures.push(
            Figure::new(GROUP, "memory at rest, just started (resident)", Unit::MiB, resident)
                .target(Target::AtMost(20.0))
                .note(format!(
                    "{:.1} MiB of it its own; the rest are pages of its program and libraries",
                    own.median()
                )),
        );
    }
    if let Some((compressed, unpacked)) = image(&Registry::new(&cluster)).await {
        figures.push(
            Figure::new(GROUP, "image, compressed", Unit::MiB, vec![compressed])
                .target(Target::AtMost(40.0))
                .note(format!("{unpacked:.1} MiB unpacked")),
        );
    }
    figures
}

/// What it holds after the builds that were measured before this.
pub async fn memory_after_work(client: &Client) -> Option<Figure> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), &operator_namespace());
    let pods = pods.list(&ListParams::default().labels(OPERATOR)).await.expect("pods can be listed");
    let resident: Vec<f64> = pods.iter().filter_map(|pod| Some(usage(pod)?.resident)).collect();
    let figure = Figure::new(GROUP, "memory after all these builds (resident)", Unit::MiB, resident);
    (!figure.samples.is_empty()).then(|| figure.note("measured once, at the end"))
}

/// The operator's program, where it was compiled beside this one.
fn program() -> Option<PathBuf> {
    let program = std::env::current_exe().ok()?.with_file_name("kiln-operator");
    program.is_file().then_some(program)
}

/// Ends the process with the value.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts one that waits for the Lease, as any second replica; from there to its answer on /readyz, in seconds.
async fn start(program: &PathBuf) -> f64 {
    let port = {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        listener.local_addr().expect("a listener has an address").port()
    };
    let address = format!("127.0.0.1:{port}");
    let mut command = Command::new(program);
    command
        .env("KILN_LISTEN", &address)
        .env("KILN_NAMESPACE", operator_namespace())
        .env("KILN_POD_NAME", "kiln-bench")
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    if std::env::var_os("KILN_BUILDER_IMAGE").is_none() {
        command.env("KILN_BUILDER_IMAGE", "none");
    }
    let http = reqwest::Client::new();
    let begin = Instant::now();
    let mut running = Running(command.spawn().unwrap_or_else(|error| panic!("{}: {error}", program.display())));
    loop {
        let answer = http.get(format!("http://{address}/readyz")).send().await;
        if answer.is_ok_and(|answer| answer.status().is_success()) {
            return begin.elapsed().as_secs_f64();
        }
        if let Ok(Some(status)) = running.0.try_wait() {
            panic!("{} ended: {status}", program.display());
        }
        assert!(begin.elapsed() < Duration::from_secs(30), "{} is not ready", program.display());
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Deletes the operator's pods and waits until the next one leads; that one.
pub async fn restart(client: &Client) -> Pod {
    let pods: Api<Pod> = Api::namespaced(client.clone(), &operator_namespace());
    let select = ListParams::default().labels(OPERATOR);
    let former: Vec<_> =
        pods.list(&select).await.expect("pods can be listed").iter().filter_map(ResourceExt::uid).collect();
    let mut observer = Observer::new(pods.clone(), watcher::Config::default().labels(OPERATOR)).await;
    pods.delete_collection(&DeleteParams::default(), &select).await.expect("the operator's pods can be deleted");
    let is_new = |pod: &Pod| !pod.uid().is_some_and(|uid| former.contains(&uid));
    let is_ready = |pod: &Pod| {
        let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
        conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
    };
    let objects = observer
        .wait("the operator is started again", |pods| {
            pods.values().all(|seen| is_new(&seen.object)) && pods.values().any(|seen| is_ready(&seen.object))
        })
        .await;
    let ready = objects.into_values().find(|seen| is_ready(&seen.object)).expect("the condition holds");
    // Until it leads it does, and holds, next to nothing.
    let leases: Api<Lease> = Api::namespaced(client.clone(), &operator_namespace());
    let mut observer = Observer::new(leases, kiln_e2e::wait::named("kiln-operator")).await;
    let name = ready.object.name_any();
    let leads = |lease: &Lease| lease.spec.as_ref().is_some_and(|spec| spec.holder_identity.as_ref() == Some(&name));
    observer.wait("the operator leads", |leases| leases.values().any(|seen| leads(&seen.object))).await;
    (*ready.object).clone()
}

/// What a process uses.
pub struct Usage {
    /// All that is in memory, in MiB.
    pub resident: f64,
    /// What of it is not a file's, in MiB.
    pub anonymous: f64,
    /// The processors' time that it has had, in seconds.
    pub processor: f64,
}

/// What a pod's operator uses, where that runs on this machine (proc(5)).
#[must_use]
pub fn usage(pod: &Pod) -> Option<Usage> {
    let uid = pod.uid()?;
    let ids = std::fs::read_dir("/proc").ok()?.flatten().map(|entry| entry.path());
    let process = ids.filter(|path| path.join("cgroup").is_file()).find(|path| {
        let read = |name: &str| std::fs::read_to_string(path.join(name)).unwrap_or_default();
        // A cgroup's path has the pod's UID with dashes or, under systemd, with underscores.
        let cgroup = read("cgroup").replace('_', "-");
        cgroup.contains(&uid) && read("comm").trim() == "kiln-operator"
    })?;
    let status = std::fs::read_to_string(process.join("status")).ok()?;
    let field = |name: &str| -> Option<f64> {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        Some(line.trim().trim_end_matches(" kB").parse::<f64>().ok()? / 1024.0)
    };
    let stat = std::fs::read_to_string(process.join("stat")).ok()?;
    // Counted behind the command's name, which may hold blanks: user's and system's time, in hundredths of a second.
    let times = stat.rsplit_once(')')?.1.split_whitespace().skip(11).take(2);
    let processor = times.filter_map(|time| time.parse::<f64>().ok()).sum::<f64>() / 100.0;
    Some(Usage { resident: field("VmRSS:")?, anonymous: field("RssAnon:")?, processor })
}

/// The operator's image in MiB: its layers as they are pulled, and unpacked. `None`: it is not in the test registry.
async fn image(registry: &Registry) -> Option<(f64, f64)> {
    let reference = std::env::var("KILN_OPERATOR_IMAGE").ok()?;
    let (repository, digest) = reference.strip_prefix(&registry.host)?.strip_prefix('/')?.split_once('@')?;
    let manifest: ImageManifest = registry.json(repository, &format!("manifests/{digest}")).await;
    let (mut compressed, mut unpacked) = (0, 0);
    for layer in manifest.layers() {
        compressed += layer.size();
        let blob = registry.bytes(repository, &format!("blobs/{}", layer.digest())).await;
        let mut bytes = Vec::new();
        GzDecoder::new(blob.as_slice()).read_to_end(&mut bytes).expect("a layer is gzip");
        unpacked += bytes.len() as u64;
    }
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    Some((mib(compressed), mib(unpacked)))
}
