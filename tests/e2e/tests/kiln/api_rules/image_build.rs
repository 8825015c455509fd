//! What an ImageBuild may say, but for its sources.

use kiln_crds::ImageBuild;
use serde_json::{Value, json};

use super::{ARGUMENT, Case, DOCKERFILE, DURATION, LONG, MANY, SHORT, TWICE, good_inline, list, many, try_all};

kiln_e2e::tests![content, platforms, target, ways, form_of_the_image, neither_image_nor_both];

const PLATFORM: Option<&str> = Some("a platform is os/architecture or os/architecture/variant");
const PLATFORM_ARCHIVE: Option<&str> = Some("a platform's archive is a relative path, such as app.tar, without ..");
const NOT_BUILT: Option<&str> =
    Some("a platform with image or archive is not built: leave out its dockerfile, target, args and buildOn; it has ");
const REPOSITORY: Option<&str> = Some("a repository is registry/path, the path of words of lower case letters");
const NO_TAG: Option<&str> = Some("a repository is written without tag and digest");
const CAPITALS: Option<&str> = Some("a repository has capital letters: write its path in lower case");
const HOST: Option<&str> = Some("this is a registry's host alone: add the repository's path");
const TAG: Option<&str> = Some("a tag is made of letters, digits and _ . -");
const ARCHIVE: Option<&str> = Some("archive.path is a relative path that ends in .tar, such as app.tar, without ..");

async fn content() {
    let cases = [
        ("/spec/target", json!(""), SHORT),
        ("/spec/args", json!({"A_1": "", "_b": "x"}), None),
        ("/spec/args", json!({"1A": ""}), ARGUMENT),
        ("/spec/args", json!({"A": "", "a-b": ""}), Some("\"a-b\": the name of a build argument is made of")),
        ("/spec/args", json!({"": ""}), ARGUMENT),
        ("/spec/args", json!({"A": "a".repeat(8193)}), LONG),
        ("/spec/args", many(129), Some("must have at most 128")),
        ("/spec/labels", many(129), Some("must have at most 128")),
        ("/spec/annotations", many(129), Some("must have at most 128")),
        ("/spec/secrets/0/id", json!("a b"), Some("should match")),
        ("/spec/secrets/0/secretRef/key", Value::Null, Some("spec.secrets[0].secretRef.key")),
        ("/spec/secrets", list(2, |_| json!({"id": "a", "secretRef": {"name": "s", "key": "k"}})), TWICE),
        (
            "/spec/secrets",
            list(33, |number| json!({"id": format!("a{number}"), "secretRef": {"name": "s", "key": "k"}})),
            MANY,
        ),
    ];
    try_all::<ImageBuild>(true, &good_inline(), &cases).await;
}

async fn platforms() {
    let cases = [
        ("/spec/platforms", Value::Null, None),
        ("/spec/platforms", json!([]), Some("should have at least 1 items")),
        ("/spec/platforms", list(17, |number| json!({"name": format!("linux/a{number}")})), MANY),
        ("/spec/platforms", list(2, |_| json!({"name": "linux/amd64"})), TWICE),
        ("/spec/platforms/0/name", json!("amd64"), PLATFORM),
        ("/spec/platforms/0/name", json!("linux/amd64/v1/x"), PLATFORM),
        ("/spec/platforms/0/name", json!("linux/am d64"), PLATFORM),
        ("/spec/platforms/0/name", json!("linux/x86_64"), None),
        ("/spec/platforms/0/dockerfile", json!("../Dockerfile"), None),
        ("/spec/platforms/0/dockerfile", json!("a/../Dockerfile"), DOCKERFILE),
        ("/spec/platforms/0/target", json!(""), SHORT),
        ("/spec/platforms/0/buildOn", json!("linux/arm64"), None),
        ("/spec/platforms/0/buildOn", json!("amd64"), Some("buildOn is a linux platform, such as linux/amd64")),
        ("/spec/platforms/0/buildOn", json!("windows/amd64"), Some("buildOn is a linux platform, such as linux/amd64")),
        ("/spec/platforms/2/image", json!("registry.example/app@sha256:abc"), None),
        (
            "/spec/platforms/2/image",
            json!("https://registry.example/app:1"),
            Some("a platform's image is registry/path:tag"),
        ),
        ("/spec/platforms/2/image", json!("app: 1"), Some("a platform's image is registry/path:tag")),
        (
            "/spec/platforms/2",
            json!({"name": "linux/386", "image": "a:1", "archive": "a.tar"}),
            Some("a platform is taken from image or from archive"),
        ),
        ("/spec/platforms/2", json!({"name": "linux/386", "image": "a:1", "dockerfile": "D"}), NOT_BUILT),
        ("/spec/platforms/2", json!({"name": "linux/386", "image": "a:1", "target": "t"}), NOT_BUILT),
        ("/spec/platforms/2", json!({"name": "linux/386", "image": "a:1", "args": {"A": "b"}}), NOT_BUILT),
        (
            "/spec/platforms/2",
            json!({"name": "linux/386", "archive": "a.tar", "buildOn": "linux/amd64"}),
            Some("args and buildOn; it has buildOn"),
        ),
        ("/spec/platforms/2/archive", json!("images/app.tar"), None),
        ("/spec/platforms/2/archive", json!("/app.tar"), PLATFORM_ARCHIVE),
        ("/spec/platforms/2/archive", json!("a/../app.tar"), PLATFORM_ARCHIVE),
        ("/spec/platforms/2/archive", json!("a//app.tar"), PLATFORM_ARCHIVE),
        ("/spec/platforms/0/args", json!({"a.b": ""}), ARGUMENT),
    ];
    try_all::<ImageBuild>(true, &good_inline(), &cases).await;
}

