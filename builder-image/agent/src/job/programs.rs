//! Whether what an image starts is a program for its platform: which files of the image tell, and what they tell; pure.
//!
//! BuildKit writes the target's architecture into an image whatever is in it. A binary that was copied, a stage for another
//! platform or a compiler that was not told make an image that nobody notices before it runs:
//! <https://refspecs.linuxfoundation.org/elf/gabi4+/ch4.eheader.html>. Shared libraries are not looked at.

use std::collections::BTreeMap;

use super::{content::Config, line_ends::is_in_first_line};

mod elf;
pub mod origin;
pub mod viewer;
mod words;

/// Where programs are sought that are named without a directory, unless the image says so itself.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The most files that are looked at, and directories that are looked through for one.
const MOST_FILES: usize = 64;
const MOST_DIRECTORIES: usize = 16;
/// How much of a file is read at first, and at most, in bytes.
const FIRST: usize = 4 << 10;
const MOST: usize = 1 << 20;
/// How much is read at once, of all files together.
const MOST_AT_ONCE: usize = 2 << 20;
/// How far one program is followed to the next.
const DEEPEST: usize = 8;
/// The longest path that is asked for, as the kernel has it.
const LONGEST_PATH: usize = 4096;

/// How many programs are followed, whatever they start of each other.
const MOST_STARTED: usize = 64;
/// How much of a command is looked at, and of the directories that programs are sought in: in words, and in bytes. No kernel
/// starts what is much longer.
const MOST_WORDS: usize = 1024;
const LONGEST_COMMAND: usize = 64 << 10;

/// The beginnings of files beneath an image's root, by path.
pub type Files = BTreeMap<String, Beginning>;

/// What was read of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Beginning {
    /// How many bytes were asked for.
    pub asked: usize,
    /// Those that are there. None: it is not there, or is no regular file.
    pub bytes: Option<Vec<u8>>,
}

/// What follows from what is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Look {
    /// These have to be read first, so many bytes of each.
    Read(BTreeMap<String, usize>),
    /// That is all.
    Done(Verdict),
}

/// What the files tell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// A program that the platform's machines cannot run.
    pub foreign: Option<Foreign>,
    /// An interpreter that is not in the image, and the program that names it.
    pub missing: Option<(String, String)>,
    /// A script whose first line ends as on Windows: its interpreter is none that there is.
    pub windows_lines: Option<String>,
}

/// A program for another architecture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Foreign {
    /// Where it lies.
    pub path: String,
    /// Its architecture, as an OCI platform names it.
    pub found: &'static str,
}

/// Looks at what an image of this configuration starts: the program of ENTRYPOINT, or else of CMD, and what that starts in
/// turn, as far as its words tell. With nothing to start, its shell tells. Files at `permitted` paths may be of any platform.
#[must_use]
pub fn look(config: &Config, platform: &str, permitted: &[String], files: &Files) -> Look {
    if config.os != "linux" {
        return Look::Done(Verdict::default());
    }
    let wanted = elf::usual(platform.split('/').nth(1).unwrap_or_default());
    let mut looking = Looking {
        config,
        wanted,
        permitted,
        files,
        read: BTreeMap::new(),
        verdict: Verdict::default(),
        directories: directories(config),
        started: 0,
    };
    looking.all();
    if looking.read.is_empty() { Look::Done(looking.verdict) } else { Look::Read(looking.read) }
}

struct Looking<'a> {
    config: &'a Config,
    wanted: &'a str,
    permitted: &'a [String],
    files: &'a Files,
    read: BTreeMap<String, usize>,
    verdict: Verdict,
    /// Where programs are sought that are named without one.
    directories: Vec<String>,
    /// How many programs were followed.
    started: usize,
}

/// Those of `PATH`.
fn directories(config: &Config) -> Vec<String> {
    let set = config.config.iter().flat_map(|run| run.env.iter().flatten()).find_map(|set| set.strip_prefix("PATH="));
    set.unwrap_or(PATH)
        .split(':')
        .take(MOST_WORDS)
        .filter(|directory| directory.starts_with('/') && directory.len() <= LONGEST_PATH)
        .take(MOST_DIRECTORIES)
        .map(|directory| directory.trim_end_matches('/').to_owned())
        .collect()
}

/// The beginning of a command, as far as it is looked at.
fn bounded<'w>(words: impl IntoIterator<Item = &'w String>) -> Vec<String> {
    let mut room = LONGEST_COMMAND;
    let fits = |word: &&String| {
        let fits = word.len() <= room;
        room = room.saturating_sub(word.len());
        fits
    };
    words.into_iter().take(MOST_WORDS).take_while(fits).cloned().collect()
}

/// A path as people write it: without `/./` and `//`.
fn plain(path: &str) -> String {
    path.split('/').filter(|part| !matches!(*part, "" | ".")).fold(String::new(), |path, part| path + "/" + part)
}

/// What is known of a file.
enum Seen<'a> {
    Unread,
    Absent,
    Bytes(&'a [u8]),
}

/// What a program was found to be.
#[derive(PartialEq, Eq)]
enum Found {
    Script,
    Other,
}

