//! Which Secret or CA a failure is about, and the field that names it; pure. Whoever meets the failure (a client of registries
//! or of Git servers, an agent) knows neither: they are added where it is taken over, by its reason.

use kiln_crds::image_build::GitSource;
use kiln_crds::{CaRef, CaRefKind, ImageBuildSpec, SecretRef};
use kiln_registry::Repository;

use super::{Fault, registry};

/// The longest message in a status, in characters, as the schema bounds it.
const MESSAGE: usize = 4096;

/// How the ids of secrets begin that BuildKit sends to servers that ADD downloads from, instead of giving them to steps.
const OF_DOWNLOADS: [&str; 2] = ["HTTP_AUTH_", "GIT_AUTH_"];

/// The message of a failure, with the objects that it is about. `about`: the registry, or as in `status.source.resolved` the
/// field of the Git repository. `None`: it is not known which one of those that the spec names.
#[must_use]
pub fn told(message: &str, reason: &str, about: Option<&str>, spec: &ImageBuildSpec, namespace: &str) -> String {
    let Some(objects) = objects(message, reason, about, spec, namespace) else { return message.to_owned() };
    let room = MESSAGE.saturating_sub(objects.chars().count() + 2);
    format!("{}; {objects}", message.chars().take(room).collect::<String>())
}

impl Fault {
    /// The same with the objects that it is about.
    #[must_use]
    pub fn told(self, spec: &ImageBuildSpec, namespace: &str) -> Self {
        let message = told(&self.message, self.reason.as_str(), self.about.as_deref(), spec, namespace);
        Self { message, ..self }
    }
}

/// The field of the Git repository that stands at `place`.
pub(super) fn git(place: &str) -> String {
    place.strip_prefix("contexts/").map_or_else(|| format!("{place}.git"), |name| format!("contexts[{name}].git"))
}

/// The bundle that a field names.
pub(super) fn ca(ca: &CaRef, namespace: &str, field: &str) -> String {
    format!("{}, which {field} names", bundle(ca, namespace))
}

fn bundle(ca: &CaRef, namespace: &str) -> String {
    let kind = if ca.kind() == CaRefKind::Secret { "Secret" } else { "ConfigMap" };
    format!("the key {} of the {kind} {namespace}/{}", ca.key(), ca.name)
}

/// A field, and the object that it names. `None`: it names none.
type Named = (String, Option<String>);

