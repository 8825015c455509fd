//! Which images a build takes files from, as far as its Dockerfile tells.

use std::borrow::Cow;
use std::cell::Cell;
use std::collections::HashMap;
use std::ops::ControlFlow;

use super::addresses::Image;
use super::dockerfile::{Dockerfile, Instruction, Stage, arguments};

/// The longest value of a variable that is looked at, and the longest name: no image and no stage has one so long.
const LONGEST_NAME: usize = 4096;
/// The most that is written in the place of variables of one Dockerfile, in bytes: a few lines of it could name any amount.
/// What is not named here is not asked for: BuildKit has to be given the registries of images.
const MOST_EXPANDED: usize = 4 << 20;
/// The most that is looked at, in bytes of instructions: what a stage holds back counts for each one above it.
const MOST_LOOKED_AT: usize = 16 << 20;

/// What a build's stages are resolved with.
#[derive(Debug, Clone, Copy)]
pub struct Build<'a> {
    /// The stage to build; empty: the last one.
    pub target: &'a str,
    /// The platform to build for, such as `linux/arm64`.
    pub platform: &'a str,
    /// The builder's own.
    pub builder: &'a str,
    /// The build arguments that are set.
    pub arguments: &'a HashMap<String, String>,
    /// The names of build contexts: they come before stages of that name.
    pub contexts: &'a [&'a str],
}

/// The images that the target needs beside its own stages and contexts, each with the line that names it.
#[must_use]
pub fn images(dockerfile: &Dockerfile<'_>, build: Build<'_>) -> Vec<Image> {
    let stages = &dockerfile.stages;
    let resolved = Resolved::of(dockerfile, build);
    let mut images = Vec::new();
    let mut name = |reference: String, line| {
        let is_context = build.contexts.iter().any(|context| context.eq_ignore_ascii_case(&reference));
        if !is_context && reference != "scratch" {
            images.push(Image { reference, line: Some(line) });
        }
    };
    let walked: Option<()> = resolved.walk(stages, |index, instruction, local| {
        match instruction {
            None if resolved.bases[index].is_none() => {
                name(resolved.expand(&stages[index].base, local), stages[index].line);
            }
            None => {}
            Some((written, done)) => {
                for from in resolved.names_in(done, local) {
                    if resolved.stage_in(&from, index).is_none() {
                        name(from, written.line);
                    }
                }
            }
        }
        ControlFlow::Continue(())
    });
    debug_assert!(walked.is_none());
    images
}

struct Resolved<'b> {
    build: Build<'b>,
    variables: Variables<'b>,
    /// How much more may be written in the place of variables.
    left: Cell<usize>,
    /// How much has been looked at.
    looked_at: Cell<usize>,
    /// The stages of each name, in lower case, ascending.
    named: HashMap<String, Vec<usize>>,
    /// The stage that each stage begins with.
    bases: Vec<Option<usize>>,
}

impl<'b> Resolved<'b> {
    fn of(dockerfile: &'b Dockerfile<'_>, build: Build<'b>) -> Self {
        let mut resolved = Self {
            build,
            variables: platforms(build),
            left: Cell::new(MOST_EXPANDED),
            looked_at: Cell::new(0),
            named: HashMap::new(),
            bases: Vec::new(),
        };
        for (name, default) in &dockerfile.arguments {
            if let (Some(default), None) = (default, resolved.variables.get(name)) {
                let value = resolved.expand(default, &resolved.variables);
                resolved.variables.insert(name, value.into());
            }
        }
        for (index, stage) in dockerfile.stages.iter().enumerate() {
            let base = resolved.stage_called(&resolved.expand(&stage.base, &resolved.variables), index);
            resolved.bases.push(base);
            if !stage.name.is_empty() {
                resolved.named.entry(stage.name.to_ascii_lowercase()).or_default().push(index);
            }
        }
        resolved
    }

