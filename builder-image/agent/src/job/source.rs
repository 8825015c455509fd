//! What a job builds, on the volume: its context, the Dockerfile, which may lie elsewhere, and the contexts beside it.

use std::{
    fs,
    io::Read,
    path::{Path, PathBuf},
};

use kiln_agent_proto::{Job as Spec, context, source::Kind};
use tokio_util::sync::CancellationToken;

use super::{addresses, artifact, git::GitJob, inline, registries::Registries, repositories::Repositories, tarball};
use crate::{
    files, paths,
    reasons::{JobFailure, Reason},
    sandbox::Sandbox,
};

/// A directory with the build's context, where its Dockerfile is, and the source's name for messages.
#[derive(Clone, Debug)]
pub struct Source {
    /// The directory that all of the source is in: a Dockerfile outside of the context lies in it.
    pub root: PathBuf,
    /// The context's root: `root`, or a directory in it.
    pub context: PathBuf,
    /// The directory that BuildKit is given for the Dockerfile: the context's, the source's `root`, or one of its own.
    pub dockerfile_dir: PathBuf,
    /// The Dockerfile, relative to `dockerfile_dir`.
    pub dockerfile: PathBuf,
    /// What it is, such as `commit 1234abcd of https://host/repo.git`.
    pub name: String,
    /// When the commit was made, in seconds since 1970. None: the source is no commit.
    pub commit_time: Option<i64>,
    /// The contexts beside it.
    pub contexts: Vec<NamedContext>,
}

/// A build context beside the source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedContext {
    /// The name that the Dockerfile uses.
    pub name: String,
    /// What it is.
    pub content: ContextContent,
}

/// What a build context beside the source is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ContextContent {
    /// An image, by digest.
    Image(String),
    /// A directory on the volume.
    Directory(PathBuf),
}

impl Source {
    /// A source whose context is all of `directory`, with a Dockerfile of that name in it.
    #[must_use]
    pub fn new(directory: PathBuf, name: String) -> Self {
        Self {
            root: directory.clone(),
            context: directory.clone(),
            dockerfile_dir: directory,
            dockerfile: PathBuf::from("Dockerfile"),
            name,
            commit_time: None,
            contexts: Vec::new(),
        }
    }
}

/// What it takes to fetch a job's source.
pub struct Fetch<'a> {
    /// Where repositories stay.
    pub repositories: &'a Repositories,
    /// The way to registries.
    pub registries: &'a Registries,
    /// What keeps those apart that handle what others sent.
    pub sandbox: &'a Sandbox,
    /// The job.
    pub spec: &'a Spec,
    /// Ends everything.
    pub stop: &'a CancellationToken,
    /// The job's directory on the volume.
    pub work: &'a Path,
    /// The job's directory in memory.
    pub memory: &'a Path,
}

impl Fetch<'_> {
    /// Fetches the source and the contexts beside it, and finds the Dockerfile.
    pub async fn fetch(&self) -> Result<Source, JobFailure> {
        let directory = self.work.join("source");
        let addresses = addresses::policy(self.spec);
        let scratch = self.work.join("scratch");
        let (repositories, stop, memory) = (self.repositories, self.stop, self.memory);
        let git = GitJob {
            repositories,
            stop,
            memory,
            scratch: &scratch,
            addresses: addresses.clone(),
            sandbox: self.sandbox,
        };
        let mut source = match self.spec.source.as_ref().and_then(|source| source.kind.as_ref()) {
            Some(Kind::Git(source)) => git.fetch(source, &directory, self.is_dockerfile_outside()).await?,
            Some(Kind::Inline(inline)) => inline::write(inline, &directory)?,
            Some(Kind::Http(http)) => tarball::fetch(http, addresses, &directory, self.sandbox, self.stop).await?,
            Some(Kind::Image(image)) => {
                artifact::fetch(image, self.spec, self.registries, &directory, self.sandbox, self.stop).await?
            }
            Some(Kind::Archive(_)) => {
                return Err(JobFailure::new(Reason::InvalidJob, "an archive is pushed, not built"));
            }
            None => return Err(JobFailure::new(Reason::InvalidJob, "the job has no source")),
        };
        self.place_dockerfile(&mut source)?;
        for (number, beside) in self.spec.contexts.iter().enumerate() {
            let content = match &beside.kind {
                Some(context::Kind::Image(reference)) => ContextContent::Image(reference.clone()),
                Some(context::Kind::Git(source)) => {
                    let directory = self.work.join(format!("context-{number}"));
                    ContextContent::Directory(git.fetch(source, &directory, false).await?.context)
                }
                None => {
                    let message = format!("the context {:?} is of no kind", beside.name);
                    return Err(JobFailure::new(Reason::InvalidJob, message));
                }
            };
            source.contexts.push(NamedContext { name: beside.name.clone(), content });
        }
        Ok(source)
    }

    /// The Dockerfile's path from the context, as the job names it.
    fn dockerfile(&self) -> &str {
        if self.spec.dockerfile.is_empty() { "Dockerfile" } else { &self.spec.dockerfile }
    }

    /// Whether the Dockerfile is in the source, but not in the context.
    fn is_dockerfile_outside(&self) -> bool {
        self.spec.dockerfile_inline.is_empty() && leads_out(self.dockerfile())
    }

    /// Says where the Dockerfile is: in the context, outside of it but in the source, or in the job itself.
    fn place_dockerfile(&self, source: &mut Source) -> Result<(), JobFailure> {
        if !self.spec.dockerfile_inline.is_empty() {
            source.dockerfile_dir = self.work.join("dockerfile");
            return fs::create_dir_all(&source.dockerfile_dir)
                .and_then(|()| fs::write(source.dockerfile_dir.join(&source.dockerfile), &self.spec.dockerfile_inline))
                .map_err(|error| JobFailure::agent("write the inline Dockerfile", &error));
        }
        let named = self.dockerfile();
        (source.dockerfile_dir, source.dockerfile) = place(source, named)?;
        find_dockerfile(source, named)
    }
}

