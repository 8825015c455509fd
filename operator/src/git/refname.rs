//! Names of refs: which are valid, what a short one can mean, and which others look like it.

use kiln_registry::text::plain_text;

/// What `spec.source.git.ref` asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// A full commit id, in lower case.
    Commit(String),
    /// The first of these full names that exists.
    Ref(Vec<String>),
}

/// Reads a ref; an error says what is wrong with it.
///
/// The order is that of git's rev-parse (<https://git-scm.com/docs/gitrevisions>): a name is taken as it stands below
/// `refs/`, then as a tag, then as a branch. A name that begins with `refs/` is taken as it stands alone.
pub(super) fn wanted(reference: Option<&str>) -> Result<Wanted, &'static str> {
    let Some(name) = reference.filter(|name| *name != "HEAD") else {
        return Ok(Wanted::Ref(vec!["HEAD".into()]));
    };
    if is_commit_id(name) {
        return Ok(Wanted::Commit(name.to_ascii_lowercase()));
    }
    check(name)?;
    Ok(Wanted::Ref(if name.starts_with("refs/") {
        vec![name.to_owned()]
    } else {
        vec![format!("refs/{name}"), format!("refs/tags/{name}"), format!("refs/heads/{name}")]
    }))
}

/// Whether `text` is a whole SHA-1 or SHA-256 object id.
pub(super) fn is_commit_id(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// The rules of `git check-ref-format`.
pub(super) fn check(name: &str) -> Result<(), &'static str> {
    if name.is_empty() || name.len() > 1024 {
        Err("it is empty or too long")
    } else if name.starts_with('-') {
        Err("it begins with '-'")
    } else if name.chars().any(|c| c.is_control() || c.is_whitespace() || "~^:?*[\\".contains(c)) {
        Err("it holds spaces, control characters or one of ~ ^ : ? * [ \\")
    } else if name.contains("..") || name.contains("@{") || name == "@" || name.ends_with('.') {
        Err("it holds \"..\" or \"@{\", is \"@\", or ends with a dot")
    } else if name
        .split('/')
        .any(|part| part.is_empty() || part.starts_with('.') || part.strip_suffix(".lock").is_some())
    {
        Err("a part of it between slashes is empty, begins with a dot or ends with .lock")
    } else {
        Ok(())
    }
}

/// Up to three of the branches among `refs` (full names), as short names.
pub(super) fn branches<'a>(refs: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut names: Vec<&str> = refs.filter_map(|name| name.strip_prefix("refs/heads/")).collect();
    names.sort_unstable();
    names.truncate(3);
    names.into_iter().map(|name| plain_text(name, 100)).collect()
}

/// Up to three of `refs` (full names) that look like `wanted`, as short names, the most alike first.
pub(super) fn similar<'a>(wanted: &str, refs: impl Iterator<Item = &'a str>) -> Vec<String> {
    let short = |name: &'a str| name.strip_prefix("refs/heads/").or_else(|| name.strip_prefix("refs/tags/"));
    let target =
        wanted.rsplit_once("refs/heads/").or_else(|| wanted.rsplit_once("refs/tags/")).map_or(wanted, |(_, s)| s);
    let lower = target.to_lowercase();
    let mut found: Vec<(usize, &str)> = refs
        .filter_map(short)
        .filter_map(|name| {
            let other = name.to_lowercase();
            let last_part = other.rsplit('/').next() == Some(lower.as_str());
            // main for master is the mistake of our time.
            let renamed = matches!((lower.as_str(), other.as_str()), ("main", "master") | ("master", "main"));
            let away = if last_part || renamed { 1 } else { distance(&lower, &other) };
            (away <= lower.chars().count().div_ceil(3).min(3)).then_some((away, name))
        })
        .collect();
    found.sort_unstable();
    found.dedup();
    found.into_iter().take(3).map(|(_, name)| name.to_owned()).collect()
}

/// Levenshtein's distance; what is much longer or shorter is just far away.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    if a.len().abs_diff(b.len()) > 3 || a.len() > 100 {
        return usize::MAX;
    }
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = i;
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn order_is_git_s() {
        let refs = |names: &[&str]| Ok(Wanted::Ref(names.iter().map(|n| (*n).to_owned()).collect()));
        assert_eq!(wanted(None), refs(&["HEAD"]));
        assert_eq!(wanted(Some("HEAD")), refs(&["HEAD"]));
        assert_eq!(wanted(Some("v1")), refs(&["refs/v1", "refs/tags/v1", "refs/heads/v1"]));
        assert_eq!(wanted(Some("refs/pull/1/head")), refs(&["refs/pull/1/head"]));
        let sha = "ABCDEF0123456789abcdef0123456789abcdef01";
        assert_eq!(wanted(Some(sha)), Ok(Wanted::Commit(sha.to_lowercase())));
        assert_eq!(wanted(Some("abcdef0")), refs(&["refs/abcdef0", "refs/tags/abcdef0", "refs/heads/abcdef0"]));
    }

    #[test]
    fn refused() {
        for name in [
            "", "-x", "a b", "a..b", "a~1", "a^", "a:b", "a/", "/a", "a//b", ".a", "a.lock", "a/.b", "@", "a@{1}",
            "a\n", "a\\b", "a.", "x*",
        ] {
            assert!(wanted(Some(name)).is_err(), "{name:?}");
        }
    }

    #[test]
    fn hints() {
        let refs =
            ["refs/heads/main", "refs/heads/feature/login", "refs/tags/v1.0.0", "refs/tags/v1.0.1", "refs/pull/9/head"];
        for (name, expected) in [
            ("mian", vec!["main"]),
            ("Main", vec!["main"]),
            ("master", vec!["main"]),
            ("refs/heads/mainn", vec!["main"]),
            ("login", vec!["feature/login"]),
            ("v1.0.2", vec!["v1.0.0", "v1.0.1"]),
            ("something-else", vec![]),
        ] {
            assert_eq!(similar(name, refs.into_iter()), expected, "{name}");
        }
    }

    proptest! {
        #[test]
        fn distance_is_a_metric_where_near(a in "[ab]{0,4}", b in "[ab]{0,4}") {
            prop_assert_eq!(distance(&a, &b), distance(&b, &a));
            prop_assert_eq!(distance(&a, &b) == 0, a == b);
        }

        #[test]
        fn never_panics(name in "\\PC{0,30}", other in "\\PC{0,30}") {
            let _ = wanted(Some(&name));
            let full = format!("refs/heads/{other}");
            similar(&name, std::iter::once(full.as_str()));
        }
    }
}