async fn target() {
    let cases = [
        // A check.
        ("/spec/image", Value::Null, None),
        ("/spec/image/repository", Value::Null, Some("spec.image.repository")),
        ("/spec/image/repository", json!("https://ghcr.io/acme/app"), Some("a repository is written without a scheme")),
        ("/spec/image/repository", json!("ghcr.io/acme/app:v1"), NO_TAG),
        ("/spec/image/repository", json!(format!("ghcr.io/acme/app@sha256:{}", "a".repeat(64))), NO_TAG),
        ("/spec/image/repository", json!("ghcr.io/Acme/app"), CAPITALS),
        ("/spec/image/repository", json!("Acme/app"), CAPITALS),
        ("/spec/image/repository", json!("ghcr.io/acme/App"), CAPITALS),
        ("/spec/image/repository", json!("GHCR.io/acme/app"), None),
        ("/spec/image/repository", json!("ghcr.io"), HOST),
        ("/spec/image/repository", json!("ghcr.io/"), HOST),
        ("/spec/image/repository", json!("registry.example:5000"), HOST),
        ("/spec/image/repository", json!("registry:5000"), HOST),
        ("/spec/image/repository", json!("localhost"), HOST),
        ("/spec/image/repository", json!("app:v1"), NO_TAG),
        ("/spec/image/repository", json!("ghcr.io/acme/a..b"), REPOSITORY),
        ("/spec/image/repository", json!("ghcr.io/acme/a___b"), REPOSITORY),
        ("/spec/image/repository", json!("GHCR.io/acme/a..b"), REPOSITORY),
        ("/spec/image/repository", json!("acme/a__b.c---d_e"), None),
        ("/spec/image/repository", json!("app"), None),
        ("/spec/image/repository", json!("ghcr.io/acme/app/"), REPOSITORY),
        ("/spec/image/repository", json!("ghcr.io/acme//app"), REPOSITORY),
        ("/spec/image/repository", json!("ghcr.io/acme/a pp"), REPOSITORY),
        ("/spec/image/repository", json!("localhost:5000/app"), None),
        ("/spec/image/repository", json!("[fd00::1]:5000/app"), None),
        ("/spec/image/repository", json!("[fd00::1]/acme/app"), None),
        ("/spec/image/repository", json!("[fd00::1]:5000"), HOST),
        ("/spec/image/repository", json!("acme/my__app"), None),
        (
            "/spec/image/tags",
            json!(["v1.2.3_x-y", "{{branch}}", "v{{ shortCommit }}-{{timestamp}}", "{{run}}", "{{commit}}"]),
            None,
        ),
        ("/spec/image/tags", json!([".v1"]), TAG),
        ("/spec/image/tags", json!(["-v1"]), TAG),
        ("/spec/image/tags", json!(["v 1"]), TAG),
        ("/spec/image/tags", json!(["v1/2"]), TAG),
        (
            "/spec/image/tags",
            json!(["ok", "v 1"]),
            Some("spec.image.tags[1]: Invalid value: \"v 1\": a tag is made of"),
        ),
        (
            "/spec/image/tags",
            json!(["ok", "{{branc}}"]),
            Some(
                "spec.image.tags[1]: Invalid value: \"{{branc}}\": no such variable: there are {{branch}}, {{commit}}",
            ),
        ),
        ("/spec/image/tags", json!(["{{run}}-{{ date }}"]), Some("no such variable")),
        ("/spec/image/tags", json!(["{{run}"]), TAG),
        ("/spec/image/tags", json!(["run}}"]), TAG),
        ("/spec/image/tags", json!([""]), SHORT),
        ("/spec/image/tags", json!(["a".repeat(129)]), LONG),
        ("/spec/image/tags", json!(["a", "a"]), TWICE),
        ("/spec/image/tags", list(33, |number| json!(format!("t{number}"))), MANY),
        ("/spec/image/secretRef/name", json!(""), SHORT),
        ("/spec/image/caRef/kind", json!("Certificate"), Some("supported values: \"ConfigMap\", \"Secret\"")),
        ("/spec/pullSecretRefs", list(2, |_| json!({"name": "s"})), TWICE),
        ("/spec/pullSecretRefs", list(17, |number| json!({"name": format!("s{number}")})), MANY),
    ];
    try_all::<ImageBuild>(true, &good_inline(), &cases).await;
}

