//! Writes a commit's files to a directory, as `git checkout` would, without a `.git` and with times that follow from
//! commit and content.

use std::{
    collections::{BTreeMap, HashSet},
    ffi::OsStr,
    fs, io,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

use kiln_agent_proto::GitSource;

use super::{
    Source,
    git::{Commit, GitJob, History, Reach},
    git_problem::local_reason,
    mtime,
    remote::Remote,
};
use crate::{
    files::Tree,
    paths,
    reasons::{JobFailure, Reason},
};

/// How deep submodules may lie in one another.
const DEEPEST: usize = 8;
/// The most submodules of one source.
const MOST_SUBMODULES: usize = 500;
/// The most bytes that a commit's files may have together. A pack of a few megabytes can hold any number of them.
pub(super) const LARGEST_TREE: u64 = 16 << 30;
/// The longest path, in bytes, and the most directories it may lie below: beyond them no system has the file, and all that
/// goes through a path costs as much as it is long.
const LONGEST_PATH: usize = 4096;
const DEEPEST_PATH: usize = 256;
/// The most directories of a commit: a tree of a few objects can name any number of them.
const MOST_DIRECTORIES: usize = 1 << 20;

/// An entry of a commit's tree.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// A submodule's commit rather than a file or link.
    pub(crate) submodule: bool,
    /// The object's id, or the digest of what Git LFS has in its place.
    pub(crate) id: String,
    pub(crate) path: PathBuf,
    /// A file's length.
    pub(crate) size: u64,
}

/// Which of a commit's files are wanted.
#[derive(Clone, Copy, Debug)]
pub struct Extent<'a> {
    /// The directory that is the context; empty for the root.
    pub context: &'a Path,
    /// Files outside of it too, for a Dockerfile there; but neither submodules nor files of Git LFS.
    pub outside: bool,
}

/// A submodule to be put into a directory.
struct Submodule {
    remote: Remote,
    commit: String,
    directory: PathBuf,
}

