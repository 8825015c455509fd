//! Mistakes in Dockerfiles: for each class, the status says in plain words what happened, where, and what to do.

use std::time::Duration;

use kiln_crds::image_build::{BuildFailure, ImageBuildSpec, Network};
use kiln_e2e::{Build, Tenant};

kiln_e2e::tests![each_mistake_is_told_in_plain_words];

/// A mistake, and what is told of it.
struct Mistake {
    name: &'static str,
    reason: &'static str,
    dockerfile: &'static str,
    line: Option<u32>,
    /// What the message says: what happened, and what to do.
    words: &'static [&'static str],
    change: fn(&mut ImageBuildSpec),
}

fn nothing(_: &mut ImageBuildSpec) {}

const MISTAKES: &[Mistake] = &[
    Mistake {
        name: "unknown-instruction",
        reason: "DockerfileInvalid",
        dockerfile: "FROM busybox\nRUNN true\n",
        line: Some(2),
        words: &["unknown instruction", "RUNN"],
        change: nothing,
    },
    Mistake {
        name: "undefined-argument",
        reason: "DockerfileInvalid",
        dockerfile: "ARG NAME=busybox\nFROM $NAME:$VERSION\n",
        line: Some(2),
        words: &["VERSION has no value", "ARG VERSION=", "spec.args"],
        change: nothing,
    },
    Mistake {
        name: "invalid-reference",
        reason: "ReferenceInvalid",
        dockerfile: "FROM busybox\nCOPY --from=Builder /a /a\n",
        line: Some(2),
        words: &["\"Builder\"", "neither a stage", "lower"],
        change: nothing,
    },
    Mistake {
        name: "missing-stage",
        reason: "BaseImageNotFound",
        dockerfile: "FROM busybox\nCOPY --from=builder /a /a\n",
        line: Some(2),
        words: &["docker.io/library/builder", "the stage that is meant"],
        change: nothing,
    },
    Mistake {
        name: "missing-file",
        reason: "FileNotFound",
        dockerfile: "FROM busybox\nCOPY nowhere /there\n",
        line: Some(2),
        words: &["nowhere", ".dockerignore"],
        change: nothing,
    },
    Mistake {
        name: "missing-platform",
        reason: "BaseImageNotFound",
        dockerfile: "FROM --platform=linux/mips64le busybox\n",
        line: Some(1),
        words: &["busybox", "linux/mips64le, which FROM asks for"],
        change: nothing,
    },
    Mistake {
        name: "no-such-host",
        reason: "StepNoNetwork",
        dockerfile: "FROM busybox\nRUN wget -q http://no-such-host.kiln.test/x\n",
        line: Some(2),
        words: &["no such host", "no-such-host.kiln.test", "NetworkPolicy"],
        change: nothing,
    },
    Mistake {
        name: "no-network",
        reason: "StepNoNetwork",
        dockerfile: "FROM busybox\nRUN ping -c 1 -W 1 192.0.2.1\n",
        line: Some(2),
        words: &["spec.network is None"],
        change: |spec| spec.network = Some(Network::None),
    },
    Mistake {
        name: "missing-secret",
        reason: "SecretIdNotFound",
        dockerfile: "FROM busybox\nRUN --mount=type=secret,id=token,required=true true\n",
        line: Some(2),
        words: &["token", "spec.secrets"],
        change: nothing,
    },
    Mistake {
        name: "missing-key",
        reason: "SshKeyNotFound",
        dockerfile: "FROM busybox\nRUN --mount=type=ssh,required=true true\n",
        line: Some(2),
        words: &["\"default\"", "spec.ssh"],
        change: nothing,
    },
    Mistake {
        name: "missing-target",
        reason: "TargetNotFound",
        dockerfile: "FROM busybox AS one\n",
        line: None,
        words: &["\"two\"", "spec.target"],
        change: |spec| spec.target = Some("two".to_owned()),
    },
    Mistake {
        name: "command-missing",
        reason: "StepFailed",
        dockerfile: "FROM busybox\nRUN no-such-command\n",
        line: Some(2),
        words: &["127", "a command was not found"],
        change: nothing,
    },
    Mistake {
        name: "killed",
        reason: "StepFailed",
        dockerfile: "FROM busybox\nRUN sh -c 'kill -9 $$' || exit $?\n",
        line: Some(2),
        words: &["killed", "137", "memory was not wanting"],
        change: nothing,
    },
    Mistake {
        name: "silent",
        reason: "NoOutput",
        dockerfile: "FROM busybox\nRUN echo the last words; sleep 600\n",
        line: None,
        words: &["sleep 600", "printed nothing for 2 s", "spec.silenceTimeout"],
        change: |spec| spec.silence_timeout = Some(Duration::from_secs(2).into()),
    },
    Mistake {
        name: "lint",
        reason: "LintFailed",
        dockerfile: "FROM busybox\nCMD echo hello\n",
        line: Some(2),
        words: &["JSONArgsRecommended", "failOnWarnings"],
        change: |spec| spec.fail_on_warnings = true,
    },
    Mistake {
        name: "windows-lines",
        reason: "StepFailed",
        dockerfile: "FROM busybox\r\nRUN <<END\r\ntrue\r\nEND\r\n",
        line: Some(2),
        words: &["the here-document of the Dockerfile has line ends as on Windows (CR LF)", ".gitattributes"],
        change: nothing,
    },
    Mistake {
        name: "lint-by-directive",
        reason: "LintFailed",
        dockerfile: "# check=error=true\nFROM busybox\nCMD echo hello\n",
        line: Some(3),
        words: &["JSONArgsRecommended", "error=true of its check directive"],
        change: |spec| spec.dockerfile = Some("./Dockerfile".to_owned()),
    },
];

async fn each_mistake_is_told_in_plain_words() {
    Tenant::run("mistakes", async |tenant| {
        for mistake in MISTAKES {
            let build = Build::inline(tenant, mistake.name, &[("Dockerfile", mistake.dockerfile)]).amd64();
            tenant.create_build(&build.with(mistake.change)).await;
        }
        for Mistake { name, reason, line, words, .. } in MISTAKES {
            let failed = tenant.not_ready(name, reason).await;
            let failure: BuildFailure = *failed.status.unwrap().failure.expect("a failed run is in status.failure");
            assert_eq!((failure.reason.as_str(), failure.line), (*reason, *line), "{name}: {failure:?}");
            for word in *words {
                assert!(failure.message.contains(word), "{name}: says {word:?}: {}", failure.message);
            }
            if let Some(line) = line {
                let marked = failure.excerpt.iter().any(|shown| shown.starts_with(&format!("> {line} |")));
                assert!(marked, "{name}: {:?}", failure.excerpt);
            }
            if *name == "silent" {
                assert_eq!(failure.log_tail, ["the last words"]);
            }
        }
    })
    .await;
}
