//! Line ends as on Windows (CR LF) in what a step runs. Kernels and shells take the CR for a part of a line's last word: they
//! seek a program `/bin/sh\r`, and say only that something was not found.

use std::path::Path;

use super::{ending::Failed, progress::FailedStep, scripts};

/// What is to be done about them.
pub const CURE: &str = "save it with LF, and name it in .gitattributes, as in `*.sh text eol=lf`";

/// The most words of a step that are looked for.
const MOST_WORDS: usize = 32;
/// What reads scripts, and what may stand before it.
const SHELLS: [&str; 6] = ["sh", "bash", "dash", "ash", "ksh", "zsh"];
const BEFORE: [&str; 4] = ["exec", "env", "sudo", "time"];

/// What bash and env write for a CR, and bash of a program that has one behind its name.
const SIGNS: [&str; 3] = ["$'\\r': command not found", "^M: bad interpreter", "\\r': No such file or directory"];

/// What has such line ends, of all that a step runs that failed. None: nothing that is known.
#[must_use]
pub fn guilty(failed: &Failed, step: &FailedStep, context: &Path, dockerfile: &str) -> Option<String> {
    let code = failed.exit_code?;
    if has_document(failed, dockerfile) {
        return Some("the here-document of the Dockerfile".to_owned());
    }
    let is_shown = step.tail.iter().any(|line| SIGNS.iter().any(|sign| line.contains(sign)));
    let (_, command) = step.name.split_once("RUN ")?;
    // A shell's, and that of no shell: runc has codes of its own.
    let was_not_found = matches!(code, 126 | 127) || command.starts_with('[');
    let script = script(command, context, |name| is_shown || was_not_found && is_not_found(name, &step.tail));
    let script = script.map(|path| format!("the file {path:?} of the source"));
    script.or_else(|| is_shown.then(|| "a script that it runs".to_owned()))
}

/// Whether something says of a program of this name that it, or what it needs, was not found: that a program which it called
/// was not is another thing.
fn is_not_found(name: &str, tail: &[String]) -> bool {
    const NOT_FOUND: [&str; 4] = [
        ": not found",
        ": no such file or directory",
        ": cannot execute: required file not found",
        ": cannot execute: no such file or directory",
    ];
    let name = name.to_ascii_lowercase();
    let is_said = |line: &String| {
        let line = line.to_ascii_lowercase();
        let behind = line.split(&name).skip(1).map(|rest| rest.trim_start_matches(['"', '\'', '`']));
        behind.into_iter().any(|rest| NOT_FOUND.iter().any(|words| rest.starts_with(words)))
    };
    tail.iter().any(is_said)
}

/// Whether a script's first line, which names its interpreter, ends so.
#[must_use]
pub fn is_in_first_line(script: &[u8]) -> bool {
    script.iter().position(|byte| *byte == b'\n').is_some_and(|end| script[..end].ends_with(b"\r"))
}

/// Whether the step has a here-document with such line ends.
fn has_document(failed: &Failed, dockerfile: &str) -> bool {
    let Some(lines) = failed.sources.first().and_then(|place| place.lines.first()) else { return false };
    let number = |line: u32| usize::try_from(line).unwrap_or_default();
    let all = dockerfile.split('\n').skip(number(lines.first).saturating_sub(1));
    let mut own = all.take(number(lines.last.saturating_sub(lines.first)) + 1);
    own.next().is_some_and(begins_document) && own.any(|line| line.ends_with('\r'))
}

/// Whether a line has the mark of a here-document: `<<END`, `<<-END` or `<<"END"`, and neither `<<<` nor `1 << 2`.
fn begins_document(line: &str) -> bool {
    line.match_indices("<<").any(|(at, _)| {
        let rest = line[at + 2..].trim_start_matches('-').trim_start_matches(['"', '\'']);
        let begins = rest.starts_with(|char: char| char.is_ascii_alphabetic() || char == '_');
        begins && !line[..at].ends_with('<') && line[..at].ends_with(' ')
    })
}

/// The first script of the source with such line ends that has the name of something in the command. What a shell is given to
/// read is a script, whatever it is called, and what it says of it differs from shell to shell.
fn script(command: &str, context: &Path, is_told: impl Fn(&str) -> bool) -> Option<String> {
    let given = given_to_shells(command);
    let words = words(command).map(file_name);
    let names = words.filter(|name| !name.is_empty() && !name.starts_with('-')).take(MOST_WORDS);
    let names: Vec<&str> = names.filter(|name| given.contains(name) || is_told(name)).collect();
    let found = scripts::find(context, &names, |path, begin| {
        let is_given = || path.file_name().and_then(|name| name.to_str()).is_some_and(|name| given.contains(&name));
        let is_script = begin.starts_with(b"#!") || path.extension().is_some_and(|of| of == "sh") || is_given();
        (is_script && is_in_first_line(begin)).then_some(())
    });
    found.map(|(path, ())| path)
}

/// The names of the files that a command has shells read: of `sh -e scripts/build.sh --all`, build.sh.
fn given_to_shells(mut command: &str) -> Vec<&str> {
    while command.starts_with("--") {
        // The instruction's own options.
        command = command.split_once(' ').map_or("", |(_, rest)| rest.trim_start());
    }
    command.split([';', '&', '|', '\n', '(', ')', '`']).take(MOST_WORDS).filter_map(given_to_shell).collect()
}

fn given_to_shell(command: &str) -> Option<&str> {
    let mut words = words(command).skip_while(|word| word.contains('=') || BEFORE.contains(word));
    words.next().filter(|word| SHELLS.contains(&file_name(word)))?;
    let mut words = words.skip_while(|word| word.starts_with(['-', '+']) && !word.ends_with(['c', 'o']));
    let word = words.next()?;
    // What `-o` sets is a word of its own; behind `-c` is no file.
    let word = if word.ends_with('o') && word.starts_with(['-', '+']) { words.nth(1)? } else { word };
    (!word.starts_with('-')).then(|| file_name(word))
}

