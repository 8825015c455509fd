//! The YAML in `crds/yaml/` and the BuilderPool's part of the chart's `values.schema.json` are what the types say: they are
//! generated from them, never edited.

use std::collections::BTreeSet;
use std::path::Path;

#[test]
fn the_yaml_is_generated_from_the_types() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("yaml");
    let generated = kiln_crds::manifest::files().expect("the definitions can be written as YAML");

    let expected: BTreeSet<_> = generated.iter().map(|(name, _)| (*name).to_owned()).collect();
    let there: BTreeSet<_> = std::fs::read_dir(&folder)
        .expect("crds/yaml can be listed")
        .map(|entry| {
            entry.expect("an entry of crds/yaml can be read").file_name().into_string().expect("its name is UTF-8")
        })
        .collect();
    assert_eq!(there, expected, "crds/yaml holds the generated files and no others: run `cargo run -p kiln-crds`");

    for (name, content) in generated {
        let written = std::fs::read_to_string(folder.join(name)).expect("the file can be read");
        assert!(written == content, "crds/yaml/{name} differs from the types: run `cargo run -p kiln-crds`");
    }
}

#[test]
fn what_the_charts_values_may_say_of_the_pool_is_generated_from_the_types() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(kiln_crds::values_schema::PATH);
    let written = std::fs::read_to_string(path).expect("the chart has a values.schema.json");
    let generated = kiln_crds::values_schema::rewrite(&written).expect("its definition of the pool can be generated");
    assert!(written == generated, "values.schema.json differs from the types: run `cargo run -p kiln-crds`");
}

/// Field by field, what `kubectl explain` prints must be there: a field without a description helps nobody.
#[test]
fn every_field_has_a_description() {
    fn walk(path: &str, schema: &serde_json::Value, missing: &mut Vec<String>) {
        if let Some(properties) = schema["properties"].as_object() {
            for (name, property) in properties {
                let path = format!("{path}.{name}");
                if property["description"].as_str().is_none_or(|text| text.trim().is_empty()) {
                    missing.push(path.clone());
                }
                walk(&path, property, missing);
            }
        }
        for inner in ["items", "additionalProperties"] {
            if schema[inner].is_object() {
                walk(path, &schema[inner], missing);
            }
        }
    }

    let mut missing = Vec::new();
    for (_, content) in kiln_crds::manifest::files().expect("the definitions can be written as YAML") {
        let definition: serde_json::Value = serde_yaml_ng::from_str(&content).expect("the YAML can be read");
        let kind =
            definition["spec"]["names"]["singular"].as_str().expect("a definition has a singular name").to_owned();
        for version in definition["spec"]["versions"].as_array().expect("a definition has versions") {
            for part in ["spec", "status"] {
                walk(
                    &format!("{kind}.{part}"),
                    &version["schema"]["openAPIV3Schema"]["properties"][part],
                    &mut missing,
                );
            }
        }
    }
    assert!(missing.is_empty(), "without a description: {missing:#?}");
}
