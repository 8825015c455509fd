//! What the authority's Secret holds, and how a step changes it; pure but for the keys that are made.

use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::jiff::Timestamp;
use kube::api::ObjectMeta;
use serde_json::{Value, json};

use super::SECRET;
use super::certificate::{self, Identity, authority};
use super::rotation::{Dates, Step};

/// The annotation with the time since which every builder's Secret holds what belongs to the CAs.
const DISTRIBUTED_AT: &str = "kiln.build/ca-distributed-at";

/// The CAs in the Secret. No `Debug`: it holds keys.
#[derive(Clone)]
pub(super) struct Content {
    /// The one that signs: `tls.crt`, `tls.key`. A Secret of an older Kiln holds no other.
    pub(super) signing: Identity,
    /// Its successor: `next.crt`, `next.key`.
    pub(super) next: Option<Identity>,
    /// The certificate of its predecessor: `former.crt`.
    pub(super) former: Option<String>,
    /// Since when every builder's Secret holds what belongs to these.
    pub(super) distributed_at: Option<Timestamp>,
}

impl Content {
    /// Reads the Secret. An error says what is missing.
    pub(super) fn read(secret: &Secret) -> Result<Self, String> {
        let text = |key: &str| {
            let bytes = secret.data.as_ref().and_then(|data| data.get(key));
            bytes.and_then(|bytes| String::from_utf8(bytes.0.clone()).ok())
        };
        let pair = |name: &str| {
            Some(Identity { certificate: text(&format!("{name}.crt"))?, key: text(&format!("{name}.key"))? })
        };
        let annotations = secret.metadata.annotations.as_ref();
        Ok(Self {
            signing: pair("tls").ok_or("tls.crt or tls.key is not there")?,
            next: pair("next"),
            former: text("former.crt"),
            distributed_at: annotations.and_then(|all| all.get(DISTRIBUTED_AT)).and_then(|time| time.parse().ok()),
        })
    }

    /// Every CA to be trusted, in PEM.
    pub(super) fn trust(&self) -> String {
        let next = self.next.as_ref().map(|next| &next.certificate);
        let all = [Some(&self.signing.certificate), next, self.former.as_ref()];
        all.into_iter().flatten().flat_map(|pem| [pem.trim(), "\n"]).collect()
    }

    /// The content after a step.
    pub(super) fn after(&self, step: Step, now: Timestamp, lifetime: Duration) -> Result<Self, certificate::Error> {
        let made = || authority(Dates::of_ca(now, lifetime));
        // What every builder held belonged to the CAs before the step.
        let former = Self { distributed_at: None, ..self.clone() };
        Ok(match step {
            Step::Introduce => Self { next: Some(made()?), ..former },
            Step::Distributed => Self { distributed_at: Some(now), ..former },
            Step::Promote => match self.next.clone() {
                Some(next) => Self {
                    signing: next,
                    next: None,
                    former: Some(self.signing.certificate.clone()),
                    distributed_at: None,
                },
                None => former,
            },
            Step::Retire => Self { former: None, ..former },
            Step::StartOver => Self { signing: made()?, next: None, former: None, distributed_at: None },
        })
    }

    /// The change of the Secret of this version, as a merge patch: what is not there any more is null.
    pub(super) fn patch(&self, version: &str) -> Value {
        let bytes = |pem: &String| ByteString(pem.clone().into_bytes());
        json!({
            "metadata": {
                "resourceVersion": version,
                "annotations": {DISTRIBUTED_AT: self.distributed_at.map(|time| time.to_string())},
            },
            "data": {
                "tls.crt": bytes(&self.signing.certificate),
                "tls.key": bytes(&self.signing.key),
                "next.crt": self.next.as_ref().map(|next| bytes(&next.certificate)),
                "next.key": self.next.as_ref().map(|next| bytes(&next.key)),
                "former.crt": self.former.as_ref().map(bytes),
            },
        })
    }
}

/// The Secret with a first CA.
pub(super) fn secret(now: Timestamp, lifetime: Duration) -> Result<Secret, certificate::Error> {
    let first = authority(Dates::of_ca(now, lifetime))?;
    Ok(Secret {
        metadata: ObjectMeta {
            name: Some(SECRET.to_owned()),
            labels: Some([("app.kubernetes.io/managed-by".to_owned(), "kiln".to_owned())].into()),
            ..ObjectMeta::default()
        },
        type_: Some("kubernetes.io/tls".to_owned()),
        data: Some(
            [("tls.crt", first.certificate), ("tls.key", first.key)]
                .map(|(key, pem)| (key.to_owned(), ByteString(pem.into_bytes())))
                .into(),
        ),
        ..Secret::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIFETIME: Duration = Duration::from_mins(1);

    /// The Secret after a step, as the API server would keep it.
    fn stored(content: &Content) -> Secret {
        let mut patch = content.patch("7");
        for part in ["/data", "/metadata/annotations"] {
            let fields = patch.pointer_mut(part).and_then(Value::as_object_mut).unwrap();
            fields.retain(|_, value| !value.is_null());
        }
        serde_json::from_value(patch).unwrap()
    }

    fn keys(secret: &Secret) -> Vec<&str> {
        secret.data.iter().flatten().map(|(key, _)| key.as_str()).collect()
    }

    #[test]
    fn a_ca_is_introduced_promoted_and_its_predecessor_retired() {
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        // As an older Kiln made it.
        let old = secret(now, LIFETIME).unwrap();
        let start = Content::read(&old).unwrap();
        let step = |content: &Content, step| {
            let secret = stored(&content.after(step, now, LIFETIME).unwrap());
            (Content::read(&secret).unwrap(), keys(&secret).join(" "))
        };
        let (introduced, holds) = step(&start, Step::Introduce);
        assert_eq!(holds, "next.crt next.key tls.crt tls.key");
        assert_eq!(introduced.trust().matches("BEGIN CERTIFICATE").count(), 2);
        let (distributed, _) = step(&introduced, Step::Distributed);
        assert_eq!(distributed.distributed_at, Some(now));
        let (promoted, holds) = step(&distributed, Step::Promote);
        assert_eq!(holds, "former.crt tls.crt tls.key");
        assert_eq!(promoted.distributed_at, None, "its certificates are yet to be distributed");
        assert_eq!(promoted.signing.certificate, introduced.next.unwrap().certificate);
        assert_eq!(promoted.former.as_ref(), Some(&start.signing.certificate));
        let (retired, holds) = step(&promoted, Step::Retire);
        assert_eq!(holds, "tls.crt tls.key");
        assert_eq!(retired.trust(), format!("{}\n", promoted.signing.certificate.trim()));
        let (anew, _) = step(&start, Step::StartOver);
        assert_ne!(anew.signing.certificate, start.signing.certificate);
    }

    #[test]
    fn a_secret_without_a_key_is_refused() {
        let mut secret = secret(Timestamp::UNIX_EPOCH, LIFETIME).unwrap();
        secret.data.as_mut().unwrap().remove("tls.key");
        assert!(Content::read(&secret).is_err());
    }
}
