//! The way to buildkitd: waits for its socket, asks what it is, starts `buildctl`.

use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use kiln_registry::DOCKER_HUB;
use serde::Deserialize;
use tokio::{
    net::UnixStream,
    process::Command,
    sync::{Mutex, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::{
    answer::{self, Answer},
    files,
    oom::Oom,
    process::{self, ProcessError},
    sandbox::{Confinement, Network, Sandbox},
    trust::Trust,
};

/// Far more processor time than asking and telling take, in seconds: what a step does is buildkitd's.
const PROCESSOR_TIME: u64 = 3600;
/// How long buildkitd may be away: it starts within a second, and within a minute when the kubelet delays a restart.
const PATIENCE: Duration = Duration::from_mins(1);
/// How long it may take to try which platforms its node runs.
const WORKERS: Duration = Duration::from_secs(30);
/// The pause between two looks at its socket.
const PAUSE: Duration = Duration::from_millis(10);
/// The most digits of an id, and the end of their line.
const LONGEST_ID: u64 = 11;
/// The most that is kept of what `buildctl` writes to its standard error.
const LONGEST_ERROR: usize = 16 << 10;
/// Says which spans the SDK of OpenTelemetry keeps.
pub const SAMPLER: &str = "OTEL_TRACES_SAMPLER";
/// Asks for the sizes of all that the cache holds.
const SIZES: [&str; 3] = ["du", "--format", "{{range .}}{{.Size}} {{end}}"];
/// Leaves cache mounts out: of one that has changed, the size is counted with its lock held.
const NO_MOUNTS: [&str; 2] = ["--filter", "type!=exec.cachemount"];
/// A filter that nothing in the cache matches.
const NOTHING: &str = "--filter=id==none";
/// How long the usage of the cache holds, and how long it may take to tell.
const USAGE_HOLDS: Duration = Duration::from_secs(1);
const USAGE_PATIENCE: Duration = Duration::from_millis(800);

/// Why buildkitd could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum BuildkitError {
    /// It does not listen, or does not answer.
    #[error("buildkitd does not answer at {address} (waited {} s); see the log of the builder pod's container \"buildkitd\"", waited.as_secs())]
    Silent {
        /// Where it should.
        address: String,
        /// For how long.
        waited: Duration,
    },
    /// `buildctl` could not be run.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// `buildctl` failed.
    #[error("{command} failed: {stderr}")]
    Failed {
        /// What was asked.
        command: String,
        /// What it wrote.
        stderr: String,
    },
    /// `buildctl` gave an answer that is not what was asked for.
    #[error("buildctl debug workers gave an answer that cannot be read")]
    Answer(#[source] serde_json::Error),
}

/// How much of the cache is used, and when it was so.
type Usage = Option<(Instant, u64)>;

/// What buildkitd says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct About {
    /// Its version, such as `v0.33.1`.
    pub version: String,
    /// OCI platform strings that it can build, the native one first.
    pub platforms: Vec<String>,
}

/// The limits of a cache, in bytes. 0: no limit of its kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// What the cache may hold whatever else is on the volume.
    pub reserved: u64,
    /// The most that it may hold.
    pub most: u64,
    /// What is to stay free on the volume.
    pub free: u64,
}

/// What is left on a volume, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Volume {
    /// What may be written.
    pub free: u64,
    /// What is free besides, and kept for root: BuildKit takes it for free.
    pub kept_for_root: u64,
}

impl Limits {
    /// Whether too little is left on the cache's volume.
    #[must_use]
    pub fn lacks(self, volume: Volume) -> bool {
        volume.free < self.free
    }

    /// Whether a cache of `used` bytes on that volume is to drop something.
    #[must_use]
    pub fn exceeded(self, used: u64, volume: Volume) -> bool {
        used > self.reserved && (self.most > 0 && used > self.most || self.lacks(volume))
    }
}

/// A buildkitd and what is known of it.
#[derive(Debug)]
pub struct Buildkit {
    address: String,
    trust: Trust,
    sandbox: Sandbox,
    usage: Mutex<Usage>,
    builds: Builds,
    oom: Oom,
    garbage_left: AtomicBool,
    collected: Mutex<Instant>,
}

/// The builds that run. While BuildKit adds up what its cache holds, it takes hold of each cache mount that has changed, and
/// gives a step that wants it an empty one in its place.
#[derive(Debug, Default)]
pub struct Builds(watch::Sender<usize>);

/// A build that runs, from before its first request.
#[must_use]
pub struct Building<'a>(&'a Builds);

impl Drop for Building<'_> {
    fn drop(&mut self) {
        self.0.0.send_modify(|running| *running -= 1);
    }
}

