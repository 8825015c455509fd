//! Git repositories on the test Git server, written through the git command.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::Tenant;

/// A bare repository on the Git server. It goes with the value.
pub struct Repository {
    /// Where it is.
    pub directory: PathBuf,
    /// Its https URL.
    pub url: String,
}

/// A commit to be made.
pub struct Commit<'a> {
    /// The branch it goes onto; made where it is not there.
    pub branch: &'a str,
    /// Files that it writes, by path; the others stay. One that begins with `#!` is executable.
    pub files: &'a [(&'a str, &'a str)],
    /// Symbolic links that it writes, by path, each to a target.
    pub links: &'a [(&'a str, &'a str)],
    /// Submodules that it sets, by path, each to a commit.
    pub submodules: &'a [(&'a str, &'a str)],
    /// Paths that it removes.
    pub removed: &'a [&'a str],
    /// The committer's date, in seconds since 1970.
    pub date: i64,
}

/// A tree that no `git add` makes.
pub enum Tree<'a> {
    /// A file's content, or a link's target.
    Blob(&'a str),
    /// A submodule's commit.
    Commit(&'a str),
    /// Mode, name and content of each entry.
    Entries(&'a [(&'a str, &'a str, Tree<'a>)]),
}

impl Default for Commit<'_> {
    fn default() -> Self {
        Self { branch: "main", files: &[], links: &[], submodules: &[], removed: &[], date: 1_700_000_000 }
    }
}

impl Repository {
    /// A repository that everybody may read.
    #[must_use]
    pub fn public(tenant: &Tenant, name: &str) -> Self {
        Self::new(tenant, &format!("{}-{name}", tenant.id))
    }

    /// A repository that needs the Git server's password.
    #[must_use]
    pub fn private(tenant: &Tenant, name: &str) -> Self {
        Self::new(tenant, &format!("private/{}-{name}", tenant.id))
    }

    fn new(tenant: &Tenant, path: &str) -> Self {
        let root = &tenant.cluster.git_root;
        assert!(
            root.is_dir(),
            "{} is not there; run: make cluster (or set KILN_GIT_ROOT to the directory that KILN_GIT serves)",
            root.display()
        );
        let directory = root.join(format!("{path}.git"));
        let status = Command::new("git")
            .args(["init", "--quiet", "--bare", "--initial-branch=main"])
            .arg(&directory)
            .status()
            .expect("git can be started");
        assert!(status.success(), "git init {}", directory.display());
        Self { url: format!("{}/{path}.git", tenant.cluster.git), directory }
    }

    /// Makes a commit of these files on the branch `main`; its id.
    #[allow(clippy::must_use_candidate, reason = "many tests need no id")]
    pub fn write(&self, files: &[(&str, &str)]) -> String {
        self.commit(&Commit { files, ..Commit::default() })
    }

