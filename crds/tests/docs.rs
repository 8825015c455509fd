//! The documents name what is there: fields of the API, and folders of examples.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "this code runs in tests only")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use kiln_crds::{BuilderPool, ImageBuild};
use kube_core::CustomResourceExt as _;
use serde_json::Value;

fn docs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs")
}

/// The schema of a field such as `spec.platforms[].name`.
fn field<'a>(schema: &'a Value, path: &str) -> Option<&'a Value> {
    path.split('.').try_fold(schema, |schema, part| match part.strip_suffix("[]") {
        Some(list) => schema.get("properties")?.get(list)?.get("items"),
        None => schema.get("properties")?.get(part),
    })
}

fn schema(crd: impl serde::Serialize) -> Value {
    serde_json::to_value(crd).unwrap()["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone()
}

/// What stands in backticks.
fn code(text: &str) -> impl Iterator<Item = &str> {
    text.lines().flat_map(|line| line.split('`').skip(1).step_by(2))
}

#[test]
fn the_table_of_flags_names_fields_that_are_there() {
    let text = std::fs::read_to_string(docs().join("docker-flags.md")).unwrap();
    let (build, pool) = (schema(ImageBuild::crd()), schema(BuilderPool::crd()));
    let mut unknown = Vec::new();
    let mut named = BTreeSet::new();
    for word in code(&text) {
        let found = match word.strip_prefix("pool.") {
            Some(path) => field(&pool, path),
            None if word.starts_with("spec.") || word.starts_with("status.") => field(&build, word),
            None => continue,
        };
        named.insert(word);
        if found.is_none() {
            unknown.push(word);
        }
    }
    assert!(unknown.is_empty(), "docs/docker-flags.md names {unknown:?}, which the API does not have");
    assert!(named.len() > 50, "the fields are found: {named:?}");
}

#[test]
fn documents_link_to_files_that_are_there() {
    let mut missing = Vec::new();
    let mut examples = BTreeSet::new();
    for entry in std::fs::read_dir(docs()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "md") {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split([')', '#']).next()) {
            if link.is_empty() || link.contains("://") {
                continue;
            }
            if !docs().join(link).exists() {
                missing.push(format!("{}: {link}", path.display()));
            }
            if let Some(example) = link.strip_prefix("../examples/") {
                examples.insert(example.split('/').next().unwrap().to_owned());
            }
        }
    }
    assert!(missing.is_empty(), "links to what is not there: {missing:#?}");
    let folders = std::fs::read_dir(docs().join("../examples")).unwrap().map(|entry| entry.unwrap());
    let unlinked: Vec<_> = folders
        .filter(|entry| entry.path().is_dir())
        .map(|entry| entry.file_name().into_string().unwrap())
        .filter(|folder| !examples.contains(folder))
        .collect();
    assert!(unlinked.is_empty(), "no document links to examples/{unlinked:?}");
}