impl Builds {
    /// A build begins.
    pub fn begin(&self) -> Building<'_> {
        self.0.send_modify(|running| *running += 1);
        Building(self)
    }

    /// How many run, from now on.
    #[must_use]
    pub fn running(&self) -> watch::Receiver<usize> {
        self.0.subscribe()
    }

    /// The answer to `question`, if no build runs before it is there.
    pub async fn between<T>(&self, question: impl Future<Output = T>) -> Option<T> {
        let mut running = self.running();
        tokio::select! {
            biased;
            _ = running.wait_for(|running| *running > 0) => None,
            answer = question => Some(answer),
        }
    }
}

impl Buildkit {
    /// The one that listens at `address` (`unix://PATH`).
    #[must_use]
    pub fn new(address: &str, trust: Trust, sandbox: Sandbox) -> Self {
        Self {
            oom: Oom::beside(address.strip_prefix("unix://").map(Path::new)),
            address: address.to_owned(),
            trust,
            sandbox,
            usage: Mutex::default(),
            builds: Builds::default(),
            garbage_left: AtomicBool::default(),
            collected: Mutex::new(Instant::now()),
        }
    }

    /// A build begins: what it waits for until it needs buildkitd is time for others to let go of the cache.
    pub fn begin(&self) -> Building<'_> {
        self.builds.begin()
    }

    /// The builds that run.
    #[must_use]
    pub fn builds(&self) -> &Builds {
        &self.builds
    }

    /// What tells of want of memory.
    #[must_use]
    pub fn oom(&self) -> &Oom {
        &self.oom
    }

    /// The largest id of a user or group that a build's files may have, as the start script says. `None`: it does not.
    #[must_use]
    pub fn largest_id(&self) -> Option<u32> {
        let said = files::read(&Path::new(self.socket()?).with_file_name("largest-id"), LONGEST_ID).ok()?;
        std::str::from_utf8(&said).ok()?.trim().parse().ok()
    }

    /// `buildctl`, to be given a command.
    fn buildctl(&self) -> Command {
        let mut command = self.client("buildctl", Vec::new(), Vec::new(), Some(0));
        command.args(["--addr", &self.address]);
        command
    }

    /// A program that talks to buildkitd; beside what its every use needs it reads and writes these files.
    #[must_use]
    pub fn client(&self, program: &str, read: Vec<PathBuf>, write: Vec<PathBuf>, file_bytes: Option<u64>) -> Command {
        let confinement = Confinement { file_bytes, ..self.confinement(read, write) };
        let mut command = self.sandbox.command(program, &confinement);
        if let Some(trust) = self.trust.everywhere() {
            // Go reads this directory beside the system's bundle.
            command.env("SSL_CERT_DIR", trust);
        }
        // Without a trace that it belongs to, it would begin one of its own.
        command.env(SAMPLER, "always_off");
        command
    }

    /// Where buildkitd listens.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The host and the file with the CAs of this registry, which count where its token service is asked. Of one registry
    /// alone: BuildKit's client keeps what it trusts once for all requests that follow (`authprovider.go`, `FetchToken`).
    #[must_use]
    pub fn authority_of(&self, registry: &str) -> Option<(String, PathBuf)> {
        // Docker Hub's tokens are asked for by the name of its API.
        let host = if registry == DOCKER_HUB { "registry-1.docker.io" } else { registry };
        Some((host.to_owned(), self.trust.file_of(registry)?))
    }

    /// What a program that talks to buildkitd may do, with these files.
    #[must_use]
    pub fn confinement(&self, read: Vec<PathBuf>, write: Vec<PathBuf>) -> Confinement {
        Confinement {
            mounted: self.trust.directories(),
            read,
            write,
            // It is the one that asks registries' token servers, wherever they are.
            network: Network::Any,
            unix_socket: self.socket().map(PathBuf::from),
            cpu_seconds: Some(PROCESSOR_TIME),
            ..Confinement::default()
        }
    }

    fn socket(&self) -> Option<&str> {
        self.address.strip_prefix("unix://")
    }

    /// Waits until buildkitd accepts connections, for a bounded time.
    pub async fn wait(&self, stop: &CancellationToken) -> Result<(), BuildkitError> {
        let Some(socket) = self.socket() else { return Ok(()) };
        let until = Instant::now() + PATIENCE;
        while UnixStream::connect(socket).await.is_err() {
            if Instant::now() > until {
                return Err(self.silent(PATIENCE));
            }
            tokio::select! {
                () = tokio::time::sleep(PAUSE) => {}
                () = stop.cancelled() => return Err(ProcessError::Stopped.into()),
            }
        }
        Ok(())
    }

    /// What it is. Asked each time: emulators may be installed on its node while it runs, and buildkitd looks for them anew
    /// when it is asked for its workers.
    pub async fn about(&self) -> Result<About, BuildkitError> {
        self.wait(&CancellationToken::new()).await?;
        about(&self.workers().await?)
    }

    async fn workers(&self) -> Result<Vec<u8>, BuildkitError> {
        let workers = self.buildctl_says(&["debug", "workers", "--format", "{{json .}}"]);
        tokio::time::timeout(WORKERS, workers).await.unwrap_or_else(|_| Err(self.silent(WORKERS)))
    }

    fn silent(&self, waited: Duration) -> BuildkitError {
        BuildkitError::Silent { address: self.address.clone(), waited }
    }

    /// Whether it answers, asked now.
    pub async fn ask(&self) -> Answer {
        match self.socket() {
            Some(socket) => answer::ask(socket, answer::PATIENCE).await,
            None => Answer::Answers,
        }
    }

    /// Has its container end it, and with it all that runs there; the kubelet starts it anew.
    pub fn end(&self) -> std::io::Result<()> {
        self.oom.end_buildkitd()
    }

    /// How many bytes the cache holds, or held before the builds that run. None: it does not tell in time.
    pub async fn cache_used(&self) -> Option<u64> {
        // Those who ask at the same time get the same answer.
        let mut usage = tokio::time::timeout(USAGE_PATIENCE, self.usage.lock()).await.ok()?;
        if let Some((_, used)) = usage.filter(|(asked, _)| asked.elapsed() < USAGE_HOLDS) {
            return Some(used);
        }
        let question = [&SIZES[..], &NO_MOUNTS].concat();
        let sizes = self.builds.between(self.buildctl_says(&question));
        // A large cache may take longer: what was true a while ago still says more than nothing.
        let Ok(Some(Ok(sizes))) = tokio::time::timeout(USAGE_PATIENCE, sizes).await else {
            return usage.map(|(_, used)| used);
        };
        let used = sum(&sizes);
        *usage = Some((Instant::now(), used));
        Some(used)
    }

    /// How many bytes the cache holds, cache mounts with them; not to be asked while a build runs.
    pub async fn cache_with_mounts(&self) -> Result<u64, BuildkitError> {
        self.wait(&CancellationToken::new()).await?;
        self.buildctl_says(&SIZES).await.map(|sizes| sum(&sizes))
    }

    /// Whether something may be on the disk that nothing names any more: a build has failed or was stopped, or the last
    /// collection is `after` ago.
    pub async fn has_garbage(&self, after: Duration) -> bool {
        self.garbage_left.load(Ordering::Relaxed) || self.collected.lock().await.elapsed() >= after
    }

    /// A build has left what it wrote.
    pub fn leave_garbage(&self) {
        self.garbage_left.store(true, Ordering::Relaxed);
    }

    /// Has buildkitd remove from the disk what nothing names any more.
    pub async fn collect_garbage(&self) -> Result<(), BuildkitError> {
        self.prune_with(vec!["prune".to_owned(), NOTHING.to_owned()]).await
    }

    /// Has buildkitd bring the cache within the limits, on a volume of which so much is left.
    pub async fn prune(&self, limits: Limits, volume: Volume) -> Result<(), BuildkitError> {
        self.prune_with(pruning(limits, volume)).await
    }

    async fn prune_with(&self, arguments: Vec<String>) -> Result<(), BuildkitError> {
        self.wait(&CancellationToken::new()).await?;
        // One that is broken off has named less, and collected nothing.
        self.leave_garbage();
        self.buildctl_says(&arguments.iter().map(String::as_str).collect::<Vec<_>>()).await?;
        self.garbage_left.store(false, Ordering::Relaxed);
        *self.collected.lock().await = Instant::now();
        Ok(())
    }

    async fn buildctl_says(&self, question: &[&str]) -> Result<Vec<u8>, BuildkitError> {
        let mut stderr = String::new();
        let mut command = self.buildctl();
        command.args(question);
        let finished = process::run(&mut command, None, &CancellationToken::new(), |line| {
            if stderr.len() < LONGEST_ERROR {
                stderr.push_str(&String::from_utf8_lossy(line));
            }
        })
        .await?;
        if finished.status.success() {
            return Ok(finished.stdout);
        }
        Err(BuildkitError::Failed { command: format!("buildctl {}", question.join(" ")), stderr })
    }
}

