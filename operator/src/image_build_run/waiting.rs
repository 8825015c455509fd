//! What a platform waits for whose builder has been made and is not up yet; pure.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kiln_crds::image_build::BuildFailure;
use kiln_crds::image_build_run::PlatformStatus;
use kiln_crds::{BuilderPool, ImageBuildRun};
use kube::ResourceExt;

use super::execution::Placement;
use super::place::Placed;
use super::status::Waiting;
use crate::builder::node::{NodeFacts, architectures};
use crate::reason::Reason;

/// How long a build waits for a node unless the pool says it.
const SCHEDULING_TIMEOUT: Duration = Duration::from_mins(10);

/// What a platform waits for whose builder is being made.
#[must_use]
pub fn coming() -> Waiting {
    Waiting { reason: Reason::WaitingForBuilder, message: "a builder is being started".to_owned() }
}

/// What a platform waits for whose builder is not up, and since when it is too long.
pub fn not_ready(
    pod: &Pod,
    (platform, placement): (&PlatformStatus, &Placement),
    pool: &BuilderPool,
    run: &ImageBuildRun,
    nodes: &[NodeFacts],
    now: Timestamp,
    placed: &mut Placed,
) -> Waiting {
    let status = pod.status.as_ref();
    let unschedulable = status
        .and_then(|status| status.conditions.as_ref())
        .into_iter()
        .flatten()
        .find(|condition| condition.type_ == "PodScheduled" && condition.status == "False");
    let waiting = match unschedulable {
        Some(condition) => Waiting {
            reason: Reason::WaitingForNode,
            message: format!(
                "{}: no node can take a builder of architecture {} yet (nodes have: {}; scheduler: {}){}",
                platform.name,
                placement.architecture,
                architectures(nodes),
                condition.message.as_deref().unwrap_or("nothing said"),
                if platform.needs_node {
                    "; its steps run programs: without such a node it can be cross-compiled (platforms[].buildOn) or \
                     emulated (allow.emulation of the BuilderPool)"
                } else {
                    ""
                }
            ),
        },
        None => match trouble(pod) {
            Some(trouble) => Waiting {
                reason: Reason::WaitingForBuilder,
                message: format!("{}: the builder {} does not start: {trouble}", platform.name, pod.name_any()),
            },
            None => coming(),
        },
    };
    // Its own builder's wait: time in the queue before that does not count.
    let times = [
        platform.finished_at.as_ref().map(|time| time.0),
        run.creation_timestamp().map(|time| time.0),
        pod.creation_timestamp().map(|time| time.0),
    ];
    let since = times.into_iter().flatten().max();
    let timeout = pool.spec.scheduling_timeout.map_or(SCHEDULING_TIMEOUT, Duration::from);
    if let Some(deadline) = since.and_then(|since| since.checked_add(timeout).ok()) {
        if deadline <= now {
            placed.failure.get_or_insert(BuildFailure {
                platform: Some(platform.name.clone()),
                reason: Reason::BuilderUnschedulable.to_string(),
                message: format!(
                    "{}: waited {}s, the BuilderPool's schedulingTimeout; {}",
                    waiting.message,
                    timeout.as_secs(),
                    if waiting.reason == Reason::WaitingForNode {
                        "add such a node, or build another platform".to_owned()
                    } else {
                        let namespace = pod.namespace().unwrap_or_default();
                        format!("kubectl -n {namespace} describe pod {} tells more", pod.name_any())
                    }
                ),
                ..BuildFailure::default()
            });
        } else {
            placed.look_again = Some(placed.look_again.map_or(deadline, |other| other.min(deadline)));
        }
    }
    waiting
}

/// What keeps a pod's containers from starting, as the kubelet tells it.
fn trouble(pod: &Pod) -> Option<String> {
    let status = pod.status.as_ref()?;
    let containers = status.init_container_statuses.iter().chain(&status.container_statuses).flatten();
    containers
        .filter_map(|container| container.state.as_ref()?.waiting.as_ref())
        .find(|waiting| !matches!(waiting.reason.as_deref(), None | Some("ContainerCreating" | "PodInitializing")))
        // Without the kubelet's message: it counts, and would change the status at each try.
        .map(|waiting| match waiting.reason.as_deref().unwrap_or_default() {
            "ErrImagePull" | "ImagePullBackOff" => "its image cannot be pulled (ImagePullBackOff)".to_owned(),
            reason => reason.to_owned(),
        })
}
