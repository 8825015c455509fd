//! What may be built, and beside what.

use kiln_crds::ImageBuild;
use serde_json::{Value, json};

use super::{Case, DURATION, LONG, MANY, SHORT, TWICE, good_git, good_inline, list, text, try_all};

kiln_e2e::tests![inline_files, none, git, http, image, contexts];

const ONE_SOURCE: Option<&str> = Some("source needs exactly one of git, inline, http and image");
const NO_SOURCE: Option<&str> =
    Some("source is missing: name a Git repository, files, a tarball or an image to build from");
const FILE: Option<&str> = Some("a path in inline.files is relative");
const URL: Option<&str> = Some("git.url must begin with https:// or ssh://, or be of the form git@host:path");
const SSH_URL: Option<&str> =
    Some("spec.source.git.url: Invalid value: an ssh URL is ssh://user@host[:port]/path, without a password");
const SPACES: Option<&str> = Some("git.url must not hold spaces, control characters, ? or #");
const REF: Option<&str> = Some("git.ref is a branch, a tag, a full ref or a full commit id");
const PATH: Option<&str> = Some("git.path is a directory in the repository");
const CONTEXT_NAME: Option<&str> = Some("a context's name is made of letters, digits and . _ / : @ -");

async fn inline_files() {
    let cases = [
        ("/spec/suspend", json!(true), None),
        ("/metadata/name", text(52), None),
        ("/metadata/name", text(53), Some("metadata.name is too long: use at most 52 characters")),
        ("/spec/source", json!({}), Some("source needs exactly one of git, inline, http and image: it has none")),
        ("/spec/source/git", json!({"url": "https://git.example/app"}), Some("http and image: it has git inline")),
        ("/spec/source", Value::Null, NO_SOURCE),
        (
            "/spec/source/inline/files",
            json!({"app.sh": ""}),
            Some("source.inline.files does not hold the Dockerfile, Dockerfile:"),
        ),
        ("/spec/dockerfile", json!("Dockerfile.other"), Some("does not hold the Dockerfile, Dockerfile.other:")),
        ("/spec/dockerfile", json!("src/app.sh"), None),
        ("/spec/source/inline/files", json!({}), Some("should have at least 1 properties")),
        (
            "/spec/source/inline/files/~1etc~1passwd",
            json!(""),
            Some("\"/etc/passwd\": a path in inline.files is relative"),
        ),
        ("/spec/source/inline/files/a~1..~1b", json!(""), FILE),
        ("/spec/source/inline/files/a~1.~1b", json!(""), FILE),
        ("/spec/source/inline/files/a~1~1b", json!(""), FILE),
        ("/spec/source/inline/files/a~1", json!(""), FILE),
        ("/spec/source/inline/files/a\nb", json!(""), FILE),
        ("/spec/source/inline/files/.dockerignore", json!(""), None),
        ("/spec/source/inline/files/a..b", json!(""), None),
        ("/spec/source/inline/files/big", text(262_145), LONG),
        (
            "/spec/source/inline/files",
            json!({"Dockerfile": "", "a": text(262_144), "b": text(262_144), "c": text(262_144), "d": text(220_000)}),
            Some("inline.files hold more than 1000000 characters together"),
        ),
    ];
    try_all::<ImageBuild>(true, &good_inline(), &cases).await;
}

async fn none() {
    let mut none = good_inline();
    none["spec"]["source"].take();
    none["spec"]["platforms"] =
        json!([{"name": "linux/amd64", "image": "a:1"}, {"name": "linux/arm64", "archive": "a.tar"}]);
    let cases: [Case; 4] = [
        ("/spec/suspend", json!(true), None),
        ("/spec/platforms/0/image", Value::Null, NO_SOURCE),
        ("/spec/platforms", Value::Null, NO_SOURCE),
        ("/spec/image", Value::Null, Some("are taken into an index: name its repository in image")),
    ];
    try_all::<ImageBuild>(true, &none, &cases).await;
}

