//! Runs a program in a process group of its own, so that all it started can be stopped with it.

use std::{
    io,
    process::{ExitStatus, Stdio},
    sync::atomic::{AtomicI32, Ordering},
    time::Duration,
};

use rustix::process::{Pid, Signal, WaitOptions, kill_process_group, waitpgid};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    process::Command,
    sync::mpsc,
};
use tokio_util::sync::CancellationToken;

/// How long a program has to end by itself after SIGTERM, before SIGKILL.
const GRACE: Duration = Duration::from_secs(5);
/// The longest line of its standard error that is handed on; the rest of a longer one is dropped.
const LONGEST_LINE: usize = 8 << 20;
/// The most that is taken of its standard output: the listing of half a million files.
const MOST_OUTPUT: u64 = 64 << 20;
/// How many answers wait for a program to read them.
const ANSWERS: usize = 16;

/// What a program left behind.
#[derive(Debug)]
pub struct Finished {
    /// How it ended.
    pub status: ExitStatus,
    /// All that it wrote to its standard output.
    pub stdout: Vec<u8>,
}

/// Why a program did not run to its end.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// It is not there, or there is no process to be had.
    #[error("cannot start {program}")]
    Start {
        /// The program's name.
        program: String,
        /// The system's error.
        source: io::Error,
    },
    /// Its output could not be read.
    #[error("cannot read the output of {program}")]
    Read {
        /// The program's name.
        program: String,
        /// The system's error.
        source: io::Error,
    },
    /// It wrote more than any answer has.
    #[error("{program} gave more than {} MiB", MOST_OUTPUT >> 20)]
    TooMuch {
        /// The program's name.
        program: String,
    },
    /// It was told to stop.
    #[error("stopped")]
    Stopped,
}

/// Runs `command` with `stdin` as its input, hands each line of its standard error to `on_line` as it comes, and
/// collects its standard output. Once `stop` is cancelled, ends the whole process group: SIGTERM, then SIGKILL.
pub async fn run(
    command: &mut Command,
    stdin: Option<&[u8]>,
    stop: &CancellationToken,
    mut on_line: impl FnMut(&[u8]),
) -> Result<Finished, ProcessError> {
    let on_line = |line: &[u8]| {
        on_line(line);
        None
    };
    exchange(command, stdin, false, stop, on_line).await
}

/// As [`run`], with a program that is answered: what `on_line` gives is written to its standard input, which stays open.
pub async fn converse(
    command: &mut Command,
    first: &[u8],
    stop: &CancellationToken,
    on_line: impl FnMut(&[u8]) -> Option<Vec<u8>>,
) -> Result<Finished, ProcessError> {
    exchange(command, Some(first), true, stop, on_line).await
}

async fn exchange(
    command: &mut Command,
    stdin: Option<&[u8]>,
    stays_open: bool,
    stop: &CancellationToken,
    mut on_line: impl FnMut(&[u8]) -> Option<Vec<u8>>,
) -> Result<Finished, ProcessError> {
    let program = command.as_std().get_program().to_string_lossy().into_owned();
    if stop.is_cancelled() {
        return Err(ProcessError::Stopped);
    }
    let mut child = command
        .process_group(0)
        .kill_on_drop(true)
        .stdin(if stdin.is_some() { Stdio::piped() } else { Stdio::null() })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|source| ProcessError::Start { program: program.clone(), source })?;
    let group = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    // Ends also where whoever waits for it gives up.
    let leftovers = Group(AtomicI32::new(group.map_or(0, |group| group.as_raw_nonzero().get())));
    let (input, output, errors) = (child.stdin.take(), child.stdout.take(), child.stderr.take());

    let (answers, mut answered) = mpsc::channel::<Vec<u8>>(ANSWERS);
    let feed = async {
        if let (Some(mut input), Some(bytes)) = (input, stdin) {
            // A program that ends early does not read on: its status tells.
            let _ = input.write_all(bytes).await;
            while stays_open && let Some(answer) = answered.recv().await {
                let _ = input.write_all(&answer).await;
            }
        }
    };
    let collect = async {
        let mut stdout = Vec::new();
        if let Some(output) = output {
            // Closed behind the limit, which ends the program.
            output.take(MOST_OUTPUT + 1).read_to_end(&mut stdout).await?;
        }
        Ok::<_, io::Error>(stdout)
    };
    // Its end, which comes with the program's, closes the other's input.
    let listen = async move {
        let mut on_line = |line: &[u8]| {
            // One that asks without reading gets no more answers.
            drop(on_line(line.trim_ascii_end()).map(|answer| answers.try_send(answer)));
        };
        if let Some(errors) = errors {
            let (mut errors, mut line) = (BufReader::new(errors), Vec::new());
            loop {
                let bytes = errors.fill_buf().await?;
                if bytes.is_empty() {
                    break;
                }
                let end = bytes.iter().position(|byte| *byte == b'\n');
                let part = &bytes[..end.unwrap_or(bytes.len())];
                line.extend_from_slice(&part[..part.len().min(LONGEST_LINE - line.len())]);
                let taken = part.len() + usize::from(end.is_some());
                errors.consume(taken);
                if end.is_some() {
                    on_line(&line);
                    line.clear();
                }
            }
            if !line.is_empty() {
                on_line(&line);
            }
        }
        Ok::<_, io::Error>(())
    };
    let ended = async {
        let status = child.wait().await;
        // What it leaves behind would go on with nobody to stop it, and hold its output open.
        leftovers.end();
        status
    };
    let whole = async {
        let ((), stdout, listened, status) = tokio::join!(feed, collect, listen, ended);
        listened.and_then(|()| Ok(Finished { stdout: stdout?, status: status? }))
    };
    let finished = tokio::select! {
        finished = whole => Some(finished),
        () = stop.cancelled() => None,
    };
    if let Some(finished) = finished {
        return match finished {
            Ok(finished) if finished.stdout.len() as u64 > MOST_OUTPUT => Err(ProcessError::TooMuch { program }),
            finished => finished.map_err(|source| ProcessError::Read { program, source }),
        };
    }
    // While its first process is there, its number is nobody else's.
    if let Some(group) = Pid::from_raw(leftovers.0.load(Ordering::Relaxed)) {
        let _ = kill_process_group(group, Signal::TERM);
        let _ = tokio::time::timeout(GRACE, child.wait()).await;
        let _ = kill_process_group(group, Signal::KILL);
    }
    let _ = child.wait().await;
    Err(ProcessError::Stopped)
}

