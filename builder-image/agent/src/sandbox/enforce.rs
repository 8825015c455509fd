//! What runs in the child itself, between its start and the program that handles what others sent.

use std::{
    ffi::OsString,
    fs, io,
    os::{fd::OwnedFd, unix::process::CommandExt as _},
    path::Path,
    process::{Command, ExitCode},
};

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, CompatLevel, Compatible as _, NetPort, PathBeneath, Ruleset,
    RulesetAttr as _, RulesetCreatedAttr as _, RulesetError, Scope, make_bitflags, path_beneath_rules,
};
use rustix::{
    fs::{CWD, FileType, Mode, OFlags, ResolveFlags},
    io::Errno,
    process::{Resource, Rlimit, setrlimit},
};

use super::{Confinement, Enforcement, Level, NOT_SET_UP, Network, SYSTEM, syscalls};

/// The oldest Landlock that is worth its name: one that covers truncation. Linux 6.2.
const OLDEST: ABI = ABI::V3;
/// Open files.
const MOST_FILES: u64 = 4096;

/// Why the sandbox is not there.
#[derive(Debug, thiserror::Error)]
pub enum EnforceError {
    /// It was not told what to do.
    #[error("it was not told what the program may do")]
    Request,
    /// A limit on a resource.
    #[error("a limit on what it may use cannot be set: {0}")]
    Limit(#[from] Errno),
    /// A file or directory that it may write to cannot be opened, or is a link.
    #[error("a file or directory that it works on cannot be opened: {0}")]
    Path(#[source] Errno),
    /// Landlock.
    #[error("the node's kernel has no Landlock of ABI 3 (Linux 6.2), or it is switched off: {0}")]
    Landlock(#[from] RulesetError),
    /// The filter of system calls cannot be made.
    #[error("the filter of system calls cannot be made: {0}")]
    Filter(#[from] seccompiler::BackendError),
    /// The filter of system calls is refused.
    #[error("the node's kernel takes no filter of system calls: {0}")]
    Seccomp(#[from] seccompiler::Error),
}

/// `kiln-agent sandbox ENFORCEMENT [PROGRAM [ARGUMENT…]]`: confines itself and becomes the program. Without one it says
/// whether it could.
pub fn main(mut arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let told = arguments.next().and_then(|text| serde_json::from_slice(text.as_encoded_bytes()).ok());
    if let Err(error) = told.ok_or(EnforceError::Request).and_then(|told| enforce(&told)) {
        eprintln!("{error}");
        return NOT_SET_UP.into();
    }
    let Some(program) = arguments.next() else { return ExitCode::SUCCESS };
    let error = Command::new(&program).args(arguments).exec();
    eprintln!("cannot start {}: {error}", program.to_string_lossy());
    // As a shell has it.
    if error.kind() == io::ErrorKind::NotFound { 127 } else { 126 }.into()
}

/// Confines this process, and all that it starts, for good.
pub fn enforce(Enforcement { confinement, memory, level }: &Enforcement) -> Result<(), EnforceError> {
    // Where the kernel has to choose, it is this one that goes, not the agent.
    let _ = fs::write("/proc/self/oom_score_adj", "1000");
    let limits = [
        (Resource::Core, Some(0)),
        (Resource::Fsize, confinement.file_bytes),
        (Resource::Nofile, Some(MOST_FILES)),
        (Resource::Data, *memory),
        (Resource::Cpu, confinement.cpu_seconds),
    ];
    for (resource, limit) in limits {
        if let Some(limit) = limit {
            // One that is lower already does as well.
            let least =
                |limit: u64| rustix::process::getrlimit(resource).maximum.map_or(limit, |maximum| maximum.min(limit));
            // The signal for too much processor time comes at the first of the two, and says what it is.
            let more = if resource == Resource::Cpu { 5 } else { 0 };
            setrlimit(resource, Rlimit { current: Some(least(limit)), maximum: Some(least(limit + more)) })?;
        }
    }
    if *level >= Level::Landlock {
        landlock(confinement)?;
    }
    if *level < Level::Seccomp {
        return Ok(());
    }
    for filter in syscalls::filters(confinement)? {
        seccompiler::apply_filter(&filter)?;
    }
    Ok(())
}

/// Opens what a rule is about, and says whether it is a directory; a link, which a child before this one may have made, is
/// not followed.
fn open(path: &Path) -> rustix::io::Result<(OwnedFd, bool)> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let found = rustix::fs::openat2(CWD, path, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS)?;
    let is_directory = FileType::from_raw_mode(rustix::fs::fstat(&found)?.st_mode).is_dir();
    Ok((found, is_directory))
}

fn landlock(confinement: &Confinement) -> Result<(), EnforceError> {
    let execute = AccessFs::from_read(OLDEST);
    let read = make_bitflags!(AccessFs::{ReadFile | ReadDir});
    // No devices, pipes, sockets or programs.
    let write = read
        | make_bitflags!(AccessFs::{
            WriteFile | Truncate | RemoveDir | RemoveFile | MakeDir | MakeReg | MakeSym | Refer
        });
    let ports: &[u16] = if let Network::Ports(ports) = &confinement.network { ports } else { &[] };
    let any_port = confinement.network == Network::Any;

    let mut ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::from_all(OLDEST))?
        // What follows came later: it holds where the kernel knows it.
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(make_bitflags!(AccessFs::{IoctlDev | ResolveUnix}))?
        .handle_access(AccessNet::BindTcp)?
        .scope(make_bitflags!(Scope::{AbstractUnixSocket | Signal}))?;
    if !any_port {
        ruleset = ruleset.handle_access(AccessNet::ConnectTcp)?;
    }
    let null = make_bitflags!(AccessFs::{ReadFile | WriteFile});
    let socket: Vec<&Path> = confinement.unix_socket.iter().map(|path| &**path).collect();
    let mut ruleset = ruleset
        .create()?
        .add_rules(path_beneath_rules(SYSTEM, execute))?
        .add_rules(path_beneath_rules(["/dev/null"], null))?
        .add_rules(path_beneath_rules(&confinement.mounted, read))?
        .add_rules(path_beneath_rules(socket, AccessFs::ResolveUnix))?;
    for (path, access, has_to_be) in confinement
        .read
        .iter()
        .map(|path| (path, read, false))
        .chain(confinement.write.iter().map(|path| (path, write, true)))
    {
        match open(path) {
            Ok((found, is_directory)) => {
                let access = if is_directory { access } else { access & AccessFs::from_file(OLDEST) };
                ruleset = ruleset.add_rule(PathBeneath::new(found, access))?;
            }
            Err(error) if error == Errno::NOENT && !has_to_be => {}
            Err(error) => return Err(EnforceError::Path(error)),
        }
    }
    for port in ports {
        ruleset = ruleset.add_rule(NetPort::new(*port, AccessNet::ConnectTcp))?;
    }
    ruleset.restrict_self()?;
    Ok(())
}
