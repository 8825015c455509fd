//! What the API server says of a wrong value names the value, and what it says of an object that is new.

use kiln_crds::manifest;
use serde_json::{Value, json};

/// Rules on which fields there are together: their messages name the fields, and there is no value to tell.
const OF_PRESENCE: [&str; 10] = [
    "source is missing",
    "dockerfile names a file of the source",
    "an image goes to a registry",
    "platforms with an image or archive are taken into an index",
    "zstd layers need the OCI media types",
    "Docker's media types have no annotations",
    "a platform is taken from image or from archive",
    "git.fullHistory needs git.keepGitDir",
    "a cancelled run cannot be taken up again",
    "a run's spec cannot be changed",
];

/// Rules on a number or a size that the object itself shows, at a place that has one of them.
const OF_SIZE: [&str; 2] = ["metadata.name is too long", "inline.files hold more than 1000000 characters"];

/// Rules on what may hold a password, which is not repeated.
const UNTOLD: &str = ".url";

/// kstatus, which Flux waits by, takes an object without a status for what it has to be.
#[test]
fn what_kiln_has_not_looked_at_says_so() {
    for (name, content) in manifest::files().expect("the definitions can be written as YAML") {
        let definition: Value = serde_yaml_ng::from_str(&content).expect("the YAML can be read");
        let status = &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"];
        // A run is made by Kiln alone, and observes no changes.
        let expected = if name == "imagebuildruns.yaml" { Value::Null } else { json!({"observedGeneration": -1}) };
        assert_eq!(status["default"], expected, "{name}");
    }
}

#[test]
fn a_rule_on_a_list_a_map_or_an_object_tells_the_value() {
    fn walk(path: &str, schema: &Value, silent: &mut Vec<String>, seen: &mut usize) {
        // The API server writes the value of a scalar before the message.
        let scalar = !matches!(schema["type"].as_str(), Some("object" | "array"));
        for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
            *seen += 1;
            let message = rule["message"].as_str().unwrap_or_default();
            let known = OF_PRESENCE.iter().chain(&OF_SIZE).any(|start| message.starts_with(start));
            let told = scalar || rule["messageExpression"].is_string() || rule["fieldPath"] == UNTOLD || known;
            if !told {
                silent.push(format!("{path}: {rule}"));
            }
        }
        for (name, property) in schema["properties"].as_object().into_iter().flatten() {
            walk(&format!("{path}.{name}"), property, silent, seen);
        }
        for inner in ["items", "additionalProperties"] {
            if schema[inner].is_object() {
                walk(path, &schema[inner], silent, seen);
            }
        }
    }

    let (mut silent, mut seen) = (Vec::new(), 0);
    for (name, content) in manifest::files().expect("the definitions can be written as YAML") {
        let definition: Value = serde_yaml_ng::from_str(&content).expect("the YAML can be read");
        walk(name, &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"], &mut silent, &mut seen);
    }
    assert!(silent.is_empty(), "give them a messageExpression: {silent:#?}");
    assert!(seen > 100, "the rules are found: {seen}");
}