impl<'a> Looking<'a> {
    fn all(&mut self) {
        let run = self.config.config.as_ref();
        let words = |of: Option<&'a Vec<String>>| of.map(Vec::as_slice).unwrap_or_default();
        let entrypoint = words(run.and_then(|run| run.entrypoint.as_ref()));
        let command = words(run.and_then(|run| run.cmd.as_ref()));
        let all = bounded(entrypoint.iter().chain(command));
        if all.is_empty() {
            self.starts(&["/bin/sh".to_owned()], 0);
        } else if self.starts(&all, 0) == Found::Script && !entrypoint.is_empty() {
            // Such a script ends with `exec "$@"` as a rule.
            self.starts(&bounded(command), 0);
        }
    }

    /// Looks at the program that the first word names, and at what the others have it start. Says what the last one is.
    fn starts(&mut self, words: &[String], depth: usize) -> Found {
        let has_room = depth < DEEPEST && self.started < MOST_STARTED;
        let Some((name, rest)) = words.split_first().filter(|_| has_room) else { return Found::Other };
        self.started += 1;
        let Some((path, bytes)) = self.find(name) else { return Found::Other };
        let found = self.file(&path, bytes, depth);
        match words::started_by(name, rest) {
            Some(next) if !next.is_empty() => self.starts(&bounded(&next), depth + 1),
            _ => found,
        }
    }

    /// The file that a name means. None: it is not there, or not read yet.
    fn find(&mut self, name: &str) -> Option<(String, &'a [u8])> {
        let run = self.config.config.as_ref();
        let paths: Vec<String> = if name.starts_with('/') {
            vec![name.to_owned()]
        } else if name.contains('/') {
            let directory = run.map_or("", |run| run.working_dir.trim_end_matches('/'));
            vec![format!("{directory}/{name}")]
        } else if name.is_empty() {
            Vec::new()
        } else {
            self.directories.iter().map(|directory| format!("{directory}/{name}")).collect()
        };
        // All are asked for at once, and the first that is there counts.
        let paths = paths.iter().map(|path| plain(path));
        let known: Vec<_> = paths.map(|path| (self.get(&path, FIRST), path)).collect();
        for (bytes, path) in known {
            match bytes {
                Seen::Bytes(bytes) => return Some((path, bytes)),
                Seen::Absent => {}
                Seen::Unread => return None,
            }
        }
        None
    }

    /// A file's first bytes, `length` of them if it has so many. What was not read yet is asked for.
    fn get(&mut self, path: &str, length: usize) -> Seen<'a> {
        let known = self.files.get(path);
        match known.filter(|known| known.asked >= length || known.bytes.is_none()) {
            Some(known) => known.bytes.as_deref().map_or(Seen::Absent, Seen::Bytes),
            None if length > MOST || path.len() > LONGEST_PATH || path.contains('\0') => Seen::Absent,
            None if known.is_none() && self.files.len() + self.read.len() >= MOST_FILES => Seen::Absent,
            // The rest is asked for in the next round: an answer has to fit a line.
            None if !self.read.is_empty() && self.read.values().sum::<usize>() + length > MOST_AT_ONCE => Seen::Unread,
            None => {
                let wanted = self.read.entry(path.to_owned()).or_default();
                *wanted = length.max(*wanted);
                Seen::Unread
            }
        }
    }

    fn file(&mut self, path: &str, bytes: &[u8], depth: usize) -> Found {
        if let Some(line) = bytes.strip_prefix(b"#!") {
            if is_in_first_line(bytes) {
                self.verdict.windows_lines.get_or_insert_with(|| path.to_owned());
            }
            let line = line.split(|byte| *byte == b'\n').next().unwrap_or_default();
            let words: Vec<String> = String::from_utf8_lossy(line).split_whitespace().map(str::to_owned).collect();
            self.starts(&words, depth + 1);
            return Found::Script;
        }
        if !self.is_foreign(path, bytes) {
            self.interpreter(path, bytes);
        }
        Found::Other
    }

    fn is_foreign(&mut self, path: &str, bytes: &[u8]) -> bool {
        let found = elf::architecture(bytes);
        let foreign = found.filter(|found| !elf::runs(found, self.wanted));
        if let Some(found) = foreign
            && !self.permitted.iter().any(|permitted| permitted == path)
        {
            self.verdict.foreign.get_or_insert(Foreign { path: path.to_owned(), found });
        }
        foreign.is_some()
    }

    /// Looks at the program that loads this one.
    fn interpreter(&mut self, path: &str, bytes: &[u8]) {
        let interpreter = match elf::interpreter(bytes) {
            elf::Interpreter::At(end) if end > bytes.len() => {
                let Seen::Bytes(more) = self.get(path, end.max(FIRST)) else { return };
                let elf::Interpreter::Named(name) = elf::interpreter(more) else { return };
                name
            }
            elf::Interpreter::Named(name) => name,
            elf::Interpreter::At(_) | elf::Interpreter::None => return,
        };
        match self.get(&interpreter, FIRST) {
            Seen::Unread => {}
            Seen::Absent => {
                self.verdict.missing.get_or_insert((interpreter, path.to_owned()));
            }
            Seen::Bytes(bytes) => {
                self.is_foreign(&interpreter, bytes);
            }
        }
    }
}

#[cfg(test)]
mod tests;
