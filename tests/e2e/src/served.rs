//! Runs an image as a user's web service, under Pod Security `restricted`, and talks to it through the API server, so that
//! its pod need not be reachable from here.

use http::{HeaderMap, Request, StatusCode};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use kube::api::{DeleteParams, PostParams};
use kube::client::Body;
use serde_json::json;

use crate::Tenant;
use crate::tenant::REGISTRY_SECRET;
use crate::wait;

/// A pod that answers on port 8080.
pub struct Served<'a> {
    tenant: &'a Tenant,
    pod: String,
}

/// What it answered.
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: String,
}

impl Tenant {
    /// Runs an image's own command as its own user on a node of this architecture, until it answers on port 8080.
    pub async fn serve(&self, image: &str, architecture: &str) -> Served<'_> {
        let pod = json!({
            "metadata": {"generateName": format!("serves-{architecture}-")},
            "spec": {
                "restartPolicy": "Never",
                "automountServiceAccountToken": false,
                "nodeSelector": {"kubernetes.io/arch": architecture},
                "tolerations": [{"key": "kubernetes.io/arch", "operator": "Exists"}],
                "imagePullSecrets": [{"name": REGISTRY_SECRET}],
                "terminationGracePeriodSeconds": 1,
                "securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
                "containers": [{
                    "name": "image",
                    "image": image,
                    "readinessProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1},
                    "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
                }],
            },
        });
        let pods = self.api::<Pod>();
        let pod: Pod = serde_json::from_value(pod).expect("the pod is one");
        let name = pods.create(&PostParams::default(), &pod).await.expect("a pod can be made").name_any();
        self.wait(pods, wait::named(&name), &format!("Pod {name}: Ready"), wait::BUILD, |pods| {
            let status = pods.get(&name).and_then(|pod| pod.status.as_ref());
            match status.and_then(|status| status.phase.as_deref()) {
                Some("Succeeded" | "Failed") => Err("it ended".to_owned()),
                // A pull may fail once: a kubelet does not wait long for a Secret that is new to it.
                _ => Ok(status.and_then(|status| status.conditions.as_ref()).is_some_and(|conditions| {
                    conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
                })),
            }
        })
        .await;
        Served { tenant: self, pod: name }
    }
}

impl Served<'_> {
    /// GET of a path.
    pub async fn get(&self, path: &str) -> Answer {
        self.send(path, Request::get(self.url(path)), "").await
    }

    /// POST of a body of this media type to a path.
    pub async fn post(&self, path: &str, media_type: &str, body: &str) -> Answer {
        self.send(path, Request::post(self.url(path)).header("content-type", media_type), body).await
    }

    /// Removes the pod.
    pub async fn stop(self) {
        let pods = self.tenant.api::<Pod>();
        pods.delete(&self.pod, &DeleteParams::default()).await.expect("a pod can be deleted");
    }

    fn url(&self, path: &str) -> String {
        format!("/api/v1/namespaces/{}/pods/{}:8080/proxy{path}", self.tenant.namespace, self.pod)
    }

    async fn send(&self, path: &str, request: http::request::Builder, body: &str) -> Answer {
        let request = request.body(Body::from(body.as_bytes().to_vec())).expect("a request can be made");
        let answer = self.tenant.cluster.client.send(request).await;
        let answer = answer.unwrap_or_else(|error| panic!("{}{path}: {error}", self.pod));
        let (parts, body) = answer.into_parts();
        let bytes = body.collect_bytes().await.expect("an answer can be read");
        let body = String::from_utf8(bytes.to_vec()).expect("an answer is UTF-8");
        Answer { status: parts.status, headers: parts.headers, body }
    }
}
