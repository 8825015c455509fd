//! Every rule and bound of the API, against the real API server: it accepts what is right, and refuses what is wrong in
//! words that tell what to write instead. Nothing is stored, but for the runs whose changes are judged.

use kiln_crds::{BuilderPool, ImageBuild, ImageBuildRun};
use kiln_e2e::{Build, Cluster, Tenant};
use kube::api::{DynamicObject, Patch, PatchParams, PostParams};
use kube::core::ApiResource;
use kube::{Api, Resource, ResourceExt as _};
use serde_json::{Value, json};

/// A change to a good object: a JSON pointer and the value to put there, `null` to take the field away; and a part of
/// the message that refuses it, or none where it is as good as before.
type Case = (&'static str, Value, Option<&'static str>);

// Parts of the messages that refuse.
const PLATFORM: Option<&str> = Some("a platform is os/architecture or os/architecture/variant");
const REPOSITORY: Option<&str> = Some("image.repository is registry/path, the path in lower case letters");
const NO_TAG: Option<&str> = Some("image.repository is written without tag and digest");
const TAG: Option<&str> = Some("a tag is made of letters, digits and _ . -");
const ARGUMENT: Option<&str> = Some("the name of a build argument is made of letters, digits and _");
const DOCKERFILE: Option<&str> = Some("dockerfile is a path below the context's directory");
const FILE: Option<&str> = Some("a path in inline.files is relative");
const DURATION: Option<&str> = Some("should match");
const LONG: Option<&str> = Some("Too long");
const MANY: Option<&str> = Some("must have at most");
const TWICE: Option<&str> = Some("Duplicate value");
const SHORT: Option<&str> = Some("should be at least");
const SPACES: Option<&str> = Some("git.url must not hold spaces, control characters, ? or #");
const REF: Option<&str> = Some("git.ref is a branch, a tag, a full ref or a full commit id");
const PATH: Option<&str> = Some("git.path is a directory in the repository");

