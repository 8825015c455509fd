//! Makes and removes builders in the cluster.

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Pod, Secret};
use k8s_openapi::jiff::Timestamp;
use kiln_crds::BuilderPool;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, Client, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::config::Bundles;
use super::pod::{LAST_USED, TEMPLATE_HASH, Template, config_name, owner, tls_name};
use super::profile::Profile;
use super::{Authority, BuilderId};
use crate::context::FIELD_MANAGER;

/// Jobs on one builder at once unless the pool says it.
pub const JOBS_PER_BUILDER: u32 = 4;

/// Why a builder could not be made or removed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server refused.
    #[error("{verb} the {kind} of builder {builder}: {}", crate::refusal::words(source))]
    Api {
        /// What was attempted.
        verb: &'static str,
        /// On what.
        kind: &'static str,
        /// The builder's name.
        builder: String,
        /// What the API server said.
        source: kube::Error,
    },
    /// No certificate.
    #[error(transparent)]
    Certificate(#[from] super::authority::Error),
}

/// What came of making a builder's pod.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Made {
    /// It is there, made now or before.
    Pod,
    /// The API server dropped `hostUsers: false`: it does not know user namespaces. The pod was removed again.
    WithoutUserNamespace,
}

/// Makes the builder: configuration, certificate and volume first, at once, then the pod that mounts them.
pub async fn make(
    client: &Client,
    authority: &Authority,
    template: Template<'_>,
    pool: &BuilderPool,
    id: &BuilderId,
    profile: Profile,
    bundles: &Bundles,
) -> Result<Made, Error> {
    let owner = owner(&pool.name_any(), &pool.uid().unwrap_or_default());
    let certificates = authority.current();
    let identity = certificates.server(&id.name(), Timestamp::now())?;
    let trust = certificates.trust();
    let config = ConfigMap {
        metadata: template.metadata(id, config_name(id), &owner),
        data: Some(template.files(profile, bundles)),
        ..ConfigMap::default()
    };
    let tls = Secret {
        metadata: template.metadata(id, tls_name(id), &owner),
        type_: Some("kubernetes.io/tls".to_owned()),
        data: Some(
            [("tls.crt", identity.certificate.as_str()), ("tls.key", &identity.key), ("ca.crt", &trust)]
                .map(|(key, value)| (key.to_owned(), ByteString(value.as_bytes().to_vec())))
                .into(),
        ),
        ..Secret::default()
    };
    let claim = async {
        if template.has_volume() {
            // Created, never changed: a claim's size and class cannot be.
            create(client, template.namespace, "PersistentVolumeClaim", id, &template.claim(id, &owner)).await
        } else {
            Ok(None)
        }
    };
    futures::try_join!(
        apply(client, template.namespace, "ConfigMap", id, config),
        apply(client, template.namespace, "Secret", id, tls),
        claim
    )?;
    // Whatever was known of the certificate is of the past, or CAs have changed meanwhile.
    authority.forget(&id.name());
    let mut pod = template.pod(id, profile, bundles, &owner);
    pod.annotations_mut().insert(TEMPLATE_HASH.to_owned(), template.hash(profile));
    let made = create(client, template.namespace, "Pod", id, &pod).await?;
    let dropped = made.is_some_and(|made: Pod| {
        profile == Profile::UserNamespace && made.spec.and_then(|spec| spec.host_users) != Some(false)
    });
    if dropped {
        remove_pod(client, template.namespace, id, None, None).await?;
        return Ok(Made::WithoutUserNamespace);
    }
    Ok(Made::Pod)
}

async fn apply<K>(client: &Client, namespace: &str, kind: &'static str, id: &BuilderId, object: K) -> Result<(), Error>
where
    K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
    K: Clone + Serialize + DeserializeOwned + std::fmt::Debug,
{
    let api: Api<K> = Api::namespaced(client.clone(), namespace);
    let params = PatchParams::apply(FIELD_MANAGER).force();
    let patched = api.patch(&object.name_any(), &params, &Patch::Apply(&object)).await;
    patched.map(drop).map_err(|source| Error::Api { verb: "applying", kind, builder: id.name(), source })
}

/// `None`: it was there already.
async fn create<K>(
    client: &Client,
    namespace: &str,
    kind: &'static str,
    id: &BuilderId,
    object: &K,
) -> Result<Option<K>, Error>
where
    K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
    K: Clone + Serialize + DeserializeOwned + std::fmt::Debug,
{
    let api: Api<K> = Api::namespaced(client.clone(), namespace);
    let params = PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
    match api.create(&params, object).await {
        Ok(made) => Ok(Some(made)),
        Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(None),
        Err(source) => Err(Error::Api { verb: "creating", kind, builder: id.name(), source }),
    }
}

/// Removes the builder's pod, if it is still the one with this UID, and dates its volume. The volume stays. `grace`: how
/// many seconds builds that run may take to end, in place of the pod's own.
pub async fn remove_pod(
    client: &Client,
    namespace: &str,
    id: &BuilderId,
    uid: Option<String>,
    grace: Option<u32>,
) -> Result<(), Error> {
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), namespace);
    let dated = serde_json::json!({"metadata": {"annotations": {LAST_USED: Timestamp::now().to_string()}}});
    let patched = claims.patch_metadata(&id.name(), &PatchParams::default(), &Patch::Merge(dated)).await;
    missing_is_done(patched.map(drop), "dating", "PersistentVolumeClaim", id)?;
    let params = DeleteParams {
        preconditions: uid.map(|uid| Preconditions { uid: Some(uid), resource_version: None }),
        grace_period_seconds: grace,
        ..DeleteParams::default()
    };
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    missing_is_done(pods.delete(&id.name(), &params).await.map(drop), "deleting", "Pod", id)
}

/// Removes everything that belongs to the builder, its volume too. The volume last: as long as it is there, what could not
/// be removed is tried again.
pub async fn remove(client: &Client, namespace: &str, id: &BuilderId) -> Result<(), Error> {
    let params = DeleteParams::default().grace_period(crate::builder_pool::IDLE_GRACE);
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    missing_is_done(secrets.delete(&tls_name(id), &params).await.map(drop), "deleting", "Secret", id)?;
    let configs: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    missing_is_done(configs.delete(&config_name(id), &params).await.map(drop), "deleting", "ConfigMap", id)?;
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    missing_is_done(pods.delete(&id.name(), &params).await.map(drop), "deleting", "Pod", id)?;
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), namespace);
    missing_is_done(claims.delete(&id.name(), &params).await.map(drop), "deleting", "PersistentVolumeClaim", id)
}

fn missing_is_done(
    answer: Result<(), kube::Error>,
    verb: &'static str,
    kind: &'static str,
    id: &BuilderId,
) -> Result<(), Error> {
    match answer {
        // A conflict: the pod of this name is another one by now.
        Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => Ok(()),
        Err(source) => Err(Error::Api { verb, kind, builder: id.name(), source }),
        Ok(()) => Ok(()),
    }
}