/// A process group that ends with this; 0 once it has.
struct Group(AtomicI32);

impl Group {
    /// Ends all its processes at once.
    fn end(&self) {
        let Some(group) = Pid::from_raw(self.0.swap(0, Ordering::Relaxed)) else { return };
        if kill_process_group(group, Signal::KILL).is_err() {
            return;
        }
        // The agent is its container's first process: what its children leave behind becomes its own child, and takes a
        // moment to end.
        tokio::task::spawn_blocking(move || while let Ok(Some(_)) = waitpgid(group, WaitOptions::empty()) {});
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        command
    }

    #[tokio::test]
    async fn a_program_is_answered_until_it_ends() {
        let mut command = shell("read one; echo $one >&2; read two; echo $two >&2; echo more >&2");
        let mut lines = Vec::new();
        let stop = CancellationToken::new();
        let finished = converse(&mut command, b"one\n", &stop, |line| {
            let line = String::from_utf8_lossy(line).into_owned();
            let answer = format!("answer to {line}\n").into_bytes();
            lines.push(line);
            Some(answer)
        });
        assert!(finished.await.unwrap().status.success());
        assert_eq!(lines, ["one", "answer to one", "more"]);
    }

    #[tokio::test]
    async fn collects_output_and_lines() {
        let mut lines = Vec::new();
        let finished = run(
            &mut shell("cat; echo one >&2; echo two >&2; exit 3"),
            Some(b"in"),
            &CancellationToken::new(),
            |line| {
                lines.push(String::from_utf8_lossy(line).into_owned());
            },
        )
        .await
        .unwrap();
        assert_eq!((finished.status.code(), finished.stdout.as_slice()), (Some(3), b"in".as_slice()));
        assert_eq!(lines, ["one", "two"]);
    }

    #[tokio::test]
    async fn output_is_bounded() {
        let never = CancellationToken::new();
        let endless = run(&mut shell("exec cat /dev/zero"), None, &never, |_| {}).await;
        assert!(matches!(endless, Err(ProcessError::TooMuch { .. })), "{endless:?}");

        let mut lines = Vec::new();
        let script = "head -c 20000000 /dev/zero | tr '\\0' x >&2; echo >&2; echo next >&2";
        run(&mut shell(script), None, &never, |line| lines.push(line.len())).await.unwrap();
        assert_eq!(lines, [LONGEST_LINE, 4]);
    }

    #[tokio::test]
    async fn stops_the_whole_group() {
        let (stop, begun) = (CancellationToken::new(), Instant::now());
        let stopping = stop.clone();
        let result = run(&mut shell("sleep 60 & echo started >&2; sleep 60"), None, &stop, |_| stopping.cancel()).await;
        assert!(matches!(result, Err(ProcessError::Stopped)));
        assert!(begun.elapsed() < GRACE);
    }

    #[tokio::test]
    async fn nothing_is_left_behind() {
        let begun = Instant::now();
        let finished = run(&mut shell("sleep 60 & echo $!"), None, &CancellationToken::new(), |_| {}).await.unwrap();
        let left: i32 = String::from_utf8_lossy(&finished.stdout).trim().parse().unwrap();
        let left = Pid::from_raw(left).unwrap();
        while rustix::process::test_kill_process(left).is_ok() {
            assert!(begun.elapsed() < Duration::from_secs(30), "it goes on");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}