impl GitJob<'_> {
    /// Writes the commit's files to `directory`, with what `wanted` asks for beside them: submodules, files of Git LFS,
    /// `.git`.
    pub async fn check_out(
        &self,
        commit: Commit,
        remote: &Remote,
        directory: &Path,
        extent: Extent<'_>,
        wanted: &GitSource,
    ) -> Result<Source, JobFailure> {
        let path = extent.context;
        let place =
            if path.as_os_str().is_empty() { String::new() } else { format!("directory {:?} of ", path.display()) };
        let name = format!("{place}commit {} of {}", &commit.id[..12], remote.url);
        let source = Source {
            context: directory.join(path),
            commit_time: Some(commit.second),
            ..Source::new(directory.to_owned(), name.clone())
        };
        let mut waiting = self.check_out_one(&commit, remote, directory, extent, wanted).await?;
        // Nor has anybody put a link in its way.
        let is_there = Tree::open(directory).is_ok_and(|tree| tree.is_directory(path));
        if !is_there {
            return Err(JobFailure::new(
                Reason::GitTreeRefused,
                format!("{name} is not the directory that its commit has"),
            ));
        }
        if wanted.keep_git_dir {
            self.write_git_dir(&commit, remote, &source.context).await?;
        }
        // Free for others while the submodules are fetched.
        drop(commit);
        let all = Extent { context: Path::new(""), outside: false };
        let mut seen = 0;
        for _ in 0..DEEPEST {
            if waiting.is_empty() {
                return Ok(source);
            }
            let mut deeper = Vec::new();
            seen += waiting.len();
            if seen > MOST_SUBMODULES {
                let message =
                    format!("{name} has more than {MOST_SUBMODULES} submodules; build from a smaller repository");
                return Err(JobFailure::new(Reason::GitRepositoryTooLarge, message));
            }
            for submodule in waiting {
                let commit = self.commit(submodule.remote.clone(), &submodule.commit, "", History::Commit).await?;
                let (remote, directory) = (&submodule.remote, &submodule.directory);
                deeper.extend(self.check_out_one(&commit, remote, directory, all, wanted).await?);
            }
            waiting = deeper;
        }
        if waiting.is_empty() {
            return Ok(source);
        }
        Err(JobFailure::new(
            Reason::InvalidJob,
            format!("the submodules of {name} lie more than {DEEPEST} deep in one another"),
        ))
    }

    /// Writes one commit, and gives the submodules it names, if wanted.
    async fn check_out_one(
        &self,
        commit: &Commit,
        remote: &Remote,
        directory: &Path,
        extent: Extent<'_>,
        wanted: &GitSource,
    ) -> Result<Vec<Submodule>, JobFailure> {
        let written = self.write_files(commit, remote, directory, extent, wanted).await;
        if written.as_ref().is_err_and(|failure| failure.reason == Reason::GitFailed) {
            commit.damaged();
        }
        written
    }

    async fn write_files(
        &self,
        commit: &Commit,
        remote: &Remote,
        directory: &Path,
        Extent { context: path, outside }: Extent<'_>,
        wanted: &GitSource,
    ) -> Result<Vec<Submodule>, JobFailure> {
        let below = if outside || path.as_os_str().is_empty() { None } else { Some(format!("{}/", path.display())) };
        let mut list = vec!["ls-tree", "-r", "-l", "-z", "--full-tree", &commit.id];
        if let Some(below) = &below {
            list.extend(["--", below]);
        }
        let listing = self.read(commit, &[], &list, None, &[]).await?;
        // Megabytes: not on a thread that others wait for.
        let context = path.to_owned();
        let read = tokio::task::spawn_blocking(move || {
            let mut entries = entries(&listing)?;
            let inside = context_first(&mut entries, &context);
            let checked = check(&entries);
            Some((entries, inside, checked))
        });
        let (mut entries, inside, checked) = read
            .await
            .map_err(|error| JobFailure::agent("read the commit's tree", &error))?
            .ok_or_else(|| JobFailure::new(Reason::GitFailed, "git ls-tree gave a listing that cannot be read"))?;
        if inside == 0 && !path.as_os_str().is_empty() {
            let name = format!("commit {} of {}", commit.id, remote.url);
            let message = match self.link_in(commit, path).await? {
                Some(link) => format!(
                    "{:?} is a link in {name}; set spec.source.git.path to the directory that it leads to",
                    link.display()
                ),
                None => format!("there is no directory {:?} in {name}; set spec.source.git.path", path.display()),
            };
            return Err(JobFailure::new(Reason::ContextNotFound, message));
        }

        checked.map_err(|(reason, why)| {
            JobFailure::new(reason, format!("commit {} of {} {why}", commit.id, remote.url))
        })?;

        for made in [directory, self.scratch] {
            fs::create_dir_all(made).map_err(|error| JobFailure::agent("make the source's directory", &error))?;
        }
        let index = self.scratch.join("index");
        let environment =
            [("GIT_INDEX_FILE", index.display().to_string()), ("GIT_WORK_TREE", directory.display().to_string())];
        self.read(commit, &[self.scratch], &["read-tree", &commit.id], None, &environment).await?;
        let mut names = Vec::new();
        for entry in entries.iter().filter(|entry| !entry.submodule) {
            names.extend_from_slice(entry.path.as_os_str().as_bytes());
            names.push(0);
        }
        let prefix = format!("--prefix={}/", directory.display());
        self.read(
            commit,
            &[self.scratch, directory],
            &["checkout-index", "--quiet", "--force", "-z", "--stdin", &prefix],
            Some(&names),
            &environment,
        )
        .await?;
        if wanted.lfs {
            self.fetch_lfs(commit, remote, directory, &environment, &mut entries[..inside]).await?;
        }
        let _ = fs::remove_file(&index);

        let submodules: Vec<&Entry> = entries[..inside].iter().filter(|entry| entry.submodule).collect();
        // As git does: an empty directory where the submodule is not wanted.
        let tree = Tree::open(directory).map_err(|error| JobFailure::agent("open the source", &error))?;
        for entry in &submodules {
            tree.make_directory(&entry.path)
                .map_err(|error| JobFailure::agent("make a submodule's directory", &error))?;
        }
        let urls = if wanted.submodules && !submodules.is_empty() {
            self.submodule_urls(commit).await?
        } else {
            BTreeMap::new()
        };
        let submodules = submodules
            .into_iter()
            .filter_map(|entry| Some((entry, urls.get(entry.path.to_str()?)?)))
            .map(|(entry, url)| {
                let url = remote.url.submodule(url).map_err(|error| {
                    let message = format!("the submodule {:?} of {}: {error}", entry.path.display(), remote.url);
                    JobFailure::new(Reason::InvalidJob, message)
                })?;
                Ok(Submodule {
                    remote: remote.at(url),
                    commit: entry.id.clone(),
                    directory: directory.join(&entry.path),
                })
            })
            .collect::<Result<Vec<_>, JobFailure>>()?;

        let second = commit.second;
        tokio::task::spawn_blocking(move || set_times(&tree, second, &entries))
            .await
            .map_err(|error| JobFailure::agent("set the times of the source's files", &error))?
            .map_err(|error| JobFailure::agent("set the times of the source's files", &error))?;
        Ok(submodules)
    }

    /// The link that a path is, or that it leads through.
    async fn link_in(&self, commit: &Commit, path: &Path) -> Result<Option<PathBuf>, JobFailure> {
        let ways: Vec<String> = path
            .ancestors()
            .filter(|way| !way.as_os_str().is_empty())
            .take(DEEPEST_PATH)
            .map(|way| way.display().to_string())
            .collect();
        let mut list = vec!["ls-tree", "-z", "--full-tree", &commit.id, "--"];
        list.extend(ways.iter().map(String::as_str));
        let listing = self.read(commit, &[], &list, None, &[]).await?;
        let mut entries = listing.split(|byte| *byte == 0).filter_map(|entry| {
            let (kind, path) = std::str::from_utf8(entry).ok()?.split_once('\t')?;
            // What lies beside a directory on the way is listed too.
            (kind.starts_with("120000 ") && ways.iter().any(|way| way == path)).then(|| PathBuf::from(path))
        });
        Ok(entries.next())
    }

    /// The URLs in `.gitmodules`, by the submodule's path.
    async fn submodule_urls(&self, commit: &Commit) -> Result<BTreeMap<String, String>, JobFailure> {
        let blob = format!("{}:.gitmodules", commit.id);
        let output = self
            .git(
                &commit.repository,
                Reach::default(),
                &["config", "--no-includes", "-z", "--list", "--blob", &blob],
                None,
                &[],
            )
            .await?;
        // No such file: no URLs.
        Ok(if output.success { gitmodules(&String::from_utf8_lossy(&output.stdout)) } else { BTreeMap::new() })
    }

    /// Runs `git` on the commit's repository, with these directories to write to, and gives what it writes.
    pub(super) async fn read(
        &self,
        commit: &Commit,
        writes: &[&Path],
        arguments: &[&str],
        stdin: Option<&[u8]>,
        environment: &[(&str, String)],
    ) -> Result<Vec<u8>, JobFailure> {
        let output =
            self.git(&commit.repository, Reach { remote: None, writes }, arguments, stdin, environment).await?;
        if output.success {
            return Ok(output.stdout);
        }
        let reason = local_reason(&output.stderr);
        Err(JobFailure::new(reason, format!("git {} failed: {}", arguments[0], output.stderr)))
    }
}

