//! Failures that no test server makes; what BuildKit was seen to say is in the table.

use proptest::prelude::*;

use super::{
    super::ending::{Lines, Place},
    *,
};

mod table;

pub(super) const BUILD: Circumstances<'_> = Circumstances {
    dockerfile: "Dockerfile",
    platform: "linux/amd64",
    repository: "registry.example/team/app",
    arguments: None,
    no_network: false,
    volume_full: false,
    shortage: Shortage { killed: Some(false), alone: true, first: true },
    largest_id: Some(65_534),
    content: None,
    windows_lines: None,
    interpreter: None,
    contexts: &[],
    logins: &[],
};

fn failed(message: &str) -> Failed {
    Failed { message: format!("failed to solve: {message}"), ..Failed::default() }
}

fn at_line(line: u32, message: &str) -> Failed {
    let place = Place { file: "Dockerfile".to_owned(), lines: vec![Lines { first: line, last: line }] };
    Failed { sources: vec![place], ..failed(message) }
}

#[test]
fn answers_that_no_test_registry_gives() {
    let cases = [
        (
            "failed to push r.io/404/denied: unexpected status from PUT request to https://r.io/v2/404/denied/manifests/sha256:404: 500 Internal Server Error",
            Reason::RegistryUnavailable,
        ),
        ("failed to push r.io/x: unavailable: service unavailable", Reason::RegistryUnavailable),
        (
            "failed to run Build function: failed to load cache key: Get \"https://r.io/x\": tls: failed to verify certificate: x509: unknown",
            Reason::DownloadCertificateUntrusted,
        ),
        ("failed to run Build function: secret token: not found", Reason::SecretIdNotFound),
        ("failed to push r.io/x: unknown: unknown error", Reason::RegistryUnavailable),
        (
            "failed to push r.io/x: denied: adding 29.0 MiB of storage resource, which when updated to current usage of 152.4 MiB will exceed the configured upper limit of 160.0 MiB.",
            Reason::QuotaExceeded,
        ),
        (
            "failed to push r.io/x: unexpected status from PUT request to https://r.io/v2/x/blobs/uploads/4?a=b: 413 Request Entity Too Large: <html>404 Not Found</html>",
            Reason::UploadTooLarge,
        ),
        (
            "failed to compute cache key: mount callback failed on /run/user/kiln/containerd-mount16: failed to Lchown \"/run/user/kiln/containerd-mount16/is not allowed/no space left on device\" for UID 1407182137, GID 1059092950: lchown /run/user/kiln/containerd-mount16/is not allowed/no space left: invalid argument (Hint: try increasing the number of subordinate IDs in /etc/subuid and /etc/subgid)",
            Reason::IdTooLarge,
        ),
        ("failed to push r.io/x: unknown: manifest invalid", Reason::MediaTypesUnsupported),
        (
            "failed to push r.io/x: unexpected status from PUT request to https://r.io/v2/x/manifests/sha256:1: 415 Unsupported Media Type",
            Reason::MediaTypesUnsupported,
        ),
        (
            "failed to compute cache key: failed to calculate checksum of ref a::b: \"/my secret file.txt\": not found",
            Reason::FileNotFound,
        ),
        (
            "failed to compute cache key: failed to calculate checksum of ref a::b: \"/no space left on device\": not found",
            Reason::FileNotFound,
        ),
        ("lstat /failed to push 503 Service: no such file or directory", Reason::FileNotFound),
        (
            "failed to push r.io/x: unexpected status from PUT request to https://r.io/v2/x/blobs/uploads/1: 503 Service Unavailable",
            Reason::RegistryUnavailable,
        ),
        (
            "failed to push r.io/x: errors:\nunknown: provided digest did not match uploaded content\nunknown: blob unknown to registry - sha256:583522de0e23385bb5e9d8e1b002ec537be5a890d9ef6e99fc67a8641e7d00f6\n",
            Reason::RegistryUnavailable,
        ),
        ("failed to push r.io/x: server message: insufficient_scope: authorization failed", Reason::PushDenied),
        ("failed to push r.io/x: unknown: The repository with name 'x' does not exist", Reason::RepositoryNotFound),
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
        ("something nobody has seen", Reason::BuildFailed),
    ];
    for (error, expected) in cases {
        assert_eq!(explain(&failed(error), None, BUILD).reason, expected, "{error}");
    }
    let full = Failed {
        code: "ResourceExhausted".to_owned(),
        ..failed("ResourceExhausted: write /var/lib/kiln/buildkit/root/x: no space left on device")
    };
    assert_eq!(explain(&full, None, BUILD).reason, Reason::NoSpaceLeft);
    let exit = |code| Failed { exit_code: Some(code), ..failed("process \"make\" did not complete successfully") };
    assert_eq!(explain(&exit(1), None, BUILD).reason, Reason::StepFailed);
}

