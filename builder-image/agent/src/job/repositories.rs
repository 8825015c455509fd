//! The bare repositories that stay on the volume: where each is, who may use it when, and what it may hold.

use std::{
    collections::HashMap,
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use sha2::{Digest as _, Sha256};
use tokio::sync::RwLock;

use super::{git::History, remote::Remote};
use crate::files::Tree;

/// A repository that nobody fetched from for so long goes when an agent starts.
const RETENTION: Duration = Duration::from_hours(30 * 24);
/// What all repositories may have together, unless a quarter of the volume is less: the rest is for builds.
const LARGEST_TOGETHER: u64 = 16 << 30;
/// Each fetch adds a pack; so many are packed anew, and what no ref holds any more is dropped.
pub(super) const MOST_PACKS: usize = 50;
/// The longest configuration that is compared with what Kiln writes.
const LONGEST_CONFIG: u64 = 64 << 10;

/// The bare repositories on the volume.
#[derive(Debug)]
pub struct Repositories {
    root: PathBuf,
    /// By directory: fetching writes, a checkout reads.
    locks: Mutex<HashMap<PathBuf, Arc<RwLock<()>>>>,
}

impl Repositories {
    /// Those in `root`; the ones long unused are removed.
    #[must_use]
    pub fn new(root: PathBuf) -> Self {
        for entry in fs::read_dir(&root).into_iter().flatten().flatten() {
            let used = fs::metadata(used_file(&entry.path())).and_then(|file| file.modified());
            let is_directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
            if is_directory && entry.path().extension().is_none_or(|end| end != "git") {
                let _ = remove_all(&entry.path());
            } else if used.is_ok_and(|used| used.elapsed().is_ok_and(|age| age > RETENTION)) {
                let _ = discard(&entry.path());
            }
        }
        let repositories = Self { root, locks: Mutex::default() };
        repositories.trim();
        repositories
    }

    /// Removes those that were used least recently until the others are within the limit; none that somebody uses.
    pub(super) fn trim(&self) {
        let limit = rustix::fs::statvfs(&self.root).map_or(LARGEST_TOGETHER, |volume| {
            LARGEST_TOGETHER.min(volume.f_blocks.saturating_mul(volume.f_frsize) / 4)
        });
        self.trim_to(limit);
    }

    fn trim_to(&self, limit: u64) {
        let mut found: Vec<(SystemTime, u64, PathBuf)> = fs::read_dir(&self.root)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| {
                let used = fs::metadata(used_file(&entry.path())).and_then(|file| file.modified());
                (used.unwrap_or(SystemTime::UNIX_EPOCH), pack_bytes(&entry.path()), entry.path())
            })
            .collect();
        found.sort();
        let mut bytes: u64 = found.iter().map(|(_, bytes, _)| bytes).sum();
        for (_, size, directory) in found {
            if bytes <= limit {
                break;
            }
            let lock = self.lock(&directory);
            let Ok(_writing) = lock.try_write() else { continue };
            match discard(&directory) {
                Ok(()) => bytes -= size,
                Err(error) => tracing::warn!(%error, "cannot remove a repository that is no longer used"),
            }
        }
    }

    fn lock(&self, directory: &Path) -> Arc<RwLock<()>> {
        let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
        locks.retain(|_, lock| Arc::strong_count(lock) > 1);
        Arc::clone(locks.entry(directory.to_owned()).or_default())
    }

    /// The repository that has what was fetched from there with the same Secret: nobody is given a commit that was fetched
    /// with what he does not name.
    pub(super) fn at(&self, remote: &Remote, commit: &str, history: History) -> (PathBuf, Arc<RwLock<()>>) {
        // A shallow fetch would cut the history that another one brought.
        let kind = if history == History::All { "-history" } else { "" };
        // No URL has a line break.
        let name = hash(&format!("{}\n{}", remote.url.as_str(), remote.identity()));
        // A repository has one kind of object id.
        let directory = self.root.join(format!("{name}-{}{kind}.git", commit.len()));
        let lock = self.lock(&directory);
        (directory, lock)
    }
}

/// The file whose time tells when a repository was last used.
const USED: &str = "kiln-used";

fn used_file(directory: &Path) -> PathBuf {
    directory.join(USED)
}

pub(super) fn hash(text: &str) -> String {
    Sha256::digest(text).iter().take(16).fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
}

