//! The operator from outside: its pods, its Lease, and how it is started, stopped and killed.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Pod;
use kiln_e2e::cluster::operator_namespace;
use kiln_e2e::{Tenant, wait};
use kube::api::DeleteParams;
use kube::runtime::watcher;
use kube::{Api, ResourceExt as _};

use crate::recovery::host;

/// The process in the operator's container.
pub const PROCESS: &str = "kiln-operator";
const SELECT: &str = "app.kubernetes.io/component=operator";

/// The operator of the installed chart, as a test changes it: with other replicas, or behind a proxy. What was changed is
/// put back with the value, also after a panic.
pub struct Operator<'a> {
    tenant: &'a Tenant,
    deployment: String,
    changed: bool,
}

impl<'a> Operator<'a> {
    pub fn of(tenant: &'a Tenant) -> Self {
        let found = kubectl(&["get", "deployments", "-l", SELECT, "-o", "name"]);
        let deployment = found.lines().next().expect("Kiln's chart is installed").to_owned();
        Self { tenant, deployment, changed: false }
    }

    /// As [`Self::start`]; its API server may take no longer than this for an answer.
    pub async fn start_with_deadline(&mut self, deadline: &str, api_server: SocketAddr) {
        self.changed = true;
        Self::kubectl(&["set", "env", &self.deployment, &format!("KILN_API_DEADLINE={deadline}")]);
        self.start(1, Some(api_server)).await;
    }

    /// Starts it with so many replicas, and with its API server at this address.
    pub async fn start(&mut self, replicas: u32, api_server: Option<SocketAddr>) {
        self.changed = true;
        if let Some(address) = api_server {
            let host = format!("KUBERNETES_SERVICE_HOST={}", address.ip());
            let port = format!("KUBERNETES_SERVICE_PORT={}", address.port());
            Self::kubectl(&["set", "env", &self.deployment, &host, &port]);
        }
        Self::kubectl(&["scale", &self.deployment, &format!("--replicas={replicas}")]);
        Self::kubectl(&["rollout", "status", &self.deployment, "--timeout=60s"]);
        // Those of before are on their way out.
        self.pods(&format!("{replicas} of them"), |pods| pods.len() == replicas as usize).await;
        self.leader().await;
    }

    /// Stops it. It starts again with [`Self::start`], or when this value goes.
    pub async fn stop(&mut self) {
        self.changed = true;
        Self::kubectl(&["scale", &self.deployment, "--replicas=0"]);
        self.pods("none of them", |pods| pods.is_empty()).await;
    }

    /// Waits until its pods are as told.
    async fn pods(&self, what: &str, mut holds: impl FnMut(&[&Pod]) -> bool) -> Vec<Pod> {
        let select = watcher::Config::default().labels(SELECT);
        let what = format!("the operator's pods: {what}");
        let found = self
            .tenant
            .wait(self.api(), select, &what, wait::SOON, |pods| Ok(holds(&pods.values().collect::<Vec<_>>())));
        found.await.into_values().collect()
    }

    /// Waits until one of its pods leads.
    pub async fn leader(&self) -> Pod {
        self.leader_but("").await
    }

    /// Waits until another of its pods leads than the one of this name. Which pods there are is looked up when the Lease
    /// names one: the successor of a pod that was deleted may be faster than the one that stood by.
    pub async fn leader_but(&self, former: &str) -> Pod {
        let leases: Api<Lease> = Api::namespaced(self.tenant.cluster.client.clone(), &operator_namespace());
        let mut others = vec![former.to_owned(), String::new()];
        loop {
            let mut leader = String::new();
            let what = format!("a pod leads that is none of {others:?}");
            self.tenant
                .wait(leases.clone(), wait::named("kiln-operator"), &what, wait::SOON, |leases| {
                    let mut holders = leases.values().filter_map(|lease| lease.spec.as_ref()?.holder_identity.clone());
                    leader = holders.next().unwrap_or_default();
                    Ok(!others.contains(&leader))
                })
                .await;
            if let Some(pod) = self.api().get_opt(&leader).await.expect("the operator's pods can be read") {
                return pod;
            }
            // The Lease of a pod that has gone without giving it back.
            others.push(leader);
        }
    }

    /// The processes of its pods on this machine.
    pub fn processes(pod: &Pod) -> Vec<u32> {
        host::processes(&pod.uid().expect("a pod has a UID"), PROCESS)
    }

    /// The threads of its pods on this machine but the first of each: a process that is replaced by another keeps that alone.
    pub fn threads(pod: &Pod) -> BTreeSet<u32> {
        let threads = |process: u32| {
            let all = std::fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten();
            let all = all.filter_map(|thread| thread.ok()?.file_name().to_str()?.parse().ok());
            all.filter(|thread| *thread != process).collect::<Vec<_>>()
        };
        Self::processes(pod).into_iter().flat_map(threads).collect()
    }

    /// Kills the process that leads. The kubelet starts the next one in the same pod, at once only the first time.
    /// The address that it had, which its successor has too.
    pub async fn kill(&self) -> IpAddr {
        let leader = self.leader().await;
        host::kill(&leader.uid().expect("a pod has a UID"), PROCESS);
        address(&leader)
    }

    /// Waits until a killed operator works again, and how long that took.
    pub async fn back(&self, since: Instant) -> Duration {
        self.pods("started again", |pods| {
            pods.iter().all(|pod| {
                let mut states = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
                states.all(|state| state.ready && state.restart_count > 0)
            })
        })
        .await;
        since.elapsed()
    }

    /// Has a fresh pod take over, so that the kubelet delays no restart.
    pub async fn refresh(&self) {
        let former = self.leader().await.name_any();
        self.api().delete(&former, &DeleteParams::default()).await.expect("the operator's pod can be deleted");
        self.pods("a fresh one is ready", |pods| {
            pods.iter().all(|pod| pod.name_any() != former)
                && pods.iter().any(|pod| {
                    let mut states = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
                    states.any(|state| state.ready)
                })
        })
        .await;
        self.leader_but(&former).await;
    }

    /// The operator's pods.
    pub fn api(&self) -> Api<Pod> {
        Api::namespaced(self.tenant.cluster.client.clone(), &operator_namespace())
    }

    fn kubectl(arguments: &[&str]) -> String {
        let namespace = operator_namespace();
        host::run("kubectl", &[&["-n", &namespace], arguments].concat())
    }
}

impl Drop for Operator<'_> {
    fn drop(&mut self) {
        if !self.changed {
            return;
        }
        let namespace = operator_namespace();
        for arguments in [
            vec![
                "set",
                "env",
                &self.deployment,
                "KUBERNETES_SERVICE_HOST-",
                "KUBERNETES_SERVICE_PORT-",
                "KILN_API_DEADLINE-",
            ],
            vec!["scale", &self.deployment, "--replicas=1"],
            vec!["rollout", "status", &self.deployment, "--timeout=60s"],
        ] {
            let output = Command::new("kubectl").args(["-n", &namespace]).args(&arguments).output();
            if !output.as_ref().is_ok_and(|output| output.status.success()) {
                eprintln!("the operator stays changed: kubectl {arguments:?}: {output:?}");
            }
        }
    }
}

fn kubectl(arguments: &[&str]) -> String {
    let namespace = operator_namespace();
    host::run("kubectl", &[&["-n", &namespace], arguments].concat())
}

/// The address of a pod.
pub fn address(pod: &Pod) -> IpAddr {
    let address = pod.status.as_ref().and_then(|status| status.pod_ip.as_deref());
    address.and_then(|address| address.parse().ok()).expect("a running pod has an address")
}