async fn ways() {
    let cases = [
        ("/spec/cache", json!({"maxAge": "168h", "inline": true, "from": ["ghcr.io/acme/app:main"]}), None),
        ("/spec/cache", json!({"maxAge": "9s"}), Some("cache.maxAge is at least 10s, such as 168h")),
        ("/spec/cache", json!({"maxAge": "7d"}), DURATION),
        ("/spec/cache", json!({"registry": {"ref": "ghcr.io/acme/app:cache", "mode": "Min"}}), None),
        (
            "/spec/cache",
            json!({"registry": {"ref": "ghcr.io/acme/app:cache", "mode": "All"}}),
            Some("supported values: \"Min\", \"Max\""),
        ),
        ("/spec/cache", json!({"registry": {"ref": "type=registry,ref=x"}}), Some("should match")),
        ("/spec/cache", json!({"registry": {}}), Some("spec.cache.registry.ref")),
        ("/spec/cache", json!({"from": ["type=registry,ref=x"]}), Some("should match")),
        ("/spec/cache", json!({"from": ["a", "a"]}), TWICE),
        ("/spec/cache", json!({"from": list(9, |number| json!(format!("a{number}")))}), MANY),
        ("/spec/silenceTimeout", json!("10m"), None),
        ("/spec/silenceTimeout", json!("0s"), Some("silenceTimeout is at least 1s, such as 10m")),
        ("/spec/cache", json!({"scope": "Cluster"}), Some("supported values: \"Namespace\", \"ImageBuild\"")),
        ("/spec/timeout", json!("1h30m"), None),
        ("/spec/timeout", json!("0s"), Some("timeout is at least 1s")),
        ("/spec/timeout", json!("1 hour"), DURATION),
        ("/spec/timeout", json!("-5m"), DURATION),
        ("/spec/retries", json!(11), Some("less than or equal to 10")),
        ("/spec/retries", json!(-1), Some("greater than or equal to 0")),
        ("/spec/history", json!({"successful": 0, "failed": 100}), None),
        ("/spec/history", json!({"successful": 101}), Some("less than or equal to 100")),
        ("/spec/history", json!({"failed": -1}), Some("greater than or equal to 0")),
        ("/spec/pool", json!(""), SHORT),
    ];
    try_all::<ImageBuild>(true, &good_inline(), &cases).await;
}

