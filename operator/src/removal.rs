//! The one way to delete: the object that was seen, and no other that has its name by now.

use std::fmt::Debug;

use kube::Api;
use kube::api::{DeleteParams, Preconditions};
use serde::de::DeserializeOwned;

/// Which object is to go.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Seen<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its UID.
    pub uid: &'a str,
    /// Its resource version, where what was decided on may have changed meanwhile. One that has is a conflict.
    pub version: Option<&'a str>,
}

/// Deletes it; it is done, too, where it is gone already. `grace`: seconds in place of the object's own.
pub async fn delete<K>(api: &Api<K>, seen: Seen<'_>, grace: Option<u32>) -> Result<(), kube::Error>
where
    K: Clone + DeserializeOwned + Debug,
{
    let Seen { name, uid, version } = seen;
    let preconditions = Preconditions { uid: Some(uid.to_owned()), resource_version: version.map(str::to_owned) };
    let params =
        DeleteParams { preconditions: Some(preconditions), grace_period_seconds: grace, ..DeleteParams::default() };
    match api.delete(name, &params).await {
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
        // The one of this name is another by now.
        Err(kube::Error::Api(status)) if status.is_conflict() && version.is_none() => Ok(()),
        answer => answer.map(drop),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    use axum::Router;
    use axum::extract::State;
    use http::StatusCode;
    use k8s_openapi::api::core::v1::Secret;
    use serde_json::{Value, json};

    type Answer = (StatusCode, axum::body::Body);

    async fn answer(State((code, asked)): State<(u16, Arc<Mutex<Vec<Value>>>)>, body: String) -> Answer {
        asked.lock().unwrap().push(serde_json::from_str(&body).unwrap());
        let reason = match code {
            404 => "NotFound",
            409 => "Conflict",
            _ => "InternalError",
        };
        let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason});
        (StatusCode::from_u16(code).unwrap(), status.to_string().into())
    }

    #[tokio::test]
    async fn another_of_the_same_name_stays() {
        for (version, code, done) in [
            (None, 200, true),
            (None, 404, true),
            (None, 409, true),
            (None, 500, false),
            (Some("7"), 200, true),
            (Some("7"), 404, true),
            (Some("7"), 409, false),
        ] {
            let asked: Arc<Mutex<Vec<Value>>> = Arc::default();
            let router = Router::new().fallback(answer).with_state((code, asked.clone()));
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let uri = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
            tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
            let mut config = kube::Config::new(uri);
            config.default_retry = false;
            let client = kube::Client::try_from(config).unwrap();
            let api: Api<Secret> = Api::namespaced(client, "x");
            let deleted = delete(&api, Seen { name: "a", uid: "u", version }, Some(3)).await;
            assert_eq!(deleted.is_ok(), done, "{version:?} {code}: {deleted:?}");
            let asked = asked.lock().unwrap().clone();
            let preconditions = version.map_or(json!({"uid": "u"}), |it| json!({"uid": "u", "resourceVersion": it}));
            assert_eq!(asked, [json!({"gracePeriodSeconds": 3, "preconditions": preconditions})]);
        }
    }
}
