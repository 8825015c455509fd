//! Reads a Dockerfile far enough to know its stages, what they take from each other, and where they run something:
//! <https://docs.docker.com/reference/dockerfile/>. Tolerant: what it does not understand is BuildKit's to refuse.

/// The most instructions that are read: no honest Dockerfile has so many.
const MOST_INSTRUCTIONS: usize = 5_000;

/// A Dockerfile.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Dockerfile<'a> {
    /// All of it.
    pub text: &'a str,
    /// The `ARG`s before the first stage, each with its default.
    pub arguments: Vec<(String, Option<String>)>,
    /// In the order in which they stand.
    pub stages: Vec<Stage>,
}

/// What stands between a `FROM` and the next.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Stage {
    /// What `AS` calls it; may be empty.
    pub name: String,
    /// What `FROM` names, variables not replaced.
    pub base: String,
    /// What `--platform` says, variables not replaced; may be empty.
    pub platform: String,
    /// The line of its `FROM`, from 1.
    pub line: u32,
    /// What it does.
    pub instructions: Vec<Instruction>,
}

/// One instruction.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Instruction {
    /// Such as `RUN`, in upper case.
    pub keyword: String,
    /// What follows, lines joined, without here-documents.
    pub rest: String,
    /// Its first line, from 1.
    pub line: u32,
}

impl Instruction {
    /// The values of an option: those of `--NAME=VALUE` before the arguments.
    pub fn options<'i>(&'i self, name: &'i str) -> impl Iterator<Item = &'i str> {
        self.rest
            .split_whitespace()
            .take_while(|word| word.starts_with("--"))
            .filter_map(move |word| word.strip_prefix("--")?.strip_prefix(name)?.strip_prefix('='))
    }

    /// The instruction that an `ONBUILD` holds back.
    #[must_use]
    pub fn held_back(&self) -> Option<Self> {
        let (keyword, rest) = (self.keyword == "ONBUILD").then(|| split_keyword(&self.rest))?;
        Some(Self { keyword, rest: rest.to_owned(), line: self.line })
    }
}

impl<'a> Dockerfile<'a> {
    /// Reads `text`.
    #[must_use]
    pub fn read(text: &'a str) -> Self {
        let mut dockerfile = Self { text, ..Self::default() };
        for instruction in instructions(text) {
            match (instruction.keyword.as_str(), dockerfile.stages.last_mut()) {
                ("FROM", _) => dockerfile.stages.push(stage(&instruction)),
                ("ARG", None) => dockerfile.arguments.extend(arguments(&instruction.rest)),
                (_, Some(stage)) => stage.instructions.push(instruction),
                (_, None) => {}
            }
        }
        dockerfile
    }

    /// Whether `word` stands anywhere in it.
    #[must_use]
    pub fn mentions(&self, word: &str) -> bool {
        self.text.contains(word)
    }
}

fn stage(from: &Instruction) -> Stage {
    let mut words = from.rest.split_whitespace().skip_while(|word| word.starts_with("--"));
    let base = words.next().unwrap_or_default().to_owned();
    let name = words.next().filter(|word| word.eq_ignore_ascii_case("AS")).and_then(|_| words.next());
    Stage {
        name: name.unwrap_or_default().to_owned(),
        base,
        platform: from.options("platform").last().unwrap_or_default().to_owned(),
        line: from.line,
        instructions: Vec::new(),
    }
}

/// `ARG A=1 B`: names and defaults.
#[must_use]
pub fn arguments(rest: &str) -> Vec<(String, Option<String>)> {
    words(rest)
        .into_iter()
        .map(|word| match word.split_once('=') {
            Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
            None => (word, None),
        })
        .collect()
}

/// Splits at white space outside of quotes, and takes the quotes away.
fn words(text: &str) -> Vec<String> {
    let (mut words, mut word, mut quote, mut begun) = (Vec::new(), String::new(), None, false);
    for char in text.chars() {
        match quote {
            Some(end) if char == end => quote = None,
            None if matches!(char, '"' | '\'') => (quote, begun) = (Some(char), true),
            None if char.is_whitespace() => {
                if begun {
                    words.push(std::mem::take(&mut word));
                }
                begun = false;
            }
            _ => {
                word.push(char);
                begun = true;
            }
        }
    }
    words.extend(begun.then_some(word));
    words
}

/// The names of the variables that stand in a line, such as `NAME` for `${NAME:-x}`.
#[must_use]
pub fn references(line: &str) -> Vec<&str> {
    let after_dollar = line.split('$').skip(1).map(|rest| rest.strip_prefix('{').unwrap_or(rest));
    let name =
        |rest: &'_ str| rest.find(|char: char| !char.is_ascii_alphanumeric() && char != '_').unwrap_or(rest.len());
    after_dollar.map(|rest| &rest[..name(rest)]).filter(|name| !name.is_empty()).collect()
}