/// Tries each case on a copy of a good object; all that went otherwise are told together.
async fn try_all<K: Resource<DynamicType = ()>>(namespaced: bool, good: &Value, cases: &[Case]) {
    let client = Cluster::new().await.client;
    let kind = ApiResource::erase::<K>(&());
    let api: Api<DynamicObject> =
        if namespaced { Api::namespaced_with(client, "default", &kind) } else { Api::all_with(client, &kind) };
    let parameters = PostParams { dry_run: true, ..PostParams::default() };
    let mut wrong = Vec::new();
    for (pointer, value, refused) in cases {
        let mut object = good.clone();
        put(&mut object, pointer, value.clone());
        object["apiVersion"] = json!(K::api_version(&()));
        object["kind"] = json!(K::kind(&()));
        let object: DynamicObject = serde_json::from_value(object).unwrap();
        let shown: String = value.to_string().chars().take(100).collect();
        match (api.create(&parameters, &object).await, refused) {
            (Ok(_), None) => {}
            (Ok(_), Some(message)) => wrong.push(format!("{pointer} = {shown}: accepted, expected {message:?}")),
            (Err(error), None) => wrong.push(format!("{pointer} = {shown}: refused: {error}")),
            (Err(error), Some(message)) if error.to_string().contains(message) => {}
            (Err(error), Some(message)) => {
                wrong.push(format!("{pointer} = {shown}: expected {message:?}, got: {error}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}:\n{}", K::kind(&()), wrong.join("\n"));
}

/// Sets the value at a JSON pointer, making the objects on the way.
fn put(object: &mut Value, pointer: &str, value: Value) {
    let mut place = object;
    for part in pointer.split('/').skip(1) {
        let part = part.replace("~1", "/");
        place = match part.parse::<usize>() {
            Ok(index) => &mut place[index],
            Err(_) => &mut place[part],
        };
    }
    *place = value;
}

fn good_inline() -> Value {
    json!({
        "metadata": {"name": "good"},
        "spec": {
            "source": {"inline": {"files": {"Dockerfile": "FROM scratch", "src/app.sh": ""}}},
            "platforms": [{"name": "linux/amd64"}, {"name": "linux/arm/v7"}, {"name": "windows(10.0.20348)/amd64"}],
            "image": {"repository": "registry.example:5000/team/app", "tags": ["v1"], "secretRef": {"name": "s"}, "caRef": {"name": "c"}},
            "secrets": [{"id": "token", "secretRef": {"name": "s", "key": "k"}}],
        },
    })
}

fn good_git() -> Value {
    json!({
        "metadata": {"name": "good"},
        "spec": {"source": {"git": {"url": "https://git.example/team/app.git"}}, "image": {"repository": "ghcr.io/acme/app"}},
    })
}

fn text(length: usize) -> Value {
    json!("a".repeat(length))
}

/// An object of so many fields.
fn many(count: usize) -> Value {
    (0..count).map(|number| (format!("k{number}"), json!("v"))).collect::<serde_json::Map<_, _>>().into()
}

/// A list of so many entries.
fn list(count: usize, entry: impl Fn(usize) -> Value) -> Value {
    (0..count).map(entry).collect()
}

#[tokio::test]
async fn image_build_from_files() {
    let cases = [
        ("/spec/suspend", json!(true), None),
        ("/metadata/name", text(52), None),
        ("/metadata/name", text(53), Some("metadata.name is too long: use at most 52 characters")),
        ("/spec/source", json!({}), Some("source needs exactly one of git and inline")),
        (
            "/spec/source/git",
            json!({"url": "https://git.example/app"}),
            Some("source needs exactly one of git and inline"),
        ),
        ("/spec/source", Value::Null, Some("spec.source")),
        ("/spec/source/inline/files", json!({"app.sh": ""}), Some("source.inline.files does not hold the Dockerfile")),
        ("/spec/dockerfile", json!("Dockerfile.other"), Some("source.inline.files does not hold the Dockerfile")),
        ("/spec/dockerfile", json!("src/app.sh"), None),
        ("/spec/source/inline/files", json!({}), Some("should have at least 1 properties")),
        ("/spec/source/inline/files/~1etc~1passwd", json!(""), FILE),
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

#[tokio::test]
async fn image_build_content() {
    let cases = [
        ("/spec/dockerfile", json!("/Dockerfile"), DOCKERFILE),
        ("/spec/dockerfile", json!("a/../../Dockerfile"), DOCKERFILE),
        ("/spec/dockerfile", json!(""), SHORT),
        ("/spec/target", json!(""), SHORT),
        ("/spec/args", json!({"A_1": "", "_b": "x"}), None),
        ("/spec/args", json!({"1A": ""}), ARGUMENT),
        ("/spec/args", json!({"a-b": ""}), ARGUMENT),
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

#[tokio::test]
async fn image_build_platforms() {
    let cases = [
        ("/spec/platforms", Value::Null, None),
        ("/spec/platforms", json!([]), Some("should have at least 1 items")),
        ("/spec/platforms", list(17, |number| json!({"name": format!("linux/a{number}")})), MANY),
        ("/spec/platforms", list(2, |_| json!({"name": "linux/amd64"})), TWICE),
        ("/spec/platforms/0/name", json!("amd64"), PLATFORM),
        ("/spec/platforms/0/name", json!("linux/amd64/v1/x"), PLATFORM),
        ("/spec/platforms/0/name", json!("linux/am d64"), PLATFORM),
        ("/spec/platforms/0/name", json!("linux/x86_64"), None),
        ("/spec/platforms/0/dockerfile", json!("../Dockerfile"), DOCKERFILE),
        ("/spec/platforms/0/args", json!({"a.b": ""}), ARGUMENT),
    ];
    try_all::<ImageBuild>(true, &good_inline(), &cases).await;
}

#[tokio::test]
async fn image_build_target() {
    let cases = [
        ("/spec/image", Value::Null, Some("spec.image")),
        ("/spec/image/repository", Value::Null, Some("spec.image.repository")),
        (
            "/spec/image/repository",
            json!("https://ghcr.io/acme/app"),
            Some("image.repository is written without a scheme"),
        ),
        ("/spec/image/repository", json!("ghcr.io/acme/app:v1"), NO_TAG),
        ("/spec/image/repository", json!(format!("ghcr.io/acme/app@sha256:{}", "a".repeat(64))), NO_TAG),
        ("/spec/image/repository", json!("ghcr.io/Acme/app"), REPOSITORY),
        ("/spec/image/repository", json!("ghcr.io/acme/app/"), REPOSITORY),
        ("/spec/image/repository", json!("ghcr.io/acme//app"), REPOSITORY),
        ("/spec/image/repository", json!("ghcr.io/acme/a pp"), REPOSITORY),
        ("/spec/image/repository", json!("localhost:5000/app"), None),
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
        ("/spec/image/tags", json!(["{{date}}"]), TAG),
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

#[tokio::test]
async fn image_build_ways() {
    let cases = [
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

#[tokio::test]
async fn image_build_from_git() {
    let cases = [
        ("/spec/suspend", json!(false), None),
        ("/spec/source/git/url", json!("http://git.example/app"), Some("git.url must begin with https://")),
        ("/spec/source/git/url", json!("git@git.example:team/app"), Some("git.url must begin with https://")),
        (
            "/spec/source/git/url",
            json!("https://user:pw@git.example/app"),
            Some("git.url must not hold a user or password"),
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
        ("/spec/source/git/secretRef", json!({"name": ""}), SHORT),
        ("/spec/source/git/caRef", json!({"name": "c", "key": ""}), SHORT),
    ];
    try_all::<ImageBuild>(true, &good_git(), &cases).await;
}

#[tokio::test]
async fn builder_pool() {
    const HOST: Option<&str> = Some("spec.registries[0].host");
    const MIRROR: Option<&str> = Some("spec.registries[0].mirrors[0]");
    let good = json!({
        "metadata": {"name": "good"},
        "spec": {"registries": [{"host": "docker.io", "mirrors": ["mirror.example:5000/docker.io"]}], "caRefs": [{"name": "c"}]},
    });
    try_all::<BuilderPool>(
        false,
        &good,
        &[
            ("/spec/default", json!(true), None),
            ("/metadata/name", text(40), None),
            ("/metadata/name", text(41), Some("metadata.name is too long: use at most 40 characters")),
            ("/spec/architectures", json!(["amd64", "arm64"]), None),
            ("/spec/architectures", json!([]), Some("should have at least 1 items")),
            ("/spec/architectures", json!(["amd64", "amd64"]), Some("Duplicate value")),
            ("/spec/architectures", list(17, |number| json!(format!("a{number}"))), MANY),
            ("/spec/securityProfile", json!("Rootless"), None),
            (
                "/spec/securityProfile",
                json!("Privileged"),
                Some("supported values: \"Auto\", \"UserNamespace\", \"Rootless\""),
            ),
            ("/spec/maxBuilders", json!(0), Some("greater than or equal to 1")),
            ("/spec/maxBuilders", json!(1001), Some("less than or equal to 1000")),
            ("/spec/maxJobsPerBuilder", json!(0), Some("greater than or equal to 1")),
            ("/spec/maxJobsPerBuilder", json!(65), Some("less than or equal to 64")),
            ("/spec/limits", json!({"buildersPerNamespace": 0}), Some("greater than or equal to 1")),
            ("/spec/idleTimeout", json!("0s"), None),
            ("/spec/idleTimeout", json!("half an hour"), DURATION),
            ("/spec/schedulingTimeout", json!("10"), DURATION),
            ("/spec/cache", json!({"size": "10Gi", "storageClassName": "fast", "retention": "168h"}), None),
            ("/spec/cache", json!({"size": "0"}), None),
            ("/spec/cache", json!({"size": 0}), None),
            ("/spec/cache", json!({"size": "large"}), Some("cache.size is a quantity such as 20Gi")),
            ("/spec/cache", json!({"size": "-1Gi"}), Some("cache.size is a quantity such as 20Gi")),
            ("/spec/cache", json!({"retention": "7d"}), DURATION),
            ("/spec/template", json!({"nodeSelector": many(129)}), Some("must have at most 128")),
            ("/spec/template", json!({"tolerations": list(33, |_| json!({"operator": "Exists"}))}), MANY),
            ("/spec/registries/0/host", json!("https://docker.io"), HOST),
            ("/spec/registries/0/host", json!("docker.io/library"), HOST),
            ("/spec/registries/0/host", json!("registry.example:5000"), None),
            ("/spec/registries/0/mirrors", json!(["https://mirror.example"]), MIRROR),
            ("/spec/registries/0/mirrors", list(9, |number| json!(format!("m{number}"))), MANY),
            ("/spec/registries", list(2, |_| json!({"host": "docker.io"})), Some("Duplicate value")),
            ("/spec/caRefs/0", json!({}), Some("spec.caRefs[0].name")),
            ("/spec/caRefs", list(17, |number| json!({"name": format!("c{number}")})), MANY),
        ],
    )
    .await;
}

#[tokio::test]
async fn image_build_run() {
    const FIXED: &str = "a run's spec cannot be changed, but for cancel";
    let build = good_inline()["spec"].clone();
    let good = json!({
        "metadata": {"name": "good-1"},
        "spec": {"imageBuild": {"name": "good", "uid": "u"}, "number": 1, "commit": "c", "ref": "refs/heads/main", "inputHash": "v1:h", "build": build},
    });
    try_all::<ImageBuildRun>(
        true,
        &good,
        &[
            ("/spec/cancel", json!(true), None),
            ("/spec/number", json!(0), Some("greater than or equal to 1")),
            ("/spec/imageBuild", Value::Null, Some("spec.imageBuild")),
            ("/spec/imageBuild/uid", json!(""), Some("should be at least")),
            ("/spec/inputHash", Value::Null, Some("spec.inputHash")),
            ("/spec/build/image/repository", json!("https://x"), Some("image.repository is written without a scheme")),
        ],
    )
    .await;

    // Rules for changes need a stored object. It is cancelled from the start, and its owner is suspended.
    Tenant::run("rules", async |tenant| {
        let owner = tenant
            .create_build(
                &Build::inline(tenant, "good", &[("Dockerfile", "FROM scratch")]).with(|spec| spec.suspend = true),
            )
            .await;
        let mut object = good.clone();
        object["metadata"] = json!({"name": "good-1", "ownerReferences": [owner.controller_owner_ref(&()).unwrap()]});
        object["spec"]["imageBuild"] = json!({"name": "good", "uid": owner.uid().unwrap()});
        object["spec"]["cancel"] = json!(true);
        object["apiVersion"] = json!(ImageBuildRun::api_version(&()));
        object["kind"] = json!("ImageBuildRun");
        let run: ImageBuildRun = serde_json::from_value(object.clone()).unwrap();
        tenant.runs().create(&PostParams::default(), &run).await.unwrap();

        let change = PatchParams { dry_run: true, ..PatchParams::default() };
        let cases = [
            (json!({"number": 2}), Some(FIXED)),
            (json!({"imageBuild": {"name": "other"}}), Some(FIXED)),
            (json!({"imageBuild": {"uid": "other"}}), Some(FIXED)),
            (json!({"commit": "other"}), Some(FIXED)),
            (json!({"commit": null}), Some(FIXED)),
            (json!({"ref": "other"}), Some(FIXED)),
            (json!({"ref": null}), Some(FIXED)),
            (json!({"inputHash": "other"}), Some(FIXED)),
            (json!({"build": {"target": "other"}}), Some(FIXED)),
            (json!({"build": {"source": {"inline": {"files": {"Dockerfile": "FROM other"}}}}}), Some(FIXED)),
            (json!({"cancel": false}), Some("a cancelled run cannot be taken up again")),
            (json!({"cancel": null}), Some("a cancelled run cannot be taken up again")),
            (json!({"cancel": true}), None),
        ];
        let mut wrong = Vec::new();
        for (spec, refused) in cases {
            let result = tenant.runs().patch("good-1", &change, &Patch::Merge(json!({"spec": spec}))).await;
            match (result, refused) {
                (Ok(_), None) => {}
                (Err(error), Some(message)) if error.to_string().contains(message) => {}
                (result, refused) => wrong.push(format!("{spec}: expected {refused:?}, got {:?}", result.map(drop))),
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));

        // Once from false to true.
        object["metadata"]["name"] = json!("good-2");
        object["spec"]["number"] = json!(2);
        object["spec"]["cancel"] = json!(false);
        let run: ImageBuildRun = serde_json::from_value(object).unwrap();
        tenant.runs().create(&PostParams::default(), &run).await.unwrap();
        tenant
            .runs()
            .patch("good-2", &PatchParams::default(), &Patch::Merge(json!({"spec": {"cancel": true}})))
            .await
            .unwrap();
    })
    .await;
}
