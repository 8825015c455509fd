//! A program that was taken over, in the place of git, of kiln-build and of what unpacks archives: what it tries, what is
//! expected of each attempt, and what it got. On the kernel of this machine, with the very confinement that jobs have.
#![allow(clippy::unwrap_used, reason = "this code runs in tests only")]

use std::{
    fmt::Write as _,
    fs,
    net::TcpListener,
    os::{
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr, UnixListener},
    },
    path::{Path, PathBuf},
};

use kiln_agent::{
    buildkit::Buildkit,
    job::{
        git::{GitJob, Reach},
        remote::{Credential, Remote, parse_url},
        repositories::Repositories,
    },
    process,
    sandbox::{Confinement, LARGEST_FILE, Sandbox},
    trust::Trust,
};
use kiln_registry::http_client::AddressPolicy;
use tokio_util::sync::CancellationToken;

/// What the agent's container may use, in bytes. A child gets a good half of it, and less than the greedy one asks for.
const MEMORY: u64 = 400_000_000;

fn sandbox(memory: u64) -> Sandbox {
    let sandbox = Sandbox::detect(PathBuf::from(env!("CARGO_BIN_EXE_kiln-agent")), memory).unwrap();
    assert_eq!(sandbox.problem(), None, "Landlock of ABI 3 is switched on where tests run");
    sandbox
}

/// What a builder's agent has, with two jobs.
struct Builder {
    root: tempfile::TempDir,
    port: TcpListener,
    other_port: TcpListener,
    _buildkitd: UnixListener,
    _abstract: UnixListener,
    neighbour: std::process::Child,
}

impl Builder {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        for (file, content) in [
            ("tls/tls.key", "the agent's key"),
            ("jobs/own/git/ssh-key", "own key"),
            ("jobs/own/docker/config.json", "own login"),
            ("jobs/own/secrets/0", "own secret"),
            ("jobs/own/home/.keep", ""),
            ("work/own/output/.keep", ""),
            ("jobs/other/docker/config.json", "neighbour's login"),
            ("work/own/source/Dockerfile", "FROM scratch"),
            ("work/own/scratch/.keep", ""),
            ("work/own/archive.tar", "own archive"),
            ("work/other/source/Dockerfile", "neighbour's source"),
            ("git/own.git/HEAD", "own repository"),
            ("git/other.git/HEAD", "neighbour's repository"),
        ] {
            let path = root.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        let planted = root.path().join("work/own/source/planted");
        fs::copy("/bin/true", planted).unwrap();
        let name = SocketAddr::from_abstract_name(root.path().as_os_str().as_encoded_bytes()).unwrap();
        Self {
            port: TcpListener::bind("127.0.0.1:0").unwrap(),
            other_port: TcpListener::bind("127.0.0.1:0").unwrap(),
            _buildkitd: UnixListener::bind(root.path().join("buildkitd.sock")).unwrap(),
            _abstract: UnixListener::bind_addr(&name).unwrap(),
            neighbour: std::process::Command::new("/bin/sleep").arg("600").env("TOKEN", "neighbour's").spawn().unwrap(),
            root,
        }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root.path().join(path)
    }

    /// Fills in what an attempt names.
    fn fill(&self, attempt: &str) -> String {
        let port = |listener: &TcpListener| listener.local_addr().unwrap().port().to_string();
        attempt
            .replace("{root}", self.root.path().to_str().unwrap())
            .replace("{port}", &port(&self.port))
            .replace("{other-port}", &port(&self.other_port))
            .replace("{neighbour}", &self.neighbour.id().to_string())
            .replace("{agent}", &std::process::id().to_string())
    }

