//! `builderPool.spec` in the chart's `values.schema.json`: the spec of a BuilderPool as JSON Schema draft-07. Helm reads no
//! other file, so the one definition is replaced in it and all else, which is written by hand, stays as it is.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube_core::CustomResourceExt;
use serde_json::{Map, Value, json};

use crate::BuilderPool;

/// Where the file is, from the directory of this crate.
pub const PATH: &str = "../charts/kiln/values.schema.json";

/// The definition that is generated. It begins and ends with lines of this indent.
const DEFINITION: &str = "builderPoolSpec";
const INDENT: &str = "    ";

const DESCRIPTION: &str = "The spec of a BuilderPool, generated from crds/src by `cargo run -p kiln-crds`; do not edit. \
                           What its fields mean is told by `kubectl explain builderpool.spec`. Its rules in CEL cannot be \
                           written as JSON Schema: the API server alone checks them.";

/// Why the file cannot be generated.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The definition is not there to be replaced.
    #[error(
        "{PATH} has no definition {DEFINITION}, on lines of their own with an indent of 4, to be replaced: add it empty"
    )]
    NoDefinition,
    /// The CustomResourceDefinition says something that this module does not know.
    #[error("{field}: the keyword {keyword} has no translation to JSON Schema; add it to crds/src/values_schema.rs")]
    Untranslated {
        /// The field, such as `spec.cache.size`.
        field: String,
        /// The keyword.
        keyword: String,
    },
    /// The file is not JSON, before or after.
    #[error("{PATH} is not JSON: {0}")]
    Json(#[from] serde_json::Error),
}

/// The file's content with the definition replaced.
pub fn rewrite(text: &str) -> Result<String, Error> {
    let begin = format!("\n{INDENT}\"{DEFINITION}\": {{");
    let end = format!("\n{INDENT}}}");
    let (before, rest) = text.split_once(&begin).ok_or(Error::NoDefinition)?;
    let (_, after) = rest.split_once(&end).ok_or(Error::NoDefinition)?;
    let definition = serde_json::to_string_pretty(&definition(&BuilderPool::crd())?)?;
    let definition = definition.replace('\n', &format!("\n{INDENT}"));
    let rewritten = format!("{before}\n{INDENT}\"{DEFINITION}\": {definition}{after}");
    serde_json::from_str::<serde::de::IgnoredAny>(&rewritten)?;
    Ok(rewritten)
}

fn definition(crd: &CustomResourceDefinition) -> Result<Value, Error> {
    let crd = serde_json::to_value(crd)?;
    let spec = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
    let mut definition = translate("spec", spec)?;
    definition["description"] = DESCRIPTION.into();
    Ok(definition)
}

/// The schema of a field as JSON Schema. What the API server prunes or refuses is refused: unknown fields, too.
fn translate(field: &str, schema: &Value) -> Result<Value, Error> {
    let mut out = Map::new();
    let mut open = false;
    for (keyword, value) in schema.as_object().into_iter().flatten() {
        let translated = match keyword.as_str() {
            "type" | "enum" | "required" | "pattern" | "minLength" | "maxLength" | "minItems" | "maxItems"
            | "minProperties" | "maxProperties" => value.clone(),
            "minimum" | "maximum" => whole(value),
            "properties" => properties(field, value)?,
            "items" => translate(&format!("{field}[]"), value)?,
            "additionalProperties" if value.is_object() => translate(&format!("{field}.*"), value)?,
            "x-kubernetes-int-or-string" => {
                out.insert("type".to_owned(), json!(["integer", "string"]));
                continue;
            }
            "x-kubernetes-list-type" => {
                if value == "set" {
                    out.insert("uniqueItems".to_owned(), true.into());
                }
                continue;
            }
            "x-kubernetes-preserve-unknown-fields" => {
                open = value == true;
                continue;
            }
            // Formats are those of whole numbers; `nullable` is looked at below; the rest JSON Schema cannot say.
            "description"
            | "format"
            | "nullable"
            | "x-kubernetes-validations"
            | "x-kubernetes-list-map-keys"
            | "x-kubernetes-map-type" => continue,
            _ => return Err(Error::Untranslated { field: field.to_owned(), keyword: keyword.clone() }),
        };
        out.insert(keyword.clone(), translated);
    }
    if out.get("type").is_some_and(|kind| kind == "object") && !open {
        out.entry("additionalProperties").or_insert(false.into());
    }
    if schema["nullable"] == true {
        for (keyword, null) in [("type", json!("null")), ("enum", Value::Null)] {
            match out.get_mut(keyword) {
                Some(Value::Array(values)) => values.push(null),
                Some(value) => *value = vec![value.take(), null].into(),
                None => {}
            }
        }
    }
    Ok(out.into())
}

