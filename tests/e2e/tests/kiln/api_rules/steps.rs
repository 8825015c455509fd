//! What an ImageBuild gives its steps.

use kiln_crds::ImageBuild;
use serde_json::{Value, json};

use super::{DOCKERFILE, LONG, MANY, SHORT, TWICE, good_git, good_inline, list, text, try_all};

kiln_e2e::tests![dockerfile, steps];

const SHM: Option<&str> = Some("shmSize is a quantity such as 256Mi, more than 0");
const ADDRESS: Option<&str> = Some("hostAliases: ip is an IP address, such as 10.0.0.7");

async fn dockerfile() {
    let good = [
        "Dockerfile",
        "docker/Dockerfile.prod",
        "../Dockerfile",
        "../../x/Dockerfile",
        "a..b/..c",
        ".docker/Dockerfile",
        "./Dockerfile",
    ];
    let bad = [
        "/Dockerfile",
        "a/../b",
        "..",
        "a/..",
        "../..",
        "../a/../Dockerfile",
        "a/../../Dockerfile",
        ".a/../b",
        "a./../b",
        "a//../b",
        "a/./../b",
    ];
    let mut cases: Vec<_> = good.into_iter().map(|path| ("/spec/dockerfile", json!(path), None)).collect();
    cases.extend(bad.into_iter().map(|path| ("/spec/dockerfile", json!(path), DOCKERFILE)));
    cases.extend([
        ("/spec/dockerfile", json!(""), SHORT),
        ("/spec/dockerfile", text(1025), LONG),
        ("/spec/dockerfileInline", json!("FROM scratch"), None),
        ("/spec/dockerfileInline", json!(""), SHORT),
        ("/spec/dockerfileInline", text(262_145), LONG),
    ]);
    try_all::<ImageBuild>(true, &good_git(), &cases).await;

    // Of files, the Dockerfile has to be one, unless it is written beside them.
    let mut other = good_inline();
    other["spec"]["source"]["inline"]["files"] = json!({"app.sh": ""});
    let cases = [
        ("/spec/dockerfileInline", json!("FROM scratch"), None),
        ("/spec/platforms/0/dockerfile", json!("app.sh"), None),
        (
            "/spec/target",
            json!("x"),
            Some("source.inline.files does not hold the Dockerfile, Dockerfile: add it, or name another in dockerfile"),
        ),
    ];
    try_all::<ImageBuild>(true, &other, &cases).await;
    other["spec"]["dockerfile"] = json!("app.sh");
    let cases = [("/spec/dockerfileInline", json!("FROM scratch"), Some("write only one of them"))];
    try_all::<ImageBuild>(true, &other, &cases).await;
}

async fn steps() {
    let cases = [
        ("/spec/noCacheStages", json!(["build", "test.x_1-2"]), None),
        ("/spec/noCacheStages", json!(["a b"]), Some("should match")),
        ("/spec/noCacheStages", json!(["a", "a"]), TWICE),
        ("/spec/noCacheStages", list(17, |number| json!(format!("s{number}"))), MANY),
        ("/spec/pull", json!("IfNotPresent"), None),
        ("/spec/pull", json!("Never"), Some("supported values: \"Always\", \"IfNotPresent\"")),
        ("/spec/network", json!("None"), None),
        ("/spec/network", json!("Host"), Some("supported values: \"Default\", \"None\"")),
        ("/spec/ssh", json!([{"id": "default", "secretRef": {"name": "key"}}]), None),
        ("/spec/ssh", json!([{"id": "a b", "secretRef": {"name": "key"}}]), Some("should match")),
        ("/spec/ssh", json!([{"id": "default"}]), Some("spec.ssh[0].secretRef")),
        ("/spec/ssh", list(2, |_| json!({"id": "default", "secretRef": {"name": "key"}})), TWICE),
        ("/spec/ulimits", json!([{"name": "nofile", "soft": 1024, "hard": 2048}, {"name": "stack", "soft": -1}]), None),
        (
            "/spec/ulimits",
            json!([{"name": "core", "soft": -1, "hard": -1}, {"name": "nproc", "soft": 7, "hard": -1}]),
            None,
        ),
        (
            "/spec/ulimits",
            json!([{"name": "nofile", "soft": 2, "hard": 1}]),
            Some("ulimits: soft is at most hard: lower soft of nofile"),
        ),
        (
            "/spec/ulimits",
            json!([{"name": "nofile", "soft": -1, "hard": 1}]),
            Some("ulimits: soft is at most hard: lower soft of nofile"),
        ),
        ("/spec/ulimits", json!([{"name": "nofile", "soft": -2}]), Some("greater than or equal to -1")),
        ("/spec/ulimits", json!([{"name": "files", "soft": 1}]), Some("should match")),
        ("/spec/ulimits", json!([{"name": "nofile"}]), Some("spec.ulimits[0].soft")),
        ("/spec/ulimits", list(2, |_| json!({"name": "nofile", "soft": 1})), TWICE),
        ("/spec/shmSize", json!("256Mi"), None),
        ("/spec/shmSize", json!(67_108_864), None),
        ("/spec/shmSize", json!("256m"), None),
        ("/spec/shmSize", json!("256 MB"), SHM),
        ("/spec/shmSize", json!("0"), SHM),
        ("/spec/shmSize", json!(0), SHM),
        ("/spec/shmSize", json!("-1Mi"), SHM),
        (
            "/spec/hostAliases",
            json!([{"ip": "10.0.0.7", "hostnames": ["db", "db.example"]}, {"ip": "fd00::7", "hostnames": ["six"]}]),
            None,
        ),
        ("/spec/hostAliases", json!([{"ip": "10.0.0.256", "hostnames": ["db"]}]), ADDRESS),
        ("/spec/hostAliases", json!([{"ip": "db.example", "hostnames": ["db"]}]), ADDRESS),
        ("/spec/hostAliases", json!([{"ip": "host-gateway", "hostnames": ["db"]}]), ADDRESS),
        ("/spec/hostAliases", json!([{"ip": "10.0.0.7", "hostnames": []}]), Some("should have at least 1 items")),
        ("/spec/hostAliases", json!([{"ip": "10.0.0.7", "hostnames": ["a b"]}]), Some("should match")),
        ("/spec/hostAliases", json!([{"ip": "10.0.0.7", "hostnames": ["a-"]}]), Some("should match")),
        ("/spec/hostAliases", list(2, |_| json!({"ip": "10.0.0.7", "hostnames": ["a"]})), TWICE),
        ("/spec/failOnWarnings", json!(true), None),
        ("/spec/failOnWarnings", json!("yes"), Some("must be of type boolean")),
        ("/spec/noCache", Value::Null, None),
    ];
    try_all::<ImageBuild>(true, &good_inline(), &cases).await;
}
