//! Failures as the pinned version of buildctl told them, and such as no test registry makes.

use std::fmt::Write as _;

use proptest::prelude::*;

use super::{
    super::{mask::Masker, progress::Progress},
    *,
};

const BUILD: Circumstances<'_> = Circumstances {
    dockerfile: "Dockerfile",
    platform: "linux/amd64",
    repository: "registry.example/team/app",
    arguments: None,
    no_network: false,
    volume_full: false,
    content: None,
};

fn explain_captured(captured: &str) -> JobFailure {
    let masker = Masker::default();
    let mut progress = Progress::new(&masker);
    for line in captured.lines() {
        progress.line(line.as_bytes());
    }
    explain(progress.text(), progress.failed_step().as_ref(), BUILD)
}

#[test]
fn every_captured_failure() {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/src/job/testdata/failures");
    let mut paths: Vec<_> = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let mut all = String::new();
    for path in paths {
        let failure = explain_captured(&std::fs::read_to_string(&path).unwrap());
        writeln!(all, "{}:\n{failure:#?}\n", path.file_stem().unwrap().to_string_lossy()).unwrap();
    }
    insta::assert_snapshot!(all);
}

#[test]
fn answers_that_no_test_registry_gives() {
    let cases = [
        (
            "failed to push r.io/x: unexpected status from PUT request to https://r.io/v2/x/blobs/uploads/1: 503 Service Unavailable",
            Reason::RegistryUnavailable,
        ),
        (
            "failed to push r.io/x: errors:\nunknown: provided digest did not match uploaded content\nunknown: blob unknown to registry - sha256:583522de0e23385bb5e9d8e1b002ec537be5a890d9ef6e99fc67a8641e7d00f6\n",
            Reason::RegistryUnavailable,
        ),
        ("failed to push r.io/x: server message: insufficient_scope: authorization failed", Reason::PushDenied),
        (
            "failed to push r.io/x: name unknown: The repository with name 'x' does not exist",
            Reason::RepositoryNotFound,
        ),
        (
            "x: failed to resolve source metadata for docker.io/library/x:latest: unexpected status from HEAD request to https://registry-1.docker.io/v2/: 429 Too Many Requests",
            Reason::RegistryUnavailable,
        ),
        (
            "x: failed to resolve source metadata for docker.io/library/x:latest: pull access denied, repository does not exist or may require authorization: server message: insufficient_scope: authorization failed",
            Reason::RegistryUnauthorized,
        ),
        (
            "x: failed to resolve source metadata for r.io/x:1: failed to do request: Head \"https://r.io/v2/x/manifests/1\": net/http: TLS handshake timeout",
            Reason::RegistryUnavailable,
        ),
        (
            "failed to copy: read tcp 10.0.0.1:1->10.0.0.2:443: read: connection reset by peer",
            Reason::RegistryUnavailable,
        ),
        ("write /var/lib/kiln/buildkit/root/x: no space left on device", Reason::NoSpaceLeft),
        ("process \"/bin/sh -c make\" did not complete successfully: exit code: 137", Reason::OutOfMemory),
        ("Unavailable: error reading from server: EOF", Reason::BuildkitUnavailable),
        ("something nobody has seen", Reason::BuildFailed),
    ];
    for (error, expected) in cases {
        assert_eq!(explain(&format!("error: failed to solve: {error}\n"), None, BUILD).reason, expected, "{error}");
    }
}

#[test]
fn a_full_volume_is_not_the_users_matter() {
    let step = FailedStep {
        name: "[2/2] RUN cp".to_owned(),
        error: String::new(),
        tail: vec!["cp: No space left on device".to_owned()],
    };
    let text = "error: failed to solve: process \"cp\" did not complete successfully: exit code: 1";
    assert_eq!(explain(text, Some(&step), BUILD).reason, Reason::StepFailed);
    assert_eq!(explain(text, Some(&step), Circumstances { volume_full: true, ..BUILD }).reason, Reason::NoSpaceLeft);
}

#[test]
fn an_argument_without_value_is_named() {
    let text = "Dockerfile:2\n--------------------\n   2 | >>> FROM a/${NAME}:$TAG\n--------------------\nerror: failed to solve: failed to parse stage name \"a/x:\": invalid reference format\n";
    let arguments = [("NAME".to_owned(), "x".to_owned())].into();
    for (content, words) in [
        ("ARG NAME\nFROM a/${NAME}:$TAG\n", "TAG has no value"),
        ("ARG NAME TAG=1\nFROM a/${NAME}:$TAG\n", "is neither a stage above nor the name of an image"),
    ] {
        let build = Circumstances { content: Some(content), arguments: Some(&arguments), ..BUILD };
        let failure = explain(text, None, build);
        assert!(failure.message.contains(words), "{failure:?}");
    }
}

#[test]
fn the_platform_that_a_base_image_lacks() {
    let text = "Dockerfile:1\n--------------------\n   1 | >>> FROM x\n--------------------\nerror: failed to solve: busybox: failed to resolve source metadata for docker.io/library/busybox:latest: no match for platform in manifest: not found\n";
    for (content, words) in [
        ("FROM --platform=linux/mips64le busybox\n", "is not there for linux/mips64le, which FROM asks for"),
        ("FROM --platform=$TARGETPLATFORM busybox\n", "is not there for linux/amd64;"),
        ("FROM busybox\n", "is not there for linux/amd64;"),
    ] {
        let failure = explain(text, None, Circumstances { content: Some(content), ..BUILD });
        assert!(failure.message.contains(words), "{failure:?}");
    }
}

#[test]
fn a_step_without_network() {
    let text = "error: failed to solve: process \"x\" did not complete successfully: exit code: 6";
    for (line, reason) in [
        ("curl: (6) Could not resolve host: example.com", Reason::StepNoNetwork),
        (
            "W: Failed to fetch http://deb.debian.org/x  Temporary failure resolving 'deb.debian.org'",
            Reason::StepNoNetwork,
        ),
        ("wget: bad address 'example.com'", Reason::StepNoNetwork),
        ("npm error code EAI_AGAIN", Reason::StepNoNetwork),
        (
            "npm error network request to https://registry.npmjs.org/x failed, reason: getaddrinfo ENOTFOUND registry.npmjs.org",
            Reason::StepNoNetwork,
        ),
        (
            "go: x: Get \"https://proxy.golang.org/x\": dial tcp: lookup proxy.golang.org on 10.0.0.10:53: no such host",
            Reason::StepNoNetwork,
        ),
        (
            "NewConnectionError('<pip._vendor.urllib3…>: Failed to establish a new connection: [Errno -3] Temporary failure in name resolution')",
            Reason::StepNoNetwork,
        ),
        ("wget: can't connect to remote host (10.0.0.1): Network is unreachable", Reason::StepNoNetwork),
        ("java.net.UnknownHostException: repo.maven.apache.org", Reason::StepNoNetwork),
        ("make: *** [all] Error 6", Reason::StepFailed),
    ] {
        let step = FailedStep { name: "[2/2] RUN x".to_owned(), error: String::new(), tail: vec![line.to_owned()] };
        let failure = explain(text, Some(&step), BUILD);
        assert_eq!(failure.reason, reason, "{line}");
        let failure = explain(text, Some(&step), Circumstances { no_network: true, ..BUILD });
        assert_eq!(failure.message.contains("spec.network"), reason == Reason::StepNoNetwork, "{failure:?}");
    }
}

proptest! {
    #[test]
    fn any_text_is_explained(text in any::<String>()) {
        prop_assert!(!explain(&text, None, BUILD).message.is_empty());
    }
}
