//! Where a Dockerfile has a file of its image from, as far as its words tell: for what to say of a program that is wrong.

use super::super::dockerfile::{Dockerfile, Instruction, Stage};

/// What brought a file into an image.
#[derive(Debug, PartialEq, Eq)]
pub struct Origin {
    /// The line that brought it.
    pub line: u32,
    /// What that is, and what to do: what follows "is a program for amd64, …;".
    pub cure: String,
}

/// What to do where nothing is known of where the program is from.
pub const ANY: &str = "take the base image and the files of the final stage for the target (FROM without \
                       --platform=$BUILDPLATFORM), and compile for $TARGETARCH";

/// The line that names the base image of the stage `target`; empty: the last.
#[must_use]
pub fn base(dockerfile: &Dockerfile<'_>, target: &str) -> Option<u32> {
    let stages = &dockerfile.stages;
    let mut index = targeted(stages, target)?;
    while let Some(below) = stage_called(stages, &stages.get(index)?.base, index) {
        index = below;
    }
    Some(stages.get(index)?.line)
}

fn targeted(stages: &[Stage], target: &str) -> Option<usize> {
    match target {
        "" => stages.len().checked_sub(1),
        name => stage_called(stages, name, stages.len()).or_else(|| name.parse().ok()),
    }
}

/// What brought the file `path` into the image of the stage `target`; empty: the last. None: its words do not tell.
#[must_use]
pub fn of(dockerfile: &Dockerfile<'_>, target: &str, path: &str) -> Option<Origin> {
    let stages = &dockerfile.stages;
    let mut index = targeted(stages, target)?;
    let mut runs = false;
    loop {
        let stage = stages.get(index)?;
        runs |= stage.instructions.iter().any(|one| one.keyword == "RUN");
        if let Some(brings) = brings(stage, path) {
            return Some(of_instruction(brings, stages, index));
        }
        match stage_called(stages, &stage.base, index) {
            Some(below) => index = below,
            None => return of_base(stage, runs),
        }
    }
}

/// The last instruction of the stage that has the file's name in it, or else copies to a directory above it.
fn brings<'s>(stage: &'s Stage, path: &str) -> Option<&'s Instruction> {
    let copies = || stage.instructions.iter().rev().filter(|one| ["COPY", "ADD"].contains(&one.keyword.as_str()));
    let named = copies().find(|copy| names(stage, copy, path));
    let made = stage.instructions.iter().rev().find(|run| run.keyword == "RUN" && run.rest.contains(path));
    named.or(made).or_else(|| copies().find(|copy| is_above(stage, copy, path)))
}

/// Sources and destination of a COPY, without its options.
fn words(copy: &Instruction) -> Vec<String> {
    let plain: Vec<&str> = copy.rest.split_whitespace().skip_while(|word| word.starts_with("--")).collect();
    serde_json::from_str(&plain.join(" ")).unwrap_or_else(|_| plain.into_iter().map(str::to_owned).collect())
}

/// Where a COPY of this stage copies to.
fn destination(stage: &Stage, copy: &Instruction) -> Option<(String, Vec<String>)> {
    let mut sources = words(copy);
    let destination = sources.pop()?;
    let before = stage.instructions.iter().take_while(|one| one.line < copy.line);
    let directory = before.filter(|one| one.keyword == "WORKDIR").last().map_or("", |one| one.rest.trim());
    let destination = match destination.strip_prefix("./").unwrap_or(&destination) {
        "." => format!("{directory}/"),
        absolute if absolute.starts_with('/') => absolute.to_owned(),
        relative => format!("{}/{relative}", directory.trim_end_matches('/')),
    };
    Some((destination, sources))
}

fn names(stage: &Stage, copy: &Instruction, path: &str) -> bool {
    let Some((destination, sources)) = destination(stage, copy) else { return false };
    let file = |path: &str| path.rsplit('/').next().unwrap_or_default().to_owned();
    destination == path
        || is_above(stage, copy, path)
            && sources.iter().any(|source| !file(source).is_empty() && file(source) == file(path))
}

fn is_above(stage: &Stage, copy: &Instruction, path: &str) -> bool {
    let Some((destination, _)) = destination(stage, copy) else { return false };
    path.strip_prefix(destination.trim_end_matches('/')).is_some_and(|rest| rest.starts_with('/'))
}

