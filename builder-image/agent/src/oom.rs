//! Whether want of memory is to blame: how many processes of buildkitd's container the kernel has killed for it, as the start
//! script `kiln-buildkitd` tells beside the socket, when a build begins and when it ends badly.
//!
//! Without a sandbox of its own a RUN step may reach that script and what it tells: it is a hint, short, and waited for but a
//! moment.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::FileTypeExt as _,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rustix::io::Errno;
use tokio::{net::unix::pipe, time::timeout};

use crate::files;

/// The pipe with the script's answers; once buildkitd has ended, a file with its last word. The pipe for questions is beside
/// it, and ends in `.ask`.
const FILE: &str = "oom-kills";
/// What stands in a question's place where the script is to end buildkitd.
const END: &str = "end";
/// How long an answer is waited for. It takes a millisecond, and longer where all processors are busy.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long until it is asked again, where it ended before it had answered.
const PAUSE: Duration = Duration::from_millis(10);
/// The longest answer: the question, a number, and the id of the start that counts.
const LONGEST: usize = 128;

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Count {
    kills: u64,
    /// Which start of the container counted.
    start: String,
}

/// What is known of want of memory in a build that failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shortage {
    /// Whether a process has been killed for it during the build. `None`: nobody can tell.
    pub killed: Option<bool>,
    /// Whether the build was the only one.
    pub alone: bool,
    /// Whether nothing had been killed in the container before the build.
    pub first: bool,
}

#[derive(Debug, Default)]
struct Builds {
    running: usize,
    /// How many have ever begun.
    begun: u64,
    /// How many kills a failed build has been told for.
    explained: u64,
}

/// The builds that look.
#[derive(Debug)]
pub struct Oom {
    path: Option<PathBuf>,
    builds: Mutex<Builds>,
    /// One question at a time, so that nobody takes another's answer.
    asking: tokio::sync::Mutex<()>,
}

/// A build, from before its first step.
#[derive(Debug)]
pub struct Watch<'a> {
    oom: &'a Oom,
    before: Option<Count>,
    /// Whether no other ran when it began.
    began_alone: bool,
    /// How many had begun by then, this one included.
    number: u64,
}

impl Oom {
    /// Beside buildkitd's socket, where it has one.
    #[must_use]
    pub fn beside(socket: Option<&Path>) -> Self {
        let path = socket.and_then(Path::parent).map(|directory| directory.join(FILE));
        Self { path, builds: Mutex::default(), asking: tokio::sync::Mutex::default() }
    }

    /// A build begins.
    pub async fn watch(&self) -> Watch<'_> {
        let (began_alone, number) = {
            let mut builds = lock(&self.builds);
            builds.running += 1;
            builds.begun += 1;
            (builds.running == 1, builds.begun)
        };
        // Made before it is waited, so that a build that is given up does not count for ever.
        let mut watch = Watch { oom: self, before: None, began_alone, number };
        watch.before = self.count().await;
        if let Some(before) = &watch.before {
            // A new container counts from 0.
            let mut builds = lock(&self.builds);
            builds.explained = builds.explained.min(before.kills);
        }
        watch
    }

    /// Has the script end buildkitd, whatever that waits for.
    pub fn end_buildkitd(&self) -> io::Result<()> {
        let path = self.path.as_deref().ok_or(io::ErrorKind::Unsupported)?;
        open_ask(path)?.write_all(format!("{END}\n").as_bytes())
    }

    /// What the script says now. `None`: nothing that can be read, or not in time.
    async fn count(&self) -> Option<Count> {
        let path = self.path.as_deref()?;
        let answer = async {
            let _one = self.asking.lock().await;
            loop {
                match ask(path).await {
                    Ok(Some(count)) => return Some(count),
                    // The script has ended, and another may take its place, or have left its last word.
                    Ok(None) => tokio::time::sleep(PAUSE).await,
                    Err(_) => return None,
                }
            }
        };
        timeout(PATIENCE, answer).await.ok().flatten()
    }
}

impl Watch<'_> {
    /// What is known now.
    pub async fn look(&self) -> Shortage {
        let now = self.oom.count().await;
        let builds = lock(&self.oom.builds);
        let killed = match (&self.before, &now) {
            (Some(before), Some(now)) if before.start == now.start => {
                Some(now.kills > before.kills.max(builds.explained))
            }
            _ => None,
        };
        Shortage {
            killed,
            alone: self.began_alone && builds.begun == self.number,
            first: self.before.as_ref().is_some_and(|before| before.kills == 0),
        }
    }

    /// A kill is told as the cause of this build's end: it is no other's.
    pub fn explained(&self) {
        let mut builds = lock(&self.oom.builds);
        let before = self.before.as_ref().map_or(0, |before| before.kills);
        builds.explained = builds.explained.max(before) + 1;
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        lock(&self.oom.builds).running -= 1;
    }
}

/// The pipe for questions.
fn open_ask(path: &Path) -> io::Result<fs::File> {
    let asking = files::open_any(&path.with_extension("ask"), OpenOptions::new().write(true))?;
    if asking.metadata()?.file_type().is_fifo() { Ok(asking) } else { Err(io::ErrorKind::InvalidData.into()) }
}

