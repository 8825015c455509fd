//! Fetches commits with `git`, each URL into a bare repository of its own.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use kiln_agent_proto::GitSource;
use kiln_registry::http_client::AddressPolicy;
use tokio::sync::OwnedRwLockReadGuard;
use tokio_util::sync::CancellationToken;

use super::{
    Source,
    checkout::Extent,
    git_problem::{Problem, failure, problem, redirect_target},
    process_failure,
    remote::{Credential, Remote, authorities, parse_url},
    repositories::{MOST_PACKS, Repositories, clear_leftovers, count_packs, discard, hash, renew, touch},
};
use crate::{
    files, paths, process,
    reasons::{JobFailure, Reason},
    sandbox::{Confinement, LARGEST_FILE, Network, Sandbox},
};

/// How often one server may send a fetch elsewhere.
const MOST_REDIRECTS: usize = 3;
/// Faults of commits and tags that honest repositories have, written by programs of former times
/// (<https://git-scm.com/docs/git-fsck#_fsck_messages>). Those of trees, `.git` and `.gitmodules` are none of them.
const FORGIVEN: [&str; 12] = [
    "badDate",
    "badDateOverflow",
    "badEmail",
    "badName",
    "badTimezone",
    "missingEmail",
    "missingNameBeforeEmail",
    "missingSpaceBeforeDate",
    "missingSpaceBeforeEmail",
    "multipleAuthors",
    "zeroPaddedDate",
    "zeroPaddedFilemode",
];
/// Far more processor time than the largest fetch takes, in seconds.
const PROCESSOR_TIME: u64 = 3600;
/// The longest trace of a server's answers that is read.
const LONGEST_TRACE: u64 = 1 << 20;
/// More history than any repository has: Git's own figure for "all of it".
const WHOLE_HISTORY: &str = "--depth=2147483647";

/// What is fetched beside a commit's files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum History {
    /// Nothing.
    Commit,
    /// All commits and tags.
    All,
}

/// A commit that is there, and stays as long as this is held.
pub struct Commit {
    /// The bare repository.
    pub repository: PathBuf,
    /// The commit's full id.
    pub id: String,
    /// The committer's time, in seconds since 1970.
    pub second: i64,
    /// What else the repository has.
    pub history: History,
    _reading: OwnedRwLockReadGuard<()>,
}

impl Commit {
    /// Says that the repository turned out to be damaged: the next fetch makes it anew.
    pub fn damaged(&self) {
        let _ = fs::remove_file(self.repository.join("HEAD"));
    }
}

/// What all of a job's use of `git` shares.
pub struct GitJob<'a> {
    /// Where repositories stay.
    pub repositories: &'a Repositories,
    /// Ends everything.
    pub stop: &'a CancellationToken,
    /// The job's directory in memory.
    pub memory: &'a Path,
    /// A directory of the job's on the repositories' volume, for what is not to lie among the files of a commit.
    pub scratch: &'a Path,
    /// Which addresses servers may have.
    pub addresses: AddressPolicy,
    /// What keeps `git` apart from everything else.
    pub sandbox: &'a Sandbox,
}

/// What a run of `git` reaches beside the repository, which it reads.
#[derive(Clone, Copy, Default)]
pub struct Reach<'a> {
    /// The server that it asks.
    pub remote: Option<&'a Remote>,
    /// The directories that it writes to.
    pub writes: &'a [&'a Path],
}

/// What a run of `git` came to.
pub struct Output {
    /// Whether it succeeded.
    pub success: bool,
    /// Its standard output.
    pub stdout: Vec<u8>,
    /// Its standard error.
    pub stderr: String,
}

