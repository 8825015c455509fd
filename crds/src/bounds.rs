//! Schemas with bounds: an unbounded list, map or string makes CEL rules too costly for the API server, and lets
//! one object fill etcd.

use kube_core::Duration;
use schemars::{Schema, SchemaGenerator, json_schema};
use serde::Serializer;

/// The longest value of a build argument, label or annotation, in characters.
pub const VALUE: u32 = 8192;

/// What Go's `time.ParseDuration` reads, without a sign and without units below a second. Longer numbers would be more than
/// Rust's durations hold, whose reader panics then.
pub const DURATION_PATTERN: &str = "^([0-9]{1,10}(\\.[0-9]{1,9})?(s|m|h))+$";

/// A duration such as `30m`, `1h30m` or `0s`.
#[must_use]
pub fn duration(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "maxLength": 32, "pattern": DURATION_PATTERN})
}

/// Writes a duration as [`DURATION_PATTERN`] has it, in seconds: kube's own way to write none, `0ns`, is no such, and a run
/// takes its ImageBuild's over.
pub fn seconds<S: Serializer>(duration: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    let Some(duration) = duration.map(std::time::Duration::from) else { return serializer.serialize_none() };
    let fraction = format!(".{:09}", duration.subsec_nanos());
    let fraction = fraction.trim_end_matches('0').trim_end_matches('.');
    serializer.serialize_str(&format!("{}{fraction}s", duration.as_secs()))
}

/// A map of at most 128 short strings to strings of at most [`VALUE`] characters.
#[must_use]
pub fn string_map(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": 128,
        "additionalProperties": {"type": "string", "maxLength": VALUE},
    })
}

/// A map of at most 64 relative paths to file contents of at most 256 KiB each.
#[must_use]
pub fn files(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "minProperties": 1,
        "maxProperties": 64,
        "additionalProperties": {"type": "string", "maxLength": 262_144},
    })
}

#[cfg(test)]
mod tests {
    use kube_core::CustomResourceExt as _;

    use super::*;
    use crate::{ImageBuild, ImageBuildSpec};

    /// A BuilderPool's durations have no other bound, and one that cannot be read would end the operator.
    #[test]
    fn the_largest_durations_can_be_read() {
        let largest = "9999999999h9999999999h9999999h";
        let spec = serde_json::json!({"idleTimeout": largest, "schedulingTimeout": "0.999999999s"});
        let pool: crate::BuilderPoolSpec = serde_json::from_value(spec).unwrap();
        assert!(pool.idle_timeout.is_some_and(|read| std::time::Duration::from(read).as_secs() > 1 << 46));
    }

    #[test]
    fn every_duration_comes_through_into_a_run() {
        // As many as the schema has, so that a new one is thought of here.
        let schema = serde_json::to_string(&ImageBuild::crd()).unwrap();
        let durations = schema.matches(&serde_json::to_string(DURATION_PATTERN).unwrap()).count();
        let all = |value: &str| {
            serde_json::json!({
                "source": {"git": {"url": "https://git.example/a.git", "interval": value}},
                "contexts": [{"name": "c", "git": {"url": "https://git.example/a.git", "interval": value}}],
                "timeout": value, "silenceTimeout": value, "cache": {"maxAge": value},
            })
        };
        assert_eq!(all("@").to_string().matches('@').count(), durations);
        for (value, written) in [
            ("0s", "0s"),
            ("0h", "0s"),
            ("5m", "300s"),
            ("1h30m", "5400s"),
            ("1.5h", "5400s"),
            ("0.5s", "0.5s"),
            ("2.0001s", "2.0001s"),
            ("876000h", "3153600000s"),
        ] {
            let build: ImageBuildSpec = serde_json::from_value(all(value)).unwrap();
            assert_eq!(serde_json::to_value(&build).unwrap(), all(written), "{value}");
        }
    }
}
