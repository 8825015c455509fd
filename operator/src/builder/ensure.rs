//! Makes and removes builders in the cluster.

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Pod, Secret};
use k8s_openapi::jiff::Timestamp;
use kiln_crds::BuilderPool;
use kube::api::{ObjectMeta, Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::config::Bundles;
use super::pod::{LAST_USED, TEMPLATE_HASH, Template, config_name, owner, tls_name};
use super::profile::Profile;
use super::{Authority, BuilderId};
use crate::context::FIELD_MANAGER;
use crate::removal::{Seen, delete};

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
    let dropped = made.filter(|made: &Pod| {
        let host_users = made.spec.as_ref().and_then(|spec| spec.host_users);
        profile == Profile::UserNamespace && host_users != Some(false)
    });
    if let Some(uid) = dropped.and_then(|made| made.uid()) {
        remove_pod(client, template.namespace, id, &uid, None).await?;
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
    patched.map(drop).map_err(|source| failed("applying", kind, id, source))
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
        Err(source) => Err(failed("creating", kind, id, source)),
    }
}

/// Says that the builder's volume is in use now.
pub async fn date(client: &Client, namespace: &str, id: &BuilderId) -> Result<(), Error> {
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), namespace);
    let dated = serde_json::json!({"metadata": {"annotations": {LAST_USED: Timestamp::now().to_string()}}});
    let patched = claims.patch_metadata(&id.name(), &PatchParams::default(), &Patch::Merge(dated)).await;
    match patched {
        Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => Ok(()),
        patched => patched.map(drop).map_err(|source| failed("dating", "PersistentVolumeClaim", id, source)),
    }
}

/// Removes the builder's pod, if it is still the one with this UID, and dates its volume. The volume stays. `grace`: how
/// many seconds builds that run may take to end, in place of the pod's own.
pub async fn remove_pod(
    client: &Client,
    namespace: &str,
    id: &BuilderId,
    uid: &str,
    grace: Option<u32>,
) -> Result<(), Error> {
    date(client, namespace, id).await?;
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let deleted = delete(&pods, Seen { name: &id.name(), uid, version: None }, grace).await;
    deleted.map_err(|source| failed("deleting", "Pod", id, source))
}

/// Removes everything that belongs to the builder, its volume too: the `pod` and the `claim` that were seen. The volume last:
/// as long as it is there, what could not be removed is tried again. One that was dated meanwhile is in use, and stays.
pub async fn remove(
    client: &Client,
    namespace: &str,
    id: &BuilderId,
    pod: Option<&ObjectMeta>,
    claim: Option<&ObjectMeta>,
) -> Result<(), Error> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    remove_unwatched(&secrets, &tls_name(id)).await.map_err(|source| failed("deleting", "Secret", id, source))?;
    let configs: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    remove_unwatched(&configs, &config_name(id)).await.map_err(|source| failed("deleting", "ConfigMap", id, source))?;
    let name = id.name();
    if let Some(uid) = pod.and_then(|pod| pod.uid.as_deref()) {
        let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
        let deleted = delete(&pods, Seen { name: &name, uid, version: None }, Some(crate::builder_pool::IDLE_GRACE));
        deleted.await.map_err(|source| failed("deleting", "Pod", id, source))?;
    }
    if let Some((uid, version)) =
        claim.and_then(|claim| Some((claim.uid.as_deref()?, claim.resource_version.as_deref())))
    {
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), namespace);
        let deleted = delete(&claims, Seen { name: &name, uid, version }, None).await;
        deleted.map_err(|source| failed("deleting", "PersistentVolumeClaim", id, source))?;
    }
    Ok(())
}

/// Removes what no copy shows: which one it is has to be asked first.
async fn remove_unwatched<K>(api: &Api<K>, name: &str) -> Result<(), kube::Error>
where
    K: Clone + DeserializeOwned + std::fmt::Debug,
{
    let Some(uid) = api.get_metadata_opt(name).await?.and_then(|found| found.metadata.uid) else { return Ok(()) };
    delete(api, Seen { name, uid: &uid, version: None }, None).await
}

fn failed(verb: &'static str, kind: &'static str, id: &BuilderId, source: kube::Error) -> Error {
    Error::Api { verb, kind, builder: id.name(), source }
}