/// Reads the output of `git ls-tree -r -l -z`.
pub(crate) fn entries(listing: &[u8]) -> Option<Vec<Entry>> {
    let mut entries = Vec::new();
    for line in listing.split(|byte| *byte == 0).filter(|line| !line.is_empty()) {
        let tab = line.iter().position(|byte| *byte == b'\t')?;
        let mut fields = std::str::from_utf8(&line[..tab]).ok()?.split(' ');
        let (_mode, kind, id) = (fields.next()?, fields.next()?, fields.next()?);
        // Padded; a hyphen for what is no blob.
        let size = fields.find(|field| !field.is_empty())?.parse().unwrap_or(0);
        entries.push(Entry {
            submodule: kind == "commit",
            id: id.to_owned(),
            path: PathBuf::from(OsStr::from_bytes(&line[tab + 1..])),
            size,
        });
    }
    Some(entries)
}

/// Puts the entries below `context` before those outside of it, and gives their number. Submodules outside are left out.
fn context_first(entries: &mut Vec<Entry>, context: &Path) -> usize {
    // A file or link in the context's place is no context.
    let is_inside = |entry: &Entry| entry.path.starts_with(context) && (entry.submodule || entry.path != context);
    entries.retain(|entry| !entry.submodule || is_inside(entry));
    entries.sort_by_key(|entry| !is_inside(entry));
    entries.partition_point(is_inside)
}