impl GitJob<'_> {
    /// Fetches the source's commit and checks it out to `directory`, which is made; with `outside` also what lies outside
    /// of the context.
    pub async fn fetch(&self, source: &GitSource, directory: &Path, outside: bool) -> Result<Source, JobFailure> {
        let url = parse_url(&source.url)?;
        if !is_object_id(&source.commit) {
            return Err(JobFailure::new(Reason::InvalidJob, format!("{:?} is not a commit's full id", source.commit)));
        }
        if !is_ref(&source.r#ref) {
            return Err(JobFailure::new(Reason::InvalidJob, format!("{:?} is not the name of a ref", source.r#ref)));
        }
        let path = paths::relative(&source.path).map_err(|problem| {
            JobFailure::new(Reason::InvalidJob, format!("the source's path {:?} {problem}", source.path))
        })?;
        let credential = Credential::write(source, self.memory)
            .map_err(|error| JobFailure::agent("write the Git server's credential", &error))?;
        let authorities =
            authorities(source, self.memory).map_err(|error| JobFailure::agent("write the Git server's CA", &error))?;
        let remote =
            Remote::new(url, credential, authorities, self.addresses.clone()).identified(&source.credential_uid);
        let history = if source.full_history { History::All } else { History::Commit };
        let commit = self.commit(remote.clone(), &source.commit, &source.r#ref, history).await?;
        self.check_out(commit, &remote, directory, Extent { context: &path, outside }, source).await
    }

    /// Makes sure that the commit is in the remote's bare repository.
    pub async fn commit(&self, remote: Remote, id: &str, name: &str, history: History) -> Result<Commit, JobFailure> {
        let (repository, lock) = self.repositories.at(&remote, id, history);
        // Another job may be fetching, from a server that takes its time.
        let reading = tokio::select! {
            reading = Arc::clone(&lock).read_owned() => reading,
            () = self.stop.cancelled() => return Err(process_failure(process::ProcessError::Stopped)),
        };
        // With all history, tags may be new although the commit is there.
        if self.renew(&repository, id).is_ok()
            && history == History::Commit
            && let Some(second) = self.commit_second(&repository, id).await?
        {
            touch(&repository);
            return Ok(Commit { repository, id: id.to_owned(), second, history, _reading: reading });
        }
        drop(reading);
        let writing = tokio::select! {
            writing = lock.write_owned() => writing,
            () = self.stop.cancelled() => return Err(process_failure(process::ProcessError::Stopped)),
        };
        let fresh = self.prepare(&repository, id).await?;
        let second = match self.fetch_redirected(&repository, remote.clone(), id, name, history).await {
            // A repository that a crash damaged must not fail every build from now on.
            Err(failure) if failure.reason == Reason::GitFailed && !fresh => {
                tracing::warn!(why = failure.message, "fetching into a new repository");
                discard(&repository).map_err(|error| JobFailure::agent("remove a damaged repository", &error))?;
                self.prepare(&repository, id).await?;
                self.fetch_redirected(&repository, remote, id, name, history).await?
            }
            fetched => fetched?,
        };
        touch(&repository);
        let reading = writing.downgrade();
        self.repositories.trim();
        Ok(Commit { repository, id: id.to_owned(), second, history, _reading: reading })
    }

    /// Makes the bare repository unless it is there, and clears what an interrupted fetch left; true where it is new.
    async fn prepare(&self, repository: &Path, id: &str) -> Result<bool, JobFailure> {
        // Somebody may have written to it until just now.
        if self.renew(repository, id).is_ok() && repository.join("HEAD").is_file() {
            clear_leftovers(repository).map_err(|error| JobFailure::agent("clear an interrupted fetch", &error))?;
            if count_packs(repository) > MOST_PACKS {
                self.git(
                    repository,
                    Reach { remote: None, writes: &[repository] },
                    &["gc", "--quiet", "--prune=now"],
                    None,
                    &[],
                )
                .await?;
            }
            return Ok(false);
        }
        discard(repository).map_err(|error| JobFailure::agent("remove a damaged repository", &error))?;
        // Made here: `git` may write to it, but not beside it.
        fs::create_dir_all(repository).map_err(|error| JobFailure::agent("make a repository", &error))?;
        let format = if id.len() == 64 { "--object-format=sha256" } else { "--object-format=sha1" };
        let output = self
            .git(
                repository,
                Reach { remote: None, writes: &[repository] },
                &["init", "--quiet", "--bare", "--template=", format],
                None,
                &[],
            )
            .await?;
        if output.success {
            self.renew(repository, id)?;
            Ok(true)
        } else {
            Err(JobFailure::new(Reason::GitFailed, format!("cannot make a repository: {}", output.stderr)))
        }
    }

    /// Leaves a repository nothing but objects, refs and the configuration that Kiln writes: whatever else Git would read
    /// there, such as filters, hooks and other repositories' objects, is from a stranger.
    fn renew(&self, repository: &Path, id: &str) -> Result<(), JobFailure> {
        renew(repository, self.scratch, id.len() == 64)
            .map_err(|error| JobFailure::agent("make a repository's configuration anew", &error))
    }

    /// Fetches, follows redirects while they lead to allowed places, and gives the commit's second.
    async fn fetch_redirected(
        &self,
        repository: &Path,
        mut remote: Remote,
        id: &str,
        name: &str,
        history: History,
    ) -> Result<i64, JobFailure> {
        for _ in 0..=MOST_REDIRECTS {
            remote.check_addresses().await?;
            match self.fetch_commit(repository, &remote, id, name, history).await? {
                Ok(second) => return Ok(second),
                Err((Problem::Redirected, stderr)) => {
                    let target = self.redirect(repository, &remote).await?;
                    let target = target.ok_or_else(|| failure(Problem::Redirected, &remote, id, name, &stderr))?;
                    remote = remote.at(parse_url(target.as_str())?);
                }
                Err((problem, stderr)) => return Err(failure(problem, &remote, id, name, &stderr)),
            }
        }
        Err(failure(Problem::Redirected, &remote, id, name, "too many redirects"))
    }

    /// Fetches the commit itself; where the server refuses that, the ref; then all of its history.
    async fn fetch_commit(
        &self,
        repository: &Path,
        remote: &Remote,
        id: &str,
        name: &str,
        history: History,
    ) -> Result<Result<i64, (Problem, String)>, JobFailure> {
        // One ref of ours for each of theirs: what it holds is what the next fetch need not bring.
        let ours = format!("refs/kiln/{}", hash(if name.is_empty() { id } else { name }));
        let ref_only = (!name.is_empty() && !is_object_id(name)).then(|| format!("+{name}:{ours}"));
        let by_id = vec!["--depth=1".to_owned(), format!("+{id}:{ours}")];
        let everything =
            ["+refs/heads/*:refs/kiln/all/heads/*".to_owned(), "+refs/tags/*:refs/kiln/all/tags/*".to_owned()];
        let mut attempts = match (history, ref_only) {
            (History::Commit, None) => vec![by_id, [vec![WHOLE_HISTORY.to_owned()], everything.to_vec()].concat()],
            (History::Commit, Some(by_ref)) => {
                vec![by_id, vec!["--depth=1".to_owned(), by_ref.clone()], vec![WHOLE_HISTORY.to_owned(), by_ref]]
            }
            // The commit may be on no branch any more.
            (History::All, by_ref) => {
                let more = [Some(format!("+{id}:{ours}")), by_ref].into_iter().flatten().map(|more| vec![more]);
                more.chain([Vec::new()]).map(|more| [everything.to_vec(), more].concat()).collect()
            }
        };
        attempts.reverse();
        let mut last = (Problem::NoCommit, String::new());
        while let Some(arguments) = attempts.pop() {
            let mut command = vec!["fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "--no-recurse-submodules"];
            let shallow = arguments.first().is_some_and(|argument| argument.starts_with("--depth"));
            let (depth, refspecs) = arguments.split_at(usize::from(shallow));
            command.extend(depth.iter().map(String::as_str));
            if history == History::All {
                // A tag that is gone there must not name the version here.
                command.push("--prune");
            }
            command.extend(["--", remote.url.as_str()]);
            command.extend(refspecs.iter().map(String::as_str));
            // What `git` did before may have left something there that the next one would obey.
            self.renew(repository, id)?;
            let reach = Reach { remote: Some(remote), writes: &[repository] };
            let output = self.git(repository, reach, &command, None, &[]).await?;
            // From here on what it has left is read.
            self.renew(repository, id)?;
            if output.success {
                if let Some(second) = self.commit_second(repository, id).await? {
                    return Ok(Ok(second));
                }
                continue;
            }
            let found = problem(&output.stderr);
            last = (found, output.stderr);
            match found {
                Problem::NoCommit => {}
                Problem::Dumb => attempts = vec![everything.to_vec()],
                _ => return Ok(Err(last)),
            }
        }
        Ok(Err((Problem::NoCommit, last.1)))
    }

    /// Where the remote redirects to. `git` itself must not follow: it would take the credential along.
    async fn redirect(&self, repository: &Path, remote: &Remote) -> Result<Option<url::Url>, JobFailure> {
        let trace = self.scratch.join("redirect.trace");
        let environment = [("GIT_TRACE_CURL", trace.display().to_string()), ("GIT_TRACE_CURL_NO_DATA", "1".to_owned())];
        self.git(
            repository,
            Reach { remote: Some(remote), writes: &[] },
            &["ls-remote", "--quiet", "--", remote.url.as_str(), "HEAD"],
            None,
            &environment,
        )
        .await?;
        let text = files::read(&trace, LONGEST_TRACE).unwrap_or_default();
        let _ = fs::remove_file(&trace);
        Ok(remote.url.https().and_then(|url| redirect_target(url, &String::from_utf8_lossy(&text))))
    }

    /// The committer's second, or none where the repository lacks the commit.
    async fn commit_second(&self, repository: &Path, id: &str) -> Result<Option<i64>, JobFailure> {
        if !repository.join("HEAD").is_file() {
            return Ok(None);
        }
        let output = self.git(repository, Reach::default(), &["cat-file", "commit", id], None, &[]).await?;
        Ok(if output.success { committer_second(&output.stdout) } else { None })
    }

    /// What `git` may do, and with it `ssh`, which it starts.
    #[must_use]
    pub fn confinement(&self, repository: &Path, reach: Reach<'_>) -> Confinement {
        let mut confinement = Confinement {
            read: vec![repository.to_owned()],
            write: vec![self.scratch.to_owned()],
            cpu_seconds: Some(PROCESSOR_TIME),
            file_bytes: Some(LARGEST_FILE),
            ..Confinement::default()
        };
        confinement.write.extend(reach.writes.iter().map(|path| (*path).to_owned()));
        if let Some(remote) = reach.remote {
            confinement.read.extend(remote.files());
            confinement.network = Network::to(remote.url.port());
        }
        confinement
    }

    /// Runs `git` on the bare repository with nothing of the system's or a user's configuration.
    pub async fn git(
        &self,
        repository: &Path,
        reach: Reach<'_>,
        arguments: &[&str],
        stdin: Option<&[u8]>,
        environment: &[(&str, String)],
    ) -> Result<Output, JobFailure> {
        const ALWAYS: [(&str, &str); 15] = [
            ("protocol.allow", "never"),
            ("protocol.https.allow", "always"),
            ("core.hooksPath", "/dev/null"),
            ("core.fsmonitor", "false"),
            ("credential.helper", ""),
            ("http.followRedirects", "false"),
            // Less than 1000 bytes a second for a minute: given up.
            ("http.lowSpeedLimit", "1000"),
            ("http.lowSpeedTime", "60"),
            ("gc.auto", "0"),
            ("maintenance.auto", "false"),
            // A pack for each fetch, so that their number tells when to tidy up.
            ("fetch.unpackLimit", "1"),
            // The volume is a cache: after a crash it may be damaged, and is then fetched anew.
            ("core.fsync", "none"),
            ("advice.detachedHead", "false"),
            // Objects are looked at as they come: what no Git writes is there to deceive one.
            ("fetch.fsckObjects", "true"),
            // git only tells of it. Modes such as 100664, of which it does so too, were git's own once.
            ("fetch.fsck.gitmodulesParse", "error"),
        ];
        let forgiven = FORGIVEN.map(|fault| (format!("fetch.fsck.{fault}"), "warn"));
        let config = reach.remote.map(Remote::config).unwrap_or_default();
        fs::create_dir_all(self.scratch).map_err(|error| JobFailure::agent("make a scratch directory", &error))?;
        let mut command = self.sandbox.command("git", &self.confinement(repository, reach));
        command
            .args(arguments)
            .current_dir(self.scratch)
            .env("GIT_DIR", repository)
            .env("HOME", self.scratch)
            .env("LC_ALL", "C")
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_ATTR_NOSYSTEM", "1")
            .env("GIT_TERMINAL_PROMPT", "0")
            .env("GIT_LITERAL_PATHSPECS", "1")
            .env("GIT_CONFIG_COUNT", (ALWAYS.len() + FORGIVEN.len() + config.len()).to_string());
        let always = ALWAYS.iter().copied().chain(forgiven.iter().map(|(key, value)| (key.as_str(), *value)));
        for (number, (key, value)) in
            always.chain(config.iter().map(|(key, value)| (key.as_str(), value.as_str()))).enumerate()
        {
            command.env(format!("GIT_CONFIG_KEY_{number}"), key).env(format!("GIT_CONFIG_VALUE_{number}"), value);
        }
        command.envs(environment.iter().map(|(name, value)| (name, value)));
        let mut stderr = String::new();
        let finished = process::run(&mut command, stdin, self.stop, |line| {
            if stderr.len() < 16 << 10 {
                stderr.push_str(&String::from_utf8_lossy(line));
                stderr.push('\n');
            }
        })
        .await
        .map_err(process_failure)?;
        Ok(Output { success: finished.status.success(), stdout: finished.stdout, stderr })
    }
}

/// Whether `id` is a full object id, SHA-1 or SHA-256, in lower case.
#[must_use]
pub fn is_object_id(id: &str) -> bool {
    matches!(id.len(), 40 | 64) && id.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

/// Whether `name` may be a ref's name (git-check-ref-format(1)), or is empty.
fn is_ref(name: &str) -> bool {
    !name.starts_with(['-', '/', '+', '^'])
        && !name.contains("..")
        && !name.contains("@{")
        && !name.chars().any(|char| char.is_control() || char.is_whitespace() || "~^:?*[\\".contains(char))
}

/// The committer's second in a commit object.
fn committer_second(commit: &[u8]) -> Option<i64> {
    let header = commit
        .split(|byte| *byte == b'\n')
        .take_while(|line| !line.is_empty())
        .find(|line| line.starts_with(b"committer "))?;
    String::from_utf8_lossy(header).rsplit(' ').nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_committer() {
        let commit = b"tree 1\nparent 2\nauthor A B <a@b> 1 +0000\ncommitter C D <c d> 1700000000 +0100\ngpgsig x\n\ncommitter E <e> 3 +0000\n";
        assert_eq!(committer_second(commit), Some(1_700_000_000));
        assert_eq!(committer_second(b"tree 1\n\n"), None);
    }

    #[test]
    fn refs_and_ids() {
        for good in ["", "main", "refs/heads/feature/x", "v1.0", "release-1"] {
            assert!(is_ref(good), "{good}");
        }
        for bad in ["-x", "a:b", "a..b", "a b", "+x", "a*", "x^{}", "a\n"] {
            assert!(!is_ref(bad), "{bad}");
        }
        assert!(is_object_id(&"a".repeat(40)) && is_object_id(&"0".repeat(64)));
        assert!(!is_object_id(&"A".repeat(40)) && !is_object_id("abc"));
    }
}
