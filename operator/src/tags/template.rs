//! Templates of tags and of archives' paths, and the names that platforms have in them; pure.

use k8s_openapi::jiff::Timestamp;
use kiln_crds::ImageBuildRun;
use kube::ResourceExt;
use regex::Regex;

use crate::reason::Reason;
use crate::references::Fault;
use kiln_registry::Tag;

/// What a tag may speak of.
#[derive(Clone, Copy, Debug)]
pub struct Values<'a> {
    /// The full ref, such as `refs/heads/main`.
    pub reference: Option<&'a str>,
    /// The commit.
    pub commit: Option<&'a str>,
    /// When the run was made: the same for every try.
    pub created: Timestamp,
    /// The run's number.
    pub number: u64,
}

impl<'a> Values<'a> {
    /// Those of a run.
    #[must_use]
    pub fn of(run: &'a ImageBuildRun) -> Self {
        Self {
            reference: run.spec.reference.as_deref(),
            commit: run.spec.commit.as_deref(),
            created: run.creation_timestamp().map_or_else(Timestamp::now, |time| time.0),
            number: run.spec.number,
        }
    }
}

/// The path of the tarball that a run writes.
pub fn path(template: &str, values: Values<'_>) -> Result<String, Fault> {
    fill("archive.path", template, values)
}

/// The path of one platform's tarball: `app.tar` becomes `app-linux-arm64.tar` where there are `several` platforms.
#[must_use]
pub fn of_platform(path: &str, platform: &str, several: bool) -> String {
    if !several {
        return path.to_owned();
    }
    let stem = path.strip_suffix(".tar").unwrap_or(path);
    format!("{stem}-{}.tar", word(platform))
}

/// A tag with the platform's name behind it: `cache` becomes `cache-linux-arm64`.
#[must_use]
pub fn with_platform(tag: &Tag, platform: &str) -> Tag {
    let platform = word(platform);
    let room = 127_usize.saturating_sub(platform.len());
    let stem: String = tag.as_str().chars().take(room).collect();
    format!("{stem}-{platform}").parse().unwrap_or_else(|_| tag.clone())
}

/// A platform's name as a word of a tag or a path.
fn word(platform: &str) -> String {
    let word: String = platform.chars().map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' }).collect();
    word.replace("--", "-")
}

/// The templates that are meant: `latest` where none is written.
pub fn meant(templates: &[String]) -> impl Iterator<Item = &str> {
    let latest = templates.is_empty().then_some("latest");
    templates.iter().map(String::as_str).chain(latest)
}

/// The tags of a run.
pub fn render(templates: &[String], values: Values<'_>) -> Result<Vec<Tag>, Fault> {
    let mut tags: Vec<Tag> = Vec::new();
    for template in meant(templates) {
        let text = fill("tags", template, values)?;
        let tag: Tag = text.parse().map_err(|error| {
            Fault::user(Reason::RepositoryInvalid, format!("tags: {template:?} gives {text:?}: {error}"))
        })?;
        if !tags.contains(&tag) {
            tags.push(tag);
        }
    }
    Ok(tags)
}

/// A part of a template.
enum Part<'a> {
    Text(&'a str),
    /// What stands between braces.
    Name(&'a str),
}

fn parts(template: &str) -> Vec<Part<'_>> {
    let mut parts = Vec::new();
    let mut rest = template;
    while let Some((before, after)) = rest.split_once("{{") {
        let Some((name, after)) = after.split_once("}}") else { break };
        parts.extend([Part::Text(before), Part::Name(name.trim())]);
        rest = after;
    }
    parts.push(Part::Text(rest));
    parts
}

fn fill(field: &str, template: &str, values: Values<'_>) -> Result<String, Fault> {
    let mut text = String::new();
    for part in parts(template) {
        match part {
            Part::Text(written) => text.push_str(written),
            Part::Name(name) => text.push_str(&value(name, field, template, values)?),
        }
    }
    Ok(text)
}

/// How an ImageBuild comes to a tag.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Gives {
    /// It is written so.
    Literally,
    /// A template can give it, with some value for what it names.
    Filled,
}

/// What a template can give.
pub enum Matcher<'a> {
    /// This tag alone.
    Literal(&'a str),
    /// What fits, with some value for what it names.
    Pattern(Regex),
    /// Nothing: it names what there is not.
    Nothing,
}

impl<'a> Matcher<'a> {
    /// That of a template.
    #[must_use]
    pub fn of(template: &'a str) -> Self {
        let parts = parts(template);
        if parts.iter().all(|part| matches!(part, Part::Text(_))) {
            return Self::Literal(template);
        }
        let mut pattern = r"\A".to_owned();
        for part in parts {
            match part {
                Part::Text(written) => pattern.push_str(&regex::escape(written)),
                Part::Name(name) => pattern.push_str(match name {
                    "branch" => "[A-Za-z0-9_.-]*",
                    "commit" => "[0-9a-f]{40,64}",
                    "shortCommit" => "[0-9a-f]{7}",
                    "timestamp" => "[0-9]{14}",
                    "run" => "[0-9]+",
                    _ => return Self::Nothing,
                }),
            }
        }
        pattern.push_str(r"\z");
        Regex::new(&pattern).map_or(Self::Nothing, Self::Pattern)
    }

    /// Whether it can give this tag, and how.
    #[must_use]
    pub fn gives(&self, tag: &str) -> Option<Gives> {
        match self {
            Self::Literal(written) => (*written == tag).then_some(Gives::Literally),
            Self::Pattern(pattern) => pattern.is_match(tag).then_some(Gives::Filled),
            Self::Nothing => None,
        }
    }
}

