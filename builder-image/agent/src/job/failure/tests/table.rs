//! The table of failures: each case of `testdata/failures` with the reason that its user is told.
//!
//! Most are recorded: `tests/failures/record` makes them again. The others have the words of a public report, with other names,
//! and around them what the recorded ones have in such a place: step, line, code.

use std::{collections::HashMap, fmt::Write as _, fs, path::Path, rc::Rc};

use kiln_agent_proto::failure::Class;
use serde::Deserialize;

use super::{
    super::super::{ending::Ending, line_ends, mask::Masker, progress::Progress, scripts, source::ContextContent},
    *,
};

const DIRECTORY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/job/testdata/failures");
/// Where a case is from that `tests/failures/record` makes again.
const RECORDED: &str = "kiln-build";

/// What is known of a case beside its output.
#[derive(Clone, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Job {
    from: String,
    filename: String,
    platform: String,
    image: String,
    args: HashMap<String, String>,
    files: HashMap<String, String>,
    options: HashMap<String, String>,
    logins: HashMap<String, String>,
    no_network: bool,
    /// The volume's size in MiB; 0: it is large.
    disk: u32,
}

impl Default for Job {
    fn default() -> Self {
        Self {
            from: String::new(),
            filename: "Dockerfile".to_owned(),
            platform: "linux/amd64".to_owned(),
            image: "registry.zzhost.example/zzteam/zzapp".to_owned(),
            args: HashMap::new(),
            files: HashMap::new(),
            options: HashMap::new(),
            logins: HashMap::new(),
            no_network: false,
            disk: 0,
        }
    }
}

#[derive(Clone)]
struct Case {
    name: String,
    job: Job,
    dockerfile: String,
    failed: Failed,
    step: Option<FailedStep>,
    contexts: Vec<NamedContext>,
    logins: Vec<Login>,
    /// A directory with the files.
    source: Rc<tempfile::TempDir>,
}

impl Job {
    fn contexts(&self) -> Vec<NamedContext> {
        let context = |(option, place): (&String, &String)| {
            let content = match place.strip_prefix("docker-image://") {
                Some(image) => ContextContent::Image(image.to_owned()),
                None => ContextContent::Directory(place.into()),
            };
            Some(NamedContext { name: option.strip_prefix("context:")?.to_owned(), content })
        };
        self.options.iter().filter_map(context).collect()
    }

    fn logins(&self) -> Vec<Login> {
        let named_by = "the Secret zzteam/zzlogin, which pullSecretRefs names";
        let login =
            |registry: &String| Login { registry: registry.clone(), named_by: named_by.to_owned(), ..Login::default() };
        self.logins.keys().map(login).collect()
    }
}