/// Refuses what no `git add` makes: paths that leave the tree, two entries of one path, and files below a file or link: of
/// these one could be written to where another one leads. And more than a builder takes.
pub(crate) fn check(entries: &[Entry]) -> Result<(), (Reason, String)> {
    let mut paths: Vec<&[u8]> = entries.iter().map(|entry| entry.path.as_os_str().as_bytes()).collect();
    let names = |path: &'_ [u8]| path.split(|byte| *byte == b'/').count();
    if let Some(path) = paths.iter().find(|path| path.len() > LONGEST_PATH || names(path) > DEEPEST_PATH) {
        let begin = String::from_utf8_lossy(&path[..path.len().min(64)]);
        let message = format!(
            "has a path of {} bytes, {} names deep, which begins with {begin:?}; a builder takes {LONGEST_PATH} bytes and {DEEPEST_PATH} names",
            path.len(),
            names(path)
        );
        return Err((Reason::GitTreeRefused, message));
    }
    // What lies below a path comes right behind it.
    let rank = |byte: &u8| if *byte == b'/' { 0 } else { *byte };
    paths.sort_unstable_by(|one, other| one.iter().map(rank).cmp(other.iter().map(rank)));
    let is_below =
        |path: &[u8], above: &[u8]| path.strip_prefix(above).is_some_and(|rest| matches!(rest, [] | [b'/', ..]));
    let twice = paths.windows(2).find(|pair| is_below(pair[1], pair[0])).map(|pair| pair[1]);
    let unsafe_path =
        twice.or_else(|| paths.iter().copied().find(|path| path.split(|byte| *byte == b'/').any(is_no_name)));
    if let Some(path) = unsafe_path {
        let path = String::from_utf8_lossy(path);
        let message = format!("has the path {path:?}, which no Git writes and which cannot be checked out safely");
        return Err((Reason::GitTreeRefused, message));
    }
    let mut directories = 0;
    let mut former: &[u8] = &[];
    for path in paths {
        let known = path.iter().zip(former).take_while(|(one, other)| one == other);
        let known = known.filter(|(byte, _)| **byte == b'/').count();
        directories += names(path) - 1 - known.min(names(path) - 1);
        former = path;
    }
    if directories > MOST_DIRECTORIES {
        let message = format!("holds {directories} directories; a builder takes {MOST_DIRECTORIES}");
        return Err((Reason::GitRepositoryTooLarge, message));
    }
    let bytes = entries.iter().fold(0_u64, |bytes, entry| bytes.saturating_add(entry.size));
    if bytes > LARGEST_TREE {
        let (bytes, most) = (bytes >> 30, LARGEST_TREE >> 30);
        return Err((Reason::GitRepositoryTooLarge, format!("holds files of {bytes} GiB; a builder takes {most} GiB")));
    }
    Ok(())
}

/// Whether a file of this name leads elsewhere, or is `.git` in a spelling that some file system takes for it: letters
/// that HFS+ does not see, NTFS's short name, its streams, and the dots and blanks at an end that it drops.
fn is_no_name(name: &[u8]) -> bool {
    let text = String::from_utf8_lossy(name);
    let seen: String = text
        .chars()
        .filter(|char| {
            !matches!(char, '\u{200c}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{206a}'..='\u{206f}' | '\u{feff}')
        })
        .collect();
    let seen = seen.split(':').next().unwrap_or_default();
    let seen = seen.trim_end_matches(['.', ' ']);
    matches!(name, b"" | b"." | b"..") || seen.eq_ignore_ascii_case(".git") || seen.eq_ignore_ascii_case("git~1")
}

