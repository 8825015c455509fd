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

/// A platform that has no job yet, and where it is to be built.
#[derive(Clone, Copy, Debug)]
pub struct Unplaced<'a> {
    /// The platform.
    pub platform: &'a PlatformStatus,
    /// Where it is to be built.
    pub placement: &'a Placement,
    /// Whether it comes from the operator's default list, for the ImageBuild names no platforms.
    pub by_default: bool,
}

/// A platform's name in a message about what it lacks: whoever has not asked for it is told how not to.
#[must_use]
pub fn named(platform: &str, by_default: bool) -> String {
    if by_default {
        format!("{platform} (from the default list; name spec.platforms to leave it out)")
    } else {
        platform.to_owned()
    }
}

/// What a platform waits for whose builder is not up, and since when it is too long.
pub fn not_ready(
    pod: &Pod,
    Unplaced { platform, placement, by_default }: Unplaced<'_>,
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
                named(&platform.name, by_default),
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

/// What a platform waits for whose place is that of a pod that has ended.
#[must_use]
pub fn ended(pod: &Pod, platform: &str) -> Waiting {
    let reason = pod.status.as_ref().and_then(|status| status.reason.as_deref()).unwrap_or("no reason given");
    let message = format!("{platform}: the builder {} has ended ({reason}), and another follows", pod.name_any());
    Waiting { reason: Reason::WaitingForBuilder, message }
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    use kiln_crds::image_build_run::Execution;
    use serde_json::{from_value, json};

    const HINT: &str = "linux/arm64 (from the default list; name spec.platforms to leave it out): ";

    fn unschedulable() -> Pod {
        from_value(json!({
            "metadata": {"name": "default-arm64", "namespace": "kiln-builders", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "status": {"conditions": [{"type": "PodScheduled", "status": "False", "message": "0/1 nodes are available"}]},
        }))
        .unwrap()
    }

    fn image_missing() -> Pod {
        from_value(json!({
            "metadata": {"name": "default-arm64", "namespace": "kiln-builders", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "status": {"containerStatuses": [{
                "name": "agent", "image": "", "imageID": "", "ready": false, "restartCount": 0,
                "state": {"waiting": {"reason": "ImagePullBackOff"}},
            }]},
        }))
        .unwrap()
    }

    fn run() -> ImageBuildRun {
        let spec = json!({
            "imageBuild": {"name": "app", "uid": "u"}, "number": 1, "inputHash": "v1:x", "build": {},
        });
        ImageBuildRun::new("app-1", from_value(spec).unwrap())
    }

    #[test]
    fn who_waits_for_a_node_is_told_where_the_platform_comes_from() {
        let pool = BuilderPool::new("default", kiln_crds::BuilderPoolSpec::default());
        let node = NodeFacts { architecture: "amd64".to_owned(), labels: BTreeMap::new(), user_namespaces: false };
        let placement = Placement { architecture: "arm64".to_owned(), execution: Execution::Native };
        let platform = PlatformStatus { name: "linux/arm64".to_owned(), needs_node: true, ..PlatformStatus::default() };
        let early = "2026-01-01T00:09:59Z".parse().unwrap();
        let late = "2026-01-01T00:10:00Z".parse().unwrap();
        for (what, pod, by_default, now, reason, hinted, fails) in [
            ("of the default list", unschedulable(), true, early, Reason::WaitingForNode, true, false),
            ("named by the user", unschedulable(), false, early, Reason::WaitingForNode, false, false),
            ("of the default list, too long", unschedulable(), true, late, Reason::WaitingForNode, true, true),
            ("named by the user, too long", unschedulable(), false, late, Reason::WaitingForNode, false, true),
            // It has its node: another list of platforms would mend nothing.
            ("without an image", image_missing(), true, early, Reason::WaitingForBuilder, false, false),
        ] {
            let mut placed = Placed::default();
            let unplaced = Unplaced { platform: &platform, placement: &placement, by_default };
            let nodes = std::slice::from_ref(&node);
            let waiting = not_ready(&pod, unplaced, &pool, &run(), nodes, now, &mut placed);
            assert_eq!(waiting.reason, reason, "{what}");
            assert_eq!(waiting.message.starts_with(HINT), hinted, "{what}: {}", waiting.message);
            assert!(waiting.message.starts_with("linux/arm64"), "{what}: {}", waiting.message);
            assert_eq!(placed.look_again.is_none(), fails, "{what}");
            let failure = placed.failure.map(|failure| failure.message);
            assert_eq!(failure.is_some(), fails, "{what}: {failure:?}");
            assert!(failure.is_none_or(|failure| failure.starts_with(&waiting.message)), "{what}");
        }
    }
}
