//! What `kiln-build` itself tells: what is about to be done, what an image is that is not exported yet, and how a build ended:
//! the image, or the failure as data.

use std::collections::BTreeMap;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::Deserialize;

use super::content::Config;

/// An event of `kiln-build`'s own.
#[derive(Deserialize)]
pub(super) struct Own {
    kiln: Event,
}

#[derive(Deserialize)]
struct Event {
    definition: Option<Definition>,
    config: Option<serde_json::Value>,
    files: Option<BTreeMap<String, Option<String>>>,
    #[serde(default)]
    result: BTreeMap<String, String>,
    failure: Option<Failed>,
}

/// What it tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// What wants an answer.
    Shown(Shown),
    /// How the build ended.
    Ended(Ending),
}

/// What is about to be done, as BuildKit understood the Dockerfile: with what base images hold back, and with what names stand
/// for.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(default)]
pub struct Definition {
    /// A step that runs something, for each platform that one does for.
    pub steps: BTreeMap<String, Running>,
    /// What is fetched from registries: name, tag and digest.
    pub images: Vec<String>,
}

/// A step that runs something.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(default)]
pub struct Running {
    /// Its name, such as `[build 2/4] RUN make`.
    pub name: String,
    /// The line of the Dockerfile; of an ONBUILD that of the FROM that brings it; 0: it is not known.
    pub line: u32,
}

/// Something that nothing was made of so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shown {
    /// What is about to be done. None: it cannot be read.
    Definition(Option<Definition>),
    /// Its configuration.
    Config(Box<Config>),
    /// The beginnings of files that were asked for, by path. None: there is no such file.
    Files(BTreeMap<String, Option<Vec<u8>>>),
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

impl Failed {
    /// Whether buildkitd ended, or does not answer. What a step failed on has the step's digest: this is the connection to buildkitd.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.vertex.is_empty() && ["Unavailable", "Canceled", "DeadlineExceeded"].contains(&self.code.as_str())
    }
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
    pub(super) fn read(line: &[u8]) -> Option<Told> {
        if !line.starts_with(b"{\"kiln\":") {
            return None;
        }
        let Ok(Self { kiln: Event { definition, config, files, result, failure } }) = serde_json::from_slice(line)
        else {
            // What cannot be read is answered nevertheless: it is waited for.
            let unreadable = match line {
                _ if line.starts_with(b"{\"kiln\":{\"definition\"") => Shown::Definition(None),
                _ if line.starts_with(b"{\"kiln\":{\"config\"") => Shown::Config(Box::default()),
                _ if line.starts_with(b"{\"kiln\":{\"files\"") => Shown::Files(BTreeMap::new()),
                _ => return None,
            };
            return Some(Told::Shown(unreadable));
        };
        if definition.is_some() {
            return Some(Told::Shown(Shown::Definition(definition)));
        }
        let bytes = |text: Option<String>| text.and_then(|text| STANDARD.decode(text).ok());
        Some(match (config, files, failure) {
            // It wants an answer, whatever it is.
            (Some(config), ..) => Told::Shown(Shown::Config(serde_json::from_value(config).unwrap_or_default())),
            (_, Some(files), _) => {
                Told::Shown(Shown::Files(files.into_iter().map(|(path, text)| (path, bytes(text))).collect()))
            }
            (.., Some(failed)) => Told::Ended(Ending::Failed(Box::new(failed))),
            _ => Told::Ended(Ending::Built(result)),
        })
    }
}
