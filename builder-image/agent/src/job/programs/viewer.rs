//! The agent's part of the conversation about a build: whether what is about to be done may be, which files of the image that is
//! not exported yet it wants to see, and whether it wants the image.

use std::collections::BTreeMap;

use serde::Serialize;

use super::super::{
    content::Config,
    ending::{Definition, Running, Shown},
    stages::normalised,
};
use super::{Beginning, Files, Look, Verdict, look};

/// What is known of one build.
pub struct Viewer<'a> {
    platform: &'a str,
    may_run: bool,
    definition: Option<Definition>,
    permitted: &'a [String],
    config: Config,
    files: Files,
    asked: BTreeMap<String, usize>,
    verdict: Option<Verdict>,
}

/// What is said to an event, as `kiln-build` reads it.
#[derive(Serialize)]
struct Answer<'a> {
    read: &'a BTreeMap<String, usize>,
    proceed: bool,
}

/// What was shown, and what came of it.
#[derive(Debug)]
pub struct Seen {
    /// What was about to be done. None: it was not shown, or could not be read.
    pub definition: Option<Definition>,
    /// What is said of the image. None: it was not shown.
    pub verdict: Option<Verdict>,
}

impl Seen {
    /// The step that runs something for this platform.
    #[must_use]
    pub fn runs_for(&self, platform: &str) -> Option<&Running> {
        runs_for(self.definition.as_ref()?, platform)
    }
}

fn runs_for<'d>(definition: &'d Definition, platform: &str) -> Option<&'d Running> {
    let platform = normalised(platform);
    definition.steps.iter().find_map(|(of, step)| (normalised(of) == platform).then_some(step))
}

impl<'a> Viewer<'a> {
    /// Of an image for this platform, for which steps may run or not, and whose files at `permitted` paths may be of any.
    #[must_use]
    pub fn new(platform: &'a str, may_run: bool, permitted: &'a [String]) -> Self {
        Self {
            platform,
            may_run,
            definition: None,
            permitted,
            config: Config::default(),
            files: Files::new(),
            asked: BTreeMap::new(),
            verdict: None,
        }
    }

    /// What is said to what was shown: which files are to be read, or whether it is wanted.
    pub fn answer(&mut self, shown: Shown) -> Vec<u8> {
        match shown {
            Shown::Definition(definition) => {
                let runs = definition.as_ref().map(|definition| runs_for(definition, self.platform).is_some());
                self.definition = definition;
                return said(&BTreeMap::new(), runs.is_some_and(|runs| self.may_run || !runs));
            }
            Shown::Config(config) => self.config = *config,
            Shown::Files(mut files) => {
                // Those that were asked for, and no others.
                for (path, asked) in std::mem::take(&mut self.asked) {
                    let bytes = files.remove(&path).flatten();
                    self.files.insert(path, Beginning { asked, bytes });
                }
            }
        }
        let export = match look(&self.config, self.platform, self.permitted, &self.files) {
            Look::Read(files) => {
                self.asked = files;
                false
            }
            Look::Done(verdict) => {
                let export = verdict.foreign.is_none();
                self.verdict = Some(verdict);
                export
            }
        };
        said(&self.asked, export)
    }

    /// All of it.
    #[must_use]
    pub fn seen(self) -> Seen {
        Seen { definition: self.definition, verdict: self.verdict }
    }
}

fn said(read: &BTreeMap<String, usize>, proceed: bool) -> Vec<u8> {
    let mut answer = serde_json::to_vec(&Answer { read, proceed }).unwrap_or_default();
    answer.push(b'\n');
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(viewer: &mut Viewer<'_>, shown: Shown) -> String {
        String::from_utf8(viewer.answer(shown)).unwrap()
    }

    #[test]
    fn an_image_is_looked_at_and_exported_or_not() {
        let config = || Box::new(serde_json::from_str(r#"{"os":"linux","config":{"Cmd":["/app"]}}"#).unwrap());
        for (permitted, bytes, export) in [
            (vec![], None, true),
            (vec![], Some(b"text".to_vec()), true),
            (vec![], Some(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\0\0\x3e\0".to_vec()), false),
            (vec!["/app".to_owned()], Some(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\0\0\x3e\0".to_vec()), true),
        ] {
            let mut viewer = Viewer::new("linux/arm64", true, &permitted);
            let first = answer(&mut viewer, Shown::Config(config()));
            assert_eq!(first, "{\"read\":{\"/app\":4096},\"proceed\":false}\n");
            let files = [("/app".to_owned(), bytes), ("/never-asked".to_owned(), Some(Vec::new()))].into();
            let second = answer(&mut viewer, Shown::Files(files));
            assert_eq!(second, format!("{{\"read\":{{}},\"proceed\":{export}}}\n"));
            assert_eq!(viewer.files.len(), 1);
            assert_eq!(viewer.seen().verdict.unwrap().foreign.is_none(), export);
        }
    }

    #[test]
    fn what_runs_is_refused_where_nothing_may() {
        let step = |name: &str, line| Running { name: name.to_owned(), line };
        let definition = |platform: &str| Definition {
            steps: [(platform.to_owned(), step("[2/2] RUN make", 2))].into(),
            images: Vec::new(),
        };
        for (may_run, shown, proceed) in [
            (false, Some(definition("linux/arm64/v8")), false),
            (false, Some(definition("linux/amd64")), true),
            (false, Some(Definition::default()), true),
            (true, Some(definition("linux/arm64")), true),
            // What cannot be read may be anything.
            (true, None, false),
        ] {
            let mut viewer = Viewer::new("linux/arm64", may_run, &[]);
            let said = answer(&mut viewer, Shown::Definition(shown.clone()));
            assert_eq!(said, format!("{{\"read\":{{}},\"proceed\":{proceed}}}\n"), "{may_run} {shown:?}");
            let runs = viewer.seen().runs_for("linux/arm64").is_some();
            assert_eq!(runs, shown.is_some_and(|of| of.steps.keys().any(|of| of.contains("arm64"))));
        }
    }
}