impl Case {
    fn read(path: &Path) -> Self {
        let text = |file: &str| fs::read_to_string(path.join(file)).unwrap();
        let masker = Masker::default();
        let mut progress = Progress::new(&masker);
        for line in text("output").lines() {
            progress.line(line.as_bytes());
        }
        let Some(Ending::Failed(failed)) = progress.ending() else { panic!("{} tells no failure", path.display()) };
        let job: Job = serde_json::from_str(&text("case.json")).unwrap();
        let source = tempfile::tempdir().unwrap();
        for (name, content) in &job.files {
            let file = source.path().join(name);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, content).unwrap();
        }
        Self {
            contexts: job.contexts(),
            logins: job.logins(),
            source: Rc::new(source),
            name: path.file_name().unwrap().to_string_lossy().into_owned(),
            job,
            dockerfile: text("Dockerfile"),
            failed: (**failed).clone(),
            step: progress.failed_step(failed),
        }
    }

    fn all() -> Vec<Self> {
        let mut all: Vec<_> =
            fs::read_dir(DIRECTORY).unwrap().map(|entry| Self::read(&entry.unwrap().path())).collect();
        all.sort_by(|one, other| one.name.cmp(&other.name));
        all
    }

    fn explain(&self) -> JobFailure {
        let (job, step, context) = (&self.job, self.step.as_ref(), self.source.path());
        let windows = step.and_then(|step| line_ends::guilty(&self.failed, step, context, &self.dockerfile));
        let interpreter = step.and_then(not_started).and_then(|program| scripts::interpreter(context, program));
        let build = Circumstances {
            windows_lines: windows.as_deref(),
            interpreter: interpreter.as_deref(),
            contexts: &self.contexts,
            logins: &self.logins,
            largest_id: Some(65_534),
            shortage: Shortage { killed: Some(false), alone: true, first: true },
            dockerfile: &job.filename,
            platform: &job.platform,
            repository: &job.image,
            arguments: Some(&job.args),
            no_network: job.no_network,
            volume_full: job.disk > 0,
            content: Some(&self.dockerfile),
        };
        explain(&self.failed, step, build)
    }

    /// With `other` in the place of the strings that are the user's: of one, or of all.
    fn with(&self, other: &Nasty, only: Option<&str>) -> Self {
        let put = |text: &mut String| *text = other.put_into(text, only);
        let mut case = self.clone();
        put(&mut case.dockerfile);
        put(&mut case.failed.message);
        if let Some(operation) = &mut case.failed.operation {
            put(&mut operation.identifier);
        }
        for place in &mut case.failed.sources {
            put(&mut place.file);
        }
        if let Some(step) = &mut case.step {
            put(&mut step.name);
            put(&mut step.error);
            step.tail.iter_mut().for_each(put);
        }
        put(&mut case.job.filename);
        put(&mut case.job.image);
        case.job.args = self.job.args.iter().map(|(name, value)| (other.put_into(name, only), value.clone())).collect();
        case
    }
}

fn whose(class: Class) -> &'static str {
    match class {
        Class::Infrastructure => "tried again",
        Class::Credential => "follows its Secret",
        Class::User | Class::Timeout | Class::Cancelled | Class::Unspecified => "final",
    }
}

#[test]
fn every_failure_of_the_table() {
    let mut all = String::new();
    for case in Case::all() {
        let failure = case.explain();
        writeln!(all, "{}: {}, {}", case.name, failure.reason, whose(failure.reason.class())).unwrap();
        writeln!(all, "  {}", failure.message.trim_end().replace(['\n', '\r'], "⏎")).unwrap();
        let told = [
            failure.step.as_str(),
            &failure.exit_code.map(|code| format!("exit code {code}")).unwrap_or_default(),
            failure.log_tail.last().map_or("", String::as_str),
        ];
        let told: Vec<_> = told.into_iter().filter(|told| !told.is_empty()).collect();
        if !told.is_empty() {
            writeln!(all, "  [{}]", told.join(" | ").replace(['\n', '\r'], "⏎")).unwrap();
        }
    }
    insta::assert_snapshot!(all);
}

/// What was recorded holds for one version of BuildKit: with another one, it is recorded again.
#[test]
fn recorded_from_the_version_that_builds() {
    #[derive(Deserialize)]
    struct Recorded {
        buildkit: String,
        exit: i32,
    }
    let module = include_str!("../../../../../build/go.mod");
    let mut recorded = 0;
    for case in Case::all() {
        let path = Path::new(DIRECTORY).join(&case.name);
        if case.job.from != RECORDED {
            assert!(case.job.from.starts_with("https://"), "{} tells no address of its report", case.name);
            continue;
        }
        let Recorded { buildkit, exit } =
            serde_json::from_str(&fs::read_to_string(path.join("recorded.json")).unwrap()).unwrap();
        assert!(module.contains(&format!("github.com/moby/buildkit v{buildkit} ")), "{}: {buildkit}", case.name);
        assert_eq!(exit, 0, "{}: kiln-build did not tell how it ended", case.name);
        recorded += 1;
    }
    assert!(recorded >= 90, "{recorded}");
}

/// Words that mean something where the tools say them.
struct Nasty {
    text: &'static str,
    /// As the name of an image, a stage, a host, an argument: without white space and punctuation.
    name: String,
    /// As Go quotes it.
    quoted: String,
}

