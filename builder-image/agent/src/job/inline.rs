//! A source whose files stand in the ImageBuild itself.

use std::{collections::BTreeSet, fs, io, os::unix::fs::PermissionsExt as _, path::Path};

use kiln_agent_proto::InlineSource;
use sha2::{Digest as _, Sha256};

use super::{Source, mtime};
use crate::{
    paths,
    reasons::{JobFailure, Reason},
};

/// The second that the files bear: 1980-01-01, the first that every archive format can hold.
pub(super) const SECOND: i64 = 315_532_800;

/// Writes the files to `directory`, which is made. One that begins with `#!` is executable.
pub fn write(source: &InlineSource, directory: &Path) -> Result<Source, JobFailure> {
    let mut directories = BTreeSet::from([directory.to_owned()]);
    for (name, content) in &source.files {
        let path = paths::relative_file(name).map_err(|problem| {
            JobFailure::new(Reason::InvalidJob, format!("the inline file's name {name:?} {problem}"))
        })?;
        let path = directory.join(path);
        directories
            .extend(path.ancestors().skip(1).take_while(|parent| parent.starts_with(directory)).map(Path::to_owned));
        write_file(&path, content).map_err(|error| match error.kind() {
            io::ErrorKind::NotADirectory | io::ErrorKind::IsADirectory | io::ErrorKind::AlreadyExists => {
                JobFailure::new(
                    Reason::InvalidJob,
                    format!("the inline file {name:?} is a directory of another one, or lies below another one"),
                )
            }
            _ => JobFailure::agent(format_args!("write the inline file {name:?}"), &error),
        })?;
    }
    // Children before parents: writing into a directory changes its time.
    for path in directories.iter().rev() {
        fs::create_dir_all(path)
            .and_then(|()| mtime::set(path, mtime::of_directory(SECOND)))
            .map_err(|error| JobFailure::agent("set the time of a directory", &error))?;
    }
    Ok(Source::new(directory.to_owned(), "the inline files".to_owned()))
}

fn write_file(path: &Path, content: &str) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::write(path, content)?;
    let mode = if content.starts_with("#!") { 0o755 } else { 0o644 };
    fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    mtime::set(path, mtime::of_content(SECOND, &Sha256::digest(content)))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    fn files(files: &[(&str, &str)]) -> InlineSource {
        InlineSource {
            files: files.iter().map(|(name, content)| ((*name).to_owned(), (*content).to_owned())).collect(),
        }
    }

    #[test]
    fn times_follow_from_the_content_alone() {
        let root = tempfile::tempdir().unwrap();
        let times = |name: &str, content| {
            let directory = root.path().join(name);
            write(&files(&[("Dockerfile", "FROM scratch"), ("a/b.sh", content)]), &directory).unwrap();
            let time = |path: &str| {
                let metadata = directory.join(path).symlink_metadata().unwrap();
                (metadata.mtime(), metadata.mtime_nsec(), metadata.mode() & 0o7777)
            };
            [time(""), time("a"), time("a/b.sh")]
        };
        let first = times("1", "#!/bin/sh\necho 1");
        assert_eq!(first[0], (SECOND, 0, 0o755));
        assert_eq!(first[2].2, 0o755);
        assert_eq!(first, times("2", "#!/bin/sh\necho 1"));
        assert_ne!(first, times("3", "#!/bin/sh\necho 2"));
    }

    #[test]
    fn refuses_what_leaves_or_clashes() {
        let root = tempfile::tempdir().unwrap();
        for (number, bad) in
            [&[("../x", "")][..], &[("/x", "")], &[("a", ""), ("a/b", "")], &[("dir/", "")]].iter().enumerate()
        {
            let failure = write(&files(bad), &root.path().join(number.to_string())).unwrap_err();
            assert_eq!(failure.reason, Reason::InvalidJob, "{bad:?}: {}", failure.message);
        }
    }
}