fn objects(message: &str, reason: &str, about: Option<&str>, spec: &ImageBuildSpec, namespace: &str) -> Option<String> {
    let secret = |field: String, named: Option<&SecretRef>| -> Named {
        (field, named.map(|secret| format!("the Secret {namespace}/{}", secret.name)))
    };
    let authority = |field: String, named: Option<&CaRef>| -> Named { (field, named.map(|ca| bundle(ca, namespace))) };
    let http = spec.source.as_ref().and_then(|source| source.http.as_ref());
    let pushes = || {
        // An agent pushes to the first repository alone.
        let most = if about.is_some() { usize::MAX } else { 1 };
        targets(about, spec).take(most).map(|target| secret(format!("{}.secretRef", target.field), target.secret_ref))
    };
    let pulls = || {
        let pull = spec.pull_secret_refs.iter().map(|of| secret("pullSecretRefs".to_owned(), Some(of)));
        pull.chain(pushes()).collect()
    };
    let (what, named): (&str, Vec<Named>) = match (reason, http) {
        ("GitUnauthorized" | "GitHostKeyUnknown" | "GitNotFound" | "GitRepositoryNotFound", _) => {
            let of = |(field, of): (String, &GitSource)| secret(format!("{field}.secretRef"), of.secret_ref.as_ref());
            ("Secret", repositories(about, spec).map(of).collect())
        }
        ("GitCertificateUntrusted", _) => {
            let of = |(field, of): (String, &GitSource)| authority(format!("{field}.caRef"), of.ca_ref.as_ref());
            ("CA", repositories(about, spec).map(of).collect())
        }
        ("SourceUnauthorized", Some(http)) => {
            ("Secret", vec![secret("source.http.secretRef".to_owned(), http.secret_ref.as_ref())])
        }
        ("SourceCertificateUntrusted", Some(http)) => {
            ("CA", vec![authority("source.http.caRef".to_owned(), http.ca_ref.as_ref())])
        }
        ("PushDenied", _) => ("Secret", pushes().collect()),
        ("SourceUnauthorized" | "RegistryUnauthorized" | "RegistryLoginAmbiguous", _) => ("Secret", pulls()),
        ("DownloadRefused", _) => {
            let of_downloads = spec.secrets.iter().filter(|of| OF_DOWNLOADS.iter().any(|id| of.id.starts_with(id)));
            let named = of_downloads.map(|of| {
                let key = format!("the key {} of the Secret {namespace}/{}", of.secret_ref.key, of.secret_ref.name);
                (format!("secrets[{}].secretRef", of.id), Some(key))
            });
            ("Secret", named.collect())
        }
        ("RegistryCertificateUntrusted", _) => {
            // Of a registry that is not known, no field can be asked for.
            let targets = targets(about, spec).filter(|target| about.is_some() || target.ca_ref.is_some());
            ("CA", targets.map(|target| authority(format!("{}.caRef", target.field), target.ca_ref)).collect())
        }
        _ => return None,
    };
    // There those of the namespace's service account are used where none is named.
    let of_registry = what == "Secret"
        && !reason.starts_with("Git")
        && reason != "DownloadRefused"
        && (http.is_none() || reason != "SourceUnauthorized");
    let objects: Vec<String> =
        named.iter().filter_map(|(field, object)| Some(format!("{}, which {field} names", object.as_ref()?))).collect();
    // Who met the failure knew which one it was.
    if objects.iter().any(|object| message.contains(object)) {
        return None;
    }
    let mut without: Vec<&str> =
        named.iter().filter(|(_, object)| object.is_none()).map(|(field, _)| field.as_str()).collect();
    if named.is_empty() && of_registry {
        without.push("pullSecretRefs");
    }
    let fields = without.join(" or ");
    match (objects.is_empty(), fields.is_empty()) {
        (true, true) => None,
        (true, false) if of_registry => {
            Some(format!("no Secret is named, so those of the ServiceAccount {namespace}/default count: set {fields}"))
        }
        (true, false) => Some(format!("no {what} is named: set {fields}")),
        (false, true) => Some(format!("see {}", objects.join(", and "))),
        (false, false) => Some(format!("see {}; {fields} names none", objects.join(", and "))),
    }
}

/// The Git repositories that a failure may be about.
fn repositories<'a>(about: Option<&'a str>, spec: &'a ImageBuildSpec) -> impl Iterator<Item = (String, &'a GitSource)> {
    let all = super::repositories(spec);
    all.filter(move |(place, _)| about.is_none_or(|about| about == place)).map(|(place, of)| (git(&place), of))
}

