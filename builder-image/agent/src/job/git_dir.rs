//! A `.git` in the context, for builds that ask `git` what they are: one commit, or all of the history. It is made anew
//! from the repository on the volume, so that it holds no credential, no configuration of the builder's, and nothing
//! that differs from one builder to the next unless the history does.

use std::{collections::BTreeSet, fs, io, path::Path};

use sha2::{Digest as _, Sha256};

use super::{
    git::{Commit, GitJob, History},
    mtime,
    remote::Remote,
};
use crate::files;
use crate::reasons::{JobFailure, Reason};

impl GitJob<'_> {
    /// Makes `context/.git`, with HEAD at the commit and an index that fits it.
    pub(super) async fn write_git_dir(
        &self,
        commit: &Commit,
        remote: &Remote,
        context: &Path,
    ) -> Result<(), JobFailure> {
        let directory = context.join(".git");
        let failed = |what: &'static str| move |error: io::Error| JobFailure::agent(what, &error);
        let format = if commit.id.len() == 64 { "--object-format=sha256" } else { "--object-format=sha1" };
        let init = ["init", "--quiet", "--template=", "--initial-branch=main", format];
        self.git_dir(&directory, &init).await?;

        let pack = format!("{}", directory.join("objects/pack/pack").display());
        let mut refs = String::new();
        if commit.history == History::All {
            let list = ["for-each-ref", "--format=%(objectname) %(refname)", "refs/kiln/all"];
            let listed = self.read(commit, &list, None, &[]).await?;
            refs = refs_of_a_clone(&String::from_utf8_lossy(&listed));
            let revisions: String = refs
                .lines()
                .filter_map(|line| line.split_once(' '))
                .fold(format!("{}\n", commit.id), |revisions, (id, _)| revisions + id + "\n");
            let command = ["pack-objects", "--quiet", "--revs", &pack];
            self.read(commit, &command, Some(revisions.as_bytes()), &[]).await?;
        } else {
            let list = ["rev-list", "--objects", "--no-walk", &commit.id];
            let objects = self.read(commit, &list, None, &[]).await?;
            // Without deltas and what the server compressed: the same objects are always the same pack.
            let command = [
                "pack-objects",
                "--quiet",
                "--window=0",
                "--threads=1",
                "--no-reuse-delta",
                "--no-reuse-object",
                &pack,
            ];
            self.read(commit, &command, Some(&objects), &[]).await?;
            let content = self.read(commit, &["cat-file", "commit", &commit.id], None, &[]).await?;
            let header = content.split(|byte| *byte == b'\n').take_while(|line| !line.is_empty());
            if header.into_iter().any(|line| line.starts_with(b"parent ")) {
                fs::write(directory.join("shallow"), format!("{}\n", commit.id))
                    .map_err(failed("write .git/shallow"))?;
            }
        }
        let origin =
            format!("[remote \"origin\"]\n\turl = \"{}\"\n\tfetch = +refs/heads/*:refs/remotes/origin/*\n", remote.url);
        let write = || {
            fs::write(directory.join("packed-refs"), refs)?;
            fs::write(directory.join("HEAD"), format!("{}\n", commit.id))?;
            let config = fs::read_to_string(directory.join("config"))?;
            fs::write(directory.join("config"), config + &origin)
        };
        write().map_err(failed("write .git"))?;
        // Without the files' times, which are compared by content then: they are others once they are in the image.
        self.git_dir(&directory, &["read-tree", &commit.id]).await?;

        let (context, second) = (context.to_owned(), commit.second);
        let times = move || {
            set_times(&context.join(".git"), second)?;
            mtime::set(&context, mtime::of_directory(second))
        };
        tokio::task::spawn_blocking(times)
            .await
            .map_err(|error| JobFailure::agent("set the times of .git", &error))?
            .map_err(failed("set the times of .git"))
    }

    async fn git_dir(&self, directory: &Path, arguments: &[&str]) -> Result<(), JobFailure> {
        let output = self.git(directory, &[], arguments, None, &[]).await?;
        if output.success {
            return Ok(());
        }
        let reason =
            if output.stderr.contains("No space left on device") { Reason::NoSpaceLeft } else { Reason::GitFailed };
        Err(JobFailure::new(reason, format!("git {} of the context's .git failed: {}", arguments[0], output.stderr)))
    }
}

/// The refs of the repository on the volume as a clone would have them, in the form of `packed-refs`.
fn refs_of_a_clone(list: &str) -> String {
    let lines = list.lines().filter_map(|line| {
        let (id, name) = line.split_once(' ')?;
        let name = name.strip_prefix("refs/kiln/all/")?;
        Some(match name.strip_prefix("heads/") {
            Some(branch) => format!("{id} refs/remotes/origin/{branch}\n"),
            None => format!("{id} refs/{name}\n"),
        })
    });
    lines.collect()
}

/// Gives files the commit's second and nanoseconds of their content, directories the second alone.
fn set_times(directory: &Path, second: i64) -> io::Result<()> {
    let mut entries = BTreeSet::new();
    for entry in fs::read_dir(directory)? {
        entries.insert(entry?.path());
    }
    for path in entries {
        if path.is_dir() {
            set_times(&path, second)?;
        } else {
            let mut hash = Sha256::new();
            io::copy(&mut files::open(&path)?, &mut hash)?;
            mtime::set(&path, mtime::of_content(second, &hash.finalize()))?;
        }
    }
    mtime::set(directory, mtime::of_directory(second))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refs() {
        let id = "a".repeat(40);
        let list = format!("{id} refs/kiln/all/heads/release/1\n{id} refs/kiln/all/tags/v1\n{id} refs/kiln/other\n");
        assert_eq!(refs_of_a_clone(&list), format!("{id} refs/remotes/origin/release/1\n{id} refs/tags/v1\n"));
    }
}