/// A host, too, may be called what a sign is, and a base image as well as what is pushed.
#[test]
fn a_registry_s_words_hold_names() {
    let put = |host: &str, said: &str| {
        let manifest = format!("https://{host}/v2/team/app/manifests/sha256:1");
        format!("failed to push {host}/team/app: unexpected status from PUT request to {manifest}: {said}")
    };
    let get = |path: &str, said: &str| {
        let manifest = format!("https://r.example/v2/{path}/manifests/1");
        let resolving = format!("x: failed to resolve source metadata for r.example/{path}:1");
        format!("{resolving}: unexpected status from GET request to {manifest}: {said}")
    };
    for (error, expected) in [
        (put("registry.internal", "400 Bad Request: unknown: registry.internal/team/app is locked"), Reason::BuildFailed),
        (
            put("registry.internal:5000", "400 Bad Request: unknown: registry.internal:5000/team/app is locked"),
            Reason::BuildFailed,
        ),
        (put("quota.example:5000", "403 Forbidden: denied: no access to quota.example:5000/team/app"), Reason::PushDenied),
        (get("quota/base", "403 Forbidden: denied: no access to quota/base"), Reason::RegistryUnauthorized),
        (
            get("internal/base", "400 Bad Request: unknown: The repository 'internal/base' does not exist"),
            Reason::BaseImageNotFound,
        ),
        (
            "x: failed to resolve source metadata for r.example/timeouts/base:1: unknown: repository timeouts/base not found".to_owned(),
            Reason::BaseImageNotFound,
        ),
    ] {
        assert_eq!(explain(&failed(&error), None, BUILD).reason, expected, "{error}");
    }
}

#[test]
fn want_of_memory_is_told_by_the_kernel_s_count() {
    use Reason::{BuilderOutOfMemory, BuildkitUnavailable, OutOfMemory, StepFailed};
    // What ended, whether something was killed, whether the build was the only one; the reason, and what the message says.
    for (code, killed, alone, expected, words) in [
        (Some(137), Some(true), true, OutOfMemory, "was killed (exit code 137) for want of memory"),
        (Some(137), Some(true), false, OutOfMemory, "for want of memory"),
        (Some(137), Some(false), true, StepFailed, "memory was not wanting"),
        (Some(137), None, true, OutOfMemory, "most likely for want of memory"),
        (Some(2), Some(true), true, OutOfMemory, "exit code 2: a process of it was killed for want of memory"),
        (Some(2), Some(true), false, StepFailed, "meanwhile a process of this builder was killed for want of memory"),
        (Some(2), Some(false), true, StepFailed, "failed with exit code 2"),
        (Some(2), None, true, StepFailed, "failed with exit code 2"),
        (None, Some(true), true, OutOfMemory, "buildkitd was killed for want of memory while [2/2] RUN make ran"),
        (None, Some(true), false, BuilderOutOfMemory, "of this build or of one beside it"),
        (None, Some(false), true, BuildkitUnavailable, "buildkitd ended while [2/2] RUN make ran"),
        (None, None, true, BuildkitUnavailable, "buildkitd ended"),
        (None, None, false, BuildkitUnavailable, "buildkitd ended"),
    ] {
        let failed = Failed {
            exit_code: code,
            code: "Unavailable".into(),
            vertex: code.map(|_| "sha256:1".to_owned()).unwrap_or_default(),
            ..failed("x")
        };
        let step = FailedStep { name: "[2/2] RUN make".to_owned(), error: String::new(), tail: Vec::new() };
        for first in [true, false] {
            let build = Circumstances { shortage: Shortage { killed, alone, first }, ..BUILD };
            let failure = explain(&failed, Some(&step), build);
            let case = format!("{code:?} {killed:?} {alone} {first}: {failure:?}");
            assert_eq!(failure.reason, expected, "{case}");
            assert!(failure.message.contains(words), "{case}");
            // The kubelet tells of any process that was ever killed in the container.
            let asks = code.is_none() && killed.is_none() && first;
            assert_eq!(failure.alone, asks.then_some(alone), "{case}");
        }
    }
}

#[test]
fn the_largest_id_is_the_builder_s() {
    let error = "mount callback failed on /run/user/kiln/containerd-mount1: failed to Lchown \"/run/user/kiln/containerd-mount1/a\" for UID 70000, GID 0: lchown /run/user/kiln/containerd-mount1/a: invalid argument";
    for (largest_id, words) in [(Some(131_070), "ids up to 131070"), (None, "not all of these")] {
        let failure = explain(&failed(error), None, Circumstances { largest_id, ..BUILD });
        assert_eq!(failure.reason, Reason::IdTooLarge);
        assert!(failure.message.contains(words), "{failure:?}");
    }
}

