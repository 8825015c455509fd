//! Reads what `kiln-build` writes: one JSON object a line.
//!
//! They are BuildKit's `client.SolveStatus`: vertexes (the steps) that changed, pieces of their output, and the linter's
//! warnings; the last one is its own, and tells how the build ended.

use std::collections::{HashMap, VecDeque};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use kiln_agent_proto::{Step, Warning};
use serde::Deserialize;

use super::{
    ending::{Ending, Failed, Own, Shown, Told},
    mask::{Masker, shorten},
};

/// How many lines of a step's output a failure tells.
const TAIL: usize = 20;
/// A line without end is told so far, and what follows of it is not, so that a step that never ends one does not fill
/// the memory. Far above what is shown of a line, so that no secret value is cut in two where it would be seen.
const LONGEST_PIECE: usize = 64 << 10;
/// The most steps that are told of: no honest Dockerfile has so many.
const MOST_STEPS: usize = 2000;
/// How many more are known that failed.
const MOST_FAILED: usize = 64;
/// The most warnings that are told.
const MOST_WARNINGS: usize = 256;
/// What the steps are called that read and write a cache elsewhere. The build goes on without it.
const CACHE_STEPS: [&str; 2] = ["importing cache manifest from ", "exporting cache to "];
/// The longest error of a step, in bytes: BuildKit repeats the whole command in it.
const LONGEST_ERROR: usize = 16 << 10;

/// Something that a line told.
#[derive(Debug, PartialEq)]
pub enum Update {
    /// A step changed.
    Step(Step),
    /// A step wrote a line, masked here.
    Line {
        /// The step.
        step_id: String,
        /// The line.
        line: String,
    },
    /// The image is being pushed.
    Pushing,
    /// Something of the image, which is to be answered.
    Shown(Shown),
}

/// A step that failed, or in which the build did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailedStep {
    /// Its name, such as `[build 2/4] RUN make`.
    pub name: String,
    /// Its own error.
    pub error: String,
    /// The last lines of its output.
    pub tail: Vec<String>,
}

#[derive(Deserialize)]
struct Status {
    #[serde(default)]
    vertexes: Vec<Vertex>,
    #[serde(default)]
    statuses: Vec<VertexStatus>,
    #[serde(default)]
    logs: Vec<VertexLog>,
    #[serde(default)]
    warnings: Vec<VertexWarning>,
}

#[derive(Deserialize)]
struct Vertex {
    digest: String,
    #[serde(default)]
    name: String,
    started: Option<String>,
    completed: Option<String>,
    #[serde(default)]
    cached: bool,
    #[serde(default)]
    error: String,
}

#[derive(Deserialize)]
struct VertexStatus {
    id: String,
}

#[derive(Deserialize)]
struct VertexLog {
    vertex: String,
    #[serde(default)]
    stream: i32,
    #[serde(default)]
    data: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct VertexWarning {
    #[serde(default)]
    short: String,
    #[serde(default)]
    source_info: Option<SourceInfo>,
    #[serde(default)]
    range: Option<Vec<Range>>,
}

#[derive(Deserialize)]
struct SourceInfo {
    #[serde(default)]
    filename: String,
}

#[derive(Deserialize)]
struct Range {
    #[serde(default)]
    start: Position,
}

#[derive(Default, Deserialize)]
struct Position {
    #[serde(default)]
    line: u32,
}

/// What one step has told so far.
#[derive(Default)]
struct StepOutput {
    /// The unfinished line of each stream.
    pieces: HashMap<i32, Piece>,
    tail: VecDeque<String>,
}

/// A line whose end has not come yet.
#[derive(Default)]
struct Piece {
    bytes: Vec<u8>,
    /// It was too long and has been told: the rest of it is not.
    told: bool,
}

impl Piece {
    /// Adds what came. A carriage return begins the line anew, as a progress bar does: of a long one, what it drew before
    /// need not be kept.
    fn take(&mut self, chunk: &[u8]) {
        if self.told {
            return;
        }
        self.bytes.extend_from_slice(chunk);
        if self.bytes.len() > LONGEST_PIECE
            && let Some(drawn) = self.bytes.trim_ascii_end().iter().rposition(|byte| *byte == b'\r')
        {
            self.bytes.drain(..=drawn);
        }
    }
}

/// A build's progress so far.
pub struct Progress<'a> {
    masker: &'a Masker,
    steps: HashMap<String, Step>,
    /// The steps with an error, in the order in which they failed.
    failed: Vec<String>,
    outputs: HashMap<String, StepOutput>,
    warnings: Vec<Warning>,
    pushing: bool,
    ending: Option<Ending>,
    text: String,
}

