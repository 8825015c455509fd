//! What the failed instruction says, as the name of its step tells it: where it takes files from, and whose it is. BuildKit puts
//! an ONBUILD of a base image at the line of the FROM that brings it.

use super::{
    super::{
        dockerfile::{Dockerfile, Instruction},
        mask::shorten,
        source::ContextContent,
    },
    Circumstances, FailedStep,
};

/// The longest word of an instruction within a message, in bytes.
const LONGEST_WORD: usize = 160;

/// The instruction, and whether an ONBUILD held it back: `[build 2/4] ONBUILD COPY a /b`.
fn read(step: &FailedStep) -> Option<(Instruction, bool)> {
    let (_, text) = step.name.split_once("] ").filter(|_| step.name.starts_with('['))?;
    let (held_back, text) = text.strip_prefix("ONBUILD ").map_or((false, text), |text| (true, text));
    let (keyword, rest) = text.split_once(' ')?;
    Some((Instruction { keyword: keyword.to_owned(), rest: rest.to_owned(), line: 0 }, held_back))
}

/// Whether a step has files of elsewhere mounted.
pub(super) fn mounts_files(step: &FailedStep) -> bool {
    read(step).is_some_and(|(of, _)| of.keyword == "RUN" && mounts(&of).next().is_some())
}

/// What follows what went wrong in an instruction that stands in no line of its own.
pub(super) fn held_back(step: &FailedStep, line: u32, build: Circumstances<'_>) -> Option<String> {
    read(step).filter(|(_, held_back)| *held_back)?;
    let dockerfile = Dockerfile::read(build.content?);
    let (above, [stage, ..]) =
        dockerfile.stages.split_at(dockerfile.stages.iter().position(|stage| stage.line == line)?)
    else {
        return None;
    };
    let base = shorten(stage.base.clone(), LONGEST_WORD);
    Some(if above.iter().any(|above| above.name.eq_ignore_ascii_case(&stage.base)) {
        format!("; the instruction is an ONBUILD of the stage {base}, which this FROM begins with")
    } else {
        format!(
            "; the instruction is an ONBUILD of the base image {base}, and stands in no line of {}: give it what it needs, or take another image",
            build.dockerfile
        )
    })
}

/// What an instruction takes a file from.
struct Origin<'a> {
    /// What the instruction says of it.
    by: String,
    /// The stage, image or context; none: the context.
    from: Option<&'a str>,
    /// What it names there leads out of it.
    leaves: bool,
}

/// There is no `path` in what a step takes it from.
pub(super) fn lacks(path: &str, step: Option<&FailedStep>, build: Circumstances<'_>) -> String {
    let instruction = step.and_then(read).map(|(instruction, _)| instruction);
    let Some(Origin { by, from, leaves }) = instruction.as_ref().and_then(|of| origin(of, path)) else {
        return format!("there is no \"{path}\" in what the step takes it from; check the path");
    };
    let Some(from) = from else {
        return if leaves {
            format!(
                "there is no \"{path}\" in the context: {by} names a file above it, and nothing above the context can be copied; let spec.source.git.path name a directory above both, or bring the other one with spec.contexts"
            )
        } else {
            format!(
                "there is no \"{path}\" in the context, which {by} takes it from; check the path, and that .dockerignore does not exclude it"
            )
        };
    };
    let named = shorten(from.to_owned(), LONGEST_WORD);
    // Contexts come before stages, and stages before images.
    if let Some(context) = build.contexts.iter().find(|context| context.name.eq_ignore_ascii_case(from)) {
        let ignored = match context.content {
            ContextContent::Directory(_) => ", and that a .dockerignore there does not exclude it",
            ContextContent::Image(_) => "",
        };
        return format!(
            "there is no \"{path}\" in spec.contexts[{named}], which {by} takes it from; check the path{ignored}"
        );
    }
    let dockerfile = Dockerfile::read(build.content.unwrap_or_default());
    let is_stage = from.bytes().all(|byte| byte.is_ascii_digit())
        || dockerfile.stages.iter().any(|stage| stage.name.eq_ignore_ascii_case(from));
    if is_stage {
        format!(
            "there is no \"{path}\" in the stage {named}, which {by} takes it from; check the path, and what that stage makes"
        )
    } else {
        format!("there is no \"{path}\" in the image {named}, which {by} takes it from; check the path")
    }
}

fn origin<'a>(of: &'a Instruction, path: &str) -> Option<Origin<'a>> {
    match of.keyword.as_str() {
        "COPY" | "ADD" => {
            let words = of.rest.split_whitespace().skip_while(|word| word.starts_with("--"));
            let mut sources = words.map(|word| word.trim_matches(['[', ']', '"', ',']));
            let leaves = sources.any(|source| {
                let (inside, leaves) = inside(source);
                leaves && inside == path
            });
            Some(Origin { by: of.keyword.clone(), from: of.options("from").last(), leaves })
        }
        "RUN" => {
            let named = mounts(of).find(|mount| inside(mount.source).0 == path).or_else(|| mounts(of).next())?;
            let by = format!("RUN --mount={}", shorten(named.text.to_owned(), LONGEST_WORD));
            Some(Origin { by, from: named.from, leaves: inside(named.source) == (path.to_owned(), true) })
        }
        _ => None,
    }
}

