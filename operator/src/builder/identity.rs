//! Who a builder builds for, and the names and labels that follow from it; pure.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kiln_crds::image_build::CacheScope;
use sha2::{Digest, Sha256};

/// The label with the pool's name.
pub const POOL: &str = "kiln.build/pool";
/// The label with the name of the namespace that a builder works for.
pub const NAMESPACE: &str = "kiln.build/namespace";
/// The label with the UID of that namespace.
pub const NAMESPACE_UID: &str = "kiln.build/namespace-uid";
/// The label with the UID of the ImageBuild that a builder works for, where its cache is that ImageBuild's alone.
pub const IMAGE_BUILD_UID: &str = "kiln.build/image-build-uid";
/// The label with the name of that ImageBuild, for people and for the accounting of cost.
pub const IMAGE_BUILD: &str = "kiln.build/image-build";
/// The label with the trust domain's short hash.
pub const TRUST_DOMAIN: &str = "kiln.build/trust-domain";
/// The label with the architecture.
pub const ARCHITECTURE: &str = "kiln.build/architecture";
/// The label with the slot.
pub const SLOT: &str = "kiln.build/slot";
/// Selects every object that belongs to a builder.
pub const SELECTOR: &str = "app.kubernetes.io/managed-by=kiln,app.kubernetes.io/component=builder";

/// Those who share builders and cache volumes: a namespace, or one ImageBuild of it. Both by UID, so that what is deleted
/// and made again inherits nothing: names are told, and play no part in whether two domains are the same.
#[derive(Clone, Debug)]
pub struct TrustDomain {
    /// The namespace's name.
    pub namespace: String,
    /// The namespace's UID.
    pub namespace_uid: String,
    /// The ImageBuild's UID, where the domain is that ImageBuild alone.
    pub image_build_uid: Option<String>,
    /// That ImageBuild's name, where it is known.
    pub image_build: Option<String>,
}

impl TrustDomain {
    fn key(&self) -> (&str, Option<&str>) {
        (&self.namespace_uid, self.image_build_uid.as_deref())
    }
}

impl PartialEq for TrustDomain {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for TrustDomain {}

impl PartialOrd for TrustDomain {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for TrustDomain {
    fn cmp(&self, other: &Self) -> Ordering {
        self.key().cmp(&other.key())
    }
}

impl Hash for TrustDomain {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.key().hash(state);
    }
}

impl TrustDomain {
    /// The domain of an ImageBuild under a cache scope.
    #[must_use]
    pub fn new(namespace: &str, namespace_uid: &str, image_build_uid: &str, scope: CacheScope) -> Self {
        Self {
            namespace: namespace.to_owned(),
            namespace_uid: namespace_uid.to_owned(),
            image_build_uid: match scope {
                CacheScope::Namespace => None,
                CacheScope::ImageBuild => Some(image_build_uid.to_owned()),
            },
            image_build: None,
        }
    }

    /// The same domain, with the name of the ImageBuild that it is asked for: kept where the domain is that one's alone.
    #[must_use]
    pub fn asked_by(self, image_build: &str) -> Self {
        let image_build = self.image_build_uid.is_some().then(|| image_build.to_owned());
        Self { image_build, ..self }
    }

    /// Ten hexadecimal digits that stand for the domain in names.
    #[must_use]
    pub fn short(&self) -> String {
        let mut hash = Sha256::new();
        hash.update(&self.namespace_uid);
        hash.update("/");
        hash.update(self.image_build_uid.as_deref().unwrap_or_default());
        hex(&hash.finalize()[..5])
    }
}

/// Lower-case hexadecimal digits.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        use std::fmt::Write;
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// One builder: the pod of this name, and the volume that goes with it.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct BuilderId {
    /// The pool's name.
    pub pool: String,
    /// Who it builds for.
    pub domain: TrustDomain,
    /// The architecture, as in the node label `kubernetes.io/arch`.
    pub architecture: String,
    /// Tells it from its siblings, from 0.
    pub slot: u32,
}