/// The sum of the sizes in bytes that `buildctl du` gives; those that BuildKit does not know are below 0.
fn sum(sizes: &[u8]) -> u64 {
    let sizes = String::from_utf8_lossy(sizes);
    sizes.split_whitespace().filter_map(|size| size.parse::<u64>().ok()).fold(0, u64::saturating_add)
}

/// What has `buildctl` bring the cache within these limits.
fn pruning(limits: Limits, volume: Volume) -> Vec<String> {
    let mut arguments = vec!["prune".to_owned(), "--all".to_owned()];
    let Limits { reserved, most, free } = limits;
    let free = if free > 0 { free.saturating_add(volume.kept_for_root) } else { 0 };
    for (option, bytes) in [("keep-storage-min", reserved), ("keep-storage", most), ("free-storage", free)] {
        // Its unit is a million bytes.
        arguments.push(format!("--{option}={}.{:06}", bytes / 1_000_000, bytes % 1_000_000));
    }
    // Without a limit it would drop everything.
    if limits == Limits::default() {
        arguments.push(NOTHING.to_owned());
    }
    arguments
}

/// Reads the answer of `buildctl debug workers`.
fn about(workers: &[u8]) -> Result<About, BuildkitError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Worker {
        platforms: Vec<Platform>,
        buildkit_version: Version,
    }
    #[derive(Deserialize)]
    struct Version {
        version: String,
    }
    #[derive(Deserialize)]
    struct Platform {
        os: String,
        architecture: String,
        #[serde(default)]
        variant: String,
    }
    let workers: Vec<Worker> = serde_json::from_slice(workers).map_err(BuildkitError::Answer)?;
    let version = workers.first().map(|worker| worker.buildkit_version.version.clone()).unwrap_or_default();
    let mut platforms = Vec::new();
    for Platform { os, architecture, variant } in workers.into_iter().flat_map(|worker| worker.platforms) {
        let variant = if variant.is_empty() { variant } else { format!("/{variant}") };
        let platform = format!("{os}/{architecture}{variant}");
        if !platforms.contains(&platform) {
            platforms.push(platform);
        }
    }
    Ok(About { version, platforms })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adds_the_sizes_up() {
        assert_eq!(sum(b"1 20 -1 300 \n"), 321);
        assert_eq!(sum(b"\n"), 0);
    }

    #[test]
    fn what_is_too_much() {
        let limits = Limits { reserved: 10, most: 80, free: 10 };
        for (used, left, expected) in
            [(80, 20, false), (81, 20, true), (50, 9, true), (10, 0, false), (11, 0, true), (0, 0, false)]
        {
            let volume = Volume { free: left, kept_for_root: 5 };
            assert_eq!(limits.exceeded(used, volume), expected, "{used} used, {left} left");
        }
        assert!(!Limits::default().exceeded(u64::MAX, Volume { free: 0, kept_for_root: 0 }), "no limits");
    }

    #[test]
    fn the_cache_is_pruned_to_its_limits() {
        let volume = Volume { free: 100, kept_for_root: 7 };
        assert_eq!(
            pruning(Limits { reserved: 1 << 20, most: 10_000_000, free: 3 }, volume).join(" "),
            "prune --all --keep-storage-min=1.048576 --keep-storage=10.000000 --free-storage=0.000010"
        );
        assert!(pruning(Limits::default(), volume).contains(&NOTHING.to_owned()), "nothing is dropped");
    }

    #[tokio::test]
    async fn no_usage_where_there_is_no_buildkitd() {
        let buildkit =
            Buildkit::new("unix:///nowhere/buildkitd.sock", Trust::default(), Sandbox::absent("a unit test"));
        assert_eq!(buildkit.cache_used().await, None);
    }

    #[tokio::test]
    async fn the_cache_is_measured_between_builds() {
        let builds = Builds::default();
        assert_eq!(builds.between(async { 1 }).await, Some(1));
        let (first, second) = (builds.begin(), builds.begin());
        drop(first);
        assert_eq!(builds.between(async { 1 }).await, None);
        drop(second);
        // One that begins has the question given up.
        let (answer, building) = tokio::join!(builds.between(std::future::pending::<()>()), async { builds.begin() });
        assert_eq!(answer, None);
        drop(building);
        assert_eq!(builds.between(async { 2 }).await, Some(2));
    }

    #[test]
    fn reads_what_buildkitd_is() {
        let about = about(include_bytes!("testdata/workers.json")).unwrap();
        assert_eq!(about.version, "v0.33.1");
        assert_eq!(
            about.platforms,
            ["linux/amd64", "linux/amd64/v2", "linux/amd64/v3", "linux/amd64/v4", "linux/arm64", "linux/386"]
        );
    }
}