fn words(command: &str) -> impl Iterator<Item = &str> {
    let words = command.split(|char: char| char.is_whitespace() || "\"'`[](){},;&|<>".contains(char));
    words.filter(|word| !word.is_empty())
}

/// That of a path, and of one that a variable is set to.
fn file_name(word: &str) -> &str {
    word.rsplit(['/', '=']).next().unwrap_or(word)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::ending::{Lines, Place};
    use super::*;

    #[test]
    fn what_has_line_ends_as_on_windows() {
        let context = tempfile::tempdir().unwrap();
        let write = |name: &str, content: &str| {
            let path = context.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        };
        write("scripts/build.sh", "#!/bin/sh\r\nmake\r\n");
        write("plain.sh", "#!/bin/sh\nprintf 'a\r\n'\n");
        write("source.sh", "set -e\r\n");
        write("run", "make\r\n");
        write(".git/hook", "#!/bin/sh\r\n");
        std::os::unix::fs::symlink("scripts/build.sh", context.path().join("link.sh")).unwrap();
        let dockerfile = "FROM busybox\r\nRUN <<END\r\necho a\r\nEND\r\nRUN <<END\necho b\nEND\n";
        let place = |first, last| vec![Place { file: "Dockerfile".into(), lines: vec![Lines { first, last }] }];
        let build = Some("the file \"scripts/build.sh\" of the source");
        for (name, code, line, lines, expected) in [
            ("[2/2] RUN ./scripts/build.sh --all", 127, "/bin/sh: ./scripts/build.sh: not found", (9, 9), build),
            (
                "[2/2] RUN cd /usr/bin && \"/usr/bin/build.sh\"",
                127,
                "/bin/sh: 1: /usr/bin/build.sh: not found",
                (9, 9),
                build,
            ),
            ("[2/2] RUN build.sh", 126, "bash: ./build.sh: /bin/sh^M: bad interpreter", (9, 9), build),
            ("[2/2] RUN [\"./build.sh\"]", 255, "exec ./build.sh: no such file or directory", (9, 9), build),
            (
                "[2/2] RUN sh source.sh",
                127,
                "source.sh: not found",
                (9, 9),
                Some("the file \"source.sh\" of the source"),
            ),
            (
                "[2/2] RUN bash other.sh",
                2,
                "other.sh: line 2: $'\\r': command not found",
                (9, 9),
                Some("a script that it runs"),
            ),
            ("[2/2] RUN x", 127, "/usr/bin/env: ‘bash\\r’: No such file or directory", (9, 9), None),
            ("[2/2] RUN x", 127, "env: 'bash\\r': No such file or directory", (9, 9), Some("a script that it runs")),
            // A shell says of a script that it reads what it does not understand there.
            (
                "[2/2] RUN sh /source.sh",
                2,
                "/source.sh: set: line 2: illegal option -",
                (9, 9),
                Some("the file \"source.sh\" of the source"),
            ),
            (
                "[2/2] RUN apk add make && A=1 /bin/bash -e -o pipefail ./run --all",
                1,
                "",
                (9, 9),
                Some("the file \"run\" of the source"),
            ),
            ("[2/2] RUN [\"sh\", \"/run\"]", 2, "", (9, 9), Some("the file \"run\" of the source")),
            (
                "[2/2] RUN --mount=target=/src,rw --network=none sh /src/run",
                2,
                "",
                (9, 9),
                Some("the file \"run\" of the source"),
            ),
            ("[2/2] RUN sh -c ./run", 2, "", (9, 9), None),
            ("[2/2] RUN sh /plain.sh", 2, "", (9, 9), None),
            ("[2/2] RUN install sh run", 2, "", (9, 9), None),
            // It failed otherwise.
            ("[2/2] RUN ./build.sh", 1, "make: nothing to be done", (9, 9), None),
            ("[2/2] RUN ./plain.sh", 127, "", (9, 9), None),
            // A program that it called was not found; another script of that name is not to blame.
            ("[2/2] RUN ./build.sh", 127, "./build.sh: line 3: vite: not found", (9, 9), None),
            ("[2/2] RUN [\"./build.sh\"]", 3, "make: error", (9, 9), None),
            ("[2/2] RUN ./run; ./hook; ./link.sh; -build.sh", 127, "", (9, 9), None),
            ("[2/3] RUN <<END", 2, "", (2, 4), Some("the here-document of the Dockerfile")),
            ("[3/3] RUN <<END", 2, "", (5, 7), None),
        ] {
            let failed = Failed { exit_code: Some(code), sources: place(lines.0, lines.1), ..Failed::default() };
            let step = FailedStep { name: name.into(), error: String::new(), tail: vec![line.into()] };
            assert_eq!(guilty(&failed, &step, context.path(), dockerfile).as_deref(), expected, "{name}");
        }
        for (line, expected) in [
            ("RUN <<END", true),
            ("RUN cat <<-\"END\" > /a", true),
            ("COPY <<'END' /a", true),
            ("RUN read a <<< \"$X\" && \\\r", false),
            ("RUN echo $((1<<2)) && \\\r", false),
            ("RUN echo $((1 << 2)) && \\\r", false),
        ] {
            assert_eq!(begins_document(line), expected, "{line}");
        }
        let none = Failed::default();
        let step = FailedStep { name: "[2/2] COPY build.sh /".into(), error: String::new(), tail: Vec::new() };
        assert_eq!(guilty(&none, &step, context.path(), dockerfile), None, "no program failed");
    }
}