impl BuilderId {
    /// The name of the pod; of its volume, its certificate and its configuration too.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}-{}-{}-{}", self.pool, self.architecture, self.domain.short(), self.slot)
    }

    /// The labels of everything that belongs to the builder.
    #[must_use]
    pub fn labels(&self) -> BTreeMap<String, String> {
        let mut labels = BTreeMap::from([
            ("app.kubernetes.io/name".to_owned(), "kiln-builder".to_owned()),
            ("app.kubernetes.io/managed-by".to_owned(), "kiln".to_owned()),
            ("app.kubernetes.io/component".to_owned(), "builder".to_owned()),
            (POOL.to_owned(), self.pool.clone()),
            (NAMESPACE.to_owned(), self.domain.namespace.clone()),
            (NAMESPACE_UID.to_owned(), self.domain.namespace_uid.clone()),
            (TRUST_DOMAIN.to_owned(), self.domain.short()),
            (ARCHITECTURE.to_owned(), self.architecture.clone()),
            (SLOT.to_owned(), self.slot.to_string()),
        ]);
        if let Some(uid) = &self.domain.image_build_uid {
            labels.insert(IMAGE_BUILD_UID.to_owned(), uid.clone());
        }
        if let Some(name) = &self.domain.image_build {
            labels.insert(IMAGE_BUILD.to_owned(), name.clone());
        }
        labels
    }

    /// Whether Kiln can have given this builder to a run of that ImageBuild: what a run's status says may be somebody else's
    /// words. `namespace_uid`: none where the namespace is gone; `pool`: none where the run names none.
    #[must_use]
    pub fn is_for(
        &self,
        namespace: &str,
        namespace_uid: Option<&str>,
        image_build_uid: &str,
        pool: Option<&str>,
    ) -> bool {
        let Self { pool: own_pool, domain, .. } = self;
        domain.namespace == namespace
            && namespace_uid.is_none_or(|uid| uid == domain.namespace_uid)
            && domain.image_build_uid.as_deref().is_none_or(|uid| uid == image_build_uid)
            && pool.is_none_or(|pool| pool == own_pool)
    }

    /// Whose pod or volume this is, read back from its labels. `None`: not a builder's.
    #[must_use]
    pub fn of(metadata: &ObjectMeta) -> Option<Self> {
        let label = |key: &str| metadata.labels.as_ref()?.get(key).cloned();
        Some(Self {
            pool: label(POOL)?,
            domain: TrustDomain {
                namespace: label(NAMESPACE)?,
                namespace_uid: label(NAMESPACE_UID)?,
                image_build_uid: label(IMAGE_BUILD_UID),
                image_build: label(IMAGE_BUILD),
            },
            architecture: label(ARCHITECTURE)?,
            slot: label(SLOT)?.parse().ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(scope: CacheScope) -> BuilderId {
        BuilderId {
            pool: "default".into(),
            domain: TrustDomain::new("team", "ns-uid", "ib-uid", scope),
            architecture: "arm64".into(),
            slot: 2,
        }
    }

    #[test]
    fn labels_tell_the_builder_back() {
        for scope in [CacheScope::Namespace, CacheScope::ImageBuild] {
            let id = id(scope);
            let metadata = ObjectMeta { labels: Some(id.labels()), ..ObjectMeta::default() };
            assert_eq!(BuilderId::of(&metadata), Some(id));
        }
        let named = |scope| id(scope).domain.asked_by("app");
        let labels = BuilderId { domain: named(CacheScope::ImageBuild), ..id(CacheScope::ImageBuild) }.labels();
        assert_eq!(labels.get(IMAGE_BUILD).map(String::as_str), Some("app"), "cost can be told");
        assert_eq!(labels.get(NAMESPACE).map(String::as_str), Some("team"));
        assert_eq!(named(CacheScope::ImageBuild), id(CacheScope::ImageBuild).domain, "a name tells nothing apart");
        assert_eq!(named(CacheScope::Namespace).image_build, None, "others of the namespace use it too");
        assert_eq!(BuilderId::of(&ObjectMeta::default()), None);
    }

    #[test]
    fn whose_runs_a_builder_is_for() {
        // Whether the builder is the ImageBuild's alone, then who asks.
        for (scope, namespace, namespace_uid, image_build_uid, pool, expected) in [
            (CacheScope::Namespace, "team", Some("ns-uid"), "ib-uid", None, true),
            (CacheScope::Namespace, "team", Some("ns-uid"), "other", Some("default"), true),
            (CacheScope::Namespace, "team", None, "other", None, true),
            (CacheScope::Namespace, "thief", Some("ns-uid"), "ib-uid", None, false),
            (CacheScope::Namespace, "team", Some("made-again"), "ib-uid", None, false),
            (CacheScope::Namespace, "team", Some("ns-uid"), "ib-uid", Some("other"), false),
            (CacheScope::ImageBuild, "team", Some("ns-uid"), "ib-uid", None, true),
            (CacheScope::ImageBuild, "team", Some("ns-uid"), "other", None, false),
            (CacheScope::ImageBuild, "thief", Some("thief-uid"), "ib-uid", None, false),
        ] {
            let is_for = id(scope).is_for(namespace, namespace_uid, image_build_uid, pool);
            assert_eq!(is_for, expected, "{namespace} {namespace_uid:?} {image_build_uid} {pool:?}");
        }
    }

    #[test]
    fn a_namespace_made_again_gets_other_names() {
        let old = TrustDomain::new("team", "uid-1", "", CacheScope::Namespace);
        let new = TrustDomain::new("team", "uid-2", "", CacheScope::Namespace);
        assert_ne!(old.short(), new.short());
        assert_ne!(id(CacheScope::Namespace).name(), id(CacheScope::ImageBuild).name());
    }
}