/// Whether a Dockerfile's path begins with `..`.
fn leads_out(named: &str) -> bool {
    named.trim_start_matches("./").starts_with("../")
}

/// The directory to look in for the Dockerfile called `named`, and its path there. `..` at its beginning leads out of the
/// context, never out of the source.
fn place(source: &Source, named: &str) -> Result<(PathBuf, PathBuf), JobFailure> {
    let refuse = |why: &dyn std::fmt::Display| {
        JobFailure::new(Reason::InvalidJob, format!("the Dockerfile's path {named:?} {why}"))
    };
    let mut rest = named.trim_start_matches("./");
    if !leads_out(named) {
        let path = paths::relative_file(named).map_err(|problem| refuse(&problem))?;
        return Ok((source.context.clone(), path));
    }
    let mut directory = source.context.strip_prefix(&source.root).unwrap_or(Path::new("")).to_owned();
    while let Some(up) = rest.strip_prefix("../") {
        if !directory.pop() {
            return Err(refuse(&format_args!("leads out of {}; it must stay inside the source", source.name)));
        }
        rest = up.trim_start_matches("./");
    }
    let path = paths::relative_file(rest).map_err(|problem| refuse(&problem))?;
    // The whole source, not the Dockerfile's directory: BuildKit follows links in what it is given only.
    Ok((source.root.clone(), directory.join(path)))
}

/// Fails where the source has no such Dockerfile, and names those that it has.
fn find_dockerfile(source: &Source, named: &str) -> Result<(), JobFailure> {
    let path = source.dockerfile_dir.join(&source.dockerfile);
    match path.symlink_metadata() {
        Ok(metadata) if metadata.is_symlink() => return check_link(source, named, &path),
        Ok(metadata) if metadata.is_file() => return check_encoding(&path, named),
        _ => {}
    }
    let near = dockerfiles_near(&source.dockerfile_dir, &source.dockerfile);
    let hint = if near.is_empty() {
        "there is no other Dockerfile near it".to_owned()
    } else {
        format!("there is {}", near.join(", "))
    };
    let message = format!(
        "there is no Dockerfile {named:?} in {}; {hint}; set spec.dockerfile, or the source's path, such as spec.source.git.path",
        source.name
    );
    Err(JobFailure { dockerfile: named.to_owned(), ..JobFailure::new(Reason::DockerfileNotFound, message) })
}

/// A link is followed by BuildKit itself, inside the directory only. Fails where it leads out, or nowhere.
fn check_link(source: &Source, named: &str, path: &Path) -> Result<(), JobFailure> {
    let target = fs::read_link(path).unwrap_or_default();
    // BuildKit takes the directory for the root of what is absolute.
    let is_inside = || {
        let root = source.dockerfile_dir.canonicalize().ok()?;
        path.canonicalize().ok().map(|path| path.starts_with(root))
    };
    if target.is_absolute() || is_inside() == Some(true) {
        return Ok(());
    }
    let target: String = target.display().to_string().chars().take(200).collect();
    let message = format!(
        "the Dockerfile {named:?} is a link to {target:?}, which is not in {}; name the file itself in spec.dockerfile, which may begin with ../, or build from a directory that holds both",
        source.name
    );
    Err(JobFailure { dockerfile: named.to_owned(), ..JobFailure::new(Reason::DockerfileNotFound, message) })
}

/// Fails where an editor has written what only looks like text.
fn check_encoding(path: &Path, named: &str) -> Result<(), JobFailure> {
    let mut begin = [0; 4];
    let read = files::open(path).and_then(|file| file.take(4).read(&mut begin)).unwrap_or_default();
    let encoding = match &begin[..read] {
        [0xff, 0xfe, 0, 0] | [0, 0, 0xfe, 0xff] => "UTF-32",
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] | [0, _, ..] | [_, 0, ..] => "UTF-16",
        _ => return Ok(()),
    };
    let message = format!("{named} is not valid: it is encoded as {encoding}; save it as UTF-8");
    Err(JobFailure { dockerfile: named.to_owned(), ..JobFailure::new(Reason::DockerfileInvalid, message) })
}