    /// Makes a commit of all files below a directory of this machine, of text each, under another path; its id.
    #[allow(clippy::must_use_candidate, reason = "many tests need no id")]
    pub fn write_directory(&self, from: &Path, to: &str) -> String {
        let mut files = Vec::new();
        let mut directories = vec![from.to_owned()];
        while let Some(directory) = directories.pop() {
            let entries =
                std::fs::read_dir(&directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
            for entry in entries {
                let path = entry.expect("a directory can be read").path();
                if path.is_dir() {
                    directories.push(path);
                    continue;
                }
                let content =
                    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
                let relative = path.strip_prefix(from).expect("it is below").to_str().expect("a name is UTF-8");
                files.push((format!("{to}/{relative}"), content));
            }
        }
        files.sort();
        let files: Vec<_> = files.iter().map(|(path, content)| (path.as_str(), content.as_str())).collect();
        self.write(&files)
    }

    /// Makes a commit; its id.
    #[allow(clippy::must_use_candidate, reason = "many tests need no id")]
    pub fn commit(&self, commit: &Commit<'_>) -> String {
        let Commit { branch, files, links, submodules, removed, date } = commit;
        // A stream of git-fast-import: no working tree is needed, and each date is as given.
        let mut stream =
            format!("commit refs/heads/{branch}\ncommitter Kiln <kiln@example.com> {date} +0000\ndata 4\ntest\n");
        if self.resolve(&format!("refs/heads/{branch}")).is_some() {
            writeln!(stream, "from refs/heads/{branch}^0").unwrap();
        }
        for path in *removed {
            writeln!(stream, "D {path}").unwrap();
        }
        for (path, content) in *files {
            let mode = if content.starts_with("#!") { "100755" } else { "100644" };
            writeln!(stream, "M {mode} inline {path}\ndata {}\n{content}", content.len()).unwrap();
        }
        for (path, target) in *links {
            writeln!(stream, "M 120000 inline {path}\ndata {}\n{target}", target.len()).unwrap();
        }
        for (path, commit) in *submodules {
            writeln!(stream, "M 160000 {commit} {path}").unwrap();
        }
        let mut import =
            self.git(&["fast-import", "--quiet", "--force"]).stdin(Stdio::piped()).spawn().expect("git can be started");
        import.stdin.take().expect("stdin is a pipe").write_all(stream.as_bytes()).expect("git fast-import reads");
        assert!(import.wait().expect("git ends").success(), "git fast-import into {}", self.directory.display());
        self.resolve(&format!("refs/heads/{branch}")).expect("the branch is there after a commit")
    }

    /// Sets a tag to a commit.
    pub fn tag(&self, name: &str, commit: &str) {
        let status =
            self.git(&["tag", "--force", name, commit]).stdout(Stdio::null()).status().expect("git can be started");
        assert!(status.success(), "git tag {name} {commit}");
    }

    /// Sets any ref to a commit.
    pub fn point(&self, reference: &str, commit: &str) {
        self.run(&["update-ref", reference, commit], "");
    }

    /// Sets `main` to a commit whose tree is written as told, right or wrong: lines as `git mktree` reads them, each
    /// with the content of a blob in place of an object's id, or with the lines of another tree.
    #[allow(clippy::must_use_candidate, reason = "many tests need no id")]
    pub fn commit_tree(&self, tree: &Tree<'_>) -> String {
        let tree = self.object(tree);
        let commit =
            self.run(&["-c", "user.name=Kiln", "-c", "user.email=k@e", "commit-tree", "-m", "test", &tree], "");
        self.run(&["update-ref", "refs/heads/main", &commit], "");
        commit
    }

    /// Writes an object just as it is given, right or wrong; its id.
    #[must_use]
    pub fn raw_object(&self, kind: &str, content: &[u8]) -> String {
        self.run(&["hash-object", "-w", "--literally", "-t", kind, "--stdin"], content)
    }

    fn object(&self, tree: &Tree<'_>) -> String {
        match tree {
            Tree::Blob(content) => self.run(&["hash-object", "-w", "--stdin"], *content),
            Tree::Commit(id) => (*id).to_owned(),
            Tree::Entries(entries) => {
                let mut lines = String::new();
                for (mode, name, entry) in *entries {
                    let kind = match entry {
                        Tree::Blob(_) => "blob",
                        Tree::Commit(_) => "commit",
                        Tree::Entries(_) => "tree",
                    };
                    writeln!(lines, "{mode} {kind} {}\t{name}", self.object(entry)).unwrap();
                }
                self.run(&["mktree"], &lines)
            }
        }
    }

    fn run(&self, arguments: &[&str], input: impl AsRef<[u8]>) -> String {
        let mut child =
            self.git(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("git can be started");
        child.stdin.take().expect("stdin is a pipe").write_all(input.as_ref()).expect("git reads");
        let output = child.wait_with_output().expect("git ends");
        assert!(output.status.success(), "git {arguments:?} in {}", self.directory.display());
        String::from_utf8(output.stdout).expect("an id is ASCII").trim().to_owned()
    }

    fn resolve(&self, revision: &str) -> Option<String> {
        let output = self.git(&["rev-parse", "--quiet", "--verify", revision]).output().expect("git can be started");
        output.status.success().then(|| String::from_utf8(output.stdout).expect("an id is ASCII").trim().to_owned())
    }

    fn git(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("git");
        command.arg("--git-dir").arg(&self.directory).args(arguments);
        command
    }
}

impl Drop for Repository {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.directory) {
            eprintln!("{} stays: {error}", self.directory.display());
        }
    }
}
