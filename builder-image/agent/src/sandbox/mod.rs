//! Keeps a program that handles what others sent (git, ssh, kiln-build, unpacking) apart from everything that its own task
//! does not need: other jobs, the agent's key, buildkitd. Each is a child of the agent, started through this program
//! itself, which confines itself by Landlock, a filter of system calls and limits on resources before it becomes the child.
//!
//! Landlock covers neither looking at files' data such as size and owner nor changing modes and times of files that the
//! agent's user owns, and not UDP (<https://docs.kernel.org/userspace-api/landlock.html>).

use std::{
    io,
    path::{Path, PathBuf},
    process::Stdio,
};

use serde::{Deserialize, Serialize};
use tokio::process::Command;

pub mod enforce;
mod syscalls;

/// The exit code that says that the sandbox is not there: the program was not started.
pub const NOT_SET_UP: u8 = 125;
/// What every program may read and start.
const SYSTEM: [&str; 33] = [
    "/bin",
    "/sbin",
    "/lib",
    "/lib64",
    "/usr",
    "/dev/random",
    "/dev/urandom",
    "/dev/zero",
    "/etc/alternatives",
    "/etc/ca-certificates",
    "/etc/crypto-policies",
    "/etc/gai.conf",
    "/etc/group",
    "/etc/host.conf",
    "/etc/hostname",
    "/etc/hosts",
    "/etc/ld-musl-aarch64.path",
    "/etc/ld-musl-x86_64.path",
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/etc/localtime",
    "/etc/mime.types",
    "/etc/nsswitch.conf",
    "/etc/passwd",
    "/etc/pki",
    "/etc/protocols",
    "/etc/resolv.conf",
    "/etc/services",
    "/etc/ssl",
    "/etc/gitconfig",
    "/sys/devices/system/cpu",
    "/sys/kernel/mm/transparent_hugepage",
];
/// The environment that children share with the agent: the way to the network.
const PASSED_ON: [&str; 9] = [
    "PATH",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "ALL_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "SSL_CERT_FILE",
];
/// The largest file that a server can make a child write, in bytes.
pub const LARGEST_FILE: u64 = 8 << 30;
/// What the agent keeps of its container's memory for itself.
const RESERVE: u64 = 256 << 20;

/// What one child may do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confinement {
    /// Files and directories of the container that it reads beside the system's, where they are: no job has made them, and a
    /// mounted volume is full of links.
    pub mounted: Vec<PathBuf>,
    /// Files and directories of the job that it reads. What is not there is left out; none may be a link.
    pub read: Vec<PathBuf>,
    /// Files and directories that it reads and writes. They have to be there, and none may be a link: the child before may have
    /// made one.
    pub write: Vec<PathBuf>,
    /// Whom it talks to.
    pub network: Network,
    /// The Unix socket that it talks to. None: it may make no Unix socket.
    pub unix_socket: Option<PathBuf>,
    /// The most processor time of each process, in seconds.
    pub cpu_seconds: Option<u64>,
    /// The largest file that it writes, in bytes.
    pub file_bytes: Option<u64>,
    /// Whether it may start no other process or thread.
    pub alone: bool,
}

/// What a child is to do to itself: a confinement, as far as the node can keep it to that.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Enforcement {
    confinement: Confinement,
    /// The most bytes of memory of each process.
    memory: Option<u64>,
    level: Level,
}

/// Whom a child talks to, by TCP. By UDP it may ask for names where it talks to anybody.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Network {
    /// Nobody.
    #[default]
    None,
    /// Servers at these ports.
    Ports(Vec<u16>),
    /// Servers at any port.
    Any,
}

impl Network {
    /// A server at `port`, asked directly or through the proxy that the environment names; and the names' server, which is
    /// asked by TCP where its answer is long.
    #[must_use]
    pub fn to(port: u16) -> Self {
        let proxies = ["HTTPS_PROXY", "https_proxy", "ALL_PROXY"].iter();
        let proxies = proxies.flat_map(|name| proxy_ports(&std::env::var(name).unwrap_or_default()));
        Self::Ports([port, 53].into_iter().chain(proxies).collect())
    }
}

/// The ports that a proxy such as `http://proxy.example:3128` may have.
fn proxy_ports(url: &str) -> Vec<u16> {
    let url = if url.contains("://") { url.to_owned() } else { format!("http://{url}") };
    match url::Url::parse(&url).ok().filter(url::Url::has_host) {
        None => Vec::new(),
        Some(url) => match (url.port(), url.scheme()) {
            (Some(port), _) => vec![port],
            (None, "https") => vec![443],
            // What curl takes where none is named, and one that is named and not told, for it is the scheme's own.
            (None, _) => vec![80, 1080],
        },
    }
}

