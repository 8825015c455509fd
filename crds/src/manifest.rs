//! The CustomResourceDefinitions as YAML files.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube_core::CustomResourceExt;

use crate::{BuilderPool, ImageBuild, ImageBuildRun};

/// File name and content of each definition.
///
/// # Errors
/// Where a definition cannot be written as YAML, which no input can cause.
pub fn files() -> Result<Vec<(&'static str, String)>, serde_yaml_ng::Error> {
    [
        ("builderpools.yaml", BuilderPool::crd()),
        ("imagebuilds.yaml", ImageBuild::crd()),
        ("imagebuildruns.yaml", ImageBuildRun::crd()),
    ]
    .into_iter()
    .map(|(name, crd)| Ok((name, yaml(crd)?)))
    .collect()
}

fn yaml(crd: CustomResourceDefinition) -> Result<String, serde_yaml_ng::Error> {
    let mut crd = serde_yaml_ng::to_value(crd)?;
    signed_formats(&mut crd);
    never_observed(&mut crd);
    let body = serde_yaml_ng::to_string(&crd)?;
    Ok(format!("# Generated from crds/src by `cargo run -p kiln-crds`; do not edit.\n{body}"))
}

/// Gives an object that Kiln has not looked at yet a status that says so: kstatus takes one without for what it has to be.
fn never_observed(crd: &mut serde_yaml_ng::Value) {
    let status = &mut crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"];
    if status["properties"].get("observedGeneration").is_some() {
        status["default"]["observedGeneration"] = (-1).into();
    }
}

/// Writes `int64` for Rust's unsigned numbers: the API server knows no others and warns at each apply.
/// Their `minimum: 0` stays.
fn signed_formats(value: &mut serde_yaml_ng::Value) {
    match value {
        serde_yaml_ng::Value::Mapping(mapping) => {
            for (key, value) in mapping {
                match (key.as_str(), value.as_str()) {
                    (Some("format"), Some("uint16" | "uint32" | "uint64")) => *value = "int64".into(),
                    _ => signed_formats(value),
                }
            }
        }
        serde_yaml_ng::Value::Sequence(items) => items.iter_mut().for_each(signed_formats),
        _ => {}
    }
}
