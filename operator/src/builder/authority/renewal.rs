//! Keeps all certificates and the CAs fresh: a task of the leader, which sleeps until the next of them is due.
//!
//! A builder's certificate is changed in its Secret, from where the kubelet brings it to the agent, which reads it at the
//! next connection: the pod, and the builds in it, go on.

use std::sync::PoisonError;
use std::time::{Duration, Instant};

use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::json;
use tokio::sync::Notify;
use tracing::{info, warn};

use super::rotation::{Decision, Step, decide};
use super::{Error, Issued, certificate};
use crate::builder::BuilderId;
use crate::builder::pod::tls_name;
use crate::context::{Context, backoff, until};

/// Builders whose Secrets are read and written at once.
const AT_ONCE: usize = 16;
/// The longest sleep: one of hours would end late where the machine was suspended.
const LONGEST: Duration = Duration::from_mins(10);

/// Renews what is due until it is dropped. `new_builder` wakes it: a pod whose certificate it does not know.
pub async fn run(context: &Context, new_builder: &Notify) {
    context.stores.synced.wait().await;
    let mut failed = 0;
    loop {
        let begun = Instant::now();
        let result = pass(context).await;
        context.metrics.reconciled("certificates", begun.elapsed().as_secs_f64(), result.is_err());
        let sleep = match result {
            Ok(due) => {
                failed = 0;
                until(due, Timestamp::now()).min(LONGEST)
            }
            Err(error) => {
                failed += 1;
                warn!(%error, failed, "certificates could not be renewed");
                backoff(failed)
            }
        };
        tokio::select! {
            () = tokio::time::sleep(sleep) => {}
            () = new_builder.notified() => {}
        }
    }
}

/// Does all that is due, and says when something is the next time.
async fn pass(context: &Context) -> Result<Timestamp, Error> {
    let authority = &context.authority;
    loop {
        let now = Timestamp::now();
        let of_client = authority.renew_client(now)?;
        let of_builders = builders(context, now).await?;
        match decide(&authority.current().authorities(), now, authority.lifetime) {
            Decision::Do(step) => {
                authority.step(step, now).await?;
                match step {
                    Step::Introduce => info!("a new CA for builders' certificates is made known to them"),
                    Step::Promote => info!("the new CA signs from now on"),
                    Step::Retire => info!("the former CA is trusted no more"),
                    Step::StartOver => warn!("the CA for builders' certificates had expired: there is a new one"),
                    Step::Distributed => {}
                }
            }
            Decision::Wait(at) => {
                return Ok(of_client.into_iter().chain(of_builders).fold(at, Timestamp::min));
            }
        }
    }
}

/// Brings the Secrets of all builders up to date, and says when one of them is due again.
async fn builders(context: &Context, now: Timestamp) -> Result<Option<Timestamp>, Error> {
    let authority = &context.authority;
    let ids: Vec<BuilderId> =
        context.stores.pods.state().iter().filter_map(|pod| BuilderId::of(&pod.metadata)).collect();
    let names: std::collections::HashSet<String> = ids.iter().map(BuilderId::name).collect();
    authority.issued.lock().unwrap_or_else(PoisonError::into_inner).retain(|builder, _| names.contains(builder));
    let due = futures::stream::iter(ids)
        .map(|id| async move { builder(context, &id, now).await })
        .buffer_unordered(AT_ONCE)
        .try_fold(None, |earliest: Option<Timestamp>, due| async move { Ok(earliest.into_iter().chain(due).min()) });
    due.await
}

/// Brings one builder's Secret up to date, and says when it is due again.
async fn builder(context: &Context, id: &BuilderId, now: Timestamp) -> Result<Option<Timestamp>, Error> {
    let authority = &context.authority;
    let (builder, secret) = (id.name(), tls_name(id));
    let api: Api<Secret> = Api::namespaced(context.client.clone(), &context.settings.builders_namespace);
    let failed = |verb| {
        let secret = secret.clone();
        move |source| Error::Builder { verb, secret, source }
    };
    let known = authority.issued.lock().unwrap_or_else(PoisonError::into_inner).get(&builder).cloned();
    let issued = match known {
        Some(issued) => issued,
        // Its builder is being removed.
        None => match api.get_opt(&secret).await.map_err(failed("reading"))? {
            None => return Ok(None),
            Some(found) => match read(&found) {
                Some(issued) => issued,
                // Whatever is there is of no use.
                None => return write(context, &api, &builder, &secret, now).await,
            },
        },
    };
    let due = authority.current().replaced_at(&issued, now);
    if due.is_some_and(|due| due <= now) {
        return write(context, &api, &builder, &secret, now).await;
    }
    authority.issued.lock().unwrap_or_else(PoisonError::into_inner).insert(builder, issued);
    Ok(due)
}

/// Writes a new certificate and the CAs to trust into a builder's Secret, if it is still there.
async fn write(
    context: &Context,
    api: &Api<Secret>,
    builder: &str,
    secret: &str,
    now: Timestamp,
) -> Result<Option<Timestamp>, Error> {
    let authority = &context.authority;
    let current = authority.current();
    let (identity, trust) = (current.server(builder, now)?, current.trust());
    let issued = Issued { certificate: certificate::read(&identity.certificate)?, trust: trust.clone() };
    let bytes = |pem: String| ByteString(pem.into_bytes());
    let patch = json!({"data": {
        "tls.crt": bytes(identity.certificate), "tls.key": bytes(identity.key), "ca.crt": bytes(trust),
    }});
    match api.patch(secret, &PatchParams::default(), &Patch::Merge(patch)).await {
        Ok(_) => {
            let due = current.replaced_at(&issued, now);
            authority.issued.lock().unwrap_or_else(PoisonError::into_inner).insert(builder.to_owned(), issued);
            Ok(due)
        }
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(None),
        Err(source) => Err(Error::Builder { verb: "writing", secret: secret.to_owned(), source }),
    }
}

fn read(secret: &Secret) -> Option<Issued> {
    let text = |key: &str| String::from_utf8(secret.data.as_ref()?.get(key)?.0.clone()).ok();
    Some(Issued { certificate: certificate::read(&text("tls.crt")?).ok()?, trust: text("ca.crt")? })
}