async fn git() {
    let cases = [
        ("/spec/suspend", json!(false), None),
        ("/spec/source/git/url", json!("http://git.example/app"), URL),
        ("/spec/source/git/url", json!("git@git.example:team/app"), None),
        ("/spec/source/git/url", json!("ssh://git@git.example/team/app.git"), None),
        ("/spec/source/git/url", json!("ssh://git.example:2222/team/app.git"), None),
        ("/spec/source/git/url", json!("ssh://git:pw@git.example/team/app.git"), SSH_URL),
        ("/spec/source/git/url", json!("ssh://git@git.example"), SSH_URL),
        ("/spec/source/git/url", json!("ssh://-oProxyCommand=x/app"), SSH_URL),
        ("/spec/source/git/url", json!("-oProxyCommand=x@host:app"), URL),
        ("/spec/source/git/url", json!("git@git.example:/team/app"), URL),
        ("/spec/source/git/url", json!("git://git.example/app"), URL),
        ("/spec/source/git/url", json!("/srv/git/app.git"), URL),
        (
            "/spec/source/git/url",
            json!("https://user:pw@git.example/app"),
            // The value is not repeated: it holds a password.
            Some("spec.source.git.url: Invalid value: git.url must not hold a user or password"),
        ),
        ("/spec/source/git/url", json!("https://git.example/@team/app"), None),
        ("/spec/source/git/url", json!("https://git.example/a pp"), SPACES),
        ("/spec/source/git/url", json!("https://git.example/app\n"), SPACES),
        ("/spec/source/git/url", json!("https://git.example/app#main"), SPACES),
        ("/spec/source/git/url", json!("https://git.example/app?ref=main"), SPACES),
        ("/spec/source/git/url", json!(format!("https://{}", "a".repeat(2048))), LONG),
        ("/spec/source/git/ref", json!("release/1.0"), None),
        ("/spec/source/git/ref", json!("refs/tags/v1"), None),
        ("/spec/source/git/ref", json!("--upload-pack=x"), REF),
        ("/spec/source/git/ref", json!("a b"), REF),
        ("/spec/source/git/ref", json!("a..b"), REF),
        ("/spec/source/git/ref", json!("a~1"), REF),
        ("/spec/source/git/ref", json!("a^"), REF),
        ("/spec/source/git/ref", json!("a:b"), REF),
        ("/spec/source/git/ref", json!("a*"), REF),
        ("/spec/source/git/ref", json!("a[b"), REF),
        ("/spec/source/git/ref", json!("a\\b"), REF),
        ("/spec/source/git/ref", json!(""), SHORT),
        ("/spec/source/git/path", json!("services/web"), None),
        ("/spec/source/git/path", json!("/services"), PATH),
        ("/spec/source/git/path", json!("a/../../b"), PATH),
        ("/spec/source/git/interval", json!("0s"), None),
        ("/spec/source/git/interval", json!("5s"), None),
        ("/spec/source/git/interval", json!("4s"), Some("git.interval is 0s (never look again) or at least 5s")),
        ("/spec/source/git/interval", json!("soon"), DURATION),
        ("/spec/source/git/submodules", json!(true), None),
        ("/spec/source/git/lfs", json!(true), None),
        ("/spec/source/git/keepGitDir", json!(true), None),
        (
            "/spec/source/git/fullHistory",
            json!(true),
            Some("git.fullHistory needs git.keepGitDir: true, for the history is in .git"),
        ),
        ("/spec/source/git/secretRef", json!({"name": ""}), SHORT),
        ("/spec/source/git/caRef", json!({"name": "c", "key": ""}), SHORT),
    ];
    try_all::<ImageBuild>(true, &good_git(), &cases).await;

    let mut history = good_git();
    history["spec"]["source"]["git"]["keepGitDir"] = json!(true);
    try_all::<ImageBuild>(true, &history, &[("/spec/source/git/fullHistory", json!(true), None)]).await;
}

