//! Paths that come with a job: they must stay inside the directory that they are relative to.

use std::path::PathBuf;

/// Why a path is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PathProblem {
    /// It begins with a slash.
    #[error("is absolute; write it relative to the source's root")]
    Absolute,
    /// It has a `..` component.
    #[error("has a \"..\" component; it must stay inside the source")]
    Leaves,
    /// It has a `.git` component.
    #[error("has a \".git\" component")]
    Git,
    /// It has a character that no file name has, or none at all.
    #[error("is not a file name")]
    NotAName,
}

/// The path without `.` and doubled slashes; empty for the root itself.
pub fn relative(path: &str) -> Result<PathBuf, PathProblem> {
    if path.starts_with('/') {
        return Err(PathProblem::Absolute);
    }
    if path.chars().any(char::is_control) || path.len() > 4096 {
        return Err(PathProblem::NotAName);
    }
    let mut relative = PathBuf::new();
    for component in path.split('/') {
        match component {
            "" | "." => {}
            ".." => return Err(PathProblem::Leaves),
            name if name.eq_ignore_ascii_case(".git") => return Err(PathProblem::Git),
            name => relative.push(name),
        }
    }
    Ok(relative)
}

/// As [`relative`], for a file: the root is not one.
pub fn relative_file(path: &str) -> Result<PathBuf, PathProblem> {
    let file = relative(path)?;
    if file.as_os_str().is_empty() || path.ends_with('/') { Err(PathProblem::NotAName) } else { Ok(file) }
}

#[cfg(test)]
mod tests {
    use std::path::{Component, Path};

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn stay_inside() {
        let cases = [
            ("", Ok("")),
            (".", Ok("")),
            ("a/b", Ok("a/b")),
            ("./a//b/", Ok("a/b")),
            ("a..b/...", Ok("a..b/...")),
            ("/etc", Err(PathProblem::Absolute)),
            ("a/../b", Err(PathProblem::Leaves)),
            ("..", Err(PathProblem::Leaves)),
            ("a/.Git/config", Err(PathProblem::Git)),
            ("a\0b", Err(PathProblem::NotAName)),
        ];
        for (path, expected) in cases {
            assert_eq!(relative(path), expected.map(PathBuf::from), "{path:?}");
        }
        assert_eq!(relative_file("dir/"), Err(PathProblem::NotAName));
        assert_eq!(relative_file("."), Err(PathProblem::NotAName));
    }

    proptest! {
        #[test]
        fn never_leave(path in "[a./\\-]{0,30}") {
            if let Ok(relative) = relative(&path) {
                prop_assert!(relative.components().all(|component| matches!(component, Component::Normal(_))));
                prop_assert!(Path::new("/root").join(&relative).starts_with("/root"));
            }
        }
    }
}