    /// The stage of that name before the stage `before`: the last one, as BuildKit takes it.
    fn stage_called(&self, name: &str, before: usize) -> Option<usize> {
        if self.build.contexts.iter().any(|context| context.eq_ignore_ascii_case(name)) {
            return None;
        }
        let indices = self.named.get(&name.to_ascii_lowercase())?;
        indices[..indices.partition_point(|index| *index < before)].last().copied()
    }

    /// The variables that a stage's instructions see.
    fn local_variables<'s>(&'s self, stage: &Stage) -> Variables<'s> {
        let mut variables = Variables { above: Some(&self.variables), ..Variables::default() };
        let own = stage.instructions.iter().filter(|instruction| instruction.keyword == "ARG");
        for (name, default) in own.flat_map(|instruction| arguments(&instruction.rest)) {
            if let (Some(default), false) = (default, self.build.arguments.contains_key(&name)) {
                variables.own.insert(name.into(), default.into());
            }
        }
        variables
    }

    /// Replaces `$NAME`, `${NAME}`, `${NAME:-default}` and `${NAME:+other}`, as far as there is room.
    fn expand(&self, text: &str, variables: &Variables<'_>) -> String {
        let expanded = expand(text, variables, LONGEST_NAME.min(self.left.get()));
        self.left.set(self.left.get() - expanded.len());
        expanded
    }

    /// Whether there is room to look at another instruction.
    fn looks_at(&self, instruction: &Instruction) -> bool {
        // However short, it takes a moment.
        self.looked_at.set(self.looked_at.get() + instruction.rest.len() + 64);
        self.looked_at.get() <= MOST_LOOKED_AT
    }

    /// The names that an instruction takes files from.
    fn names_in(&self, instruction: &Instruction, variables: &Variables<'_>) -> Vec<String> {
        let names: Vec<&str> = match instruction.keyword.as_str() {
            "COPY" => instruction.options("from").collect(),
            "RUN" => instruction
                .options("mount")
                .flat_map(|mount| mount.split(','))
                .filter_map(|field| field.trim_matches('"').split_once('='))
                .filter_map(|(key, value)| key.eq_ignore_ascii_case("from").then_some(value))
                .collect(),
            _ => Vec::new(),
        };
        names.into_iter().map(|name| self.expand(name, variables)).filter(|name| !name.is_empty()).collect()
    }

    /// Goes through what the target needs: of each stage itself first, then its instructions, as written and as done, those
    /// too that the stage below holds back; with the variables that they see. Ends early where `visit` says so.
    fn walk<'d, B>(
        &self,
        stages: &'d [Stage],
        mut visit: impl FnMut(usize, Option<(&'d Instruction, &Instruction)>, &Variables<'_>) -> ControlFlow<B>,
    ) -> Option<B> {
        let target = match self.build.target {
            "" => stages.len().checked_sub(1)?,
            name => self.stage_called(name, stages.len()).or_else(|| name.parse().ok())?,
        };
        let (mut wanted, mut seen) = (vec![target], vec![false; stages.len()]);
        while let Some(index) = wanted.pop() {
            let Some(stage) = stages.get(index) else { continue };
            if std::mem::replace(&mut seen[index], true) {
                continue;
            }
            let base = self.bases[index];
            wanted.extend(base);
            let local = self.local_variables(stage);
            if let ControlFlow::Break(found) = visit(index, None, &local) {
                return Some(found);
            }
            // What the stage below holds back is done here.
            let below = base.iter().flat_map(|base| &stages[*base].instructions);
            let held_back = below
                .take_while(|below| self.looks_at(below))
                .filter_map(|instruction| Some((instruction, instruction.held_back()?)));
            for (written, held_back) in held_back
                .map(|(written, held)| (written, Some(held)))
                .chain(stage.instructions.iter().take_while(|own| self.looks_at(own)).map(|own| (own, None)))
            {
                let done = held_back.as_ref().unwrap_or(written);
                if let ControlFlow::Break(found) = visit(index, Some((written, done)), &local) {
                    return Some(found);
                }
                wanted.extend(self.names_in(done, &local).iter().filter_map(|name| self.stage_in(name, index)));
            }
        }
        None
    }

    /// The stage that an instruction of the stage `index` means by a name or number.
    fn stage_in(&self, name: &str, index: usize) -> Option<usize> {
        self.stage_called(name, index).or_else(|| name.parse().ok().filter(|number| *number < index))
    }
}

