//! The shell commands of a page of the documentation.
//!
//! A fenced block of `sh` is to be run, unless the line before it says why it is not: `(not run by a test: …)`. There is
//! nothing in between, so that no command of a page goes unnoticed.

use crate::shell::root;

/// What the line before a block says that no test runs.
const NOT_RUN: &str = "(not run by a test: ";

/// The blocks of `docs/NAME` that are to be run, in their order.
#[must_use]
pub fn commands(name: &str) -> Vec<String> {
    let path = root().join("docs").join(name);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    blocks(&text).unwrap_or_else(|error| panic!("docs/{name}: {error}"))
}

/// The blocks below a heading of `docs/NAME`.
#[must_use]
pub fn commands_below(name: &str, heading: &str) -> Vec<String> {
    let path = root().join("docs").join(name);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let (_, below) = text.split_once(&format!("\n{heading}\n")).unwrap_or_else(|| panic!("docs/{name}: no {heading}"));
    let below = below.split_once("\n## ").map_or(below, |(section, _)| section);
    blocks(below).unwrap_or_else(|error| panic!("docs/{name}, {heading}: {error}"))
}

fn blocks(text: &str) -> Result<Vec<String>, String> {
    let (mut commands, mut before) = (Vec::new(), "");
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if line.starts_with("    ") || line.starts_with('\t') {
            return Err(format!("an indented block is neither run nor marked; fence it: {line}"));
        }
        if let Some(kind) = line.trim_start().strip_prefix("```") {
            let block: Vec<&str> = lines.by_ref().take_while(|line| line.trim() != "```").collect();
            if kind == "sh" && !before.starts_with(NOT_RUN) {
                commands.push(block.join("\n") + "\n");
            } else if !(before.starts_with(NOT_RUN) && before.ends_with(')')) {
                return Err(format!("a block of {kind:?} is neither run nor marked: {block:?}"));
            }
        }
        before = line;
    }
    Ok(commands)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_run_or_marked() {
        let run = "Words.\n\n```sh\necho 1\n\necho 2\n```\n\nMore:\n```sh\necho 3\n```\n";
        assert_eq!(blocks(run), Ok(vec!["echo 1\n\necho 2\n".to_owned(), "echo 3\n".to_owned()]));
        assert_eq!(blocks("(not run by a test: why)\n```sh\necho 1\n```\n"), Ok(vec![]));
        for neither in [
            "```\necho 1\n```\n",
            "```bash\necho 1\n```\n",
            "(not run by a test)\n```yaml\na: b\n```\n",
            "(not run by a test: why)\n\n```yaml\na: b\n```\n",
            "Words:\n\n    echo 1\n",
        ] {
            assert!(blocks(neither).is_err(), "{neither}");
        }
        // The mark of one block is not that of the next.
        let two = "(not run by a test: why)\n```sh\necho 1\n```\n```sh\necho 2\n```\n";
        assert_eq!(blocks(two), Ok(vec!["echo 2\n".to_owned()]));
    }
}