const NASTY: [&str; 40] = [
    "404",
    "401 Unauthorized",
    "403 Forbidden",
    "503 Service Unavailable",
    "denied: ",
    "pull access denied",
    "unauthorized: authentication required",
    "insufficient_scope: authorization failed",
    "secret",
    "secret x: not found",
    "my secret file.txt",
    "not found",
    "a: not found",
    "no such host",
    ": no such file or directory",
    "connection refused",
    "connection reset by peer",
    "i/o timeout",
    "context deadline exceeded",
    "unexpected EOF",
    "dial tcp: EOF",
    "x509: certificate signed by unknown authority",
    "tls: failed to verify certificate",
    "no space left",
    "x: no space left on device",
    "disk quota exceeded",
    "failed to push x: unknown: quota exceeded",
    "failed to copy",
    "failed to authorize: ",
    "failed to resolve source metadata for x: ",
    "context canceled",
    "toomanyrequests: x",
    "manifest invalid",
    "blob unknown",
    "security.insecure is not allowed",
    "should not be blank",
    "invalid reference format",
    "lint violation found for rules: X",
    "dockerfile parse error on line 7: x",
    "\" did not complete successfully: exit code: 137",
];

impl Nasty {
    fn new(text: &'static str) -> Self {
        let name = text.chars().map(|char| if char.is_ascii_alphanumeric() { char.to_ascii_lowercase() } else { '-' });
        let name: String = name.collect();
        let quoted = text.replace('\\', "\\\\").replace('"', "\\\"");
        Self { text, name: name.trim_matches('-').to_owned(), quoted }
    }

    /// In the place of each word that begins with `zz`, as all that users choose in the cases: what begins with `zzfile` or
    /// `zztext` may be anything, all else is a name.
    fn put_into(&self, text: &str, only: Option<&str>) -> String {
        if !words(text).any(|word| only.is_none_or(|only| only == word)) {
            return text.to_owned();
        }
        let (mut out, mut rest, mut in_quotes) = (String::new(), text, false);
        while let Some(at) = rest.to_ascii_lowercase().find("zz") {
            let (before, found) = rest.split_at(at);
            let end = found.find(|char: char| !char.is_ascii_alphanumeric()).unwrap_or(found.len());
            let (word, behind) = found.split_at(end);
            out.push_str(before);
            let quotes = before.matches('"').count() - before.matches("\\\"").count();
            in_quotes ^= quotes % 2 == 1;
            let anything = word.starts_with("zzfile") || word.starts_with("zztext");
            out.push_str(match anything {
                _ if only.is_some_and(|only| only != word) => word,
                true if in_quotes => &self.quoted,
                true => self.text,
                false => &self.name,
            });
            rest = behind;
        }
        out.push_str(rest);
        out
    }
}

/// The words of the user's in a text: what begins with `zz`.
fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|char: char| !char.is_ascii_alphanumeric()).filter(|word| word.to_ascii_lowercase().starts_with("zz"))
}

/// The reason stays, whatever its user calls things.
#[test]
fn what_the_user_calls_things_means_nothing() {
    let nasties = NASTY.map(Nasty::new);
    let mut wrong = String::new();
    let mut replaced = 0;
    for case in Case::all() {
        let expected = case.explain().reason;
        let mut names: Vec<_> = words(&case.failed.message).chain(words(&case.dockerfile)).map(Some).collect();
        names.sort_unstable();
        names.dedup();
        names.push(None);
        for (nasty, only) in nasties.iter().flat_map(|nasty| names.iter().map(move |only| (nasty, *only))) {
            let other = case.with(nasty, only);
            replaced += usize::from(other.failed.message != case.failed.message);
            let reason = other.explain().reason;
            if reason != expected {
                writeln!(wrong, "{}, {only:?} as {:?}: {reason}, not {expected}", case.name, nasty.text).unwrap();
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
    assert!(replaced > 5000, "{replaced} messages had a string of the user's");
}