fn properties(field: &str, properties: &Value) -> Result<Value, Error> {
    let properties = properties.as_object().into_iter().flatten();
    properties.map(|(name, schema)| Ok((name.clone(), translate(&format!("{field}.{name}"), schema)?))).collect()
}

/// A bound without the `.0` that it has in the definition, where all bounds are floating-point numbers.
fn whole(bound: &Value) -> Value {
    let text = bound.to_string();
    text.strip_suffix(".0").and_then(|text| text.parse::<i64>().ok()).map_or_else(|| bound.clone(), Value::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_keyword_is_translated() {
        for (what, schema, expected) in [
            (
                "unknown fields are refused",
                json!({"type": "object", "description": "d", "properties": {"a": {"type": "string"}}, "required": ["a"]}),
                json!({
                    "type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"],
                    "additionalProperties": false,
                }),
            ),
            (
                "a map stays one, and what it holds is translated",
                json!({"type": "object", "additionalProperties": {"x-kubernetes-int-or-string": true}}),
                json!({"type": "object", "additionalProperties": {"type": ["integer", "string"]}}),
            ),
            (
                "whatever an object may hold stays allowed",
                json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true}),
                json!({"type": "object"}),
            ),
            (
                "bounds are whole numbers, and formats none of JSON Schema's",
                json!({"type": "integer", "format": "int64", "minimum": 1.0, "maximum": 1.5}),
                json!({"type": "integer", "minimum": 1, "maximum": 1.5}),
            ),
            (
                "null, where the API server takes it",
                json!({"type": "string", "enum": ["A"], "nullable": true}),
                json!({"type": ["string", "null"], "enum": ["A", null]}),
            ),
            (
                "null in place of a quantity; rules in CEL are the API server's",
                json!({"nullable": true, "x-kubernetes-int-or-string": true, "x-kubernetes-validations": [{"rule": "true"}]}),
                json!({"type": ["integer", "string", "null"]}),
            ),
            (
                "a set holds nothing twice, and lists hold no unknown fields either",
                json!({"type": "array", "items": {"type": "object"}, "x-kubernetes-list-type": "set"}),
                json!({"type": "array", "items": {"type": "object", "additionalProperties": false}, "uniqueItems": true}),
            ),
        ] {
            assert_eq!(translate("spec", &schema).unwrap(), expected, "{what}");
        }
    }

    #[test]
    fn a_keyword_that_nobody_has_thought_of_is_named() {
        let schema = json!({"type": "object", "properties": {"a": {"type": "array", "items": {"anyOf": []}}}});
        let error = translate("spec", &schema).unwrap_err().to_string();
        assert!(error.starts_with("spec.a[]: the keyword anyOf "), "{error}");
    }

    #[test]
    fn all_but_the_definition_stays_as_it_is() {
        let around = |definition: &str| {
            format!(
                "{{\n  \"a\":   1,\n  \"definitions\": {{\n    \"builderPoolSpec\": {definition},\n    \"b\": {{}}\n  }}\n}}\n"
            )
        };
        let first = rewrite(&around("{\n    }")).unwrap();
        assert!(
            first.starts_with("{\n  \"a\":   1,\n") && first.ends_with("\n    },\n    \"b\": {}\n  }\n}\n"),
            "{first}"
        );
        assert!(first.contains("\n        \"idleTimeout\": {\n"), "{first}");
        assert_eq!(rewrite(&first).unwrap(), first, "once more changes nothing");
        for text in ["{}", "{\n    \"builderPoolSpec\": {}}"] {
            assert!(matches!(rewrite(text), Err(Error::NoDefinition)), "{text}");
        }
        assert!(matches!(rewrite("[\n    \"builderPoolSpec\": {\n    }"), Err(Error::Json(_))));
    }
}