async fn http() {
    const PATH: Option<&str> = Some("http.path is a directory in the tarball");
    let checksum = format!("sha256:{}", "0".repeat(64));
    let mut good = good_git();
    good["spec"]["source"] =
        json!({"http": {"url": "https://web.example/app-1.0.tar.gz?download=1", "checksum": checksum}});
    let cases = [
        ("/spec/source/http/path", json!("app-1.0"), None),
        ("/spec/source/http/path", json!("/app"), PATH),
        ("/spec/source/http/path", json!("a/../b"), PATH),
        ("/spec/source/http/url", json!("http://web.example/app.tar"), Some("http.url must begin with https://")),
        (
            "/spec/source/http/url",
            json!("https://user:pw@web.example/app.tar"),
            Some("spec.source.http.url: Invalid value: http.url must not hold a user or password"),
        ),
        ("/spec/source/http/url", json!("https://web.example/@team/app.tar"), None),
        (
            "/spec/source/http/url",
            json!("https://web.example/a b.tar"),
            Some("http.url must not hold spaces, control characters or #"),
        ),
        (
            "/spec/source/http/url",
            json!("https://web.example/a.tar#x"),
            Some("http.url must not hold spaces, control characters or #"),
        ),
        ("/spec/source/http/checksum", Value::Null, Some("spec.source.http.checksum")),
        ("/spec/source/http/checksum", json!("0".repeat(64)), SHORT),
        ("/spec/source/http/checksum", json!(format!("sha256:{}", "G".repeat(64))), Some("should match")),
        ("/spec/source/http/secretRef", json!({"name": "login"}), None),
        ("/spec/source/http/caRef", json!({}), Some("spec.source.http.caRef.name")),
        ("/spec/source/inline", json!({"files": {"Dockerfile": ""}}), ONE_SOURCE),
    ];
    try_all::<ImageBuild>(true, &good, &cases).await;
}

async fn image() {
    const REFERENCE: Option<&str> =
        Some("source.image.ref is registry/path:tag or registry/path@digest, without a scheme");
    const PATH: Option<&str> = Some("source.image.path is a directory in the image");
    let mut good = good_git();
    good["spec"]["source"] = json!({"image": {"ref": "ghcr.io/acme/source:1.2"}});
    let cases = [
        ("/spec/source/image/path", json!("src"), None),
        ("/spec/source/image/path", json!("/src"), PATH),
        ("/spec/source/image/path", json!("../src"), PATH),
        ("/spec/source/image/ref", json!("docker-image://alpine"), REFERENCE),
        ("/spec/source/image/ref", json!("alpine :3"), REFERENCE),
        ("/spec/source/image/ref", json!(""), SHORT),
        ("/spec/source/git", json!({"url": "https://git.example/app"}), ONE_SOURCE),
    ];
    try_all::<ImageBuild>(true, &good, &cases).await;
}

async fn contexts() {
    const REFERENCE: Option<&str> =
        Some("a context's image is registry/path:tag or registry/path@digest, without a scheme");
    let cases = [
        (
            "/spec/contexts",
            json!([
                {"name": "docker.io/library/alpine:3.20", "image": "ghcr.io/acme/alpine@sha256:abc"},
                {"name": "lib", "git": {"url": "https://git.example/lib", "ref": "v1", "path": "src"}},
                {"name": "base", "imageBuild": {"name": "base"}},
            ]),
            None,
        ),
        ("/spec/contexts", json!([{"name": "a"}]), Some("one of image, git and imageBuild: a has none")),
        (
            "/spec/contexts",
            json!([{"name": "a", "image": "b", "imageBuild": {"name": "c"}}]),
            Some("one of image, git and imageBuild: a has image imageBuild"),
        ),
        ("/spec/contexts", json!([{"name": "a", "image": "docker-image://alpine"}]), REFERENCE),
        ("/spec/contexts", json!([{"name": "a", "image": "alpine "}]), REFERENCE),
        ("/spec/contexts", json!([{"name": "a", "imageBuild": {"name": ""}}]), SHORT),
        ("/spec/contexts", json!([{"name": "a", "git": {"url": "http://git.example/lib"}}]), URL),
        ("/spec/contexts", json!([{"name": "context", "image": "b"}]), CONTEXT_NAME),
        ("/spec/contexts", json!([{"name": "dockerfile", "image": "b"}]), CONTEXT_NAME),
        ("/spec/contexts", json!([{"name": "a b", "image": "b"}]), CONTEXT_NAME),
        ("/spec/contexts", json!([{"name": "a=b", "image": "b"}]), CONTEXT_NAME),
        ("/spec/contexts", json!([{"name": "-a", "image": "b"}]), CONTEXT_NAME),
        ("/spec/contexts", list(2, |_| json!({"name": "a", "image": "b"})), TWICE),
        ("/spec/contexts", list(17, |number| json!({"name": format!("a{number}"), "image": "b"})), MANY),
    ];
    try_all::<ImageBuild>(true, &good_git(), &cases).await;
}
