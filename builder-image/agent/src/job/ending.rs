//! How a build ended, as `kiln-build` tells it: the image, or the failure as data.

use std::collections::BTreeMap;

use serde::Deserialize;

/// The event that ends what `kiln-build` writes.
#[derive(Deserialize)]
pub(super) struct Own {
    kiln: Event,
}

#[derive(Deserialize)]
struct Event {
    #[serde(default)]
    result: BTreeMap<String, String>,
    failure: Option<Failed>,
}

/// How a build ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// What the exporter says of the image, by key.
    Built(BTreeMap<String, String>),
    /// Why there is none.
    Failed(Box<Failed>),
}

/// A failure, as buildkitd tells it.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub struct Failed {
    /// All of its text.
    pub message: String,
    /// The name of its gRPC status, such as `Unavailable`.
    pub code: String,
    /// The digest of the step that failed, empty where it was none.
    pub vertex: String,
    /// What that step does.
    pub operation: Option<Operation>,
    /// The exit code of the step's command.
    pub exit_code: Option<u32>,
    /// The places that brought the step, the innermost first.
    pub sources: Vec<Place>,
}

/// What a step does.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(default)]
pub struct Operation {
    /// `exec`, `source`, `file`, `build`, `merge` or `diff`.
    pub kind: String,
    /// What a source is fetched from, such as `docker-image://…`.
    pub identifier: String,
}

/// A place in a Dockerfile.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(default)]
pub struct Place {
    /// Its path, as BuildKit names it.
    pub file: String,
    /// The lines of the instruction.
    pub lines: Vec<Lines>,
}

/// Some lines, counted from 1, the last included.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(default)]
pub struct Lines {
    /// The first of them.
    pub first: u32,
    /// The last of them.
    pub last: u32,
}

impl Own {
    /// The event in a line, where it is one.
    pub(super) fn read(line: &[u8]) -> Option<Ending> {
        if !line.starts_with(b"{\"kiln\":") {
            return None;
        }
        let Self { kiln: Event { result, failure } } = serde_json::from_slice(line).ok()?;
        Some(failure.map_or(Ending::Built(result), |failed| Ending::Failed(Box::new(failed))))
    }
}
