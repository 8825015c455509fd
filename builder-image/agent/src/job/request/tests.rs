//! The whole request, by snapshot, and what no program can be given.

use kiln_agent_proto::{Cache, Host, Output};

use super::*;

fn request(spec: &Spec, text: &str, commit_time: Option<i64>) -> Result<Value, JobFailure> {
    let beside = |name: &str, content| NamedContext { name: name.to_owned(), content };
    let source = Source { commit_time, ..Source::new("/work/job/source/app".into(), String::new()) };
    let contexts = vec![
        beside("base", ContextContent::Image("r/x@sha256:a".to_owned())),
        beside("a=b", ContextContent::Directory("/work/job/context-1".into())),
    ];
    let source = Source { dockerfile: "docker/Dockerfile.prod".into(), contexts, ..source };
    let wanted = Wanted {
        spec,
        source: &source,
        dockerfile: &Dockerfile::read(text),
        memory: Path::new("/memory/job"),
        policy: &serde_json::json!({"version": 1}),
        archive: spec.archive_path.strip_prefix("archive").map(|_| Path::new("/archives/x.part")),
    };
    wanted.request().map(|request| serde_json::to_value(request).unwrap())
}

fn shown(value: &Value) -> String {
    serde_json::to_string_pretty(value).unwrap()
}

fn map(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn texts(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

#[test]
fn a_rich_build() {
    let spec = Spec {
        platform: "linux/arm64".to_owned(),
        target: "run".to_owned(),
        build_args: map(&[("VERSION", "1,2 \"x\""), ("A", "b=c")]),
        labels: map(&[("org.example", "x")]),
        default_labels: map(&[
            ("org.example", "not taken"),
            ("org.example.set", "by the Dockerfile"),
            ("org.opencontainers.image.created", ""),
            ("org.opencontainers.image.revision", "1234"),
        ]),
        annotations: map(&[("org.opencontainers.image.title", "a, \"b\"")]),
        no_cache_stages: texts(&["build", "test"]),
        secrets: [("tok,en".to_owned(), b"hunter22".to_vec())].into(),
        ssh: [("default".to_owned(), b"key".to_vec()), ("a".to_owned(), b"key".to_vec())].into(),
        ulimits: texts(&["nofile=1024:2048", "core=-1"]),
        shm_bytes: 128 << 20,
        hosts: vec![
            Host { ip: "10.0.0.7".to_owned(), names: texts(&["a.example", "b"]) },
            Host { ip: "fd00::1".to_owned(), names: texts(&["c"]) },
        ],
        no_network: true,
        fail_on_warnings: true,
        output: Some(Output {
            compression: "zstd".to_owned(),
            compression_level: Some(3),
            force_compression: true,
            rewrite_timestamp: true,
            docker_media_types: false,
        }),
        cache: Some(Cache {
            from: texts(&["registry/app:cache-linux-arm64", "registry/base@sha256:1"]),
            to: "registry/app:cache-linux-arm64".to_owned(),
            max: true,
            inline: true,
        }),
        repository: "registry.example:5000/team/app".to_owned(),
        ..Spec::default()
    };
    insta::assert_snapshot!(shown(&request(&spec, "FROM x\nLABEL org.example.set=1\n", Some(1_700_000_000)).unwrap()));
}

#[test]
fn a_build_without_push() {
    let spec = Spec { platform: "linux/amd64".to_owned(), allow_frontends: true, no_cache: true, ..Spec::default() };
    insta::assert_snapshot!(shown(&request(&spec, "", None).unwrap()));
}

#[test]
fn an_archive() {
    let output = Some(Output { docker_media_types: true, ..Output::default() });
    let spec = Spec { archive_path: "archive.tar".to_owned(), output, ..Spec::default() };
    insta::assert_snapshot!(shown(&request(&spec, "", None).unwrap()["output"]));
}

#[test]
fn the_time_of_the_image() {
    let with = |value: Option<&str>| Spec {
        build_args: value.map(|value| map(&[("SOURCE_DATE_EPOCH", value)])).unwrap_or_default(),
        ..Spec::default()
    };
    let cases = [
        // The commit's, without a change of what the cache goes by.
        (None, "FROM x", Some(7), (None, Some("7"))),
        (None, "FROM x\nARG SOURCE_DATE_EPOCH", Some(7), (Some("7"), Some("7"))),
        (Some("9"), "FROM x", Some(7), (Some("9"), Some("9"))),
        (Some("9"), "FROM x", None, (Some("9"), Some("9"))),
        (Some(""), "FROM x\nARG SOURCE_DATE_EPOCH", Some(7), (None, None)),
        (None, "FROM x\nARG SOURCE_DATE_EPOCH", None, (None, None)),
    ];
    for (value, text, commit_time, (argument, output)) in cases {
        let request = request(&with(value), text, commit_time).unwrap();
        let given = request["options"]["build-arg:SOURCE_DATE_EPOCH"].as_str();
        let dated = request["output"]["attributes"]["source-date-epoch"].as_str();
        assert_eq!((given, dated), (argument, output), "{value:?} {text:?} {commit_time:?}");
    }
}

#[test]
fn lint_keeps_what_the_user_told_it() {
    let spec = Spec {
        build_args: map(&[("BUILDKIT_DOCKERFILE_CHECK", "skip=JSONArgsRecommended")]),
        fail_on_warnings: true,
        ..Spec::default()
    };
    let request = request(&spec, "", None).unwrap();
    assert_eq!(request["options"]["build-arg:BUILDKIT_DOCKERFILE_CHECK"], "skip=JSONArgsRecommended;error=true");
}

#[test]
fn refuses_what_no_program_can_be_given() {
    for spec in [
        Spec { build_args: map(&[("A", "a\0b")]), ..Spec::default() },
        Spec { target: "\0".to_owned(), ..Spec::default() },
        Spec { annotations: map(&[("a", "\0")]), ..Spec::default() },
        Spec { build_args: map(&[("a=b", "")]), ..Spec::default() },
    ] {
        assert_eq!(request(&spec, "", None).unwrap_err().reason, Reason::InvalidJob);
    }
}

#[test]
fn annotations_may_be_long_and_have_any_letters() {
    let long = "x".repeat(200_000);
    let spec = Spec { annotations: map(&[("org.example.Large", &long)]), ..Spec::default() };
    assert_eq!(request(&spec, "", None).unwrap()["output"]["attributes"]["annotation.org.example.Large"], long);
}
