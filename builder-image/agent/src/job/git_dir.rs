//! A `.git` in the context, for builds that ask `git` what they are: one commit, or all of the history. It is made anew
//! from the repository on the volume, so that it holds no credential, no configuration of the builder's, and nothing
//! that differs from one builder to the next unless the history does.

use std::{fs, io, path::Path};

use sha2::{Digest as _, Sha256};

use super::{
    git::{Commit, GitJob, History, Reach},
    git_problem::local_reason,
    mtime,
    remote::Remote,
};
use crate::files::Tree;
use crate::reasons::JobFailure;

/// The longest configuration that `git init` writes.
const LONGEST_CONFIG: u64 = 64 << 10;

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
        // Made here, and new: no commit has one, and nobody may have left a link there. `git` may write to it, but not beside it.
        fs::create_dir(&directory).map_err(failed("make .git"))?;
        let init = ["init", "--quiet", "--template=", "--initial-branch=main", format];
        self.git_dir(&directory, &init).await?;

        let pack = format!("{}", directory.join("objects/pack/pack").display());
        // Packs are written to the new one's objects alone.
        let packing = [directory.as_path()];
        let objects_of = |repository: &Path| repository.join("objects").display().to_string();
        let elsewhere = [
            ("GIT_OBJECT_DIRECTORY", objects_of(&directory)),
            ("GIT_ALTERNATE_OBJECT_DIRECTORIES", objects_of(&commit.repository)),
        ];
        let mut refs = String::new();
        if commit.history == History::All {
            let list = ["for-each-ref", "--format=%(objectname) %(refname)", "refs/kiln/all"];
            let listed = self.read(commit, &[], &list, None, &[]).await?;
            refs = refs_of_a_clone(&String::from_utf8_lossy(&listed));
            let revisions: String = refs
                .lines()
                .filter_map(|line| line.split_once(' '))
                .fold(format!("{}\n", commit.id), |revisions, (id, _)| revisions + id + "\n");
            let command = ["pack-objects", "--quiet", "--revs", &pack];
            self.read(commit, &packing, &command, Some(revisions.as_bytes()), &elsewhere).await?;
        } else {
            let list = ["rev-list", "--objects", "--no-walk", &commit.id];
            let objects = self.read(commit, &[], &list, None, &[]).await?;
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
            self.read(commit, &packing, &command, Some(&objects), &elsewhere).await?;
            let content = self.read(commit, &[], &["cat-file", "commit", &commit.id], None, &[]).await?;
            let header = content.split(|byte| *byte == b'\n').take_while(|line| !line.is_empty());
            if header.into_iter().any(|line| line.starts_with(b"parent ")) {
                let shallow = format!("{}\n", commit.id);
                Tree::open(&directory)
                    .and_then(|tree| tree.write(Path::new("shallow"), shallow.as_bytes()))
                    .map_err(failed("write .git/shallow"))?;
            }
        }
        let origin =
            format!("[remote \"origin\"]\n\turl = \"{}\"\n\tfetch = +refs/heads/*:refs/remotes/origin/*\n", remote.url);
        let write = || {
            let tree = Tree::open(&directory)?;
            tree.write(Path::new("packed-refs"), refs.as_bytes())?;
            tree.write(Path::new("HEAD"), format!("{}\n", commit.id).as_bytes())?;
            let config = tree.read(Path::new("config"), LONGEST_CONFIG)?;
            tree.write(Path::new("config"), &[config, origin.into_bytes()].concat())
        };
        write().map_err(failed("write .git"))?;
        // Without the files' times, which are compared by content then: they are others once they are in the image.
        self.git_dir(&directory, &["read-tree", &commit.id]).await?;

        let (context, second) = (context.to_owned(), commit.second);
        let times = move || {
            set_times(&Tree::open(&context.join(".git"))?, Path::new(""), second)?;
            mtime::set(&context, mtime::of_directory(second))
        };
        tokio::task::spawn_blocking(times)
            .await
            .map_err(|error| JobFailure::agent("set the times of .git", &error))?
            .map_err(failed("set the times of .git"))
    }

    async fn git_dir(&self, directory: &Path, arguments: &[&str]) -> Result<(), JobFailure> {
        let reach = Reach { remote: None, writes: &[directory] };
        let output = self.git(directory, reach, arguments, None, &[]).await?;
        if output.success {
            return Ok(());
        }
        let reason = local_reason(&output.stderr);
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
fn set_times(tree: &Tree, directory: &Path, second: i64) -> io::Result<()> {
    for path in tree.names(directory) {
        if tree.is_directory(&path) {
            set_times(tree, &path, second)?;
        } else {
            let mut hash = Sha256::new();
            io::copy(&mut tree.file(&path)?, &mut hash)?;
            tree.set_time(&path, mtime::of_content(second, &hash.finalize()))?;
        }
    }
    tree.set_time(directory, mtime::of_directory(second))
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
