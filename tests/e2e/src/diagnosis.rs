//! What a failed wait shows: the tenant's objects and events, its builders, and the operator's log.

use std::fmt::Write as _;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::events::v1::Event;
use kiln_crds::{ImageBuild, ImageBuildRun};
use kube::api::{ListParams, LogParams};
use kube::{Api, Client, ResourceExt as _};

use crate::builder::OF_TENANT;
use crate::cluster::{builders_namespace, operator_namespace};

/// Everything about a tenant that helps to see why a build is not as expected.
pub async fn of(client: &Client, namespace: &str) -> String {
    let mut text = String::new();
    let builds: Api<ImageBuild> = Api::namespaced(client.clone(), namespace);
    for build in builds.list(&ListParams::default()).await.into_iter().flatten() {
        section(
            &mut text,
            &format!("ImageBuild {} (generation {})", build.name_any(), build.metadata.generation.unwrap_or_default()),
            &yaml(&build.status),
        );
    }
    let runs: Api<ImageBuildRun> = Api::namespaced(client.clone(), namespace);
    for run in runs.list(&ListParams::default()).await.into_iter().flatten() {
        let deleted = if run.metadata.deletion_timestamp.is_some() { ", being deleted" } else { "" };
        section(&mut text, &format!("ImageBuildRun {}{deleted}", run.name_any()), &yaml(&run.status));
    }
    section(&mut text, &format!("Events in {namespace}"), &events(client, namespace, "").await);
    for pod in pods(client, &builders_namespace(), &format!("{OF_TENANT}={namespace}")).await {
        let name = pod.name_any();
        section(&mut text, &format!("builder {name}"), &yaml(&pod.status));
        section(
            &mut text,
            &format!("Events of {name}"),
            &events(client, &builders_namespace(), &format!("regarding.name={name}")).await,
        );
        section(&mut text, &format!("log of {name}"), &logs(client, &pod, 25).await);
    }
    for pod in pods(client, &operator_namespace(), "").await {
        section(&mut text, &format!("log of {}", pod.name_any()), &logs(client, &pod, 50).await);
    }
    text
}

fn section(text: &mut String, title: &str, body: &str) {
    let _ = writeln!(text, "\n=== {title}\n{}", body.trim_end());
}

fn yaml(value: &impl serde::Serialize) -> String {
    serde_yaml_ng::to_string(value).unwrap_or_else(|error| error.to_string())
}

async fn pods(client: &Client, namespace: &str, labels: &str) -> Vec<Pod> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    pods.list(&ListParams::default().labels(labels)).await.map(|list| list.items).unwrap_or_default()
}

async fn events(client: &Client, namespace: &str, fields: &str) -> String {
    let events: Api<Event> = Api::namespaced(client.clone(), namespace);
    match events.list(&ListParams::default().fields(fields)).await {
        Ok(list) => list.items.iter().map(line).collect(),
        Err(error) => error.to_string(),
    }
}

fn line(event: &Event) -> String {
    let regarding = event.regarding.clone().unwrap_or_default();
    format!(
        "{} {} {}/{}: {}\n",
        event.type_.as_deref().unwrap_or("?"),
        event.reason.as_deref().unwrap_or("?"),
        regarding.kind.unwrap_or_default(),
        regarding.name.unwrap_or_default(),
        event.note.as_deref().unwrap_or("")
    )
}

/// The end of the log of each container of a pod.
async fn logs(client: &Client, pod: &Pod, lines: i64) -> String {
    let pods: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace().unwrap_or_default());
    let spec = pod.spec.clone().unwrap_or_default();
    let mut text = String::new();
    for container in spec.init_containers.into_iter().flatten().chain(spec.containers) {
        let parameters =
            LogParams { container: Some(container.name.clone()), tail_lines: Some(lines), ..LogParams::default() };
        let log = pods.logs(&pod.name_any(), &parameters).await.unwrap_or_else(|error| error.to_string());
        let _ = writeln!(text, "--- {}\n{}", container.name, log.trim_end());
    }
    text
}
