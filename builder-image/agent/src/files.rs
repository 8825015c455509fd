//! Files that a build or a repository made. One may be a link to the agent's own files, a FIFO that nobody writes to, or
//! without end; and so may be each directory on the way to it.

use std::{
    ffi::OsStr,
    fs::{File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::{
        fd::OwnedFd,
        unix::{ffi::OsStrExt as _, fs::OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, Timespec, Timestamps},
    io::Errno,
};

/// Opens a regular file, and nothing else: no link is followed, and nothing is waited for.
pub fn open(path: &Path) -> io::Result<File> {
    regular(open_any(path, OpenOptions::new().read(true))?)
}

/// Opens whatever is there, a FIFO say: no link is followed, and nothing is waited for.
pub fn open_any(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    let flags = (OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::NOCTTY).bits();
    options.custom_flags(flags.cast_signed()).open(path)
}

fn regular(file: File) -> io::Result<File> {
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file"))
    }
}

/// The first bytes of a regular file, at most `limit`.
pub fn read(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open(path)?.take(limit).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// A directory that the agent made, and what others have put into it: nothing here follows a link.
#[derive(Debug)]
pub struct Tree {
    root: PathBuf,
    directory: OwnedFd,
}

impl Tree {
    /// The directory at `root`.
    pub fn open(root: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(Self { root: root.to_owned(), directory: rustix::fs::open(root, flags, Mode::empty())? })
    }

    /// The directory that holds `path`, and its name in it.
    fn parent<'a>(&self, path: &'a Path) -> io::Result<(OwnedFd, &'a OsStr)> {
        let name = path.file_name().ok_or(Errno::INVAL)?;
        Ok((self.directory(path.parent().unwrap_or(Path::new("")))?, name))
    }

    fn directory(&self, path: &Path) -> io::Result<OwnedFd> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        Ok(rustix::fs::openat2(&self.directory, path, flags, Mode::empty(), resolve)?)
    }

    /// Opens a regular file to read it.
    pub fn file(&self, path: &Path) -> io::Result<File> {
        let (parent, name) = self.parent(path)?;
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        regular(rustix::fs::openat(parent, name, flags, Mode::empty())?.into())
    }

    /// The first bytes of a regular file, at most `limit`.
    pub fn read(&self, path: &Path, limit: u64) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.file(path)?.take(limit).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// Writes a new file; what is there, and is no directory, gives way.
    pub fn write(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        let (parent, name) = self.parent(path)?;
        gone(rustix::fs::unlinkat(&parent, name, AtFlags::empty()))?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(0o666);
        File::from(rustix::fs::openat(parent, name, flags, mode)?).write_all(content)
    }

    /// Moves the file `from`, which is nobody else's, in the place of a regular file, whose mode it gets.
    pub fn replace(&self, from: &Path, path: &Path) -> io::Result<()> {
        let (parent, name) = self.parent(path)?;
        let former = rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
        if !FileType::from_raw_mode(former.st_mode).is_file() {
            return Err(Errno::INVAL.into());
        }
        rustix::fs::fchmod(open(from)?, Mode::from_raw_mode(former.st_mode))?;
        Ok(rustix::fs::renameat(CWD, from, parent, name)?)
    }

    /// Makes the directory `path`, and those above it that are missing.
    pub fn make_directory(&self, path: &Path) -> io::Result<()> {
        let above: Vec<&Path> = path.ancestors().filter(|path| !path.as_os_str().is_empty()).collect();
        for path in above.into_iter().rev() {
            let (parent, name) = self.parent(path)?;
            match rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o777)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.directory(path).map(drop)
    }

    /// Removes a file or link, if it is there.
    pub fn remove(&self, path: &Path) -> io::Result<()> {
        match self.parent(path) {
            Ok((parent, name)) => gone(rustix::fs::unlinkat(parent, name, AtFlags::empty())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The names in the directory `path`; none where it is not there, or is none.
    #[must_use]
    pub fn names(&self, path: &Path) -> Vec<PathBuf> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let Ok(directory) =
            self.directory(path).and_then(|found| Ok(rustix::fs::openat(found, ".", flags, Mode::empty())?))
        else {
            return Vec::new();
        };
        let entries = rustix::fs::Dir::new(directory).into_iter().flatten().flatten();
        entries
            .filter(|entry| !matches!(entry.file_name().to_bytes(), b"." | b".."))
            .map(|entry| path.join(OsStr::from_bytes(entry.file_name().to_bytes())))
            .collect()
    }

    /// Whether `path` is a directory.
    #[must_use]
    pub fn is_directory(&self, path: &Path) -> bool {
        self.directory(path).is_ok()
    }

    /// Sets when `path` was changed last; of a link, the link itself. The directory itself has the empty path.
    pub fn set_time(&self, path: &Path, time: Timespec) -> io::Result<()> {
        let times = Timestamps { last_access: time, last_modification: time };
        if path.as_os_str().is_empty() {
            return Ok(rustix::fs::utimensat(CWD, &self.root, &times, AtFlags::SYMLINK_NOFOLLOW)?);
        }
        let (parent, name) = self.parent(path)?;
        Ok(rustix::fs::utimensat(parent, name, &times, AtFlags::SYMLINK_NOFOLLOW)?)
    }
}

fn gone(removed: rustix::io::Result<()>) -> io::Result<()> {
    match removed {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink, process::Command};

    use super::*;

    #[test]
    fn regular_files_alone() {
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().join(name);
        fs::write(path("file"), "content").unwrap();
        symlink(path("file"), path("link")).unwrap();
        fs::create_dir(path("directory")).unwrap();
        assert!(Command::new("mkfifo").arg(path("fifo")).status().unwrap().success());
        assert_eq!(read(&path("file"), 4).unwrap(), b"cont");
        assert_eq!(read(&path("file"), 100).unwrap(), b"content");
        for name in ["link", "directory", "fifo", "nothing"] {
            assert!(read(&path(name), 100).is_err(), "{name}");
        }
        for device in ["/dev/zero", "/dev/tty"] {
            assert!(read(Path::new(device), 100).is_err(), "{device}");
        }
    }

    #[test]
    fn a_tree_is_not_left() {
        let root = tempfile::tempdir().unwrap();
        let (inside, outside) = (root.path().join("inside"), root.path().join("outside"));
        fs::create_dir_all(inside.join("a")).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("file"), "theirs").unwrap();
        for (target, name) in [(outside.as_path(), "link"), (&outside.join("file"), "a/file"), (Path::new("a"), "near")]
        {
            symlink(target, inside.join(name)).unwrap();
        }
        let tree = Tree::open(&inside).unwrap();
        let part = root.path().join("part");
        fs::write(&part, "new").unwrap();
        let time = Timespec { tv_sec: 5, tv_nsec: 0 };
        for path in ["link/file", "a/file", "../outside/file", "/etc/passwd", "near/x"].map(Path::new) {
            assert!(tree.read(path, 10).is_err(), "{path:?}");
            assert!(tree.replace(&part, path).is_err(), "{path:?}");
        }
        for path in ["link/x", "../x", "/x", "near/x"].map(Path::new) {
            assert!(tree.make_directory(path).is_err() && tree.write(path, b"x").is_err(), "{path:?}");
            assert!(tree.set_time(path, time).is_err(), "{path:?}");
        }
        assert!(tree.names(Path::new("link")).is_empty() && tree.names(Path::new("nothing")).is_empty());
        assert_eq!(tree.remove(Path::new("link/file")).ok(), None);

        tree.write(Path::new("a/file"), b"ours").unwrap();
        assert_eq!(tree.read(Path::new("a/file"), 3).unwrap(), b"our");
        tree.replace(&part, Path::new("a/file")).unwrap();
        tree.make_directory(Path::new("a/b/c")).unwrap();
        assert!(tree.is_directory(Path::new("a/b/c")) && !tree.is_directory(Path::new("near")));
        let mut names = tree.names(Path::new("a"));
        names.sort();
        assert_eq!(names, ["a/b", "a/file"].map(PathBuf::from));
        tree.set_time(Path::new("near"), time).unwrap();
        tree.set_time(Path::new(""), time).unwrap();
        assert_eq!(fs::read_to_string(inside.join("a/file")).unwrap(), "new");
        assert_eq!(fs::read_to_string(outside.join("file")).unwrap(), "theirs");
        tree.remove(Path::new("a/file")).unwrap();
        tree.remove(Path::new("a/file")).unwrap();
    }
}
