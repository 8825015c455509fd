//! The lines of a Dockerfile around the one that failed: which ones BuildKit marked, and two on either side.

use std::{fmt, io, path::Path};

use crate::files;

/// How many lines before and after the guilty ones are shown.
const AROUND: usize = 2;
/// The most lines of an excerpt.
const MOST_LINES: usize = 16;
/// The longest line of an excerpt, in characters.
pub const LONGEST_LINE: usize = 256;
/// The largest Dockerfile that is read for its excerpt.
const LARGEST_DOCKERFILE: u64 = 1 << 20;
/// What follows an excerpt that is cut.
const CUT: &str = "…";

/// Lines of a Dockerfile.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Excerpt {
    /// The Dockerfile's path, as BuildKit names it.
    pub file: String,
    /// The line that BuildKit names, from 1.
    pub line: u32,
    lines: Vec<Line>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Line {
    number: usize,
    guilty: bool,
    text: String,
}

/// Reads the first excerpt in what `buildctl` writes: `PATH:LINE`, a rule, lines of which the guilty ones bear `>>>`,
/// a rule.
#[must_use]
pub fn find(text: &str) -> Option<Excerpt> {
    let is_rule = |line: &str| line.len() >= 10 && line.bytes().all(|byte| byte == b'-');
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        if let (true, Some((file, number))) = (lines.peek().is_some_and(|next| is_rule(next)), line.rsplit_once(':')) {
            let numbered = lines.skip(1).take_while(|line| !is_rule(line)).filter_map(numbered).collect();
            return Some(Excerpt { file: file.to_owned(), line: number.parse().ok()?, lines: numbered });
        }
    }
    None
}

/// A line as BuildKit prints it: number, bar, mark or three spaces, text.
fn numbered(line: &str) -> Option<Line> {
    let (number, rest) = line.split_once(" | ")?;
    let (guilty, text) = match rest.strip_prefix(">>>") {
        Some(text) => (true, text),
        None => (false, rest.strip_prefix("   ")?),
    };
    Some(Line { number: number.trim().parse().ok()?, guilty, text: text.strip_prefix(' ').unwrap_or(text).to_owned() })
}

impl Excerpt {
    /// The line `line` of the Dockerfile `file`, whose content is `content`, where BuildKit tells no more.
    #[must_use]
    pub fn of_line(file: &str, line: u32, content: &str) -> Self {
        let number = line as usize;
        let text = number.checked_sub(1).and_then(|index| content.split('\n').nth(index));
        let lines = text.map(|text| Line { number, guilty: true, text: text.to_owned() }).into_iter().collect();
        Self { file: file.to_owned(), line, lines }.widened(content)
    }

    /// With as many lines around the guilty ones as are wanted, where `content` is the Dockerfile that BuildKit quotes:
    /// around an instruction of several lines, BuildKit shows one.
    #[must_use]
    pub fn widened(mut self, content: &str) -> Self {
        let all: Vec<&str> = content.split('\n').collect();
        let agrees = |line: &Line| line.number.checked_sub(1).and_then(|index| all.get(index)) == Some(&&*line.text);
        if !self.lines.iter().all(agrees) {
            return self;
        }
        let (Some(first), Some(last)) = (self.guilty().next(), self.guilty().last()) else { return self };
        let guilty: Vec<usize> = self.guilty().collect();
        let range = first.saturating_sub(AROUND).max(1)..=last.saturating_add(AROUND).min(all.len());
        self.lines = range
            .map(|number| Line { number, guilty: guilty.contains(&number), text: all[number - 1].to_owned() })
            .collect();
        self
    }

    fn guilty(&self) -> impl Iterator<Item = usize> {
        self.lines.iter().filter(|line| line.guilty).map(|line| line.number)
    }

    /// The lines to be shown, such as `> 7 | RUN make`; each text goes through `fit`.
    pub fn render(&self, fit: impl Fn(&str) -> String) -> Vec<String> {
        let (Some(first), Some(last)) = (self.guilty().next(), self.guilty().last()) else { return Vec::new() };
        let near = |line: &&Line| line.number + AROUND >= first && line.number <= last + AROUND;
        let mut lines: Vec<&Line> = self.lines.iter().filter(near).collect();
        // What stands after the file's last line end is no line.
        while lines.last().is_some_and(|line| !line.guilty && line.text.trim().is_empty()) {
            lines.pop();
        }
        let is_cut = lines.len() > MOST_LINES;
        if is_cut {
            lines.truncate(MOST_LINES - 1);
        }
        let width = lines.last().map_or(1, |line| line.number.to_string().len());
        let mut rendered: Vec<String> = lines
            .into_iter()
            .map(|Line { number, guilty, text }| {
                let mark = if *guilty { '>' } else { ' ' };
                // A carriage return would draw the line over its own number.
                let line = format!("{mark} {number:>width$} | {}", fit(&text.replace('\r', " ")));
                shorten(line.trim_end())
            })
            .collect();
        if is_cut {
            rendered.push(CUT.to_owned());
        }
        rendered
    }
}

impl fmt::Debug for Excerpt {
    /// As it is shown.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.render(str::to_owned)).finish()
    }
}