#[test]
fn a_lost_buildkitd_is_told_by_its_code() {
    let code =
        |code: &str, vertex: &str| Failed { code: code.into(), vertex: vertex.into(), ..failed("context canceled") };
    assert_eq!(explain(&code("Unavailable", ""), None, BUILD).reason, Reason::BuildkitUnavailable);
    assert_eq!(explain(&code("Canceled", ""), None, BUILD).reason, Reason::BuildkitUnavailable);
    // A step, and a file of the user's that has such a name.
    assert_eq!(explain(&code("Unknown", ""), None, BUILD).reason, Reason::BuildFailed);
    let step = code("Unavailable", "sha256:1");
    assert_eq!(explain(&step, None, BUILD).reason, Reason::BuildFailed);
}

#[test]
fn a_full_volume_is_not_the_users_matter() {
    let step = FailedStep {
        name: "[2/2] RUN cp".to_owned(),
        error: String::new(),
        tail: vec!["cp: No space left on device".to_owned()],
    };
    let failed = Failed { exit_code: Some(1), ..failed("process \"cp\" did not complete successfully: exit code: 1") };
    assert_eq!(explain(&failed, Some(&step), BUILD).reason, Reason::StepFailed);
    assert_eq!(explain(&failed, Some(&step), Circumstances { volume_full: true, ..BUILD }).reason, Reason::NoSpaceLeft);
}

#[test]
fn an_argument_without_value_is_named() {
    let failed = at_line(2, "failed to parse stage name \"a/x:\": invalid reference format");
    let arguments = [("NAME".to_owned(), "x".to_owned())].into();
    for (content, words) in [
        ("ARG NAME\nFROM a/${NAME}:$TAG\n", "TAG has no value"),
        ("ARG NAME TAG=1\nFROM a/${NAME}:$TAG\n", "is neither a stage above nor the name of an image"),
    ] {
        let build = Circumstances { content: Some(content), arguments: Some(&arguments), ..BUILD };
        let failure = explain(&failed, None, build);
        assert!(failure.message.contains(words), "{failure:?}");
    }
}

#[test]
fn the_platform_that_a_base_image_lacks() {
    let failed = at_line(
        1,
        "busybox: failed to resolve source metadata for docker.io/library/busybox:latest: no match for platform in manifest: not found",
    );
    for (content, words) in [
        ("FROM --platform=linux/mips64le busybox\n", "is not there for linux/mips64le, which FROM asks for"),
        ("FROM --platform=$TARGETPLATFORM busybox\n", "is not there for linux/amd64;"),
        ("FROM busybox\n", "is not there for linux/amd64;"),
    ] {
        let failure = explain(&failed, None, Circumstances { content: Some(content), ..BUILD });
        assert!(failure.message.contains(words), "{failure:?}");
    }
}

#[test]
fn line_ends_as_on_windows_are_named() {
    let failed = Failed { exit_code: Some(127), ..failed("process \"./a.sh\" did not complete successfully") };
    let step = FailedStep { name: "[2/2] RUN ./a.sh".to_owned(), error: String::new(), tail: Vec::new() };
    let build = Circumstances { windows_lines: Some("the file \"a.sh\" of the source"), ..BUILD };
    let failure = explain(&failed, Some(&step), build);
    assert_eq!((failure.reason, failure.exit_code), (Reason::StepFailed, Some(127)));
    insta::assert_snapshot!(failure.message, @r#"[2/2] RUN ./a.sh failed with exit code 127: the file "a.sh" of the source has line ends as on Windows (CR LF); save it with LF, and name it in .gitattributes, as in `*.sh text eol=lf`"#);
}

#[test]
fn a_step_without_network() {
    let failed = Failed { exit_code: Some(6), ..failed("process \"x\" did not complete successfully: exit code: 6") };
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
        ("ssh: Could not resolve hostname git.example: Name or service not known", Reason::StepNoNetwork),
        ("make: *** [all] Error 6", Reason::StepFailed),
        // What is not resolved is no host.
        ("npm error ERESOLVE could not resolve", Reason::StepFailed),
        ("> Could not resolve all files for configuration ':compileClasspath'.", Reason::StepFailed),
        ("[ERROR] Could not resolve dependencies for project a:b:jar:1", Reason::StepFailed),
        ("error during build: Could not resolve \"./missing\" from \"src/main.js\"", Reason::StepFailed),
        ("\u{2718} [ERROR] Could not resolve \"react\"", Reason::StepFailed),
    ] {
        let step = FailedStep { name: "[2/2] RUN x".to_owned(), error: String::new(), tail: vec![line.to_owned()] };
        let failure = explain(&failed, Some(&step), BUILD);
        assert_eq!(failure.reason, reason, "{line}");
        let failure = explain(&failed, Some(&step), Circumstances { no_network: true, ..BUILD });
        assert_eq!(failure.message.contains("spec.network"), reason == Reason::StepNoNetwork, "{failure:?}");
    }
}

proptest! {
    #[test]
    fn any_text_is_explained(text in any::<String>()) {
        let failed = Failed { message: text, ..Failed::default() };
        prop_assert!(!explain(&failed, None, BUILD).message.is_empty());
    }
}
