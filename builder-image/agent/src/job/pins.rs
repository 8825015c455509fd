//! `pull: IfNotPresent`: which digest the builder took for a base image's name, so that it need not be asked for again.
//!
//! And which registries BuildKit may ask at all: only those whose addresses were looked at.
//!
//! BuildKit's OCI worker keeps no list of images by name, so `image-resolve-mode=local` does nothing there: it looks
//! each tag up at each build. What it has by digest it takes without a look. So the agent keeps the names, and gives
//! BuildKit a source policy that puts the digests in their place.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use futures::StreamExt as _;
use kiln_agent_proto::{Job as Spec, PullPolicy};
use kiln_registry::{DOCKER_HUB, DOCKER_HUB_NAMES, Reference};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::registries::Registries;

/// How long registries may take to say what all the names stand for, and how many are asked at once.
const PATIENCE: Duration = Duration::from_secs(10);
const AT_ONCE: usize = 8;
/// The most names that are kept.
const MOST: usize = 1000;

/// Names with their digests, such as `docker.io/library/busybox:latest` and `sha256:…`.
pub type Pins = BTreeMap<String, String>;

/// The digests that are put in the place of names: where the job is to pull only what is not there.
#[must_use]
pub fn of(spec: &Spec, state: &Path) -> Pins {
    if spec.pull() == PullPolicy::PullIfNotPresent { read(state) } else { Pins::new() }
}

/// Keeps what names stood for in a build, where the job wants it: of `images` those with name, tag and digest. That is a hint,
/// which a Dockerfile could have made up: the registry has to say the same.
pub async fn record(state: &Path, spec: &Spec, images: &[String], registries: &Registries, stop: &CancellationToken) {
    if spec.pull() == PullPolicy::PullIfNotPresent {
        let ask = |name| digest_of(name, spec, registries);
        let hints: Pins = images.iter().take(MOST).filter_map(|image| hint(image)).collect();
        let confirmed = confirmed(&hints, &read(state), ask, PATIENCE, stop).await;
        keep(state, confirmed);
    }
}

/// Name with tag, and digest, of such as `docker.io/library/busybox:latest@sha256:…`.
fn hint(image: &str) -> Option<(String, String)> {
    let (name, digest) = image.split_once('@')?;
    let is_digest = digest
        .strip_prefix("sha256:")
        .is_some_and(|hex| hex.len() == 64 && hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')));
    let has_tag = name.rsplit('/').next().is_some_and(|last| last.contains(':'));
    (is_digest && has_tag).then(|| (name.to_owned(), digest.to_owned()))
}

/// Those of the hints that are not known yet, and for whose name `ask` has the same digest.
async fn confirmed<'a, Answer>(
    hints: &'a BTreeMap<String, String>,
    known: &Pins,
    ask: impl Fn(&'a str) -> Answer,
    patience: Duration,
    stop: &CancellationToken,
) -> Pins
where
    Answer: Future<Output = Option<String>>,
{
    let mut asked = Vec::new();
    for (name, digest) in hints {
        if known.get(name) != Some(digest) {
            let answer = ask(name);
            asked.push(async move { (answer.await.as_ref() == Some(digest)).then(|| (name.clone(), digest.clone())) });
        }
    }
    let mut answers = futures::stream::iter(asked).buffer_unordered(AT_ONCE);
    let mut found = Pins::new();
    let all = async {
        while let Some(answer) = answers.next().await {
            found.extend(answer);
        }
    };
    tokio::select! {
        _ = tokio::time::timeout(patience, all) => {}
        () = stop.cancelled() => {}
    }
    found
}

/// The digest that a name stands for now: at the first of its registry's mirrors that has it, or there itself.
async fn digest_of(name: &str, spec: &Spec, registries: &Registries) -> Option<String> {
    let Reference { repository, identifier } = name.parse().ok()?;
    let mirrors = spec.registry_mirrors.iter().filter(|mirrored| mirrored.registry == repository.registry);
    let mirrors = mirrors.flat_map(|mirrored| &mirrored.mirrors).map(|mirror| repository.at_mirror(mirror));
    for place in mirrors.chain([repository.clone()]) {
        let Ok(client) = registries.client(spec, &place) else { continue };
        if let Ok(Some(found)) = client.head_manifest(&place, &identifier).await {
            return Some(found.digest().to_string());
        }
    }
    None
}

fn keep(state: &Path, images: Pins) {
    let known = read(state);
    let mut pins = known.clone();
    pins.extend(images);
    while pins.len() > MOST {
        pins.pop_first();
    }
    if pins == known {
        return;
    }
    write(state, &pins);
}

/// A file that cannot be written costs a look at the next build.
fn write(state: &Path, pins: &Pins) {
    let written = path(state).with_extension("new");
    let write = || fs::write(&written, serde_json::to_vec(pins)?).and_then(|()| fs::rename(&written, path(state)));
    if let Err(error) = write() {
        tracing::warn!(%error, "cannot keep the digests of base images");
    }
}

/// Forgets the names whose digests a failure tells of: such a digest may be gone from its registry.
pub fn forget(state: &Path, failure: &str) {
    let mut pins = read(state);
    let before = pins.len();
    pins.retain(|_, digest| !failure.contains(digest.as_str()));
    if pins.len() < before {
        write(state, &pins);
    }
}

fn path(state: &Path) -> PathBuf {
    state.join("bases.json")
}

fn read(state: &Path) -> Pins {
    fs::read(path(state)).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
}

/// The source policy: which registries may be asked, and which digests are put in the place of names. With the names that
/// Go's own JSON has for fields, which `kiln-build` reads: a name that it does not know it passes over. The last rule that
/// matches says whether an image is asked for, and what a digest is put into is judged anew:
/// <https://github.com/moby/buildkit/blob/v0.33.1/sourcepolicy/engine.go>.
#[must_use]
pub fn policy<'a>(pins: &Pins, registries: impl Iterator<Item = &'a str>) -> Value {
    // Of images and of single blobs.
    let judged = |action: &str, of: &str| {
        let selector = json!({"identifier": format!("^docker-image(\\+blob)?://{of}"), "match_type": "REGEX"});
        json!({"action": action, "selector": selector})
    };
    // BuildKit itself knows only some of Docker Hub's names for one.
    let names = |registry| if registry == DOCKER_HUB { DOCKER_HUB_NAMES.to_vec() } else { vec![registry] };
    let permitted = registries.flat_map(names);
    let permitted = permitted.map(|name| judged("ALLOW", &format!("(?i:{})/", quoted(name))));
    let pinned = pins.iter().map(|(name, digest)| {
        json!({
            "action": "CONVERT",
            "selector": {"identifier": format!("docker-image://{name}"), "match_type": "EXACT"},
            "updates": {"identifier": format!("docker-image://{name}@{digest}")},
        })
    });
    let rules: Vec<_> = [judged("DENY", "")].into_iter().chain(permitted).chain(pinned).collect();
    json!({"version": 1, "rules": rules})
}

