//! The agent's part of the conversation about an image that is not exported yet: which files it wants to see, and whether it
//! wants the image.

use std::collections::BTreeMap;

use serde::Serialize;

use super::super::{content::Config, ending::Shown};
use super::{Beginning, Files, Look, Verdict, look};

/// What is known of one image.
pub struct Viewer<'a> {
    platform: &'a str,
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
    export: bool,
}

impl<'a> Viewer<'a> {
    /// Of an image for this platform, whose files at `permitted` paths may be of any.
    #[must_use]
    pub fn new(platform: &'a str, permitted: &'a [String]) -> Self {
        Self {
            platform,
            permitted,
            config: Config::default(),
            files: Files::new(),
            asked: BTreeMap::new(),
            verdict: None,
        }
    }

    /// What is said to what was shown: which files are to be read, or whether the image is to be exported.
    pub fn answer(&mut self, shown: Shown) -> Vec<u8> {
        match shown {
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
        let mut answer = serde_json::to_vec(&Answer { read: &self.asked, export }).unwrap_or_default();
        answer.push(b'\n');
        answer
    }

    /// What came of it. `None`: it was not shown.
    #[must_use]
    pub fn verdict(self) -> Option<Verdict> {
        self.verdict
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(viewer: &mut Viewer<'_>, shown: Shown) -> String {
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
            let mut viewer = Viewer::new("linux/arm64", &permitted);
            let first = said(&mut viewer, Shown::Config(config()));
            assert_eq!(first, "{\"read\":{\"/app\":4096},\"export\":false}\n");
            let files = [("/app".to_owned(), bytes), ("/never-asked".to_owned(), Some(Vec::new()))].into();
            let second = said(&mut viewer, Shown::Files(files));
            assert_eq!(second, format!("{{\"read\":{{}},\"export\":{export}}}\n"));
            assert_eq!(viewer.files.len(), 1);
            assert_eq!(viewer.verdict().unwrap().foreign.is_none(), export);
        }
    }
}
