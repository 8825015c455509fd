//! The lines of a Dockerfile around the one that failed: which ones BuildKit marked, and two on either side.

use std::{fmt, io, path::Path};

use super::ending::{Lines, Place};
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

impl Excerpt {
    /// The line `line` of the Dockerfile `file`, whose content is `content`, where BuildKit tells no more.
    #[must_use]
    pub fn of_line(file: &str, line: u32, content: &str) -> Self {
        let lines = vec![Lines { first: line, last: line }];
        Self::of_place(&Place { file: file.to_owned(), lines }, content)
    }

    /// The lines that BuildKit names of the Dockerfile whose content is `content`, and what stands around them.
    #[must_use]
    pub fn of_place(place: &Place, content: &str) -> Self {
        let guilty = joined(&place.lines);
        let line = guilty.first().map(|lines| lines.first).unwrap_or_default();
        let is_guilty =
            |number: usize| guilty.iter().any(|lines| (lines.first as usize..=lines.last as usize).contains(&number));
        let count = content.split('\n').count();
        let Some(first) = guilty.iter().map(|lines| (lines.first as usize).max(1)).find(|first| *first <= count) else {
            return Self { file: place.file.clone(), line, lines: Vec::new() };
        };
        // One more than is shown tells that there are more.
        let range = first.saturating_sub(AROUND).max(1)..=first.saturating_add(MOST_LINES + AROUND);
        let numbered = content.split('\n').enumerate().map(|(index, text)| (index + 1, text));
        let shown =
            numbered.skip_while(|(number, _)| number < range.start()).take_while(|(number, _)| number <= range.end());
        let lines =
            shown.map(|(number, text)| Line { number, guilty: is_guilty(number), text: text.to_owned() }).collect();
        Self { file: place.file.clone(), line, lines }
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

/// In order, those that follow each other as one, and no more than can matter: each line is looked for in them.
fn joined(lines: &[Lines]) -> Vec<Lines> {
    let mut sorted: Vec<Lines> = lines.iter().copied().filter(|lines| lines.first <= lines.last).collect();
    sorted.sort_unstable_by_key(|lines| lines.first);
    let mut joined: Vec<Lines> = Vec::new();
    for next in sorted {
        if let Some(before) = joined.last_mut().filter(|before| next.first <= before.last.saturating_add(1)) {
            before.last = before.last.max(next.last);
        } else if joined.len() < MOST_LINES {
            // Each has a line at least, and they are shown from the first one's.
            joined.push(next);
        }
    }
    joined
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

    fn place(first: u32, last: u32) -> Place {
        Place { file: "Dockerfile".to_owned(), lines: vec![Lines { first, last }] }
    }

    fn rendered(excerpt: &Excerpt) -> String {
        excerpt.render(str::to_owned).join("\n")
    }

    /// BuildKit names each line of a syntax error's instruction, and that may be a megabyte of them.
    #[test]
    fn as_many_lines_as_there_are() {
        let content = "\n".repeat(1 << 20);
        let lines = (1..1 << 20).rev().map(|line| Lines { first: line, last: line }).collect();
        let excerpt = Excerpt::of_place(&Place { file: "Dockerfile".to_owned(), lines }, &content);
        assert_eq!((excerpt.line, excerpt.render(str::to_owned).len()), (1, MOST_LINES));
        let apart = (1..1 << 18).map(|line| Lines { first: 4 * line, last: 4 * line }).collect();
        let excerpt = Excerpt::of_place(&Place { file: "Dockerfile".to_owned(), lines: apart }, &content);
        assert_eq!((excerpt.line, excerpt.render(str::to_owned).len()), (4, MOST_LINES));
    }

    #[test]
    fn two_lines_around_an_instruction() {
        let excerpt = Excerpt::of_place(&place(4, 5), DOCKERFILE);
        assert_eq!((excerpt.file.as_str(), excerpt.line), ("Dockerfile", 4));
        insta::assert_snapshot!(rendered(&excerpt), @r"
          2 | ARG A
          3 | RUN one
        > 4 | RUN two; \
        > 5 |   three
          6 | RUN four
          7 | RUN five
        ");
        // Of a file that cannot be read there is nothing to show.
        assert_eq!(rendered(&Excerpt::of_place(&place(4, 5), "")), "");
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

        let lines = Excerpt::of_place(&place(1, 40), &content).render(str::to_owned);
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
        fn any_text_gives_a_bounded_excerpt(content in any::<String>(), first in any::<u32>(), last in any::<u32>()) {
            let lines = Excerpt::of_place(&place(first, last), &content).render(str::to_owned);
            prop_assert!(lines.len() <= MOST_LINES);
            prop_assert!(lines.iter().all(|line| line.chars().count() <= LONGEST_LINE));
        }
    }
}