fn value(name: &str, field: &str, template: &str, values: Values<'_>) -> Result<String, Fault> {
    let missing = |what: &str| {
        let message = format!("{field}: {template:?} needs {what}, which this source has not: leave it out");
        Fault::user(Reason::RepositoryInvalid, message)
    };
    match name {
        "branch" => {
            let reference = values.reference.ok_or_else(|| missing("a branch"))?;
            let short = reference.strip_prefix("refs/heads/").or_else(|| reference.strip_prefix("refs/tags/"));
            Ok(as_tag(short.unwrap_or(reference)))
        }
        "commit" => Ok(values.commit.ok_or_else(|| missing("a commit"))?.to_owned()),
        "shortCommit" => Ok(values.commit.ok_or_else(|| missing("a commit"))?.chars().take(7).collect()),
        "timestamp" => Ok(values.created.strftime("%Y%m%d%H%M%S").to_string()),
        "run" => Ok(values.number.to_string()),
        other => {
            let message = format!(
                "{field}: {template:?} names {other:?}: write one of branch, commit, shortCommit, timestamp, run"
            );
            Err(Fault::user(Reason::RepositoryInvalid, message))
        }
    }
}

/// A branch's name as a tag: what a tag cannot hold becomes `-`.
fn as_tag(name: &str) -> String {
    let tag: String = name
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-') { c } else { '-' })
        .take(128)
        .collect();
    tag.trim_start_matches(['.', '-']).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    fn values() -> Values<'static> {
        Values {
            reference: Some("refs/heads/feature/Über"),
            commit: Some(COMMIT),
            created: Timestamp::from_second(1_700_000_000).unwrap(),
            number: 7,
        }
    }

    #[test]
    fn templates_are_filled() {
        for (template, expected) in [
            ("v1.2", "v1.2"),
            ("{{branch}}", "feature--ber"),
            ("{{ shortCommit }}-{{run}}", "0123456-7"),
            ("c-{{commit}}", "c-0123456789abcdef0123456789abcdef01234567"),
            ("t{{timestamp}}", "t20231114221320"),
        ] {
            let tags = render(&[template.to_owned()], values()).unwrap();
            assert_eq!(tags[0].as_str(), expected);
        }
    }

    #[test]
    fn no_tags_mean_latest_and_doubles_are_dropped() {
        assert_eq!(render(&[], values()).unwrap()[0].as_str(), "latest");
        assert_eq!(render(&["7".into(), "{{run}}".into()], values()).unwrap().len(), 1);
    }

    #[test]
    fn what_an_inline_source_has_not_is_a_fault() {
        let inline = Values { reference: None, commit: None, ..values() };
        for template in ["{{branch}}", "{{commit}}", "{{other}}"] {
            assert_eq!(render(&[template.into()], inline).unwrap_err().reason, Reason::RepositoryInvalid);
        }
    }

    #[test]
    fn platforms_have_names_of_their_own() {
        for (path, platform, several, expected) in [
            ("app.tar", "linux/arm64", false, "app.tar"),
            ("app.tar", "linux/arm64", true, "app-linux-arm64.tar"),
            ("a/b.tar", "linux/arm/v7", true, "a/b-linux-arm-v7.tar"),
            ("a.tar", "windows(10.0.20348)/amd64", true, "a-windows-10.0.20348-amd64.tar"),
        ] {
            assert_eq!(of_platform(path, platform, several), expected);
        }
        let tag = |text: &str| text.parse::<Tag>().unwrap();
        assert_eq!(with_platform(&tag("cache"), "linux/arm64").as_str(), "cache-linux-arm64");
        let long = with_platform(&tag(&"a".repeat(128)), "linux/arm64");
        assert!(long.as_str().len() == 128 && long.as_str().ends_with("a-linux-arm64"));
    }

    #[test]
    fn what_a_template_can_give() {
        let any = "0".repeat(40);
        for (template, tag, expected) in [
            ("stable", "stable", Some(Gives::Literally)),
            ("stable", "unstable", None),
            ("1.0", "1x0", None),
            ("{{branch}}", "stable", Some(Gives::Filled)),
            ("{{ branch }}-{{run}}", "a-b-7", Some(Gives::Filled)),
            ("{{branch}}-{{run}}", "a-b", None),
            ("{{commit}}", any.as_str(), Some(Gives::Filled)),
            ("{{shortCommit}}", "0123456", Some(Gives::Filled)),
            ("{{shortCommit}}", "main", None),
            ("v{{timestamp}}", "v20231114221320", Some(Gives::Filled)),
            ("{{other}}", "x", None),
        ] {
            assert_eq!(Matcher::of(template).gives(tag), expected, "{template} {tag}");
        }
    }

    proptest! {
        #[test]
        fn a_template_can_give_what_it_gave(
            template in "[a-z.]{0,5}(\\{\\{ ?(branch|commit|shortCommit|timestamp|run) ?\\}\\}[a-z.-]{0,5}){0,3}",
            branch in "[a-zA-Z0-9/._ü-]{1,20}",
            number in 1_u64..1_000_000,
        ) {
            let reference = format!("refs/heads/{branch}");
            let values = Values { reference: Some(&reference), number, ..values() };
            if let Ok(tags) = render(std::slice::from_ref(&template), values) {
                prop_assert!(Matcher::of(&template).gives(tags[0].as_str()).is_some(), "{} {}", template, tags[0]);
            }
        }

        #[test]
        fn any_branch_gives_a_tag_or_nothing(branch in "[^\\x00-\\x1f ]{1,200}") {
            let tag = as_tag(&branch);
            prop_assert!(tag.is_empty() || tag.parse::<Tag>().is_ok(), "{}", tag);
        }
    }
}