    async fn probe(&self, sandbox: &Sandbox, mut confinement: Confinement, attempts: &[String]) -> Vec<String> {
        confinement.read.push(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/probe.pl").into());
        let mut command = sandbox.command("perl", &confinement);
        command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/probe.pl")).args(attempts);
        let mut errors = Vec::new();
        let finished = process::run(&mut command, None, &CancellationToken::new(), |line| {
            errors.push(String::from_utf8_lossy(line).into_owned());
        })
        .await
        .unwrap();
        let lines: Vec<String> = String::from_utf8_lossy(&finished.stdout).lines().map(str::to_owned).collect();
        assert_eq!(lines.len(), attempts.len(), "{lines:?} {errors:?}");
        lines.iter().zip(attempts).map(|(line, attempt)| line[attempt.len() + 1..].to_owned()).collect()
    }
}

impl Drop for Builder {
    fn drop(&mut self) {
        let _ = self.neighbour.kill();
        let _ = self.neighbour.wait();
    }
}

/// Each attempt, and the beginning of what it gets in the place of git, of kiln-build, and of what unpacks.
const ATTEMPTS: &[(&str, &str, [&str; 3])] = &[
    ("(control) its repository", "read={root}/git/own.git/HEAD", ["read own", "refused", "refused"]),
    ("(control) to write to it", "write={root}/git/own.git/new", ["done", "refused", "refused"]),
    ("(control) its source", "read={root}/work/own/source/Dockerfile", ["read FROM", "read FROM", "read FROM"]),
    ("(control) to write to the source", "write={root}/work/own/source/new", ["done", "refused", "done"]),
    ("(control) its credential for git", "read={root}/jobs/own/git/ssh-key", ["read own", "refused", "refused"]),
    ("(control) its server's port", "tcp={port}", ["done", "done", "refused"]),
    ("(control) to start a process", "fork=", ["done", "done", "refused"]),
    ("(control) the system's files", "read=/etc/passwd", ["read root", "read root", "read root"]),
    ("buildkitd's socket", "unix={root}/buildkitd.sock", ["refused", "done", "refused"]),
    ("its job's login for registries", "read={root}/jobs/own/docker/config.json", ["refused", "read own", "refused"]),
    ("its job's secrets", "read={root}/jobs/own/secrets/0", ["refused", "read own", "refused"]),
    ("the agent's key", "read={root}/tls/tls.key", ["refused", "refused", "refused"]),
    ("another job's login", "read={root}/jobs/other/docker/config.json", ["refused", "refused", "refused"]),
    ("which jobs there are", "list={root}/jobs", ["refused", "refused", "refused"]),
    ("another job's source", "read={root}/work/other/source/Dockerfile", ["refused", "refused", "refused"]),
    ("to write to another job's source", "write={root}/work/other/source/x", ["refused", "refused", "refused"]),
    ("another repository", "read={root}/git/other.git/HEAD", ["refused", "refused", "refused"]),
    ("to write to another repository", "write={root}/git/other.git/HEAD", ["refused", "refused", "refused"]),
    (
        "to remove its source's directory's neighbour",
        "remove={root}/work/own/archive.tar",
        ["refused", "refused", "refused"],
    ),
    (
        "to move a file out of the source",
        "move={root}/work/own/source/Dockerfile,{root}/work/other/source/x",
        ["refused", "refused", "refused"],
    ),
    ("another job's environment", "read=/proc/{neighbour}/environ", ["refused", "refused", "refused"]),
    ("the processes of the container", "list=/proc", ["refused", "refused", "refused"]),
    ("a program that it brought", "start={root}/work/own/source/planted", ["refused", "refused", "refused"]),
    ("a signal to another process", "signal={neighbour}", ["refused", "refused", "refused"]),
    ("to trace another process", "ptrace={neighbour}", ["refused", "refused", "refused"]),
    ("another process's memory", "memory={neighbour}", ["refused", "refused", "refused"]),
    ("to write to another process's memory", "written={neighbour}", ["refused", "refused", "refused"]),
    ("a handle of another process", "pidfd={neighbour}", ["refused", "refused", "refused"]),
    ("the limits of the agent", "limit={agent}", ["refused", "refused", "refused"]),
    ("the agent's port", "tcp={other-port}", ["refused", "done", "refused"]),
    ("the agent's port by MPTCP", "mptcp={other-port}", ["refused", "refused", "refused"]),
    ("the agent's port by fast open", "fastopen={other-port}", ["refused", "refused", "refused"]),
    ("a port of its own", "listen=0", ["refused", "refused", "refused"]),
    ("an abstract socket", "abstract={root}", ["refused", "refused", "refused"]),
    ("a pair of datagram sockets", "pair=", ["refused", "refused", "refused"]),
    ("SCTP", "sequence=", ["refused (Address", "refused (Address", "refused (Address"]),
    ("the kernel's netlink", "netlink=", ["refused", "refused", "refused"]),
    ("io_uring", "io_uring=", ["refused", "refused", "refused"]),
    ("a key of the kernel's", "add_key=", ["refused", "refused", "refused"]),
    ("a ring of the kernel's keys", "keyctl=", ["refused", "refused", "refused"]),
    ("comparing what processes have", "kcmp=", ["refused", "refused", "refused"]),
    ("a session of its own", "setsid=", ["refused", "refused", "refused"]),
    ("a namespace of its own", "unshare=", ["refused", "refused", "refused"]),
    ("a pipe in the source", "fifo={root}/work/own/source/fifo", ["refused", "refused", "refused"]),
    ("300 MB of memory", "grow=300000000", ["refused", "refused", "refused"]),
    ("(not promised) the mode of the agent's files", "chmod={root}/tls/tls.key", ["done", "done", "done"]),
];

#[tokio::test]
async fn a_program_that_was_taken_over_gets_its_own_job_alone() {
    let builder = Builder::new();
    let sandbox = sandbox(MEMORY);
    let repositories = Repositories::new(builder.path("git"));
    let (stop, memory, scratch) =
        (CancellationToken::new(), builder.path("jobs/own"), builder.path("work/own/scratch"));
    let addresses = AddressPolicy::new(true);
    let job = GitJob {
        repositories: &repositories,
        stop: &stop,
        memory: &memory,
        scratch: &scratch,
        addresses: addresses.clone(),
        sandbox: &sandbox,
    };
    let port = builder.port.local_addr().unwrap().port();
    let key = Credential::Key(builder.path("jobs/own/git/ssh-key"), builder.path("jobs/own/git/known-hosts"));
    let remote = Remote::new(parse_url(&format!("ssh://git@git.invalid:{port}/x")).unwrap(), key, None, addresses);
    let (repository, source) = (builder.path("git/own.git"), builder.path("work/own/source"));
    let writes = [repository.as_path(), &source, &scratch];
    let git = job.confinement(&repository, Reach { remote: Some(&remote), writes: &writes });

    let address = format!("unix://{}", builder.path("buildkitd.sock").display());
    let buildkit =
        Buildkit::new(&address, Trust::new(builder.path("trust"), builder.path("registries")), sandbox.clone());
    let read = ["work/own", "jobs/own/docker", "jobs/own/secrets"].map(|path| builder.path(path)).to_vec();
    let write = vec![builder.path("work/own/output")];
    let building = buildkit.confinement(read, write);
    let unpacking = Confinement {
        read: vec![builder.path("work/own/archive.tar")],
        write: vec![source],
        alone: true,
        ..Confinement::default()
    };

    let attempts: Vec<String> = ATTEMPTS.iter().map(|(_, attempt, _)| builder.fill(attempt)).collect();
    let mut got = Vec::new();
    for confinement in [git, building, unpacking] {
        got.push(builder.probe(&sandbox, confinement, &attempts).await);
        // As it was for the next.
        let _ = fs::write(builder.path("work/own/source/Dockerfile"), "FROM scratch");
    }

    let mut table = "| attempt | git | kiln-build | unpacking |\n|---|---|---|---|\n".to_owned();
    let mut failed = Vec::new();
    for (number, (name, _, expected)) in ATTEMPTS.iter().enumerate() {
        let row: Vec<&str> = got.iter().map(|got| got[number].as_str()).collect();
        writeln!(table, "| {name} | {} |", row.join(" | ")).unwrap();
        if row.iter().zip(expected).any(|(got, expected)| !got.starts_with(expected)) {
            failed.push(format!("{name}: expected {expected:?}, got {row:?}"));
        }
    }
    let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../target"));
    fs::write(folder.join("sandbox-attempts.md"), table).unwrap();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[tokio::test]
async fn files_are_bounded() {
    let (root, sandbox) = (tempfile::tempdir().unwrap(), sandbox(0));
    let confinement =
        Confinement { write: vec![root.path().to_owned()], file_bytes: Some(LARGEST_FILE), ..Confinement::default() };
    let mut command = sandbox.command("dd", &confinement);
    // Sparse: it takes no room.
    let file = root.path().join("file");
    command.args([
        "if=/dev/zero",
        &format!("of={}", file.display()),
        "bs=1",
        "count=1",
        &format!("seek={}", 8_u64 << 30),
    ]);
    let finished = process::run(&mut command, None, &CancellationToken::new(), |_| {}).await.unwrap();
    assert!(!finished.status.success());
    assert_eq!(file.metadata().unwrap().len(), 8 << 30, "not a byte beyond");
}

/// A child that was taken over may leave a link for the next one.
#[tokio::test]
async fn a_link_is_nothing_to_work_on() {
    let (root, sandbox) = (tempfile::tempdir().unwrap(), sandbox(0));
    let (own, link) = (root.path().join("own"), root.path().join("link"));
    fs::create_dir(&own).unwrap();
    std::os::unix::fs::symlink("/etc", &link).unwrap();
    for (path, expected) in [(&own, Some(0)), (&link, Some(125)), (&root.path().join("nothing"), Some(125))] {
        let confinement = Confinement { write: vec![path.clone()], ..Confinement::default() };
        let mut command = sandbox.command("true", &confinement);
        let finished = process::run(&mut command, None, &CancellationToken::new(), |_| {}).await.unwrap();
        assert_eq!(finished.status.code(), expected, "{path:?}");
    }
}

/// Also of a child that starts no other.
#[tokio::test]
async fn memory_is_bounded() {
    let sandbox = sandbox(MEMORY);
    for (bytes, fits) in [(1_000_000, true), (300_000_000, false)] {
        let mut command = sandbox.command("perl", &Confinement { alone: true, ..Confinement::default() });
        command.args(["-e", &format!("my $bytes = 'x' x {bytes}")]);
        let finished = process::run(&mut command, None, &CancellationToken::new(), |_| {}).await.unwrap();
        assert_eq!(finished.status.success(), fits, "{bytes}");
    }
}

#[tokio::test]
async fn a_program_that_is_not_there() {
    let sandbox = sandbox(0);
    let mut command = sandbox.command("no-such-program", &Confinement::default());
    let finished = process::run(&mut command, None, &CancellationToken::new(), |_| {}).await.unwrap();
    assert_eq!(finished.status.code(), Some(127));
}
