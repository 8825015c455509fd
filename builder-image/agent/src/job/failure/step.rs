//! A RUN step that ended with a status other than 0, with buildkitd itself, or did not begin: what its status, its last lines
//! and the kernel's count of kills say.

use super::{
    super::{line_ends, mask::shorten},
    Circumstances, FailedStep, instruction,
    not_found::{self, NotFound},
    quoted,
};
use crate::{oom::Shortage, reasons::Reason};

/// The longest name of a step within a message, in bytes.
const LONGEST_NAME: usize = 160;

/// The exit code of what SIGKILL ended, whoever sent it.
const KILLED: u32 = 137;

/// What programs say of a name that nobody knows: curl, wget, busybox, apt, apk, npm, pip, go, cargo, Maven and others.
const NO_HOST: [&str; 17] = [
    // Gradle, npm, Rollup and others do not resolve what is no host.
    "ould not resolve host",
    "Couldn't resolve host",
    "Temporary failure in name resolution",
    "Temporary failure resolving",
    "Name or service not known",
    "Name does not resolve",
    "nodename nor servname provided",
    "bad address '",
    "unable to resolve host address",
    "getaddrinfo ENOTFOUND",
    "EAI_AGAIN",
    ": no such host",
    "failed to lookup address information",
    "NameResolutionError",
    "UnknownHostException",
    "DNS lookup error",
    "DNS: transient error",
];
/// What they say of an address that no route leads to.
const NO_ROUTE: [&str; 5] =
    ["Network is unreachable", "network is unreachable", "No route to host", "no route to host", "ENETUNREACH"];

/// What they say of an address where nobody listens.
const REFUSED: [&str; 11] = [
    "curl: (7) ",
    // Of libcurl: Git, cargo.
    "Couldn't connect to server",
    // busybox and GNU wget.
    "): Connection refused",
    "failed: Connection refused.",
    // Go.
    "connect: connection refused",
    // Node.
    "connect ECONNREFUSED ",
    "code ECONNREFUSED",
    // Python, apt, Rust, Java.
    "[Errno 111] Connection refused",
    "(111: Connection refused)",
    "Connection refused (os error 111)",
    "java.net.ConnectException: Connection refused",
];

/// What runc says where it did not start the program.
const NO_START: &str = "runc run failed: unable to start container process: ";

/// What to say of one that has no status, for it did not run. None: something else failed.
pub(super) fn not_run(cause: &str, step: Option<&FailedStep>, build: Circumstances<'_>) -> Option<(Reason, String)> {
    let (_, rest) = quoted(cause.strip_prefix("process ")?)?;
    let why = rest.strip_prefix(" did not complete successfully: ")?;
    // What a mount takes from a stage or an image is opened when all that comes before is made.
    let opened = why.strip_prefix("open ").and_then(|rest| rest.strip_suffix(": no such file or directory"));
    if let Some(path) = opened.filter(|_| step.is_some_and(instruction::mounts_files)) {
        return Some((Reason::FileNotFound, instruction::lacks(path, step, build)));
    }
    let name = shorten(step.map_or("a step", |step| step.name.as_str()).to_owned(), LONGEST_NAME);
    Some((Reason::StepFailed, format!("{name} could not start: {why}; check what USER and WORKDIR name")))
}

/// What to do where memory is wanting.
const MORE_MEMORY: &str =
    "raise template.resources.limits.memory of the pool, or let the step use less, as with fewer processes at once";