/// Reads the output of `git config -z --list` of a `.gitmodules`: URLs by path, paths that leave the tree left out.
pub(crate) fn gitmodules(list: &str) -> BTreeMap<String, String> {
    let mut modules: BTreeMap<&str, (Option<&str>, Option<&str>)> = BTreeMap::new();
    for setting in list.split('\0') {
        let Some((key, value)) = setting.split_once('\n') else { continue };
        let Some((name, field)) = key.strip_prefix("submodule.").and_then(|key| key.rsplit_once('.')) else { continue };
        let module = modules.entry(name).or_default();
        match field {
            "path" if paths::relative_file(value).is_ok() => module.0 = Some(value),
            "url" => module.1 = Some(value),
            _ => {}
        }
    }
    modules.into_values().filter_map(|(path, url)| Some((path?.to_owned(), url?.to_owned()))).collect()
}

/// Gives files and links the commit's second and nanoseconds of their content, directories the second alone.
fn set_times(tree: &Tree, second: i64, entries: &[Entry]) -> io::Result<()> {
    let mut directories = HashSet::from([Path::new("")]);
    for entry in entries {
        // Those above a known one are known.
        entry.path.ancestors().skip(1).take_while(|above| directories.insert(above)).for_each(drop);
        if entry.submodule {
            directories.insert(&entry.path);
        } else {
            tree.set_time(&entry.path, mtime::of_content(second, &decode_hex(&entry.id)))?;
        }
    }
    for directory in &directories {
        tree.set_time(directory, mtime::of_directory(second))?;
    }
    Ok(())
}

