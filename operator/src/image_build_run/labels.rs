//! The labels that an image gets from its Git source unless the ImageBuild or the Dockerfile sets them
//! (<https://github.com/opencontainers/image-spec/blob/main/annotations.md>); pure.

use std::collections::HashMap;

use kiln_crds::{GitUrl, ImageBuildSpec};

/// Where the source is, its commit, and the tag where it was built from one. `created` stays empty: the builder knows the
/// commit's time and fills it in. None for a source without a commit.
#[must_use]
pub fn default_labels(
    build: &ImageBuildSpec,
    commit: Option<&str>,
    reference: Option<&str>,
) -> HashMap<String, String> {
    let (Some(git), Some(commit)) = (build.git(), commit) else { return HashMap::new() };
    let label = |name: &str, value: String| (format!("org.opencontainers.image.{name}"), value);
    let mut labels = HashMap::from([label("revision", commit.to_owned()), label("created", String::new())]);
    labels.extend(GitUrl::parse(&git.url).ok().map(|url| label("source", web(&url))));
    let tag = reference.and_then(|reference| reference.strip_prefix("refs/tags/"));
    labels.extend(tag.map(|tag| label("version", tag.to_owned())));
    labels
}

/// The repository as an https URL, which forges show to people too.
fn web(url: &GitUrl) -> String {
    match url.ssh() {
        Some(ssh) => format!("https://{}/{}", ssh.host, ssh.path.trim_start_matches('/')),
        None => url.as_str().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table() {
        let labels = |source: serde_json::Value, commit: Option<&str>, reference: Option<&str>| {
            let build = serde_json::from_value(serde_json::json!({"source": source})).unwrap();
            let mut labels: Vec<String> = default_labels(&build, commit, reference)
                .into_iter()
                .map(|(name, value)| format!("{}={value}", name.trim_start_matches("org.opencontainers.image.")))
                .collect();
            labels.sort();
            labels.join(" ")
        };
        let git = |url: &str| serde_json::json!({"git": {"url": url}});
        let https = "source=https://github.com/a/b.git";
        for (url, reference, expected) in [
            ("https://github.com/a/b.git", None, format!("created= revision=c0 {https}")),
            ("https://github.com/a/b.git", Some("refs/heads/main"), format!("created= revision=c0 {https}")),
            (
                "https://github.com/a/b.git",
                Some("refs/tags/v1.2"),
                format!("created= revision=c0 {https} version=v1.2"),
            ),
            ("git@github.com:a/b.git", None, format!("created= revision=c0 {https}")),
            ("ssh://git@github.com:2222/a/b.git", None, format!("created= revision=c0 {https}")),
        ] {
            assert_eq!(labels(git(url), Some("c0"), reference), expected, "{url} {reference:?}");
        }
        assert_eq!(labels(git("https://github.com/a/b.git"), None, None), "");
        assert_eq!(labels(serde_json::json!({"inline": {"files": {}}}), Some("c0"), None), "");
    }
}
