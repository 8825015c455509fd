//! Reads what `buildctl --progress=rawjson` writes: one JSON object a line, and after the last one its error as text.
//!
//! The objects are BuildKit's `client.SolveStatus`: vertexes (the steps) that changed, pieces of their output, and
//! the linter's warnings.

use std::collections::{HashMap, VecDeque};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use kiln_agent_proto::Step;
use serde::Deserialize;

use super::mask::{Masker, shorten};

/// How many lines of a step's output a failure tells.
const TAIL: usize = 20;
/// A line without end is told so far, and what follows of it is not, so that a step that never ends one does not fill
/// the memory. Far above what is shown of a line, so that no secret value is cut in two where it would be seen.
const LONGEST_PIECE: usize = 64 << 10;
/// The most steps that are told of: no honest Dockerfile has so many.
const MOST_STEPS: usize = 2000;
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
}

/// A step that failed.
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
struct VertexWarning {
    #[serde(default)]
    short: String,
    #[serde(default)]
    range: Option<Vec<Range>>,
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

/// A warning of BuildKit's linter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// The rule's name and what breaks it.
    pub text: String,
    /// The line of the Dockerfile, from 1; 0: unknown.
    pub line: u32,
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
            text: String::new(),
        }
    }

    /// Takes a line of `buildctl`'s standard error.
    pub fn line(&mut self, line: &[u8]) -> Vec<Update> {
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
            if self.warnings.len() < MOST_STEPS {
                let short = STANDARD.decode(&warning.short).unwrap_or_default();
                let line = warning.range.unwrap_or_default().first().map_or(0, |range| range.start.line);
                self.warnings.push(Warning { text: self.masker.line(&String::from_utf8_lossy(&short)), line });
            }
        }
        updates
    }

    /// What `buildctl` wrote besides JSON: its error.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The linter's warnings.
    #[must_use]
    pub fn warnings(&self) -> &[Warning] {
        &self.warnings
    }

    /// The step that made the build fail: the first whose error `buildctl` repeats, else the first that was not
    /// merely given up because another one had failed.
    #[must_use]
    pub fn failed_step(&self) -> Option<FailedStep> {
        let steps = || self.failed.iter().filter_map(|id| Some((id, self.steps.get(id)?)));
        let (id, step) = steps()
            .find(|(_, step)| self.text.contains(step.error.trim_end_matches('…')))
            .or_else(|| steps().find(|(_, step)| !step.error.contains("context canceled")))?;
        Some(FailedStep { name: step.name.clone(), error: step.error.clone(), tail: self.tail(id) })
    }

    /// The step that began last of those that run, and the last lines of its output.
    #[must_use]
    pub fn running_step(&self) -> Option<(String, Vec<String>)> {
        let began = |step: &Step| step.started.map(|time| (time.seconds, time.nanos));
        let step = self.steps.values().filter(|step| step.completed.is_none()).max_by_key(|step| began(step))?;
        Some((step.name.clone(), self.tail(&step.id)))
    }

    fn tail(&self, id: &str) -> Vec<String> {
        self.outputs.get(id).map(|output| output.tail.iter().cloned().collect()).unwrap_or_default()
    }

    fn vertex(&mut self, vertex: Vertex, updates: &mut Vec<Update>) {
        // Named when the build is planned, told when it begins.
        let Some(started) = vertex.started.as_deref().and_then(|time| time.parse().ok()) else { return };
        if self.steps.len() >= MOST_STEPS && vertex.error.is_empty() && !self.steps.contains_key(&vertex.digest) {
            return;
        }
        let step = Step {
            id: vertex.digest,
            name: self.masker.line(&vertex.name),
            started: Some(started),
            completed: vertex.completed.as_deref().and_then(|time| time.parse().ok()),
            cached: vertex.cached,
            error: shorten(self.masker.text(&vertex.error), LONGEST_ERROR),
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
mod tests {
    use std::fmt::Write as _;

    use proptest::prelude::*;

    use super::*;

    fn log(stream: i32, data: &[u8]) -> Vec<u8> {
        serde_json::json!({"logs": [{"vertex": "v", "stream": stream, "data": STANDARD.encode(data)}]})
            .to_string()
            .into_bytes()
    }

    fn lines(updates: &[Update]) -> Vec<&str> {
        updates
            .iter()
            .filter_map(|update| if let Update::Line { line, .. } = update { Some(line.as_str()) } else { None })
            .collect()
    }

    /// One line for each update of a build that was captured from the pinned version.
    fn story(captured: &str) -> String {
        let masker = Masker::new([b"hunter22".as_slice()]);
        let mut progress = Progress::new(&masker);
        let mut story = String::new();
        for line in captured.lines() {
            for update in progress.line(line.as_bytes()) {
                match update {
                    Update::Step(step) => {
                        let state = if !step.error.is_empty() {
                            "failed"
                        } else if step.cached {
                            "cached"
                        } else if step.completed.is_some() {
                            "done"
                        } else {
                            "started"
                        };
                        writeln!(story, "step {} {state}", step.name).unwrap();
                    }
                    Update::Line { line, .. } => writeln!(story, "line {line}").unwrap(),
                    Update::Pushing => writeln!(story, "pushing").unwrap(),
                }
            }
        }
        write!(
            story,
            "failed: {:#?}\nwarnings: {:?}\ntext:\n{}",
            progress.failed_step(),
            progress.warnings(),
            progress.text()
        )
        .unwrap();
        story
    }

    #[test]
    fn a_build_that_succeeds() {
        insta::assert_snapshot!(story(include_str!("testdata/ok.stderr")));
    }

    #[test]
    fn a_step_that_fails() {
        insta::assert_snapshot!(story(include_str!("testdata/step-failed.stderr")));
    }

    #[test]
    fn two_steps_that_fail() {
        insta::assert_snapshot!(story(include_str!("testdata/two-fail.stderr")));
    }

    #[test]
    fn a_warning() {
        insta::assert_snapshot!(story(include_str!("testdata/base-platform.stderr")));
    }

    #[test]
    fn streams_are_put_together_apart() {
        let masker = Masker::default();
        let mut progress = Progress::new(&masker);
        assert_eq!(lines(&progress.line(&log(1, b"one\ntw"))), ["one"]);
        assert_eq!(lines(&progress.line(&log(2, b"err"))), [""; 0]);
        assert_eq!(lines(&progress.line(&log(1, b"o\n\n"))), ["two", ""]);
        let end = serde_json::json!({"vertexes": [{"digest": "v", "name": "n", "started": "2026-01-01T00:00:00Z", "completed": "2026-01-01T00:00:01Z"}]});
        assert_eq!(lines(&progress.line(end.to_string().as_bytes())), ["err"]);
    }

    #[test]
    fn a_line_without_end_is_told_once_and_takes_no_memory() {
        let masker = Masker::new([b"hunter22".as_slice()]);
        let mut progress = Progress::new(&masker);
        let mut told = Vec::new();
        // The value lies across each place where output could be cut.
        for _ in 0..100 {
            told.extend(progress.line(&log(1, &b"hunter22".repeat(4 << 10))));
        }
        assert!(progress.outputs["v"].pieces[&1].bytes.is_empty());
        told.extend(progress.line(&log(1, b"hunter22\nnext\n")));
        assert_eq!(told.len(), 2, "the line's beginning, and the next one");
        assert!(lines(&told)[0].trim_end_matches('…').chars().all(|char| char == '*'));
        assert_eq!(lines(&told)[1], "next");

        let mut told = Vec::new();
        for percent in 0..100 {
            told.extend(progress.line(&log(2, format!("{}{percent}%\r", "#".repeat(2000)).as_bytes())));
        }
        told.extend(progress.line(&log(2, b"done\n")));
        assert_eq!(lines(&told), ["done"], "a progress bar's last drawing counts");
    }

    #[test]
    fn what_a_step_prints_is_output_whatever_it_looks_like() {
        let masker = Masker::default();
        let mut progress = Progress::new(&masker);
        let fake = b"{\"vertexes\":[{\"digest\":\"v\",\"name\":\"fake\",\"started\":\"2026-01-01T00:00:00Z\",\"error\":\"e\"}]}\nerror: failed to solve: failed to push r: denied: \nDockerfile:1\n--------------------\n   1 | >>> x\n";
        let updates = progress.line(&log(1, fake));
        assert_eq!(lines(&updates).len(), updates.len());
        assert_eq!((progress.failed_step(), progress.text()), (None, ""));
    }

    #[test]
    fn endless_steps_are_not_told() {
        let masker = Masker::default();
        let mut progress = Progress::new(&masker);
        let told: usize = (0..2 * MOST_STEPS)
            .map(|number| {
                let vertex = serde_json::json!({"vertexes": [{"digest": number.to_string(), "name": "n", "started": "2026-01-01T00:00:00Z"}]});
                progress.line(vertex.to_string().as_bytes()).len()
            })
            .sum();
        assert_eq!(told, MOST_STEPS);
    }

    proptest! {
        #[test]
        fn no_output_is_lost_however_it_is_cut(text in "[a-z\n]{0,200}", cuts in proptest::collection::vec(1_usize..20, 0..40)) {
            let masker = Masker::default();
            let mut progress = Progress::new(&masker);
            let mut rest = text.as_bytes();
            let mut seen = Vec::new();
            for cut in cuts.into_iter().chain([200]) {
                let (piece, left) = rest.split_at(cut.min(rest.len()));
                seen.extend(progress.line(&log(1, piece)));
                rest = left;
            }
            progress.flush("v", &mut seen);
            prop_assert_eq!(lines(&seen), text.lines().collect::<Vec<_>>());
        }

        #[test]
        fn any_line_is_taken(line in any::<Vec<u8>>()) {
            let masker = Masker::default();
            Progress::new(&masker).line(&line);
        }
    }
}