impl<'a> Progress<'a> {
    /// Of a build whose secret values `masker` knows.
    #[must_use]
    pub fn new(masker: &'a Masker) -> Self {
        Self {
            masker,
            steps: HashMap::new(),
            failed: Vec::new(),
            outputs: HashMap::new(),
            warnings: Vec::new(),
            pushing: false,
            ending: None,
            text: String::new(),
        }
    }

    /// Takes a line of what `kiln-build` writes.
    pub fn line(&mut self, line: &[u8]) -> Vec<Update> {
        match Own::read(line) {
            Some(Told::Shown(shown)) => return vec![Update::Shown(shown)],
            Some(Told::Ended(ending)) => {
                self.ending = Some(ending);
                return Vec::new();
            }
            None => {}
        }
        let status = if line.starts_with(b"{") { serde_json::from_slice::<Status>(line).ok() } else { None };
        let Some(status) = status else {
            if self.text.len() < 1 << 20 {
                self.text.push_str(&String::from_utf8_lossy(line));
                self.text.push('\n');
            }
            return Vec::new();
        };
        let mut updates = Vec::new();
        // Output first: what came together with a step's end belongs before it.
        for log in status.logs {
            self.output(&log, &mut updates);
        }
        for vertex in status.vertexes {
            self.vertex(vertex, &mut updates);
        }
        if !self.pushing && status.statuses.iter().any(|status| status.id.starts_with("pushing ")) {
            self.pushing = true;
            updates.push(Update::Pushing);
        }
        for warning in status.warnings {
            let warning = self.warning(warning);
            if self.warnings.len() < MOST_WARNINGS && !self.warnings.contains(&warning) {
                self.warnings.push(warning);
            }
        }
        updates
    }

    /// What was written besides JSON: `kiln-build` itself broke down.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// How the build ended. `None`: `kiln-build` did not come so far.
    #[must_use]
    pub fn ending(&self) -> Option<&Ending> {
        self.ending.as_ref()
    }

    /// Adds a warning of Kiln's own.
    pub fn warn(&mut self, warning: Option<Warning>) {
        self.warnings.extend(warning);
    }

    /// The linter's warnings.
    #[must_use]
    pub fn warnings(&self) -> &[Warning] {
        &self.warnings
    }

    /// The step that made the build fail: the one that BuildKit names, else the first whose error it repeats, else the first
    /// that was not merely given up because another one had failed. Where buildkitd ended, the one that ran.
    #[must_use]
    pub fn failed_step(&self, failed: &Failed) -> Option<FailedStep> {
        if failed.is_lost() {
            return self.running_step();
        }
        let steps = || self.failed.iter().filter_map(|id| Some((id, self.steps.get(id)?)));
        let (id, step) = steps()
            .find(|(id, _)| **id == failed.vertex)
            .or_else(|| steps().find(|(_, step)| failed.message.contains(step.error.trim_end_matches('…'))))
            .or_else(|| steps().find(|(_, step)| !step.error.contains("context canceled")))?;
        Some(FailedStep { name: step.name.clone(), error: step.error.clone(), tail: self.tail(id) })
    }

    /// The step that began last of those that run, and the last lines of its output.
    #[must_use]
    pub fn running_step(&self) -> Option<FailedStep> {
        let began = |step: &Step| step.started.map(|time| (time.seconds, time.nanos));
        let step = self.steps.values().filter(|step| step.completed.is_none()).max_by_key(|step| began(step))?;
        Some(FailedStep { name: step.name.clone(), error: step.error.clone(), tail: self.tail(&step.id) })
    }