pub(super) fn touch(repository: &Path) {
    let name = Path::new(USED);
    let _ = Tree::open(repository).and_then(|tree| tree.write(name, b""));
}

/// What a bare repository may hold, and whether that is a directory.
const PARTS: [(&str, bool); 7] = [
    ("HEAD", false),
    ("config", false),
    (USED, false),
    ("objects", true),
    ("packed-refs", false),
    ("refs", true),
    ("shallow", false),
];

/// Only under a lock: nobody fetches meanwhile. Others may be doing the same.
pub(super) fn renew(repository: &Path, scratch: &Path, sha256: bool) -> io::Result<()> {
    let gone = |removed: io::Result<()>| match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    };
    match fs::symlink_metadata(repository) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Ok(metadata) if metadata.is_dir() => {}
        _ => return gone(fs::remove_file(repository)),
    }
    for entry in fs::read_dir(repository)? {
        let entry = entry?;
        let kind = match entry.file_type() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            kind => kind?,
        };
        let is_part = |&(name, directory): &(&str, bool)| {
            entry.file_name() == name && if directory { kind.is_dir() } else { kind.is_file() }
        };
        if !PARTS.iter().any(is_part) {
            let path = entry.path();
            gone(if kind.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) })?;
        }
    }
    let tree = Tree::open(repository)?;
    for elsewhere in ["alternates", "http-alternates"] {
        tree.remove(&Path::new("objects/info").join(elsewhere))?;
    }
    let (version, format) = if sha256 { (1, "[extensions]\n\tobjectformat = sha256\n") } else { (0, "") };
    let config = format!("[core]\n\trepositoryformatversion = {version}\n\tfilemode = true\n\tbare = true\n{format}");
    let file = repository.join("config");
    if tree.read(Path::new("config"), LONGEST_CONFIG).is_ok_and(|found| found == config.as_bytes()) {
        return Ok(());
    }
    fs::create_dir_all(scratch)?;
    let fresh = scratch.join("config");
    gone(fs::remove_file(&fresh))?;
    fs::File::create_new(&fresh)?.write_all(config.as_bytes())?;
    fs::rename(fresh, file)
}

/// Removes a repository, whatever rights somebody left on it: what cannot be removed at least gives its name back.
pub(super) fn discard(repository: &Path) -> io::Result<()> {
    let metadata = match fs::symlink_metadata(repository) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        found => found?,
    };
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let gone = repository.with_extension(format!("gone-{}", now.as_nanos()));
    fs::rename(repository, &gone)?;
    let removed = if metadata.is_dir() { remove_all(&gone) } else { fs::remove_file(&gone) };
    if let Err(error) = removed {
        tracing::warn!(%error, "cannot remove all of a damaged repository");
    }
    Ok(())
}

/// Like [`fs::remove_dir_all`], also of directories that their owner may not read.
fn remove_all(directory: &Path) -> io::Result<()> {
    fs::set_permissions(directory, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() { remove_all(&entry.path())? } else { fs::remove_file(entry.path())? }
    }
    fs::remove_dir(directory)
}

/// Removes locks and half-written packs. Only under the write lock, when nobody else can hold them.
pub(super) fn clear_leftovers(repository: &Path) -> io::Result<()> {
    let tree = Tree::open(repository)?;
    for directory in ["", "refs/kiln", "objects/pack"] {
        for path in tree.names(Path::new(directory)) {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.ends_with(".lock") || name.starts_with("tmp_") {
                tree.remove(&path)?;
            }
        }
    }
    Ok(())
}

/// What a repository's packs have on the volume: all of it, but for a few small files.
fn pack_bytes(repository: &Path) -> u64 {
    let files = fs::read_dir(repository.join("objects/pack")).into_iter().flatten().flatten();
    files.filter_map(|file| Some(file.metadata().ok()?.len())).sum()
}

pub(super) fn count_packs(repository: &Path) -> usize {
    let files = fs::read_dir(repository.join("objects/pack")).into_iter().flatten().flatten();
    files.filter(|file| file.path().extension().is_some_and(|end| end == "pack")).count()
}

#[cfg(test)]
mod tests {
    use kiln_registry::http_client::AddressPolicy;

    use super::{
        super::remote::{Credential, parse_url},
        *,
    };