/// The answer to a question of now, where answers come at `path`. `None`: whoever answers has ended.
async fn ask(path: &Path) -> io::Result<Option<Count>> {
    let answers = files::open_any(path, OpenOptions::new().read(true))?;
    if answers.metadata()?.is_file() {
        let last = files::read(path, LONGEST as u64)?;
        return answer(&last, "last").map(Some).ok_or(io::ErrorKind::InvalidData.into());
    }
    let mut asking = match open_ask(path) {
        // Nobody reads there.
        Err(error) if error.raw_os_error() == Some(Errno::NXIO.raw_os_error()) => return Ok(None),
        opened => opened?,
    };
    // One that was not waited for is still answered.
    let question = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos().to_string();
    asking.write_all(format!("{question}\n").as_bytes())?;
    let answers = pipe::Receiver::from_file(answers)?;
    let mut said = Vec::new();
    loop {
        answers.readable().await?;
        let mut bytes = [0; LONGEST];
        match answers.try_read(&mut bytes) {
            Ok(0) => return Ok(None),
            Ok(length) => said.extend_from_slice(&bytes[..length]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error),
        }
        while let Some(end) = said.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = said.drain(..=end).collect();
            if line.starts_with(question.as_bytes()) {
                return answer(&line, &question).map(Some).ok_or(io::ErrorKind::InvalidData.into());
            }
        }
        if said.len() > LONGEST {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
}

/// Reads `QUESTION COUNT START`, and the end of the line.
fn answer(line: &[u8], question: &str) -> Option<Count> {
    let words = std::str::from_utf8(line).ok()?.strip_suffix('\n')?.strip_prefix(question)?.strip_prefix(' ')?;
    let (kills, start) = words.split_once(' ')?;
    Some(Count { kills: kills.parse().ok()?, start: start.to_owned() })
}

fn lock(builds: &Mutex<Builds>) -> MutexGuard<'_, Builds> {
    builds.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::{process::Command, time::Instant};

    use super::*;

    struct Told {
        directory: tempfile::TempDir,
        oom: Oom,
    }

    impl Told {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            Self { oom: Oom::beside(Some(&directory.path().join("buildkitd.sock"))), directory }
        }

        fn tells(&self, answer: &str) {
            fs::write(self.directory.path().join(FILE), format!("last {answer}")).unwrap();
        }
    }

    #[tokio::test]
    async fn what_was_killed_during_a_build() {
        let told = Told::new();
        for (before, after, killed, first) in [
            ("0 a\n", "0 a\n", Some(false), true),
            ("0 a\n", "1 a\n", Some(true), true),
            ("3 a\n", "4 a\n", Some(true), false),
            ("3 a\n", "3 a\n", Some(false), false),
            // Another container, which counts from 0.
            ("0 a\n", "0 b\n", None, true),
            ("0 a\n", "unknown a\n", None, true),
            ("unknown a\n", "unknown a\n", None, false),
            ("0 a\n", "", None, true),
            ("x\n", "-1 a\n", None, false),
        ] {
            told.tells(before);
            let watch = told.oom.watch().await;
            told.tells(after);
            let expected = Shortage { killed, alone: true, first };
            assert_eq!(watch.look().await, expected, "{before:?} {after:?}");
        }
    }

    #[tokio::test]
    async fn a_kill_explains_one_failure() {
        let told = Told::new();
        told.tells("0 a\n");
        let (first, second) = (told.oom.watch().await, told.oom.watch().await);
        told.tells("1 a\n");
        assert_eq!(second.look().await.killed, Some(true));
        second.explained();
        assert_eq!(first.look().await.killed, Some(false), "it was the other one's");
        told.tells("2 a\n");
        assert_eq!(first.look().await.killed, Some(true));
        drop((first, second));
        // The container has started anew.
        told.tells("0 b\n");
        let third = told.oom.watch().await;
        told.tells("1 b\n");
        assert_eq!(third.look().await.killed, Some(true));
    }

    #[tokio::test]
    async fn who_built_alone() {
        let told = Told::new();
        let first = told.oom.watch().await;
        assert!(first.look().await.alone);
        let second = told.oom.watch().await;
        assert!(!first.look().await.alone && !second.look().await.alone);
        drop(second);
        assert!(!first.look().await.alone, "the other one may have been killed");
        drop(first);
        assert!(told.oom.watch().await.look().await.alone);
    }

    #[tokio::test]
    async fn an_answer_is_short_and_soon_there() {
        let told = Told::new();
        let path = told.directory.path().join(FILE);
        let ask = path.with_extension("ask");
        let pipes = || {
            let _ = fs::remove_file(&path);
            let _ = fs::remove_file(&ask);
            assert!(Command::new("mkfifo").args([&path, &ask]).status().unwrap().success());
        };
        let both = |path: &Path| OpenOptions::new().read(true).write(true).open(path).unwrap();
        let begun = Instant::now();
        assert_eq!(told.oom.count().await, None, "nobody tells");
        std::os::unix::fs::symlink("/dev/zero", &path).unwrap();
        assert_eq!(told.oom.count().await, None, "a link");
        fs::remove_file(&path).unwrap();
        told.tells(&"1".repeat(1000));
        assert_eq!(told.oom.count().await, None, "a file without end");
        pipes();
        let (mut answers, _asked) = (both(&path), both(&ask));
        answers.write_all(&[b'1'; 4 * LONGEST]).unwrap();
        assert_eq!(told.oom.count().await, None, "an answer without end");
        fs::remove_file(&ask).unwrap();
        std::os::unix::fs::symlink("/dev/null", &ask).unwrap();
        assert_eq!(told.oom.count().await, None, "a link to ask through");
        assert!(begun.elapsed() < PATIENCE, "none of these is waited for");
        pipes();
        assert_eq!(told.oom.count().await, None, "nobody reads the questions");
        let (mut answers, _asked) = (both(&path), both(&ask));
        assert_eq!(told.oom.count().await, None, "nobody answers");
        answers.write_all(&b"1 0 a\n".repeat(1000)).unwrap();
        assert_eq!(told.oom.count().await, None, "answers to others alone");
        assert!(begun.elapsed() < 5 * PATIENCE);
    }
}
