//! The way to buildkitd: waits for its socket, asks what it is, starts `buildctl`.

use std::{path::PathBuf, time::Duration};

use serde::Deserialize;
use tokio::{net::UnixStream, process::Command, sync::OnceCell, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::process::{self, ProcessError};

/// How long buildkitd may be away: it starts within a second, and within a minute when the kubelet delays a restart.
const PATIENCE: Duration = Duration::from_mins(1);
/// The pause between two looks at its socket.
const PAUSE: Duration = Duration::from_millis(10);
/// The environment that `buildctl` and `git` share with the agent: the way to the network.
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

/// Why buildkitd could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum BuildkitError {
    /// It does not listen.
    #[error("buildkitd does not answer at {address} (waited {} s); see the log of the builder pod's container \"buildkitd\"", PATIENCE.as_secs())]
    Silent {
        /// Where it should.
        address: String,
    },
    /// `buildctl` could not be run.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// `buildctl` failed.
    #[error("buildctl debug workers failed: {stderr}")]
    Failed {
        /// What it wrote.
        stderr: String,
    },
    /// `buildctl` gave an answer that is not what was asked for.
    #[error("buildctl debug workers gave an answer that cannot be read")]
    Answer(#[source] serde_json::Error),
}

/// What buildkitd says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct About {
    /// Its version, such as `v0.33.1`.
    pub version: String,
    /// OCI platform strings that it can build, the native one first.
    pub platforms: Vec<String>,
}

/// A buildkitd and what is known of it.
#[derive(Debug)]
pub struct Buildkit {
    address: String,
    trust: PathBuf,
    about: OnceCell<About>,
}

/// A command with nothing of the agent's environment but the way to the network.
#[must_use]
pub fn clean_command(program: &str) -> Command {
    let mut command = Command::new(program);
    command.env_clear().envs(PASSED_ON.iter().filter_map(|name| std::env::var_os(name).map(|value| (name, value))));
    command
}

impl Buildkit {
    /// The one that listens at `address` (`unix://PATH`); `trust` is a directory of further CAs.
    #[must_use]
    pub fn new(address: &str, trust: PathBuf) -> Self {
        Self { address: address.to_owned(), trust, about: OnceCell::new() }
    }

    /// `buildctl`, to be given a command.
    #[must_use]
    pub fn buildctl(&self) -> Command {
        let mut command = clean_command("buildctl");
        if self.trust.is_dir() {
            // Go reads this directory beside the system's bundle.
            command.env("SSL_CERT_DIR", &self.trust);
        }
        command.args(["--addr", &self.address]);
        command
    }

    /// Waits until buildkitd accepts connections, for a bounded time.
    pub async fn wait(&self, stop: &CancellationToken) -> Result<(), BuildkitError> {
        let Some(socket) = self.address.strip_prefix("unix://") else { return Ok(()) };
        let until = Instant::now() + PATIENCE;
        while UnixStream::connect(socket).await.is_err() {
            if Instant::now() > until {
                return Err(BuildkitError::Silent { address: self.address.clone() });
            }
            tokio::select! {
                () = tokio::time::sleep(PAUSE) => {}
                () = stop.cancelled() => return Err(ProcessError::Stopped.into()),
            }
        }
        Ok(())
    }

    /// What it is. Asked once; the pod's image holds one version.
    pub async fn about(&self) -> Result<&About, BuildkitError> {
        self.about
            .get_or_try_init(|| async {
                self.wait(&CancellationToken::new()).await?;
                about(&self.workers().await?)
            })
            .await
    }

    async fn workers(&self) -> Result<Vec<u8>, BuildkitError> {
        let mut stderr = String::new();
        let mut command = self.buildctl();
        command.args(["debug", "workers", "--format", "{{json .}}"]);
        let finished = process::run(&mut command, None, &CancellationToken::new(), |line| {
            stderr.push_str(&String::from_utf8_lossy(line));
        })
        .await?;
        if finished.status.success() { Ok(finished.stdout) } else { Err(BuildkitError::Failed { stderr }) }
    }
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
    fn reads_what_buildkitd_is() {
        let about = about(include_bytes!("testdata/workers.json")).unwrap();
        assert_eq!(about.version, "v0.33.1");
        assert_eq!(
            about.platforms,
            ["linux/amd64", "linux/amd64/v2", "linux/amd64/v3", "linux/amd64/v4", "linux/arm64", "linux/386"]
        );
    }
}
