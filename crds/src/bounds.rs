//! Schemas with bounds: an unbounded list, map or string makes CEL rules too costly for the API server, and lets
//! one object fill etcd.

use schemars::{Schema, SchemaGenerator, json_schema};

/// The longest value of a build argument, label or annotation, in characters.
pub const VALUE: u32 = 8192;

/// What Go's `time.ParseDuration` reads, without a sign and without fractions below a second.
pub const DURATION_PATTERN: &str = "^([0-9]+(\\.[0-9]+)?(s|m|h))+$";

/// A duration such as `30m`, `1h30m` or `0s`.
#[must_use]
pub fn duration(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "maxLength": 32, "pattern": DURATION_PATTERN})
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
