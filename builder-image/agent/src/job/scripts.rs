//! Scripts of the source, by the names that a step's command and its shell call them. Bounded: the source is its author's.

use std::{fs, path::Path};

use crate::files;

/// The most files and directories that are looked through, and bytes of one that are read.
const MOST_ENTRIES: usize = 20_000;
const MOST_BYTES: u64 = 512;

/// The first file of the source that has one of these names, and of which `read` makes something by its path and its beginning.
pub fn find<T>(context: &Path, names: &[&str], read: impl Fn(&Path, &[u8]) -> Option<T>) -> Option<(String, T)> {
    if names.is_empty() {
        return None;
    }
    let mut directories = vec![context.to_owned()];
    let mut seen = 0;
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            seen += 1;
            if seen > MOST_ENTRIES {
                return None;
            }
            let Ok(kind) = entry.file_type() else { continue };
            let (name, path) = (entry.file_name(), entry.path());
            if kind.is_dir() && name != ".git" {
                directories.push(path);
            } else if kind.is_file() && name.to_str().is_some_and(|name| names.contains(&name)) {
                let begin = files::read(&path, MOST_BYTES).unwrap_or_default();
                if let Some(found) = read(&path, &begin) {
                    return Some((path.strip_prefix(context).ok()?.to_string_lossy().into_owned(), found));
                }
            }
        }
    }
    None
}

/// The interpreter that the first line of the script `program` asks for, where the source has a script of that name.
#[must_use]
pub fn interpreter(context: &Path, program: &str) -> Option<String> {
    let name = program.rsplit('/').next().filter(|name| !name.is_empty())?;
    find(context, &[name], |_, begin| asked_for(begin)).map(|(_, interpreter)| interpreter)
}

fn asked_for(script: &[u8]) -> Option<String> {
    let line = script.strip_prefix(b"#!")?.split(|byte| *byte == b'\n').next()?;
    let word = std::str::from_utf8(line).ok()?.split_whitespace().next()?;
    Some(word.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interpreters() {
        let context = tempfile::tempdir().unwrap();
        fs::create_dir(context.path().join("bin")).unwrap();
        for (name, script) in [
            ("bin/run", "#! /bin/zzbash -e\nmake\n"),
            ("bin/cut", "#!/bin/sh"),
            ("bin/none", "make\n"),
            ("bin/blank", "#!\n/bin/sh\n"),
        ] {
            fs::write(context.path().join(name), script).unwrap();
        }
        std::os::unix::fs::symlink("run", context.path().join("bin/link")).unwrap();
        for (program, expected) in [
            ("/usr/bin/run", Some("/bin/zzbash")),
            ("./cut", Some("/bin/sh")),
            ("/none", None),
            ("/blank", None),
            ("/link", None),
            ("/bin/", None),
            ("/other", None),
        ] {
            assert_eq!(interpreter(context.path(), program).as_deref(), expected, "{program}");
        }
    }
}