/// For Go's regular expressions: every character that is no letter and no digit stands for itself.
fn quoted(text: &str) -> String {
    let escape = |char: char| (!char.is_ascii_alphanumeric()).then_some('\\').into_iter().chain([char]);
    text.chars().filter(char::is_ascii_graphic).flat_map(escape).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_tag_and_digest() {
        let digest = format!("sha256:{}", "0".repeat(64));
        assert_eq!(hint(&format!("r.example:5000/x:1@{digest}")), Some(("r.example:5000/x:1".into(), digest.clone())));
        for other in [format!("r.example:5000/x@{digest}"), "r.example/x:1".into(), "r.example/x:1@sha256:12".into()] {
            assert_eq!(hint(&other), None, "{other}");
        }
    }

    #[test]
    fn names_are_kept_and_used_where_asked_for() {
        let state = tempfile::tempdir().unwrap();
        let spec = Spec { pull: PullPolicy::PullIfNotPresent.into(), ..Spec::default() };
        assert!(of(&spec, state.path()).is_empty());
        for (name, digest) in [("a:1", "sha256:1"), ("b:1", "sha256:2"), ("a:1", "sha256:3")] {
            keep(state.path(), Pins::from([(format!("docker.io/library/{name}"), digest.to_owned())]));
        }
        let registries = ["docker.io", "[fd00::1]:5000"].into_iter();
        let written = policy(&of(&spec, state.path()), registries);
        insta::assert_snapshot!(serde_json::to_string_pretty(&written).unwrap());
        assert!(of(&Spec::default(), state.path()).is_empty());
        forget(state.path(), "docker.io/library/x@sha256:9: not found");
        assert_eq!(of(&spec, state.path()).len(), 2, "a failure of another kind");
        forget(state.path(), "docker.io/library/b@sha256:2: not found");
        assert_eq!(of(&spec, state.path()).into_keys().collect::<Vec<_>>(), ["docker.io/library/a:1"]);
    }

    /// What a Dockerfile has written into its steps' names reaches nobody else's build.
    #[tokio::test]
    async fn only_what_the_registry_says_too_is_kept() {
        let pairs = |pairs: &[(&str, &str)]| -> Pins {
            pairs.iter().map(|(name, digest)| ((*name).to_owned(), (*digest).to_owned())).collect()
        };
        let hints = pairs(&[("same", "1"), ("other", "1"), ("nothing", "1"), ("silent", "1"), ("known", "1")]);
        let ask = |name| async move {
            match name {
                "same" => Some("1".to_owned()),
                "other" => Some("2".to_owned()),
                "nothing" => None,
                "silent" => std::future::pending().await,
                name => panic!("{name} is asked for"),
            }
        };
        let go_on = CancellationToken::new();
        let known = pairs(&[("known", "1"), ("other", "2")]);
        let patience = Duration::from_millis(20);
        assert_eq!(confirmed(&hints, &known, ask, patience, &go_on).await, pairs(&[("same", "1")]));

        let cancelled = CancellationToken::new();
        cancelled.cancel();
        let silent = pairs(&[("silent", "1")]);
        assert_eq!(confirmed(&silent, &known, ask, Duration::MAX, &cancelled).await, Pins::new(), "a cancel ends it");
    }
}