/// The Dockerfiles in the root, in its directories, and in the directory that was named.
fn dockerfiles_near(root: &Path, dockerfile: &Path) -> Vec<String> {
    const MOST: usize = 5;
    let list = |directory: &Path| -> Vec<PathBuf> {
        fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
    };
    let mut directories = vec![root.to_owned()];
    directories.extend(list(root).into_iter().filter(|path| path.is_dir() && !path.is_symlink()));
    // A link may lead out of the source.
    let named = dockerfile.parent().and_then(|parent| root.join(parent).canonicalize().ok());
    directories.extend(named.filter(|named| root.canonicalize().is_ok_and(|root| named.starts_with(root))));
    let mut found: Vec<String> = directories
        .iter()
        .flat_map(|directory| list(directory))
        .filter(|path| path.is_file())
        .filter_map(|path| Some(path.strip_prefix(root).ok()?.to_str()?.to_owned()))
        .filter(|path| {
            let name = path.rsplit('/').next().unwrap_or_default().to_ascii_lowercase();
            (name.contains("dockerfile") || name.contains("containerfile")) && !name.ends_with("ignore")
        })
        .collect();
    found.sort();
    found.dedup();
    found.truncate(MOST);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dockerfile_stays_in_the_source() {
        let source = Source { context: "/s/apps/web".into(), ..Source::new("/s".into(), String::new()) };
        for (named, expected) in [
            ("Dockerfile", Ok(("/s/apps/web", "Dockerfile"))),
            ("./docker/Dockerfile.prod", Ok(("/s/apps/web", "docker/Dockerfile.prod"))),
            ("../Dockerfile", Ok(("/s", "apps/Dockerfile"))),
            (".././../Dockerfile", Ok(("/s", "Dockerfile"))),
            ("../../../Dockerfile", Err(Reason::InvalidJob)),
            ("../a/../Dockerfile", Err(Reason::InvalidJob)),
            ("a/../Dockerfile", Err(Reason::InvalidJob)),
            ("/etc/passwd", Err(Reason::InvalidJob)),
            ("../", Err(Reason::InvalidJob)),
        ] {
            let placed = place(&source, named).map_err(|failure| failure.reason);
            let expected = expected.map(|(directory, path)| (PathBuf::from(directory), PathBuf::from(path)));
            assert_eq!(placed, expected, "{named}");
        }
    }

    #[test]
    fn a_dockerfile_that_is_a_link_or_in_another_encoding() {
        let root = tempfile::tempdir().unwrap();
        let context = root.path().join("app");
        fs::create_dir_all(context.join("docker")).unwrap();
        fs::write(root.path().join("outside"), "FROM a\n").unwrap();
        let link = |name: &str, target: &str| std::os::unix::fs::symlink(target, context.join(name)).unwrap();
        let write = |name: &str, content: &[u8]| fs::write(context.join(name), content).unwrap();
        write("docker/plain", b"FROM a\n");
        link("inside", "docker/plain");
        link("absolute", "/docker/plain");
        link("out", "../outside");
        link("nowhere", "missing");
        write("short", b"");
        write("mark", b"\xef\xbb\xbfFROM a\n");
        write("latin", b"# caf\xe9\nFROM a\n");
        write("utf16", b"\xff\xfeF\0R\0");
        write("big", b"\0F\0R\0O");
        write("utf32", b"\xff\xfe\0\0F\0\0\0");
        let source = |name: &str| Source {
            context: context.clone(),
            dockerfile_dir: context.clone(),
            dockerfile: name.into(),
            ..Source::new(root.path().to_owned(), "the source".to_owned())
        };
        for (name, expected) in [
            ("inside", None),
            ("absolute", None),
            ("short", None),
            ("mark", None),
            ("latin", None),
            ("out", Some((Reason::DockerfileNotFound, "is a link to \"../outside\", which is not in the source"))),
            ("nowhere", Some((Reason::DockerfileNotFound, "is a link to \"missing\""))),
            ("utf16", Some((Reason::DockerfileInvalid, "UTF-16"))),
            ("big", Some((Reason::DockerfileInvalid, "UTF-16"))),
            ("utf32", Some((Reason::DockerfileInvalid, "UTF-32"))),
        ] {
            let found = find_dockerfile(&source(name), name).err();
            assert_eq!(found.as_ref().map(|failure| failure.reason), expected.map(|(reason, _)| reason), "{name}");
            if let (Some(found), Some((_, words))) = (found, expected) {
                assert!(found.message.contains(words), "{name}: {}", found.message);
            }
        }
    }
}