/// The instructions of a Dockerfile, with comments, continuations and here-documents taken care of.
fn instructions(text: &str) -> Vec<Instruction> {
    let escape = escape(text);
    let mut lines = text.trim_start_matches('\u{feff}').lines().zip(1_u32..);
    let mut instructions = Vec::new();
    while let Some((line, number)) = lines.next() {
        if is_comment(line) || line.trim().is_empty() || instructions.len() >= MOST_INSTRUCTIONS {
            continue;
        }
        let (line, mut goes_on) = continued(line.trim_start(), escape);
        let mut joined = line.to_owned();
        while goes_on {
            let Some((next, _)) = lines.next() else { break };
            // Comments and empty lines do not end what goes on.
            if is_comment(next) || next.trim().is_empty() {
                continue;
            }
            let (next, more) = continued(next, escape);
            joined.push_str(next);
            goes_on = more;
        }
        let (keyword, rest) = split_keyword(&joined);
        let instruction = Instruction { keyword, rest: rest.to_owned(), line: number };
        let held_back = instruction.held_back();
        let of = held_back.as_ref().unwrap_or(&instruction);
        if matches!(of.keyword.as_str(), "RUN" | "COPY" | "ADD") {
            for end in heredocs(&of.rest) {
                for (line, _) in lines.by_ref() {
                    let line = if end.strips_tabs { line.trim_start_matches('\t') } else { line };
                    if line == end.name {
                        break;
                    }
                }
            }
        }
        instructions.push(instruction);
    }
    instructions
}

fn split_keyword(text: &str) -> (String, &str) {
    let text = text.trim();
    let (keyword, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
    (keyword.to_ascii_uppercase(), rest.trim_start())
}

fn is_comment(line: &str) -> bool {
    line.trim_start().starts_with('#')
}

/// A line without the escape character that ends it, and whether there is one. After another it stands for itself, as in
/// `C:\\`.
fn continued(line: &str, escape: char) -> (&str, bool) {
    let ended = line.trim_end().strip_suffix(escape).filter(|line| !line.ends_with(escape));
    ended.map_or((line, false), |line| (line, true))
}

/// The escape character that a parser directive at the top chooses.
fn escape(text: &str) -> char {
    for line in text.trim_start_matches('\u{feff}').lines() {
        let Some((name, value)) = line.trim().strip_prefix('#').and_then(|line| line.split_once('=')) else { break };
        if name.trim().eq_ignore_ascii_case("escape") {
            return if value.trim() == "`" { '`' } else { '\\' };
        }
        if name.trim().contains(char::is_whitespace) {
            break;
        }
    }
    '\\'
}

/// How a here-document ends.
#[derive(Debug, PartialEq, Eq)]
struct Heredoc {
    name: String,
    strips_tabs: bool,
}

/// The here-documents that an instruction opens, such as `<<EOF` or `3<<-"END"`.
fn heredocs(rest: &str) -> Vec<Heredoc> {
    rest.split_whitespace()
        .filter_map(|word| {
            let name = word.trim_start_matches(|char: char| char.is_ascii_digit()).strip_prefix("<<")?;
            let (name, strips_tabs) = name.strip_prefix('-').map_or((name, false), |name| (name, true));
            let name: String = name.chars().filter(|char| !matches!(char, '"' | '\'')).collect();
            (!name.is_empty() && !name.contains('<')).then_some(Heredoc { name, strips_tabs })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_what_dockerfiles_are_made_of() {
        let text = "\u{feff}# syntax=docker/dockerfile:1\n# a comment\nARG BASE=busybox:1 \\\n  OTHER\nFROM --platform=$BUILDPLATFORM ${BASE} as Build\n\n# x\nRUN --mount=type=bind,from=tools,target=/t \\\n  # in between\n\n  make && \\\n  FROM nothing\nRUN <<EOF cat\nFROM inside\nEOF\nCOPY <<-\"A\" <<B /to/\n\tRUN x\n\tA\nFROM y\nB\nonbuild run echo\nfrom scratch\ncopy --from=Build --chown=1 /a /b\n";
        let dockerfile = Dockerfile::read(text);
        assert_eq!(
            dockerfile.arguments,
            [("BASE".to_owned(), Some("busybox:1".to_owned())), ("OTHER".to_owned(), None)]
        );
        insta::assert_debug_snapshot!(dockerfile.stages);
    }

    #[test]
    fn another_escape_character() {
        let text = "# escape=`\nFROM windows\nRUN dir C:\\\nCOPY a `\n b\n";
        let dockerfile = Dockerfile::read(text);
        let lines: Vec<(&str, u32)> = dockerfile.stages[0]
            .instructions
            .iter()
            .map(|instruction| (instruction.rest.as_str(), instruction.line))
            .collect();
        assert_eq!(lines, [("dir C:\\", 3), ("a  b", 4)]);
        // Behind another comment it is none.
        assert_eq!(escape("# hello there\n# escape=`\n"), '\\');
    }

    #[test]
    fn here_documents() {
        for (rest, names) in [
            ("<<EOF", vec!["EOF"]),
            ("3<<-'END' cat <<\"B\" > x", vec!["END", "B"]),
            ("cat <<<word", vec![]),
            ("echo $((1<<2))", vec![]),
            ("<<", vec![]),
        ] {
            let found: Vec<String> = heredocs(rest).into_iter().map(|heredoc| heredoc.name).collect();
            assert_eq!(found, names, "{rest}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read(text in any::<String>()) {
            let _ = Dockerfile::read(&text);
        }

        #[test]
        fn any_words_are_read(words in proptest::collection::vec(prop::sample::select(vec![
            "FROM", "ARG", "RUN", "\\", "\n", "<<A", "A", "#", "--platform=", "=", "AS", "ONBUILD", "\"", "COPY", "--from=",
        ]), 0..60)) {
            let _ = Dockerfile::read(&words.join(" "));
            let _ = Dockerfile::read(&words.concat());
        }
    }
}