/// The repositories that are pushed to, at a registry or in all.
fn targets<'a>(registry: Option<&'a str>, spec: &'a ImageBuildSpec) -> impl Iterator<Item = registry::Named<'a>> {
    let is_there = move |repository: &str| {
        registry.is_none_or(|registry| repository.parse().is_ok_and(|of: Repository| of.registry == registry))
    };
    spec.image.iter().flat_map(registry::repositories).filter(move |named| is_there(named.repository))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn spec(spec: serde_json::Value) -> ImageBuildSpec {
        serde_json::from_value(spec).unwrap()
    }

    #[test]
    fn the_object_and_the_field_that_names_it() {
        let named = spec(json!({
            "source": {"git": {"url": "https://g/a", "secretRef": {"name": "git"}, "caRef": {"name": "ca"}}},
            "contexts": [{"name": "base", "git": {"url": "https://h/a"}}, {"name": "i", "image": "r/i"}],
            "image": {
                "repository": "a.example/app", "secretRef": {"name": "login"},
                "caRef": {"kind": "Secret", "name": "ca", "key": "x.pem"},
                "copies": [{"repository": "b.example/app"}, {"repository": "c.example/app", "secretRef": {"name": "c"}}],
            },
            "pullSecretRefs": [{"name": "base"}],
            "secrets": [
                {"id": "HTTP_AUTH_TOKEN_w.example", "secretRef": {"name": "web", "key": "token"}},
                {"id": "npm", "secretRef": {"name": "npm", "key": "token"}},
            ],
        }));
        let bare = spec(json!({"source": {"git": {"url": "https://g/a"}}, "image": {"repository": "app"}}));
        let web =
            spec(json!({"source": {"http": {"url": "https://w/a", "checksum": "", "secretRef": {"name": "web"}}}}));
        let copied = spec(json!({"source": {"image": {"ref": "r/source"}}}));
        let source = Some("source");
        for (of, reason, about, expected) in [
            (&named, "GitUnauthorized", source, "see the Secret web/git, which source.git.secretRef names"),
            (&named, "GitNotFound", Some("contexts/base"), "no Secret is named: set contexts[base].git.secretRef"),
            (
                &named,
                "GitHostKeyUnknown",
                None,
                "see the Secret web/git, which source.git.secretRef names; contexts[base].git.secretRef names none",
            ),
            (
                &named,
                "GitCertificateUntrusted",
                source,
                "see the key ca.crt of the ConfigMap web/ca, which source.git.caRef names",
            ),
            (&bare, "GitRepositoryNotFound", None, "no Secret is named: set source.git.secretRef"),
            (&bare, "GitCertificateUntrusted", None, "no CA is named: set source.git.caRef"),
            (&web, "SourceUnauthorized", None, "see the Secret web/web, which source.http.secretRef names"),
            (&web, "SourceCertificateUntrusted", None, "no CA is named: set source.http.caRef"),
            (
                &copied,
                "SourceUnauthorized",
                None,
                "no Secret is named, so those of the ServiceAccount web/default count: set pullSecretRefs",
            ),
            (&copied, "SourceCertificateUntrusted", None, ""),
            (&named, "PushDenied", None, "see the Secret web/login, which image.secretRef names"),
            (&named, "PushDenied", Some("a.example"), "see the Secret web/login, which image.secretRef names"),
            (
                &named,
                "PushDenied",
                Some("b.example"),
                "no Secret is named, so those of the ServiceAccount web/default count: set image.copies[b.example/app].secretRef",
            ),
            (
                &named,
                "RegistryUnauthorized",
                Some("c.example"),
                "see the Secret web/base, which pullSecretRefs names, and the Secret web/c, which \
                 image.copies[c.example/app].secretRef names",
            ),
            (
                &named,
                "RegistryUnauthorized",
                Some("else.example"),
                "see the Secret web/base, which pullSecretRefs names",
            ),
            (
                &bare,
                "RegistryUnauthorized",
                Some("docker.io"),
                "no Secret is named, so those of the ServiceAccount web/default count: set image.secretRef",
            ),
            (
                &named,
                "RegistryCertificateUntrusted",
                Some("a.example"),
                "see the key x.pem of the Secret web/ca, which image.caRef names",
            ),
            (&bare, "RegistryCertificateUntrusted", Some("docker.io"), "no CA is named: set image.caRef"),
            (&bare, "RegistryCertificateUntrusted", None, ""),
            (
                &named,
                "RegistryLoginAmbiguous",
                None,
                "see the Secret web/base, which pullSecretRefs names, and the Secret web/login, which image.secretRef names",
            ),
            (
                &named,
                "DownloadRefused",
                None,
                "see the key token of the Secret web/web, which secrets[HTTP_AUTH_TOKEN_w.example].secretRef names",
            ),
            (&bare, "DownloadRefused", None, ""),
            (&named, "StepFailed", None, ""),
        ] {
            let told = told("no", reason, about, of, "web");
            let expected = if expected.is_empty() { "no".to_owned() } else { format!("no; {expected}") };
            assert_eq!(told, expected, "{reason} {about:?}");
        }
    }

    #[test]
    fn a_long_message_leaves_room_for_the_object() {
        let of = spec(json!({"image": {"repository": "r.example/a", "secretRef": {"name": "login"}}}));
        let told = told(&"ä".repeat(5000), "PushDenied", None, &of, "web");
        assert_eq!(told.chars().count(), MESSAGE);
        assert!(told.ends_with("ä; see the Secret web/login, which image.secretRef names"));
        assert_eq!(self::told(&told, "PushDenied", None, &of, "web"), told, "it is told once");
    }
}