    #[test]
    fn repositories_share_a_limit() {
        let root = tempfile::tempdir().unwrap();
        let repositories = Repositories::new(root.path().to_owned());
        let remote = |path: &str, secret: &str| {
            let credential =
                if secret.is_empty() { Credential::None } else { Credential::Basic("u".to_owned(), "p".to_owned()) };
            let url = parse_url(&format!("https://git.invalid/{path}")).unwrap();
            Remote::new(url, credential, None, AddressPolicy::new(true)).identified(secret)
        };
        let at = |path: &str, secret: &str| repositories.at(&remote(path, secret), &"a".repeat(40), History::Commit);
        // By URL and by who fetches, not by the password.
        let private = at("x", "uid-1").0;
        assert_eq!(private, at("x", "uid-1").0);
        for other in [at("x", "").0, at("x", "uid-2").0, at("y", "uid-1").0] {
            assert_ne!(private, other);
        }

        let made: Vec<PathBuf> = ["old", "used", "new"]
            .iter()
            .zip(1..)
            .map(|(name, day)| {
                let (directory, _) = at(name, "");
                fs::create_dir_all(directory.join("objects/pack")).unwrap();
                fs::write(directory.join("objects/pack/x.pack"), [0; 100]).unwrap();
                let time = fs::FileTimes::new().set_modified(SystemTime::UNIX_EPOCH + Duration::from_hours(24 * day));
                fs::File::create(used_file(&directory)).unwrap().set_times(time).unwrap();
                directory
            })
            .collect();
        let there = || made.iter().map(|directory| directory.exists()).collect::<Vec<_>>();
        repositories.trim_to(300);
        assert_eq!(there(), [true, true, true]);
        repositories.trim_to(299);
        assert_eq!(there(), [false, true, true]);
        let (_, lock) = at("used", "");
        let _reading = lock.try_read().unwrap();
        repositories.trim_to(100);
        assert_eq!(there(), [false, true, false]);
    }

    #[test]
    fn a_repository_holds_what_kiln_wrote() {
        let root = tempfile::tempdir().unwrap();
        let (repository, scratch) = (root.path().join("x.git"), root.path().join("scratch"));
        let init = ["init", "--quiet", "--bare", "--object-format=sha256", repository.to_str().unwrap()];
        assert!(std::process::Command::new("git").args(init).status().unwrap().success());
        renew(&repository, &scratch, true).unwrap();
        let config = fs::read_to_string(repository.join("config")).unwrap();
        let names = |directory: &Path| -> Vec<String> {
            let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name());
            let mut names: Vec<_> = entries.map(|name| name.into_string().unwrap()).collect();
            names.sort();
            names
        };
        let before = names(&repository);
        assert_eq!(before, ["HEAD", "config", "objects", "refs"]);

        for directory in ["info", "hooks", "worktrees/x", "modules/x", "objects/info"] {
            fs::create_dir_all(repository.join(directory)).unwrap();
        }
        for file in [
            "config",
            "config.worktree",
            "commondir",
            "info/attributes",
            "hooks/post-checkout",
            "objects/info/alternates",
        ] {
            fs::write(repository.join(file), "[filter \"x\"]\n\tsmudge = false\n").unwrap();
        }
        std::os::unix::fs::symlink("/etc/passwd", repository.join("packed-refs")).unwrap();
        renew(&repository, &scratch, true).unwrap();
        assert_eq!(names(&repository), before);
        assert!(names(&repository.join("objects/info")).is_empty());
        assert_eq!(fs::read_to_string(repository.join("config")).unwrap(), config);

        // One whose configuration, or that itself, leads elsewhere.
        let elsewhere = root.path().join("elsewhere");
        fs::write(&elsewhere, "").unwrap();
        fs::remove_file(repository.join("config")).unwrap();
        std::os::unix::fs::symlink(&elsewhere, repository.join("config")).unwrap();
        renew(&repository, &scratch, true).unwrap();
        assert_eq!(fs::read_to_string(&elsewhere).unwrap(), "");
        let link = root.path().join("link.git");
        std::os::unix::fs::symlink(&repository, &link).unwrap();
        renew(&link, &scratch, true).unwrap();
        assert!(link.symlink_metadata().is_err() && repository.is_dir());
        renew(&link, &scratch, true).unwrap();
    }
}
