//! Whatever an ImageBuild may hold comes through into its run: specs are made from the schema, each bound's edge values among
//! them, and where the API server takes the ImageBuild, it has to take the run that the operator makes of it, whole. Nothing is
//! stored. `KILN_SPECS` says how many (300), `KILN_SEED` where they begin.
//!
//! The first specs have one field each beside what it needs, with a usual value: so each field is known to be tried.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "this code runs in tests only")]

mod specs;

use std::collections::BTreeMap;

use fastrand::Rng;
use futures::{StreamExt as _, stream};
use k8s_openapi::jiff::Timestamp;
use kiln_crds::image_build::{BuiltImage, Resolved};
use kiln_crds::{ImageBuild, ImageBuildRun, Platform};
use kiln_operator::git;
use kiln_operator::image_build::apply::{self, Input};
use kiln_operator::image_build::dereference::Found;
use kiln_operator::image_build::{input, plan, resolve};
use kiln_registry::{Reference, Repository};
use kube::api::{DynamicObject, PostParams};
use kube::core::ApiResource;
use kube::{Api, Client, Resource};
use serde_json::{Value, json};

use crate::specs::Specs;

/// As many requests at once.
const AT_ONCE: usize = 8;
/// The largest number of a run that is believed.
const LAST_RUN: u64 = 1_000_000_000;

/// What became of a spec.
enum Outcome {
    /// The API server refuses the ImageBuild.
    Refused(String),
    /// The operator makes no run, and says why.
    NoRun,
    /// The API server takes both.
    Through,
    /// The run is not what it has to be.
    Broken(String),
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok().filter(|text| !text.is_empty())?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

#[tokio::test]
#[ignore = "it needs a cluster with Kiln's definitions: tests/run"]
async fn whatever_an_image_build_holds_comes_through_into_its_run() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    assert!(std::env::var_os("KUBECONFIG").is_some(), "KUBECONFIG has to name the cluster; run: make cluster");
    let client = Client::try_default().await.expect("KUBECONFIG names a cluster");
    let count = number("KILN_SPECS").unwrap_or(300);
    let seed = number("KILN_SEED").unwrap_or_else(|| Rng::new().u64(..));
    println!("{count} specs; once more: KILN_SEED={seed}");
    let mut specs = Specs::new();
    let fields = specs.fields().len() as u64;
    assert!(fields > 90 && fields * 2 < count, "{fields} fields are found in the schema, for {count} specs");

    let mut random = Rng::with_seed(seed);
    let outcomes = stream::iter(0..count).map(|number| {
        let spec = specs.spec(number, &mut random);
        let (client, mut random) = (client.clone(), random.fork());
        async move { (number, try_one(&client, spec.clone(), &mut random).await, spec) }
    });
    let outcomes: Vec<_> = outcomes.buffer_unordered(AT_ONCE).collect().await;

    let mut wrong = Vec::new();
    let (mut through, mut without_run, mut refused) = (0, 0, BTreeMap::<String, u32>::new());
    for (number, outcome, spec) in outcomes {
        let shown: String = spec.to_string().chars().take(600).collect();
        match outcome {
            Outcome::Through => through += 1,
            Outcome::NoRun => without_run += 1,
            Outcome::Broken(why) => wrong.push(format!("spec {number}: {why}\n{shown}")),
            Outcome::Refused(why) if number < fields => {
                let field = &specs.fields()[usize::try_from(number).unwrap()];
                wrong.push(format!("{field}: a usual value is refused; see specs.rs: {why}\n{shown}"));
            }
            Outcome::Refused(why) => *refused.entry(why.chars().take(160).collect()).or_default() += 1,
        }
    }
    let (in_all, of_all) = (wrong.len(), refused.values().sum::<u32>());
    println!("{through} came through, of {without_run} no run is made, {of_all} are refused");
    if std::env::var_os("KILN_SPECS_REFUSED").is_some() {
        println!("{refused:#?}");
    }
    wrong.truncate(5);
    assert!(wrong.is_empty(), "KILN_SEED={seed}: {in_all} of {count} are wrong:\n{}", wrong.join("\n\n"));
    assert!(through * 2 > count, "KILN_SEED={seed}: only {through} of {count} came through");
}