/// `line` cut to [`LONGEST_LINE`] characters.
fn shorten(line: &str) -> String {
    match line.char_indices().nth(LONGEST_LINE) {
        None => line.to_owned(),
        Some(_) => line.chars().take(LONGEST_LINE - 1).chain(CUT.chars()).collect(),
    }
}

/// The Dockerfile's content, where it is a file inside the context and not too large.
#[must_use]
pub fn read_dockerfile(context: &Path, dockerfile: &Path) -> Option<String> {
    let read = || -> io::Result<Option<String>> {
        let context = context.canonicalize()?;
        // As BuildKit does, links are followed inside the context only.
        let path = context.join(dockerfile).canonicalize()?;
        let metadata = path.metadata()?;
        if !path.starts_with(&context) || !metadata.is_file() || metadata.len() > LARGEST_DOCKERFILE {
            return Ok(None);
        }
        let bytes = files::read(&path, LARGEST_DOCKERFILE)?;
        Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
    };
    read().ok().flatten()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;

    use super::*;

    const DOCKERFILE: &str = "FROM busybox\nARG A\nRUN one\nRUN two; \\\n  three\nRUN four\nRUN five\nRUN six\n";
    /// As BuildKit prints it: one line around two.
    const PRINTED: &str = "Dockerfile:4\n--------------------\n   3 |     RUN one\n   4 | >>> RUN two; \\\n   5 | >>>   three\n   6 |     RUN four\n--------------------\nerror: failed to solve: x\n";

    fn rendered(excerpt: &Excerpt) -> String {
        excerpt.render(str::to_owned).join("\n")
    }

    #[test]
    fn two_lines_around_an_instruction() {
        let excerpt = find(PRINTED).unwrap();
        assert_eq!((excerpt.file.as_str(), excerpt.line), ("Dockerfile", 4));
        insta::assert_snapshot!(rendered(&excerpt.clone().widened(DOCKERFILE)), @r"
          2 | ARG A
          3 | RUN one
        > 4 | RUN two; \
        > 5 |   three
          6 | RUN four
          7 | RUN five
        ");
        // Another file of that name: BuildKit's own lines are what failed.
        insta::assert_snapshot!(rendered(&excerpt.widened("FROM x\n")), @r"
          3 | RUN one
        > 4 | RUN two; \
        > 5 |   three
          6 | RUN four
        ");
    }

    #[test]
    fn a_line_alone() {
        insta::assert_snapshot!(rendered(&Excerpt::of_line("Dockerfile", 8, DOCKERFILE)), @r"
          6 | RUN four
          7 | RUN five
        > 8 | RUN six
        ");
        insta::assert_snapshot!(rendered(&Excerpt::of_line("Dockerfile", 1, DOCKERFILE)), @r"
        > 1 | FROM busybox
          2 | ARG A
          3 | RUN one
        ");
        for line in [0, 99, u32::MAX] {
            assert_eq!(rendered(&Excerpt::of_line("Dockerfile", line, DOCKERFILE)), "", "{line}");
        }
    }

    #[test]
    fn numbers_are_aligned_and_the_whole_is_bounded() {
        let line = "x".repeat(300);
        let content = (1..=100).fold(String::new(), |text, number| text + &format!("RUN {number} {line}\n"));
        let lines = Excerpt::of_line("Dockerfile", 9, &content).render(str::to_owned);
        assert!(lines[0].starts_with("   7 | RUN 7 ") && lines[2].starts_with(">  9 | RUN 9 "), "{lines:?}");
        assert!(lines[4].starts_with("  11 | RUN 11 "));

        let lines: Vec<String> = (1..=40).map(|number| format!(" {number:3} | >>> RUN {number}")).collect();
        let printed = format!("Dockerfile:1\n--------------------\n{}", lines.join("\n"));
        let lines = find(&printed).unwrap().render(str::to_owned);
        assert_eq!((lines.len(), lines.last().map(String::as_str)), (MOST_LINES, Some(CUT)));
    }

    #[test]
    fn a_dockerfile_outside_the_context_is_not_read() {
        let root = tempfile::tempdir().unwrap();
        let context = root.path().join("context");
        fs::create_dir_all(context.join("docker")).unwrap();
        fs::write(root.path().join("outside"), "secret").unwrap();
        fs::write(context.join("docker/Dockerfile"), "FROM x").unwrap();
        for (link, target) in [("out", "../outside"), ("passwd", "/etc/passwd"), ("in", "docker/Dockerfile")] {
            std::os::unix::fs::symlink(target, context.join(link)).unwrap();
        }
        for (path, expected) in [
            ("docker/Dockerfile", Some("FROM x")),
            ("in", Some("FROM x")),
            ("out", None),
            ("passwd", None),
            ("docker", None),
        ] {
            assert_eq!(read_dockerfile(&context, Path::new(path)).as_deref(), expected, "{path}");
        }
    }

    proptest! {
        #[test]
        fn any_text_gives_a_bounded_excerpt(text in any::<String>(), content in any::<String>(), line in any::<u32>()) {
            let printed = format!("x:1\n----------\n  1 | >>> {text}\n");
            for excerpt in find(&printed).into_iter().chain([Excerpt::of_line("f", line, &content)]) {
                let lines = excerpt.widened(&content).render(str::to_owned);
                prop_assert!(lines.len() <= MOST_LINES);
                prop_assert!(lines.iter().all(|line| line.chars().count() <= LONGEST_LINE));
            }
        }
    }
}