/// A mount, as `type=bind,from=x,source=/a,target=/b`.
struct Mount<'a> {
    text: &'a str,
    takes_files: bool,
    from: Option<&'a str>,
    source: &'a str,
}

fn mounts(of: &Instruction) -> impl Iterator<Item = Mount<'_>> {
    of.options("mount").map(Mount::read).filter(|mount| mount.takes_files)
}

impl<'a> Mount<'a> {
    fn read(text: &'a str) -> Self {
        let mut mount = Self { text, takes_files: true, from: None, source: "" };
        for (key, value) in text.split(',').filter_map(|field| field.trim_matches('"').split_once('=')) {
            match key.to_ascii_lowercase().as_str() {
                "type" => mount.takes_files = ["bind", "cache"].contains(&value),
                "from" => mount.from = Some(value),
                "source" | "src" => mount.source = value,
                _ => {}
            }
        }
        mount
    }
}

/// A path as BuildKit looks for it, beneath the root, and whether it leads out of that.
fn inside(path: &str) -> (String, bool) {
    let (mut parts, mut leaves) = (Vec::new(), false);
    for part in path.split('/').filter(|part| !["", "."].contains(part)) {
        if part == ".." {
            leaves |= parts.pop().is_none();
        } else {
            parts.push(part);
        }
    }
    (format!("/{}", parts.join("/")), leaves)
}

#[cfg(test)]
mod tests {
    use super::super::super::source::NamedContext;
    use super::*;

    #[test]
    fn what_a_file_is_taken_from() {
        let directory = ContextContent::Directory("/x".into());
        let contexts = [("Files", directory), ("image", ContextContent::Image("r.example/i@sha256:1".to_owned()))];
        let contexts = contexts.map(|(name, content)| NamedContext { name: name.to_owned(), content });
        let content = "FROM a AS build\nFROM b\n";
        let build = Circumstances { contexts: &contexts, content: Some(content), ..super::super::tests::BUILD };
        for (name, words) in [
            ("[2/2] COPY a/b /", "in the context, which COPY takes it from; check the path, and that .dockerignore"),
            ("[2/2] ADD --chown=1 a/b /", "in the context, which ADD takes it from"),
            ("[2/2] ONBUILD COPY a/b /", "in the context, which COPY takes it from"),
            ("[2/2] COPY ../x/../a/b /", "in the context: COPY names a file above it"),
            ("[2/2] COPY x/../a/b /", "in the context, which COPY takes it from"),
            ("[2/2] COPY ../x a/b /", "in the context, which COPY takes it from"),
            (
                "[2/2] COPY --link --from=Build /a/b /",
                "in the stage Build, which COPY takes it from; check the path, and what",
            ),
            ("[2/2] COPY --from=0 /a/b /", "in the stage 0,"),
            ("[2/2] COPY --from=r.example/i:1 ../a/b /", "in the image r.example/i:1,"),
            (
                "[2/2] COPY --from=files a/b /",
                "in spec.contexts[files], which COPY takes it from; check the path, and that a",
            ),
            ("[2/2] COPY --from=image a/b /", "in spec.contexts[image], which COPY takes it from; check the path"),
            (
                "[build 2/2] RUN --mount=type=secret,id=x --mount=target=/c,from=build --mount=type=bind,src=a/b,target=/b make",
                "in the context, which RUN --mount=type=bind,src=a/b,target=/b takes it from",
            ),
            (
                "[2/2] RUN --mount=from=build,source=/a,target=/x make",
                "in the stage build, which RUN --mount=from=build,",
            ),
            ("[2/2] RUN --mount=source=../a/b,target=/x make", "names a file above it"),
            ("[2/2] RUN make", "in what the step takes it from"),
            ("load something", "in what the step takes it from"),
        ] {
            let step = FailedStep { name: name.to_owned(), error: String::new(), tail: Vec::new() };
            let told = lacks("/a/b", Some(&step), build);
            assert!(told.starts_with("there is no \"/a/b\"") && told.contains(words), "{name}: {told}");
        }
        assert!(lacks("/a/b", None, build).contains("in what the step takes it from"));
    }

    #[test]
    fn whose_an_instruction_is() {
        let content = "FROM r.example/a:1 AS below\nONBUILD RUN x\nFROM Below\nRUN y\n";
        let build = Circumstances { content: Some(content), ..super::super::tests::BUILD };
        for (name, line, words) in [
            (
                "[below 2/2] ONBUILD RUN x",
                1,
                Some("an ONBUILD of the base image r.example/a:1, and stands in no line of"),
            ),
            ("[stage-1 1/2] ONBUILD RUN x", 3, Some("an ONBUILD of the stage Below")),
            ("[stage-1 1/2] ONBUILD RUN x", 4, None),
            ("[stage-1 2/2] RUN y", 3, None),
            ("[stage-1 2/2] RUN echo ] ONBUILD ", 3, None),
        ] {
            let step = FailedStep { name: name.to_owned(), error: String::new(), tail: Vec::new() };
            let told = held_back(&step, line, build);
            assert_eq!(told.is_some(), words.is_some(), "{name}: {told:?}");
            assert!(words.is_none_or(|words| told.is_some_and(|told| told.contains(words))), "{name}");
        }
    }
}
