//! Has archives unpacked by a child of the agent's, which reads these files, writes to one directory, and talks to nobody.

use std::{
    ffi::OsString,
    fs::{self, File},
    io,
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::{ExitCode, ExitStatus},
};

use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::{
    process_failure,
    unpack::{Kind, UnpackError, Unpacker},
};
use crate::{
    process,
    reasons::{JobFailure, Reason},
    sandbox::{Confinement, Enforcement, LARGEST_FILE, NOT_SET_UP, Sandbox, enforce::enforce},
};

/// Far more processor time than the largest archive takes, in seconds.
const PROCESSOR_TIME: u64 = 3600;

/// Archives that are unpacked one over the other.
pub struct Unpacking<'a> {
    /// Their files, which are removed.
    pub archives: Vec<PathBuf>,
    /// What they are.
    pub kind: Kind,
    /// Where to; it is there.
    pub directory: &'a Path,
}

/// What the child is told.
#[derive(Serialize, Deserialize)]
struct Request {
    enforcement: Enforcement,
    archives: Vec<PathBuf>,
    kind: Kind,
    directory: PathBuf,
}

/// Why the child did not unpack them.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Refusal {
    cause: Cause,
    message: String,
}

/// Whose matter it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Cause {
    TooLarge,
    Invalid,
    Volume,
}

impl Refusal {
    /// Of a child that ended before it could say a word.
    fn of(status: ExitStatus) -> Self {
        // No memory, too much processor time, too large a file.
        let for_what_it_used = status.signal().is_some_and(|signal| {
            [Signal::ABORT, Signal::XCPU, Signal::XFSZ].iter().any(|known| known.as_raw() == signal)
        });
        if for_what_it_used {
            Self { cause: Cause::TooLarge, message: "it takes more than a builder has for it".to_owned() }
        } else {
            Self { cause: Cause::Volume, message: format!("the program that unpacks it ended early ({status})") }
        }
    }
}

impl Unpacking<'_> {
    /// Unpacks them; `name` is what messages call them.
    pub async fn run(self, name: &str, sandbox: &Sandbox, stop: &CancellationToken) -> Result<(), JobFailure> {
        let confinement = Confinement {
            read: self.archives.clone(),
            write: vec![self.directory.to_owned()],
            cpu_seconds: Some(PROCESSOR_TIME),
            file_bytes: Some(LARGEST_FILE),
            alone: true,
            ..Confinement::default()
        };
        let request = Request {
            enforcement: sandbox.enforcement(&confinement),
            archives: self.archives,
            kind: self.kind,
            directory: self.directory.to_owned(),
        };
        let answer = match sandbox.own("unpack", &request) {
            Some(mut command) => {
                let finished = process::run(&mut command, None, stop, |line| {
                    tracing::warn!(line = %String::from_utf8_lossy(line), "unpacking");
                })
                .await
                .map_err(process_failure)?;
                serde_json::from_slice(&finished.stdout).unwrap_or_else(|_| Err(Refusal::of(finished.status)))
            }
            None => unpack(&request),
        };
        for archive in &request.archives {
            let _ = fs::remove_file(archive);
        }
        let Refusal { cause, message } = match answer {
            Ok(()) => return Ok(()),
            Err(refusal) => refusal,
        };
        let reason = match cause {
            Cause::TooLarge => Reason::SourceTooLarge,
            Cause::Invalid => Reason::SourceInvalid,
            Cause::Volume => return Err(JobFailure::agent(format_args!("unpack {name}"), &io::Error::other(message))),
        };
        Err(JobFailure::new(reason, format!("{name} cannot be unpacked: {message}")))
    }
}

/// `kiln-agent unpack REQUEST`: confines itself, unpacks, and writes how that went to its standard output.
pub fn main(mut arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let request: Option<Request> =
        arguments.next().and_then(|text| serde_json::from_slice(text.as_encoded_bytes()).ok());
    let Some(request) = request else { return NOT_SET_UP.into() };
    let answer = match enforce(&request.enforcement) {
        Ok(()) => unpack(&request),
        Err(error) => Err(Refusal { cause: Cause::Volume, message: error.to_string() }),
    };
    match serde_json::to_writer(io::stdout(), &answer) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn unpack(request: &Request) -> Result<(), Refusal> {
    let write = |source| UnpackError::Write { path: String::new(), source };
    let unpack = || {
        let mut unpacker = Unpacker::new(request.directory.clone(), request.kind).map_err(write)?;
        for archive in &request.archives {
            unpacker.unpack(File::open(archive).map_err(write)?)?;
        }
        unpacker.finish()
    };
    unpack().map_err(|error| {
        let cause = match &error {
            UnpackError::Write { .. } => Cause::Volume,
            UnpackError::TooLarge => Cause::TooLarge,
            UnpackError::Read(_) | UnpackError::Unsafe { .. } => Cause::Invalid,
        };
        Refusal { cause, message: crate::chain(&error) }
    })
}
