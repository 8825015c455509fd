//! What needs the machine of the local cluster: its processes, its addresses, its keys.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;

use kiln_e2e::Cluster;
use kiln_e2e::cluster::variable;

use crate::recovery::proxy::{Identity, Proxy, Upstream};

/// Whether this is the machine of the local cluster; says so where it is not.
pub fn is_local(test: &str) -> bool {
    let local = std::env::var_os("KILN_LOCAL_CLUSTER").is_some();
    if !local {
        let why = "it kills processes on the nodes and listens beside them, which it can on the local cluster alone";
        eprintln!("not tested: {test}; {why} (unset KUBECONFIG, and: make cluster)");
    }
    local
}

/// The processes of this name in a pod's containers.
pub fn processes(pod_uid: &str, name: &str) -> Vec<u32> {
    let directory = format!("/pod{pod_uid}/");
    let of_pod = |path: PathBuf| {
        let pid = path.file_name()?.to_str()?.parse().ok()?;
        let comm = std::fs::read_to_string(path.join("comm")).ok()?;
        let cgroup = std::fs::read_to_string(path.join("cgroup")).ok()?;
        (comm.trim() == name && cgroup.contains(&directory)).then_some(pid)
    };
    let all = std::fs::read_dir("/proc").expect("/proc can be read");
    all.filter_map(|entry| of_pod(entry.ok()?.path())).collect()
}

/// Ends a pod's processes of this name as nothing else does: they can save nothing and tell nobody.
///
/// # Panics
/// Where there is none.
pub fn kill(pod_uid: &str, name: &str) {
    signal("KILL", pod_uid, name);
}

/// Ends all processes at once of the container in which one of this name runs, as the kernel does with a cgroup.
///
/// # Panics
/// Where there is none.
pub fn kill_container(pod_uid: &str, name: &str) {
    let found = processes(pod_uid, name);
    let first = found.first().unwrap_or_else(|| panic!("a process {name} of the pod {pod_uid} runs on this machine"));
    let cgroup = |pid: &str| std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok();
    let container = cgroup(&first.to_string()).expect("it lives");
    let all = std::fs::read_dir("/proc").expect("/proc can be read");
    let all = all.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let all: Vec<String> =
        all.filter(|pid| pid.parse::<u32>().is_ok() && cgroup(pid).as_ref() == Some(&container)).collect();
    // Some may end while they are told.
    let _ = Command::new("kill").arg("-KILL").args(&all).status().expect("kill can be started");
}

/// Waits until the container runtime knows that a process of the container in which one of this name runs was killed for want
/// of memory: of a container that ends before, it does not say so.
///
/// # Panics
/// Where it is not told so.
pub async fn knows_of_want_of_memory(pod_uid: &str, name: &str) {
    let first = *processes(pod_uid, name).first().expect("it runs on this machine");
    let cgroups = std::fs::read_to_string(format!("/proc/{first}/cgroup")).expect("it lives");
    let is_id = |part: &&str| part.len() == 64 && part.bytes().all(|byte| byte.is_ascii_hexdigit());
    let id = cgroups.split(['/', '\n', ':']).find(is_id).expect("its cgroup has the container's id");
    for _ in 0..300 {
        let log = std::fs::read_to_string("/var/lib/kiln-cluster/logs/containerd-amd64.log").unwrap_or_default();
        if log.lines().any(|line| line.contains("TaskOOM event") && line.contains(id)) {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    panic!("the container runtime is told of no process of {id}");
}

/// Stops a pod's processes of this name where they are: they take connections, and answer nothing.
///
/// # Panics
/// Where there is none.
pub fn freeze(pod_uid: &str, name: &str) {
    signal("STOP", pod_uid, name);
}

fn signal(signal: &str, pod_uid: &str, name: &str) {
    let found = processes(pod_uid, name);
    assert!(!found.is_empty(), "a process {name} of the pod {pod_uid} runs on this machine");
    let status = Command::new("kill")
        .arg(format!("-{signal}"))
        .args(found.iter().map(ToString::to_string))
        .status()
        .expect("kill can be started");
    assert!(status.success(), "kill -{signal} {found:?}");
}

/// Runs kubectl or helm; what it printed.
pub fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("{program} cannot be started ({error}); run: . .cluster/env"));
    assert!(output.status.success(), "{program} {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("what is printed is text")
}

/// An address that pods reach, with a port that nobody listens on.
pub fn address(cluster: &Cluster) -> SocketAddr {
    let ip: IpAddr = cluster.registry_host().parse().expect("the local registry is named by its address");
    SocketAddr::new(ip, 0)
}

/// A proxy before the registry.
pub async fn before_registry(cluster: &Cluster) -> Proxy {
    let upstream = Upstream { url: format!("https://{}", cluster.registry), ca: cluster.registry_ca.clone() };
    Proxy::start(address(cluster), Identity::Own, upstream).await
}

/// A proxy before the Git server.
pub async fn before_git(cluster: &Cluster) -> Proxy {
    let upstream = Upstream { url: cluster.git.clone(), ca: cluster.git_ca.clone() };
    Proxy::start(address(cluster), Identity::Own, upstream).await
}

/// A proxy before the API server, with the API server's own certificate: pods cannot tell it apart.
pub async fn before_api_server(cluster: &Cluster) -> Proxy {
    let conf = PathBuf::from(variable("KUBECONFIG"));
    let pki =
        conf.parent().and_then(|conf| conf.parent()).expect("the local cluster's kubeconfig is in conf").join("pki");
    let read = |name: &str| {
        let path = pki.join(name);
        std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    };
    let identity = Identity::Given(read("apiserver.crt"), read("apiserver.key"));
    let url = run("kubectl", &["config", "view", "--minify", "-o", "jsonpath={.clusters[0].cluster.server}"]);
    Proxy::start(address(cluster), identity, Upstream { url, ca: read("cluster-ca.crt") }).await
}