async fn form_of_the_image() {
    let cases = [
        (
            "/spec/image/copies",
            json!([{"repository": "quay.io/acme/app", "tags": ["v1", "{{branch}}"], "secretRef": {"name": "q"}}]),
            None,
        ),
        (
            "/spec/image/copies",
            json!([{"repository": "https://quay.io/acme/app"}]),
            Some("spec.image.copies[0].repository: Invalid value: \"https://quay.io/acme/app\": a repository is"),
        ),
        ("/spec/image/copies", json!([{"repository": "quay.io/acme/app:v1"}]), NO_TAG),
        ("/spec/image/copies", json!([{"repository": "quay.io/Acme/app"}]), CAPITALS),
        ("/spec/image/copies", json!([{"repository": "quay.io/acme/app", "tags": ["v 1"]}]), TAG),
        ("/spec/image/copies", json!([{"tags": ["v1"]}]), Some("spec.image.copies[0].repository")),
        ("/spec/image/copies", list(2, |_| json!({"repository": "quay.io/acme/app"})), TWICE),
        ("/spec/image/copies", list(9, |number| json!({"repository": format!("quay.io/acme/app{number}")})), MANY),
        ("/spec/image/mediaTypes", json!("Docker"), None),
        ("/spec/image/mediaTypes", json!("docker"), Some("supported values: \"OCI\", \"Docker\"")),
        ("/spec/image/compression", json!({"type": "gzip", "level": 9, "force": true}), None),
        ("/spec/image/compression", json!({"type": "gzip", "level": 10}), Some("level is 0 to 9 for gzip")),
        ("/spec/image/compression", json!({"type": "estargz", "level": 10}), Some("level is 0 to 9 for estargz")),
        ("/spec/image/compression", json!({"type": "zstd", "level": 22}), None),
        ("/spec/image/compression", json!({"type": "zstd", "level": 23}), Some("less than or equal to 22")),
        ("/spec/image/compression", json!({"type": "uncompressed"}), None),
        ("/spec/image/compression", json!({"type": "uncompressed", "level": 0}), Some("uncompressed has no level")),
        (
            "/spec/image/compression",
            json!({"type": "xz"}),
            Some("supported values: \"gzip\", \"zstd\", \"estargz\", \"uncompressed\""),
        ),
        ("/spec/image/compression", json!({"level": 3}), Some("spec.image.compression.type")),
        ("/spec/image/allowForeignPrograms", json!(["/app"]), None),
        (
            "/spec/image/allowForeignPrograms",
            json!(["app"]),
            Some(
                "spec.image.allowForeignPrograms[0]: Invalid value: \"app\": allowForeignPrograms lists absolute paths",
            ),
        ),
        ("/spec/image/growthWarningPercent", json!(1), None),
        ("/spec/image/growthWarningPercent", json!(0), Some("greater than or equal to 1")),
        ("/spec/image/growthWarningPercent", json!(10001), Some("less than or equal to 10000")),
    ];
    try_all::<ImageBuild>(true, &good_inline(), &cases).await;

    let mut docker = good_inline();
    docker["spec"]["image"]["mediaTypes"] = json!("Docker");
    let cases = [
        ("/spec/image/compression", json!({"type": "gzip"}), None),
        ("/spec/image/compression", json!({"type": "zstd"}), Some("zstd layers need the OCI media types")),
        ("/spec/annotations", json!({}), None),
        ("/spec/annotations", json!({"a": "b"}), Some("Docker's media types have no annotations")),
    ];
    try_all::<ImageBuild>(true, &docker, &cases).await;
}

async fn neither_image_nor_both() {
    let cases = [("/spec/archive", json!({"path": "app.tar"}), Some("not to both"))];
    try_all::<ImageBuild>(true, &good_inline(), &cases).await;

    let mut check = good_inline();
    check["spec"]["image"].take();
    let cases: [Case; 10] = [
        ("/spec/archive", json!({"path": "app.tar"}), None),
        ("/spec/archive", json!({"path": "a{b}-{{ run }}.tar"}), None),
        ("/spec/archive", json!({"path": "{{brnach}}.tar"}), Some("no such variable")),
        ("/spec/archive", json!({"path": "images/{{shortCommit}}.tar"}), None),
        ("/spec/archive", json!({"path": "app.tar.gz"}), ARCHIVE),
        ("/spec/archive", json!({"path": "/app.tar"}), ARCHIVE),
        ("/spec/archive", json!({"path": "../app.tar"}), ARCHIVE),
        ("/spec/archive", json!({"path": "./app.tar"}), ARCHIVE),
        ("/spec/archive", json!({"path": "a//app.tar"}), ARCHIVE),
        ("/spec/platforms/0/image", json!("a:1"), Some("are taken into an index: name its repository in image")),
    ];
    try_all::<ImageBuild>(true, &check, &cases).await;
}