/// What to say of a step.
pub(super) fn failure(code: u32, step: Option<&FailedStep>, build: Circumstances<'_>) -> (Reason, String) {
    // The whole of it is told beside the message, whose end says most.
    let name = shorten(step.map_or("a step", |step| step.name.as_str()).to_owned(), LONGEST_NAME);
    let line_with = |signs: &[&str]| {
        step?.tail.iter().find(|line| signs.iter().any(|sign| line.contains(sign))).map(String::as_str)
    };
    let Shortage { killed, alone, .. } = build.shortage;
    if code == KILLED && killed != Some(false) {
        let sure = if killed.is_some() { "" } else { ", most likely" };
        return (
            Reason::OutOfMemory,
            format!("{name} was killed (exit code {code}){sure} for want of memory; {MORE_MEMORY}"),
        );
    }
    let reads_program = |line: &String| not_found::is_read_as_script(line, step.map_or("", |step| step.name.as_str()));
    if line_with(&["exec format error", "Exec format error"]).is_some()
        || code == 127 && step.is_some_and(|step| step.tail.iter().any(reads_program))
    {
        return (
            Reason::ExecFormatError,
            format!(
                "{name} ran a program that is not for {}; take the base image and the tools of this platform",
                build.platform
            ),
        );
    }
    if build.volume_full && line_with(&["No space left on device", "no space left on device"]).is_some() {
        return (
            Reason::NoSpaceLeft,
            format!("{name} failed because the builder's cache volume is full; raise the pool's cache.size"),
        );
    }
    for (signs, what) in [(&NO_HOST[..], "no such host was found"), (&NO_ROUTE[..], "the network cannot be reached")] {
        if let Some(line) = line_with(signs) {
            let cure = if build.no_network {
                "spec.network is None, so steps have no network: leave it out, or fetch in a build without it"
            } else {
                "check the host's name, the proxy in spec.args or the pool's args, and what the builders' NetworkPolicy lets through"
            };
            let line = shorten(line.trim().to_owned(), LONGEST_NAME);
            return (Reason::StepNoNetwork, format!("{name} failed with exit code {code}: {what} ({line}); {cure}"));
        }
    }
    if let Some(what) = build.windows_lines {
        return (
            Reason::StepFailed,
            format!(
                "{name} failed with exit code {code}: {what} has line ends as on Windows (CR LF); {}",
                line_ends::CURE
            ),
        );
    }
    // The container's runtime writes it, where the program did not run.
    if let Some(line) = step.and_then(|step| step.tail.last()).and_then(|line| line.strip_prefix(NO_START)) {
        let why = shorten(line.rsplit_once(": exec: ").map_or(line, |(_, why)| why).to_owned(), LONGEST_NAME);
        return (
            Reason::StepFailed,
            format!(
                "{name} could not start ({why}); check that the image has the program, and the shell that SHELL names"
            ),
        );
    }
    if killed == Some(true) && alone {
        let message = format!(
            "{name} failed with exit code {code}: a process of it was killed for want of memory; {MORE_MEMORY}"
        );
        return (Reason::OutOfMemory, message);
    }
    let message = match code {
        KILLED => format!("{name} was killed (exit code {code}), as by a timeout of its own: memory was not wanting"),
        139 => format!("{name} crashed (exit code 139, a segmentation fault)"),
        code => {
            let why = not_started(code, step, build).or_else(|| {
                let line = shorten(line_with(&REFUSED)?.trim().to_owned(), LONGEST_NAME);
                Some(format!("a connection was refused ({line}); {}", refused(build)))
            });
            let why = why.map(|why| format!(": {why}")).unwrap_or_default();
            format!("{name} failed with exit code {code}{why}")
        }
    };
    let reason = Reason::StepFailed;
    if killed == Some(true) {
        let also =
            "meanwhile a process of this builder was killed for want of memory, of this build or of one beside it";
        return (reason, format!("{message}; {also}"));
    }
    (reason, message)
}

/// Why a program did not start, where the exit code says that one did not.
fn not_started(code: u32, step: Option<&FailedStep>, build: Circumstances<'_>) -> Option<String> {
    // runc has a code of its own.
    if ![126, 127, 255].contains(&code) {
        return None;
    }
    let found = step.and_then(|step| not_found::in_tail(&step.tail));
    let short = |text: &str| shorten(text.to_owned(), LONGEST_NAME);
    let asked = found.and_then(|found| match found {
        NotFound::Starter(_, Some(interpreter)) => Some(interpreter),
        NotFound::File(_) | NotFound::Starter(..) => build.interpreter,
        NotFound::Command(_) => None,
    });
    let asks = asked.map(|asked| {
        format!("the first line of the script asks for the interpreter {:?}: have the image have that", short(asked))
    });
    Some(match (code, found) {
        (255, None | Some(NotFound::Command(_) | NotFound::File(_))) => return None,
        (126, None | Some(NotFound::Command(_) | NotFound::File(_))) => "a command is not executable".to_owned(),
        (_, Some(NotFound::Command(command))) => {
            format!("a command was not found: {:?}; install it, or check PATH", short(command))
        }
        (_, Some(NotFound::File(file))) => {
            let why = asks.map_or_else(
                || format!("if there is such a file, what starts it is missing: {STARTERS}"),
                |asks| format!("if there is such a file, what starts it is missing: {asks}"),
            );
            format!("{:?} was not found; {why}", short(file))
        }
        (_, Some(NotFound::Starter(file, _))) => {
            let why = asks.unwrap_or_else(|| STARTERS.to_owned());
            format!("{:?} is there, and what starts it is not: {why}", short(file))
        }
        (_, None) => "a command was not found".to_owned(),
    })
}

/// What starts a file.
const STARTERS: &str = "a script's interpreter, which its first line names, or a program's loader, as where it was linked \
                        with glibc and the image has musl (Alpine), or where it is for another architecture";

/// What to do where a connection was refused.
fn refused(build: Circumstances<'_>) -> &'static str {
    if build.no_network {
        "nothing listens there, and spec.network is None: a step reaches only what it starts itself"
    } else {
        "nothing listens there: within a step, localhost is where the step runs, so what it needs there has to be started in \
         the same RUN; for another host check its name and port, the proxy in spec.args or the pool's args, and what the \
         builders' NetworkPolicy lets through"
    }
}

/// What to say of a build in whose `step` buildkitd ended.
pub(super) fn lost(step: Option<&FailedStep>, Shortage { killed, alone, .. }: Shortage) -> (Reason, String) {
    let during =
        step.map(|step| format!(" while {} ran", shorten(step.name.clone(), LONGEST_NAME))).unwrap_or_default();
    match (killed, alone) {
        (Some(true), true) => (
            Reason::OutOfMemory,
            format!("buildkitd was killed for want of memory{during}, and nothing else was built there; {MORE_MEMORY}"),
        ),
        (Some(true), false) => (
            Reason::BuilderOutOfMemory,
            format!(
                "buildkitd was killed for want of memory{during}, of this build or of one beside it; if it repeats, {MORE_MEMORY}"
            ),
        ),
        _ => (
            Reason::BuildkitUnavailable,
            format!(
                "buildkitd ended{during}, or does not answer; if it repeats, see the log of the builder pod's container \"buildkitd\""
            ),
        ),
    }
}