/// Variables by name.
#[derive(Default)]
struct Variables<'a> {
    own: HashMap<Cow<'a, str>, Cow<'a, str>>,
    /// Those that count where there is none of that name.
    above: Option<&'a Variables<'a>>,
}

impl<'a> Variables<'a> {
    fn get(&self, name: &str) -> Option<&str> {
        self.own.get(name).map(|value| &**value).or_else(|| self.above?.get(name))
    }

    fn insert(&mut self, name: &'a str, value: Cow<'a, str>) {
        self.own.insert(name.into(), value);
    }
}

/// The variables that all of a Dockerfile sees: the build's arguments, and the platforms.
fn platforms(build: Build<'_>) -> Variables<'_> {
    let mut variables = Variables::default();
    for (prefix, platform) in [("TARGET", build.platform), ("BUILD", build.builder)] {
        let mut parts = platform.splitn(3, '/');
        variables.own.insert(format!("{prefix}PLATFORM").into(), platform.into());
        for name in ["OS", "ARCH", "VARIANT"] {
            variables.own.insert(format!("{prefix}{name}").into(), parts.next().unwrap_or_default().into());
        }
    }
    for (name, value) in build.arguments {
        variables.insert(name, value.into());
    }
    variables
}

/// `text` with the values of its variables, cut to `longest` bytes.
fn expand(text: &str, variables: &Variables<'_>, longest: usize) -> String {
    let mut out = String::new();
    let mut rest = text.trim_matches(['"', '\'']);
    while let Some((before, after)) = rest.split_once('$').filter(|_| out.len() < longest) {
        push(&mut out, before, longest);
        let end =
            |text: &str| text.find(|char: char| !char.is_ascii_alphanumeric() && char != '_').unwrap_or(text.len());
        let value = |name: &str| variables.get(name).unwrap_or_default();
        if let Some((inside, after)) = after.strip_prefix('{').and_then(|braced| braced.split_once('}')) {
            let (name, operation) = inside.split_at(end(inside));
            let (value, operation) = (value(name), operation.strip_prefix(':').unwrap_or(operation));
            let value = match (operation.strip_prefix('-'), operation.strip_prefix('+')) {
                (Some(default), _) if value.is_empty() => default,
                (_, Some(other)) if !value.is_empty() => other,
                (_, Some(_)) => "",
                _ => value,
            };
            push(&mut out, value, longest);
            rest = after;
        } else {
            let (name, after) = after.split_at(end(after));
            push(&mut out, if name.is_empty() { "$" } else { value(name) }, longest);
            rest = after;
        }
    }
    push(&mut out, rest, longest);
    out
}

/// Adds as much of `text` as there is room for.
fn push(out: &mut String, text: &str, longest: usize) {
    out.push_str(&text[..text.floor_char_boundary(longest.saturating_sub(out.len()))]);
}

/// A platform in the form that BuildKit compares: usual names, and no variant that goes without saying.
#[must_use]
pub fn normalised(platform: &str) -> String {
    let mut parts = platform.trim().to_ascii_lowercase();
    for (from, to) in [("aarch64", "arm64"), ("x86_64", "amd64"), ("armhf", "arm"), ("i386", "386")] {
        parts = parts.replace(&format!("/{from}"), &format!("/{to}"));
    }
    let os = parts.split_once('(').and_then(|(os, rest)| Some(os.to_owned() + rest.split_once(')')?.1));
    let platform = os.unwrap_or(parts);
    match platform.as_str() {
        "linux/arm64/v8" => "linux/arm64".to_owned(),
        "linux/arm" => "linux/arm/v7".to_owned(),
        _ => platform,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn images_that_are_taken_from() {
        let text = "ARG V=1
ARG REGISTRY=r.example
FROM ${REGISTRY}/base:$V AS base
ONBUILD COPY --from=held.example/x / /
FROM unneeded.example/x
FROM scratch AS empty
FROM given
FROM base
ARG TOOLS=tools.example/x
COPY --from=0 a a
COPY --from=empty a a
COPY --from=given a a
COPY --from=$TOOLS a a
RUN --mount=type=bind,from=mount.example/x,target=/x true
";
        let arguments = [("REGISTRY".to_owned(), "other.example".to_owned())].into();
        let build = Build {
            target: "",
            platform: "linux/arm64",
            builder: "linux/amd64",
            arguments: &arguments,
            contexts: &["given"],
        };
        let mut images = images(&Dockerfile::read(text), build);
        images.sort();
        let images: Vec<_> = images.iter().map(|image| (image.reference.as_str(), image.line.unwrap())).collect();
        let expected =
            [("held.example/x", 4), ("mount.example/x", 14), ("other.example/base:1", 3), ("tools.example/x", 13)];
        assert_eq!(images, expected);
    }

    #[test]
    fn a_few_lines_that_name_any_amount_take_little() {
        let arguments = HashMap::new();
        let build =
            Build { target: "", platform: "linux/arm64", builder: "linux/amd64", arguments: &arguments, contexts: &[] };
        let kept = |text: &str| {
            images(&Dockerfile::read(text), build).iter().map(|image| image.reference.len()).sum::<usize>()
        };
        let doubled = (1..34).fold("ARG A0=xxxxxxxxxxxxxxxx\n".to_owned(), |text, number| {
            let former = number - 1;
            text + &format!("ARG A{number}=$A{former}$A{former}\n")
        });
        assert_eq!(kept(&(doubled.clone() + "FROM $A33\nCOPY a a\n")), LONGEST_NAME);
        let mounts = "--mount=from=$A33 ".repeat(10_000);
        assert!(kept(&format!("{doubled}FROM x\nARG A33\nRUN {mounts} true\n")) <= MOST_EXPANDED);
        let stages = "FROM x AS s\nARG A33=y\nCOPY --from=$A33$A32 a a\n".repeat(1_000);
        assert!(kept(&format!("{doubled}{stages}")) <= MOST_EXPANDED);
    }

    /// What a stage holds back is done in each that begins with it.
    #[test]
    fn what_is_held_back_often_is_not_looked_at_for_ever() {
        let arguments = HashMap::new();
        let build =
            Build { target: "", platform: "linux/arm64", builder: "linux/amd64", arguments: &arguments, contexts: &[] };
        let held_back = format!("ONBUILD COPY {} a a\n", "--from=$A ".repeat(20_000));
        let all = (1..2_000).fold(String::new(), |all, stage| all + &format!("--from={stage} "));
        let text = format!("FROM x AS o\n{held_back}{}FROM x\nCOPY {all} a a\n", "FROM o\n".repeat(2_000));
        let dockerfile = Dockerfile::read(&text);
        let resolved = Resolved::of(&dockerfile, build);
        let mut seen = 0;
        let _: Option<()> = resolved.walk(&dockerfile.stages, |_, instruction, _| {
            seen += instruction.map_or(0, |(_, done)| done.rest.len());
            ControlFlow::Continue(())
        });
        assert!(seen > text.len() && seen <= MOST_LOOKED_AT, "{seen} bytes were looked at");
    }

    proptest! {
        #[test]
        fn any_stages_are_followed(words in proptest::collection::vec(prop::sample::select(vec![
            "\nFROM", "a", "b", " AS a", " AS b", "\nRUN x", "\nCOPY --from=a x y", "\nONBUILD RUN", "--platform=$X", "${", "}", "$", ":-", " ",
        ]), 0..60), target in "[ab012]{0,2}") {
            let text = words.concat();
            let build = Build { target: &target, platform: "linux/arm64", builder: "linux/amd64", arguments: &HashMap::new(), contexts: &[] };
            let lines = text.lines().count();
            for image in images(&Dockerfile::read(&text), build) {
                prop_assert!(image.line.is_some_and(|line| line as usize <= lines));
            }
        }
    }
}