    fn warning(&self, warning: VertexWarning) -> Warning {
        let text = STANDARD.decode(&warning.short).unwrap_or_default();
        let text = self.masker.line(&String::from_utf8_lossy(&text));
        let line = warning.range.unwrap_or_default().first().map_or(0, |range| range.start.line);
        // Such as `JSONArgsRecommended: JSON arguments recommended for CMD … (line 3)`.
        let text = text.strip_suffix(&format!(" (line {line})")).unwrap_or(&text);
        let is_rule = |word: &str| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_alphanumeric());
        let (rule, message) = text.split_once(": ").filter(|(rule, _)| is_rule(rule)).unwrap_or(("", text));
        let dockerfile = warning.source_info.map(|source| self.masker.line(&source.filename)).unwrap_or_default();
        Warning { rule: rule.to_owned(), message: message.to_owned(), dockerfile, line }
    }

    fn tail(&self, id: &str) -> Vec<String> {
        self.outputs.get(id).map(|output| output.tail.iter().cloned().collect()).unwrap_or_default()
    }

    fn vertex(&mut self, vertex: Vertex, updates: &mut Vec<Update>) {
        // Named when the build is planned, told when it begins.
        let Some(started) = vertex.started.as_deref().and_then(|time| time.parse().ok()) else { return };
        // Of those that fail some more: one of them tells why.
        let most = if vertex.error.is_empty() { MOST_STEPS } else { MOST_STEPS + MOST_FAILED };
        if self.steps.len() >= most && !self.steps.contains_key(&vertex.digest) {
            return;
        }
        let lost_cache = !vertex.error.is_empty() && CACHE_STEPS.iter().any(|opening| vertex.name.starts_with(opening));
        if lost_cache {
            let line = format!("{}: {}", vertex.name, vertex.error);
            self.masked_line(&vertex.digest, line.as_bytes(), updates);
        }
        let error = if lost_cache { "" } else { &vertex.error };
        let step = Step {
            id: vertex.digest,
            name: self.masker.line(&vertex.name),
            started: Some(started),
            completed: vertex.completed.as_deref().and_then(|time| time.parse().ok()),
            cached: vertex.cached,
            error: shorten(self.masker.text(error), LONGEST_ERROR),
        };
        if step.completed.is_some() {
            self.flush(&step.id, updates);
            if step.error.is_empty() {
                // Nobody asks for the last lines of a step that went well.
                self.outputs.remove(&step.id);
            }
        }
        if !step.error.is_empty() && !self.failed.contains(&step.id) {
            self.failed.push(step.id.clone());
        }
        if self.steps.get(&step.id) != Some(&step) {
            self.steps.insert(step.id.clone(), step.clone());
            updates.push(Update::Step(step));
        }
    }

    fn output(&mut self, log: &VertexLog, updates: &mut Vec<Update>) {
        let Ok(data) = STANDARD.decode(&log.data) else { return };
        if self.outputs.len() >= MOST_STEPS && !self.outputs.contains_key(&log.vertex) {
            return;
        }
        let output = self.outputs.entry(log.vertex.clone()).or_default();
        let mut piece = output.pieces.remove(&log.stream).unwrap_or_default();
        for chunk in data.split_inclusive(|byte| *byte == b'\n') {
            let (chunk, ends) = chunk.strip_suffix(b"\n").map_or((chunk, false), |chunk| (chunk, true));
            piece.take(chunk);
            if !piece.told && (ends || piece.bytes.len() > LONGEST_PIECE) {
                self.masked_line(&log.vertex, &piece.bytes, updates);
                piece = Piece { bytes: Vec::new(), told: true };
            }
            if ends {
                piece = Piece::default();
            }
        }
        if piece.told || !piece.bytes.is_empty() {
            self.outputs.entry(log.vertex.clone()).or_default().pieces.insert(log.stream, piece);
        }
    }

    /// Tells the unfinished lines of a step that has ended.
    fn flush(&mut self, id: &str, updates: &mut Vec<Update>) {
        let Some(output) = self.outputs.get_mut(id) else { return };
        let mut pieces: Vec<_> = output.pieces.drain().filter(|(_, piece)| !piece.told).collect();
        pieces.sort_by_key(|(stream, _)| *stream);
        for (_, piece) in pieces {
            self.masked_line(id, &piece.bytes, updates);
        }
    }

    fn masked_line(&mut self, id: &str, line: &[u8], updates: &mut Vec<Update>) {
        let line = self.masker.line(&String::from_utf8_lossy(line));
        let output = self.outputs.entry(id.to_owned()).or_default();
        if output.tail.len() == TAIL {
            output.tail.pop_front();
        }
        output.tail.push_back(line.clone());
        updates.push(Update::Line { step_id: id.to_owned(), line });
    }
}

#[cfg(test)]
mod tests;
