//! What shells and runc write of a program that they cannot start, position by position: who writes, where, of what, and why.

/// What they do not find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NotFound<'a> {
    /// A command, in none of the directories of PATH.
    Command(&'a str),
    /// A file, or what starts it: both look the same to most shells.
    File(&'a str),
    /// What starts a file that is there: the interpreter that it asks for, where that is told.
    Starter(&'a str, Option<&'a str>),
}

/// Who writes it, by the name of its program.
const SHELLS: [&str; 6] = ["sh", "ash", "bash", "dash", "ksh", "busybox"];

/// What the last such line of a step says.
pub(super) fn in_tail(tail: &[String]) -> Option<NotFound<'_>> {
    tail.iter().rev().find_map(|line| read(line.trim_end()))
}

fn read(line: &str) -> Option<NotFound<'_>> {
    // runc has found the file, or it would say so in other words.
    if let Some(program) = line.strip_prefix("exec ").and_then(|rest| rest.strip_suffix(": no such file or directory"))
    {
        return Some(NotFound::Starter(program, None));
    }
    let (who, said) = line.split_once(": ")?;
    let who = who.rsplit('/').next().unwrap_or(who);
    if who == "env" {
        let name = said.strip_suffix(": No such file or directory")?;
        let name = name.strip_prefix("can't execute ").unwrap_or(name);
        return Some(NotFound::Command(name.trim_matches(['\'', '‘', '’'])));
    }
    let (in_line, said) = without_line(said);
    // A script calls itself as it was called.
    if !SHELLS.contains(&who) && !in_line {
        return None;
    }
    if let Some((program, interpreter)) =
        said.strip_suffix(": bad interpreter: No such file or directory").and_then(|rest| rest.split_once(": "))
    {
        return Some(NotFound::Starter(program, Some(interpreter)));
    }
    if let Some(program) = said.strip_suffix(": cannot execute: required file not found") {
        return Some(NotFound::Starter(program, None));
    }
    let ends = [": command not found", ": not found", ": No such file or directory"];
    let name = ends.iter().find_map(|end| said.strip_suffix(end))?;
    match (name.contains('/'), name.contains(": ")) {
        (_, true) => None,
        (true, _) => Some(NotFound::File(name)),
        // Bash says so of a file that is read or written.
        (false, _) => (!said.ends_with("No such file or directory")).then_some(NotFound::Command(name)),
    }
}

/// `line 3: …` or `3: …` without that, and whether it was there.
fn without_line(said: &str) -> (bool, &str) {
    let number = said.strip_prefix("line ").unwrap_or(said).split_once(": ");
    match number.filter(|(number, _)| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())) {
        Some((_, rest)) => (true, rest),
        None => (false, said),
    }
}

/// Whether a shell took a program for a script: kernels do not know one for another architecture, and then shells read it.
/// `command` has the program's name.
pub(super) fn is_read_as_script(line: &str, command: &str) -> bool {
    let Some((program, said)) = line.split_once(": ") else { return false };
    let first = said.strip_prefix("line 1: ").or_else(|| said.strip_prefix("1: "));
    program.contains('/')
        && command.contains(program)
        && first.is_some_and(|first| first.starts_with("ELF") && first.trim_end().ends_with(": not found"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn position_by_position() {
        use NotFound::{Command, File, Starter};
        for (line, expected) in [
            ("/bin/sh: zzmake: not found", Some(Command("zzmake"))),
            ("/bin/sh: 1: zzmake: not found", Some(Command("zzmake"))),
            ("/bin/bash: line 1: zzmake: command not found", Some(Command("zzmake"))),
            ("./build.sh: line 3: vite: not found", Some(Command("vite"))),
            ("env: can't execute 'python3': No such file or directory", Some(Command("python3"))),
            ("/usr/bin/env: ‘python3’: No such file or directory", Some(Command("python3"))),
            ("/bin/sh: /zzfile.sh: not found", Some(File("/zzfile.sh"))),
            ("/bin/sh: 1: ./a: not found", Some(File("./a"))),
            ("/bin/bash: line 1: /a/b: No such file or directory", Some(File("/a/b"))),
            ("/bin/bash: line 1: /a: cannot execute: required file not found", Some(Starter("/a", None))),
            (
                "/bin/bash: line 1: /a.sh: /bin/zz: bad interpreter: No such file or directory",
                Some(Starter("/a.sh", Some("/bin/zz"))),
            ),
            (
                "/bin/bash: ./a.sh: /bin/zz: bad interpreter: No such file or directory",
                Some(Starter("./a.sh", Some("/bin/zz"))),
            ),
            ("exec /a: no such file or directory", Some(Starter("/a", None))),
            // Another program's words.
            ("make: zzmake: not found", None),
            ("error: package a: not found", None),
            ("ls: /a: No such file or directory", None),
            ("/bin/bash: line 1: name: No such file or directory", None),
            ("/bin/sh: a: b: not found", None),
            ("/bin/sh: syntax error", None),
            ("not found", None),
            ("", None),
        ] {
            assert_eq!(read(line), expected, "{line}");
        }
        let tail = ["/bin/sh: one: not found", "/bin/sh: two: not found", "done"].map(str::to_owned);
        assert_eq!(in_tail(&tail), Some(Command("two")));
    }

    #[test]
    fn programs_that_shells_read() {
        for (line, expected) in [
            ("/bin/tool: line 1: ELF: not found", true),
            ("/bin/tool: 1: ELFX: not found", true),
            ("/bin/tool: line 2: ELF: not found", false),
            ("/bin/tool: line 1: tool: not found", false),
            ("/bin/other: line 1: ELF: not found", false),
            ("ELF: not found", false),
        ] {
            assert_eq!(is_read_as_script(line, "[2/2] RUN /bin/tool --all"), expected, "{line}");
        }
    }
}