fn of_instruction(brings: &Instruction, stages: &[Stage], index: usize) -> Origin {
    let from = brings.options("from").last();
    let stage = from.and_then(|from| {
        stage_called(stages, from, index).or_else(|| from.parse().ok().filter(|number| *number < index))
    });
    let line = brings.line;
    let cure = match (brings.keyword.as_str(), from, stage.and_then(|stage| stages.get(stage))) {
        (_, _, Some(stage)) => return of_stage(stage),
        ("RUN", ..) => made_with(brings).unwrap_or_else(|| "have it made for $TARGETARCH".to_owned()),
        (_, Some(image), None) => format!("take the image {image} for the target's platform"),
        _ => "it was built elsewhere and copied: bring one for each platform, such as bin/$TARGETARCH/, or compile it here"
            .to_owned(),
    };
    Origin { line, cure }
}

fn of_stage(stage: &Stage) -> Origin {
    let fixed = stage.instructions.iter().rev().find_map(|one| Some((one.line, made_with(one)?)));
    let (line, cure) = fixed.unwrap_or_else(|| {
        let from = if stage.name.is_empty() { "the stage that it is copied from" } else { &stage.name };
        let cure = if stage.platform.is_empty() {
            format!("compile it for $TARGETARCH in {from}")
        } else {
            format!("{from} is FROM --platform={}: compile it for $TARGETARCH there", stage.platform)
        };
        (stage.line, cure)
    });
    Origin { line, cure }
}

/// An architecture that an instruction has written into it.
fn made_with(one: &Instruction) -> Option<String> {
    let variables = ["GOARCH=", "CARGO_BUILD_TARGET=", "npm_config_arch="];
    let is_fixed = |variable: &&str| {
        one.rest.split_once(*variable).is_some_and(|(_, value)| !value.trim_start_matches('"').starts_with('$'))
    };
    let variable = variables.iter().find(|variable| is_fixed(variable))?;
    Some(format!("{} is fixed there: let it follow $TARGETARCH", variable.trim_end_matches('=')))
}

/// What no instruction has brought was there before; unless something ran, which may have made anything.
fn of_base(stage: &Stage, runs: bool) -> Option<Origin> {
    let is_fixed = !stage.platform.is_empty() && !stage.platform.contains("TARGET");
    let cure = if is_fixed {
        format!("its base image is FROM --platform={}: leave that out", stage.platform)
    } else {
        "it is the base image's: choose one that has the image's platform".to_owned()
    };
    (is_fixed || !runs).then_some(Origin { line: stage.line, cure })
}

fn stage_called(stages: &[Stage], name: &str, before: usize) -> Option<usize> {
    stages[..before].iter().rposition(|stage| !name.is_empty() && stage.name.eq_ignore_ascii_case(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_brought_a_program() {
        for (text, path, line, words) in [
            ("FROM scratch\nCOPY bin/app /app\n", "/app", 2, "built elsewhere and copied"),
            ("FROM x\nCOPY app /usr/bin/\nCOPY notes /usr/bin/\n", "/usr/bin/app", 2, "built elsewhere"),
            ("FROM x\nWORKDIR /srv\nCOPY [\"a b\", \"app\", \"./\"]\n", "/srv/app", 3, "built elsewhere"),
            (
                "FROM go AS b\nRUN GOARCH=amd64 go build\nFROM x\nCOPY --from=b /app /app\n",
                "/app",
                2,
                "GOARCH is fixed",
            ),
            ("FROM go AS b\nRUN GOARCH=$TARGETARCH go build\nFROM x\nCOPY --from=0 /a /app\n", "/app", 1, "in b"),
            (
                "FROM --platform=linux/amd64 go AS b\nRUN make\nFROM x\nCOPY --from=b /app /app\n",
                "/app",
                1,
                "b is FROM --platform=linux/amd64",
            ),
            ("FROM x\nCOPY --from=tools.example/t /app /app\n", "/app", 2, "the image tools.example/t"),
            ("FROM x\nENV GOARCH=amd64\nRUN cc -o /app x.c\n", "/app", 3, "made for $TARGETARCH"),
            ("FROM --platform=linux/amd64 x AS base\nFROM base\nCOPY a /etc/a\n", "/bin/sh", 1, "leave that out"),
            ("FROM --platform=$BUILDPLATFORM x\n", "/bin/sh", 1, "leave that out"),
            ("FROM x\nCOPY a /etc/a\n", "/bin/sh", 1, "the base image's"),
            ("FROM --platform=$TARGETPLATFORM x\n", "/a", 1, "the base image's"),
        ] {
            let origin = of(&Dockerfile::read(text), "", path).unwrap_or_else(|| panic!("{text}"));
            assert_eq!(origin.line, line, "{text}{origin:?}");
            assert!(origin.cure.contains(words), "{text}{origin:?}");
        }
        for (text, path) in [("FROM x\nRUN make install\n", "/usr/bin/app"), ("", "/a")] {
            assert_eq!(of(&Dockerfile::read(text), "", path), None, "{text}");
        }
    }
}