/// The first bytes of an object id, enough for a time.
fn decode_hex(id: &str) -> Vec<u8> {
    (0..id.len().min(16) / 2).filter_map(|byte| u8::from_str_radix(id.get(byte * 2..byte * 2 + 2)?, 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::MetadataExt as _, process::Command};

    use kiln_registry::http_client::AddressPolicy;
    use tokio_util::sync::CancellationToken;

    use super::{
        super::{
            remote::{Credential, parse_url},
            repositories::Repositories,
        },
        *,
    };
    use crate::sandbox::Sandbox;

    /// Runs `git` in `directory`, all at one second, and gives its output.
    fn git(directory: &Path, arguments: &[&str]) -> String {
        let mut command = Command::new("git");
        command.args(["-c", "user.name=n", "-c", "user.email=e"]).args(arguments).current_dir(directory);
        command
            .env("GIT_COMMITTER_DATE", "1700000000 +0000")
            .env("GIT_AUTHOR_DATE", "1700000000 +0000")
            .env("GIT_CONFIG_GLOBAL", "/dev/null");
        let output = command.output().unwrap();
        assert!(output.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// Type or mode, time and content of a file in the context.
    fn facts(path: &Path) -> (u32, i64, i64, String) {
        let metadata = path.symlink_metadata().unwrap();
        let content = if metadata.is_symlink() {
            fs::read_link(path).unwrap().display().to_string()
        } else {
            fs::read_to_string(path).unwrap_or_default()
        };
        (metadata.mode(), metadata.mtime(), metadata.mtime_nsec(), content)
    }

    #[tokio::test]
    async fn checks_out_exactly() {
        let root = tempfile::tempdir().unwrap();
        let tree = root.path().join("tree");
        fs::create_dir_all(tree.join("app/deep")).unwrap();
        git(&tree, &["init", "--quiet"]);
        for (name, content) in [
            (".gitattributes", "*.dos text eol=crlf\n"),
            ("app/file", "one"),
            ("app/text.dos", "a\n"),
            ("app/deep/x", ""),
            ("other", ""),
        ] {
            fs::write(tree.join(name), content).unwrap();
        }
        std::os::unix::fs::symlink("../../outside", tree.join("app/link")).unwrap();
        fs::set_permissions(tree.join("app/deep/x"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        git(&tree, &["add", "--all"]);
        git(&tree, &["update-index", "--add", "--cacheinfo", &format!("160000,{},app/module", "1".repeat(40))]);
        git(&tree, &["commit", "--quiet", "--message=1"]);
        let first = git(&tree, &["rev-parse", "HEAD"]);
        fs::write(tree.join("app/file"), "two").unwrap();
        git(&tree, &["commit", "--quiet", "--message=2", "app/file"]);
        let second = git(&tree, &["rev-parse", "HEAD"]);

        let (memory, scratch) = (root.path().join("memory"), root.path().join("scratch"));
        let repositories = Repositories::new(root.path().join("git"));
        let url = parse_url("https://git.invalid/x").unwrap();
        let remote = Remote::new(url, Credential::None, None, AddressPolicy::new(true));
        let (repository, _) = repositories.at(&remote, &first, History::Commit);
        git(root.path(), &["clone", "--quiet", "--bare", "tree", repository.to_str().unwrap()]);
        let stop = CancellationToken::new();
        let job = GitJob {
            repositories: &repositories,
            stop: &stop,
            memory: &memory,
            scratch: &scratch,
            addresses: AddressPolicy::new(true),
            sandbox: &Sandbox::absent("a unit test"),
        };
        let check_out_extent = async |id: &str, path: &str, outside: bool| {
            let commit = job.commit(remote.clone(), id, "", History::Commit).await.unwrap();
            let directory = root.path().join(format!("{id}{path}{outside}"));
            let extent = Extent { context: Path::new(path), outside };
            job.check_out(commit, &remote, &directory, extent, &GitSource::default()).await
        };
        let check_out = async |id: &str, path: &str| check_out_extent(id, path, false).await;

        let context = check_out(&first, "app").await.unwrap().context;
        let names: std::collections::BTreeSet<_> =
            fs::read_dir(&context).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        assert_eq!(names, ["deep", "file", "link", "module", "text.dos"].map(str::to_owned).into());
        assert!(!context.parent().unwrap().join("other").exists());
        assert_eq!(facts(&context.join("deep/x")).0, 0o100_755);
        assert_eq!(facts(&context.join("text.dos")).3, "a\r\n");
        let (mode, seconds, _, target) = facts(&context.join("link"));
        assert_eq!((mode, seconds, target.as_str()), (0o120_777, 1_700_000_000, "../../outside"));
        assert_eq!((facts(&context.join("deep")).1, facts(&context.join("deep")).2), (1_700_000_000, 0));

        // The same second and the same size: only the nanoseconds tell that the content is another.
        let changed = check_out(&second, "app").await.unwrap().context;
        let (one, two) = (facts(&context.join("file")), facts(&changed.join("file")));
        assert_eq!((one.0, one.1, one.3.len()), (two.0, two.1, two.3.len()));
        assert_ne!(one.2, two.2);
        assert_eq!(facts(&context.join("text.dos")), facts(&changed.join("text.dos")));

        let with_outside = check_out_extent(&first, "app", true).await.unwrap();
        assert!(with_outside.root.join("other").is_file() && with_outside.context.join("module").is_dir());
        let deep = check_out_extent(&first, "app/deep", true).await.unwrap();
        assert!(deep.root.join("app/file").is_file() && !deep.root.join("app/module").exists());

        for (path, outside) in
            [("nowhere", false), ("nowhere", true), ("app/file", true), ("app/link", true), ("app/link", false)]
        {
            let failure = check_out_extent(&first, path, outside).await.unwrap_err();
            assert_eq!(failure.reason, Reason::ContextNotFound, "{path}");
            assert_eq!(failure.message.contains("\"app/link\" is a link"), path == "app/link", "{}", failure.message);
        }
    }

    #[test]
    fn reads_a_listing() {
        let id = "a".repeat(40);
        let listing = format!(
            "100644 blob {id}      12\ta b\0120000 blob {id} 1234567\tlink\0160000 commit {id}       -\tsub/m\0"
        );
        let entry = |path: &str, submodule, size| Entry { submodule, id: id.clone(), path: PathBuf::from(path), size };
        assert_eq!(
            entries(listing.as_bytes()),
            Some(vec![entry("a b", false, 12), entry("link", false, 1_234_567), entry("sub/m", true, 0)])
        );
        assert_eq!(entries(b"garbage\0"), None);
        assert_eq!(entries(b""), Some(Vec::new()));
    }

    #[test]
    fn trees_that_no_git_makes() {
        let tree = |paths: &[&str], size| {
            let entries: Vec<Entry> = paths
                .iter()
                .map(|path| Entry { submodule: false, id: String::new(), path: PathBuf::from(path), size })
                .collect();
            check(&entries).map_err(|(reason, _)| reason)
        };
        assert_eq!(tree(&["a", "b/c", "b/.gitignore", ".github/x"], 1), Ok(()));
        // What differs in case alone is honest, and so are names that are hard to print.
        assert_eq!(tree(&["Makefile", "makefile", "a\tb", "a\nb", "...", "git", ".git-x", "a/.gitmodules"], 1), Ok(()));
        // A link `a` and a file below it, a link and a submodule of one path, among them.
        for bad in [
            &["a", "a/b"][..],
            &["a/b/c", "a"],
            &["a", "b", "a"],
            &["../a"],
            &["/a"],
            &["a/../b"],
            &["a/./b"],
            &["a//b"],
        ] {
            assert_eq!(tree(bad, 1), Err(Reason::GitTreeRefused), "{bad:?}");
        }
        for git in [
            ".git",
            ".GIT",
            ".g\u{200c}it",
            ".git\u{feff}",
            "git~1",
            "GIT~1",
            ".git ",
            ".git...",
            ".git::$INDEX_ALLOCATION",
        ] {
            assert_eq!(tree(&[&format!("a/{git}/config")], 1), Err(Reason::GitTreeRefused), "{git:?}");
        }
        // Bytes that are not UTF-8, as git lists them.
        let listing = b"100644 blob 0123 1\ta\xff\x00100644 blob 0123 1\ta\xfe\x00100644 blob 0123 1\t\xe9/b\0";
        assert_eq!(check(&entries(listing).unwrap()).map_err(|(reason, _)| reason), Ok(()));
        let twice = entries(b"100644 blob 0123 1\ta\xff\x00120000 blob 0123 1\ta\xff\0").unwrap();
        assert_eq!(check(&twice).map_err(|(reason, _)| reason), Err(Reason::GitTreeRefused));
        // Sorted as bytes, `a-b` would stand between `a` and `a/b`.
        assert_eq!(tree(&["a", "a-b", "a/b"], 1), Err(Reason::GitTreeRefused));
        assert_eq!(tree(&["a-b", "a/b", "ab"], 1), Ok(()));
        let deep = |names: usize| "a/".repeat(names) + "b";
        assert_eq!(tree(&[&deep(DEEPEST_PATH - 1)], 1), Ok(()));
        assert_eq!(tree(&[&deep(DEEPEST_PATH)], 1), Err(Reason::GitTreeRefused));
        assert_eq!(tree(&[&"a".repeat(LONGEST_PATH + 1)], 1), Err(Reason::GitTreeRefused));
        let many: Vec<String> = (0..=MOST_DIRECTORIES / 255).map(|number| format!("{number}/{}", deep(254))).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert_eq!(tree(&many, 0), Err(Reason::GitRepositoryTooLarge));
        assert_eq!(tree(&many[..many.len() / 2], 0), Ok(()));
        assert_eq!(tree(&["a", "b"], LARGEST_TREE / 2 + 1), Err(Reason::GitRepositoryTooLarge));
        assert_eq!(tree(&["a", "b"], u64::MAX), Err(Reason::GitRepositoryTooLarge));
    }

    #[test]
    fn reads_gitmodules() {
        let list = "submodule.a.b.path\nlib\0submodule.a.b.url\n../lib\0submodule.evil.path\n../x\0submodule.evil.url\nhttps://x/y\0core.x\n1\0";
        assert_eq!(gitmodules(list), BTreeMap::from([("lib".to_owned(), "../lib".to_owned())]));
    }
}
