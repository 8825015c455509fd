//! Runs an image as a user's pod: pulled by the kubelet, under Pod Security `restricted`.

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use kube::api::{LogParams, PostParams};
use serde_json::json;

use crate::Tenant;
use crate::tenant::REGISTRY_SECRET;
use crate::wait;

impl Tenant {
    /// Runs an image's own command on a node of this architecture until it ends well; what it printed.
    pub async fn run_image(&self, image: &str, architecture: &str) -> String {
        let pod = json!({
            "metadata": {"generateName": format!("runs-{architecture}-")},
            "spec": {
                "restartPolicy": "Never",
                "automountServiceAccountToken": false,
                "nodeSelector": {"kubernetes.io/arch": architecture},
                "tolerations": [{"key": "kubernetes.io/arch", "operator": "Exists"}],
                "imagePullSecrets": [{"name": REGISTRY_SECRET}],
                "terminationGracePeriodSeconds": 0,
                "securityContext": {"runAsNonRoot": true, "runAsUser": 65534, "seccompProfile": {"type": "RuntimeDefault"}},
                "containers": [{
                    "name": "image",
                    "image": image,
                    "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
                }],
            },
        });
        self.run_pod(pod).await
    }

    /// Runs a pod of one container until it ends well; what it printed.
    pub async fn run_pod(&self, pod: serde_json::Value) -> String {
        let pods = self.api::<Pod>();
        let pod: Pod = serde_json::from_value(pod).expect("the pod is one");
        let name = pods.create(&PostParams::default(), &pod).await.expect("a pod can be made").name_any();
        self.wait(pods.clone(), wait::named(&name), &format!("Pod {name}: Succeeded"), wait::SOON, |pods| {
            let status = pods.get(&name).and_then(|pod| pod.status.as_ref());
            match status.and_then(|status| status.phase.as_deref()) {
                Some("Succeeded") => Ok(true),
                Some("Failed") => Err("it failed".to_owned()),
                // A pull may fail once: a kubelet does not wait long for a Secret that is new to it.
                _ => Ok(false),
            }
        })
        .await;
        pods.logs(&name, &LogParams::default()).await.expect("a pod's log can be read").trim().to_owned()
    }
}