/// How far a node can keep children apart. Their resources are limited everywhere.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
enum Level {
    /// Not at all.
    #[default]
    Nothing,
    /// By a filter of system calls alone.
    Seccomp,
    /// By that and Landlock.
    Landlock,
}

/// The sandbox of this agent's children.
#[derive(Clone, Debug)]
pub struct Sandbox {
    /// The agent's own program. None: children are started as they are, which unit tests do.
    program: Option<PathBuf>,
    level: Level,
    problem: String,
    /// The most bytes of memory of one child.
    memory: Option<u64>,
}

impl Sandbox {
    /// Finds out what this node can do. `program` is the agent's own; `memory` is what its container may use, in bytes; 0: no
    /// limit.
    pub fn detect(program: PathBuf, memory: u64) -> io::Result<Self> {
        let memory = (memory > 0).then(|| share(memory));
        let mut sandbox = Self { program: Some(program), level: Level::Landlock, problem: String::new(), memory };
        for level in [Level::Landlock, Level::Seccomp] {
            sandbox.level = level;
            let mut command = sandbox.command("", &Confinement::default());
            let output = command.as_std_mut().stdin(Stdio::null()).output()?;
            if output.status.success() {
                return Ok(sandbox);
            }
            if sandbox.problem.is_empty() {
                let words = String::from_utf8_lossy(&output.stderr);
                sandbox.problem = words.split_whitespace().collect::<Vec<_>>().join(" ");
            }
        }
        sandbox.level = Level::Nothing;
        Ok(sandbox)
    }

    /// None, and why.
    #[must_use]
    pub fn absent(problem: &str) -> Self {
        Self { program: None, level: Level::Nothing, problem: problem.to_owned(), memory: None }
    }

    /// Why children are not kept apart. None: they are.
    #[must_use]
    pub fn problem(&self) -> Option<&str> {
        (self.level != Level::Landlock).then_some(&self.problem)
    }

    /// A command with nothing of the agent's environment but the way to the network, confined as told.
    #[must_use]
    pub fn command(&self, program: &str, confinement: &Confinement) -> Command {
        let Some(own) = &self.program else { return clean(Path::new(program)) };
        let mut command = clean(own);
        command.arg("sandbox").arg(json(&self.enforcement(confinement)));
        if !program.is_empty() {
            command.arg(program);
        }
        command
    }

    /// The agent's own program with a task of its own, which `request` describes: it is to confine itself. None: there is no
    /// such program.
    #[must_use]
    pub fn own(&self, task: &str, request: &impl Serialize) -> Option<Command> {
        let mut command = clean(self.program.as_ref()?);
        command.arg(task).arg(json(request));
        Some(command)
    }

    /// The confinement, with what this node can do.
    #[must_use]
    pub fn enforcement(&self, confinement: &Confinement) -> Enforcement {
        let mut confinement = confinement.clone();
        confinement.mounted.extend(std::env::var_os("SSL_CERT_FILE").map(PathBuf::from));
        Enforcement { confinement, memory: self.memory, level: self.level }
    }
}

/// Numbers, and paths that the agent itself made: this cannot fail.
fn json(request: &impl Serialize) -> String {
    serde_json::to_string(request).unwrap_or_default()
}

fn clean(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.env_clear().envs(PASSED_ON.iter().filter_map(|name| std::env::var_os(name).map(|value| (name, value))));
    command
}

/// What one process of a child may use of the container's memory: the agent has enough beside it, and so has another
/// one that is not greedy.
fn share(memory: u64) -> u64 {
    memory.saturating_sub(RESERVE.min(memory / 4)) / 4 * 3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_greedy_child_leaves_the_agent_enough() {
        for (memory, expected) in [(2 << 30, 1344 << 20), (512 << 20, 288 << 20)] {
            assert_eq!(share(memory), expected);
        }
    }

    #[test]
    fn ports_of_proxies() {
        for (proxy, ports) in [
            ("http://proxy.example:3128", &[3128][..]),
            ("proxy.example:8080", &[8080]),
            ("http://user:p%40ss@proxy.example:3128/", &[3128]),
            ("https://proxy.example", &[443]),
            ("http://proxy.example", &[80, 1080]),
            ("http://proxy.example:80", &[80, 1080]),
            ("", &[]),
        ] {
            assert_eq!(proxy_ports(proxy), ports, "{proxy}");
        }
    }

    #[test]
    fn without_a_sandbox_programs_start_as_they_are() {
        let sandbox = Sandbox::absent("no kernel");
        assert_eq!(sandbox.problem(), Some("no kernel"));
        assert_eq!(sandbox.command("git", &Confinement::default()).as_std().get_program(), "git");
    }
}
