//! Every rule and bound of the API, against the real API server: it accepts what is right, and refuses what is wrong in
//! words that tell what to write instead. Nothing is stored, but for the runs whose changes are judged.

mod builder_pool;
mod image_build;
mod source;
mod steps;

use kiln_crds::ImageBuildRun;
use kiln_e2e::{Build, Cluster, Tenant};
use kube::api::{DynamicObject, Patch, PatchParams, PostParams};
use kube::core::ApiResource;
use kube::{Api, Resource, ResourceExt as _};
use serde_json::{Value, json};

kiln_e2e::tests![runs; in builder_pool, image_build, source, steps];

/// A change to a good object: a JSON pointer and the value to put there, `null` to take the field away; and a part of
/// the message that refuses it, or none where it is as good as before.
type Case = (&'static str, Value, Option<&'static str>);

// Parts of the messages that refuse.
const DURATION: Option<&str> = Some("should match");
const MANY: Option<&str> = Some("must have at most");
const TWICE: Option<&str> = Some("Duplicate value");
const SHORT: Option<&str> = Some("should be at least");
const LONG: Option<&str> = Some("Too long");
const DOCKERFILE: Option<&str> = Some(
    "dockerfile is a path relative to the context's directory, without a leading /; .. may only stand at its beginning",
);
const ARGUMENT: Option<&str> = Some("the name of a build argument is made of letters, digits and _");

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

async fn runs() {
    const FIXED: &str = "a run's spec cannot be changed, but for cancel";
    let build = good_inline()["spec"].clone();
    let copy =
        json!({"ref": "r/a@sha256:b", "repository": "r/a", "digest": "sha256:b", "pushedAt": "2026-01-01T00:00:00Z"});
    let good = json!({
        "metadata": {"name": "good-1"},
        "spec": {"imageBuild": {"name": "good", "uid": "u"}, "number": 1, "commit": "c", "ref": "refs/heads/main", "inputHash": "v1:h", "contentHash": "v1:c", "resolved": [{"field": "contexts/base", "image": "a@sha256:b"}], "fresh": true, "copyOf": copy, "build": build},
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
            ("/spec/build/image/repository", json!("https://x"), Some("spec.build.image.repository: Invalid value: \"https://x\": a repository is written without a scheme")),
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
            (json!({"contentHash": "other"}), Some(FIXED)),
            (json!({"contentHash": null}), Some(FIXED)),
            (json!({"resolved": [{"field": "contexts/base", "image": "other@sha256:b"}]}), Some(FIXED)),
            (json!({"resolved": null}), Some(FIXED)),
            (json!({"fresh": false}), Some(FIXED)),
            (json!({"fresh": null}), Some(FIXED)),
            (json!({"copyOf": {"digest": "sha256:other"}}), Some(FIXED)),
            (json!({"copyOf": null}), Some(FIXED)),
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