async fn try_one(client: &Client, spec: Value, random: &mut Rng) -> Outcome {
    let name = "a".repeat(*random.choice(&[1, 8, 52]).unwrap());
    let object = json!({"metadata": {"name": name, "namespace": "default"}, "spec": spec});
    let taken = match post::<ImageBuild>(client, object).await {
        Ok(taken) => taken,
        Err(why) => return Outcome::Refused(why),
    };
    let build: ImageBuild = match serde_json::from_value(taken) {
        Ok(build) => build,
        Err(error) => return Outcome::Broken(format!("the operator cannot read the ImageBuild: {error}")),
    };
    let Some(run) = run(&build, random) else { return Outcome::NoRun };
    let sent = serde_json::to_value(&run).unwrap();
    let taken = match post::<ImageBuildRun>(client, sent.clone()).await {
        Ok(taken) => taken,
        Err(why) => return Outcome::Broken(format!("its run is refused: {why}")),
    };
    if taken["spec"] != sent["spec"] {
        return Outcome::Broken(format!("its run is changed: {} became {}", sent["spec"], taken["spec"]));
    }
    match serde_json::from_value::<ImageBuildRun>(taken) {
        Ok(taken) if taken.spec == run.spec => Outcome::Through,
        Ok(taken) => Outcome::Broken(format!("its run is read as another: {:?}", taken.spec)),
        Err(error) => Outcome::Broken(format!("the operator cannot read its run: {error}")),
    }
}

/// What the API server would store.
async fn post<K: Resource<DynamicType = ()>>(client: &Client, mut object: Value) -> Result<Value, String> {
    object["apiVersion"] = json!(K::api_version(&()));
    object["kind"] = json!(K::kind(&()));
    let object: DynamicObject = serde_json::from_value(object).unwrap();
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), "default", &ApiResource::erase::<K>(&()));
    let parameters = PostParams { dry_run: true, ..PostParams::default() };
    match api.create(&parameters, &object).await {
        Ok(taken) => Ok(serde_json::to_value(taken).unwrap()),
        Err(kube::Error::Api(status)) => Err(status.message.clone()),
        Err(error) => panic!("the API server does not answer: {error}"),
    }
}

/// The run that the operator makes, where everything that the spec names is found; with the longest of what may be found.
/// `None`: it says what is wrong instead.
fn run(build: &ImageBuild, random: &mut Rng) -> Option<ImageBuildRun> {
    let spec = &build.spec;
    let platforms = plan::platforms(spec.platforms.as_deref(), &["linux/amd64".parse::<Platform>().unwrap()]).ok()?;
    let commit = || "f".repeat(*random.clone().choice(&[40, 64]).unwrap());
    let full = |reference: Option<&str>| match reference {
        Some(full) if full.starts_with("refs/") => full.to_owned(),
        reference => format!("refs/heads/{}", reference.unwrap_or("main")),
    };
    let digest = format!("sha256:{}", "f".repeat(64));
    let source =
        spec.git().map(|git| git::Resolved { commit: commit(), ref_name: Some(full(git.reference.as_deref())) });
    let names = resolve::names(spec).into_iter().map(|resolve::Name { field, kind }| {
        let found = Resolved { field, ..Resolved::default() };
        let by_digest = |repository: &Repository| Some(format!("{repository}@{digest}"));
        Some(match kind {
            resolve::Kind::Git(git) => {
                Resolved { commit: Some(commit()), reference: Some(full(git.reference.as_deref())), ..found }
            }
            resolve::Kind::Image(text) | resolve::Kind::PlatformImage(text, _) => {
                Resolved { image: by_digest(&text.parse::<Reference>().ok()?.repository), ..found }
            }
            resolve::Kind::ImageBuild(_) => Resolved { image: by_digest(&longest()), ..found },
        })
    });
    let found = Found { source, names: names.collect::<Option<_>>()? };
    let copy_of = match &spec.image {
        Some(image) if random.bool() => {
            let repository: Repository = image.repository.parse().ok()?;
            let image = json!({
                "ref": format!("{repository}@{digest}"), "repository": repository.to_string(), "digest": digest,
                "pushedAt": "2026-01-01T00:00:00Z",
            });
            Some(serde_json::from_value::<BuiltImage>(image).unwrap())
        }
        _ => None,
    };
    let commit = found.source.as_ref().map(|source| source.commit.as_str());
    let hash = input::input_hash(&input::spec_hash(spec, None), commit, &found.names);
    let input = Input {
        input_hash: hash.clone(),
        content_hash: hash,
        found,
        platforms,
        fresh: random.bool(),
        failed_before: random.bool().then_some(plan::MOST_FAILED),
        copy_of,
    };
    let number = *random.choice(&[1, LAST_RUN]).unwrap();
    Some(apply::run(build, number, input, Timestamp::UNIX_EPOCH))
}

/// A repository with as long a name as there may be.
fn longest() -> Repository {
    let host = ["a".repeat(63), "b".repeat(63), "c".repeat(63), "d".repeat(61)].join(".");
    format!("{host}:65535/{}", "p".repeat(252)).parse().unwrap()
}
