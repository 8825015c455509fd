//! Runs a program in a process group of its own, so that all it started can be stopped with it.

use std::{
    io,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, WaitOptions, kill_process_group, waitpgid};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    process::Command,
};
use tokio_util::sync::CancellationToken;

/// How long a program has to end by itself after SIGTERM, before SIGKILL.
const GRACE: Duration = Duration::from_secs(5);

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
    let (input, output, errors) = (child.stdin.take(), child.stdout.take(), child.stderr.take());

    let feed = async {
        if let (Some(mut input), Some(bytes)) = (input, stdin) {
            // A program that ends early does not read on: its status tells.
            let _ = input.write_all(bytes).await;
        }
    };
    let collect = async {
        let mut stdout = Vec::new();
        if let Some(mut output) = output {
            output.read_to_end(&mut stdout).await?;
        }
        Ok::<_, io::Error>(stdout)
    };
    let listen = async {
        if let Some(errors) = errors {
            let (mut errors, mut line) = (BufReader::new(errors), Vec::new());
            while errors.read_until(b'\n', &mut line).await? > 0 {
                on_line(line.trim_ascii_end());
                line.clear();
            }
        }
        Ok::<_, io::Error>(())
    };
    let whole = async {
        let ((), stdout, listened) = tokio::join!(feed, collect, listen);
        let status = child.wait().await;
        listened.and_then(|()| Ok(Finished { stdout: stdout?, status: status? }))
    };
    let finished = tokio::select! {
        finished = whole => Some(finished),
        () = stop.cancelled() => None,
    };
    if let Some(finished) = finished {
        return finished.map_err(|source| ProcessError::Read { program, source });
    }
    if let Some(group) = group {
        let _ = kill_process_group(group, Signal::TERM);
        let _ = tokio::time::timeout(GRACE, child.wait()).await;
        let _ = kill_process_group(group, Signal::KILL);
        let _ = child.wait().await;
        // The agent is its container's first process: what its children leave behind becomes its own child.
        while let Ok(Some(_)) = waitpgid(group, WaitOptions::NOHANG) {}
    }
    Err(ProcessError::Stopped)
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
    async fn stops_the_whole_group() {
        let (stop, begun) = (CancellationToken::new(), Instant::now());
        let stopping = stop.clone();
        let result = run(&mut shell("sleep 60 & echo started >&2; sleep 60"), None, &stop, |_| stopping.cancel()).await;
        assert!(matches!(result, Err(ProcessError::Stopped)));
        assert!(begun.elapsed() < GRACE);
    }
}
