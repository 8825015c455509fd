//! Git servers that never end, answer nonsense, or send Kiln elsewhere: each gets its reason in bounded time and memory,
//! nobody else gets the credential, and other builds go on. Single answers that the operator's client refuses are in
//! `operator/src/git/wire_tests.rs`.

use std::fmt::Write as _;
use std::time::Duration;

use axum::body::Bytes;
use axum::response::Response;
use kiln_crds::ImageBuild;
use kiln_e2e::build::git;
use kiln_e2e::hostile_server::{Asked, HostileServer, ca, endless, reply, trickle};
use kiln_e2e::tenant::{GIT_SECRET, condition, run_of};
use kiln_e2e::{Build, Tenant};
use kube::ResourceExt as _;
use serde_json::json;

use crate::hostile_registry::operators;

kiln_e2e::tests![nonsense_and_endless_answers, a_million_refs, honest_to_the_operator_alone];

const PASSWORD: &str = "planted-git-password";
const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const ADVERTISEMENT: (&str, &str) = ("content-type", "application/x-git-upload-pack-advertisement");
const RESULT: (&str, &str) = ("content-type", "application/x-git-upload-pack-result");

/// What each server answers, told by the first part of its path, and the reason that it gets.
const NONSENSE: [(&str, &str); 8] = [
    ("silent", "GitUnavailable"),
    ("trickle", "GitUnavailable"),
    ("endless-refs", "GitUnavailable"),
    ("endless-bytes", "GitUnavailable"),
    ("huge-headers", "GitUnavailable"),
    ("redirect-loopback", "AddressForbidden"),
    ("redirect-file", "GitUnavailable"),
    ("odd-refs", "GitUnavailable"),
];

fn packet(text: &str) -> String {
    format!("{:04x}{text}\n", text.len() + 5)
}

fn first_refs() -> String {
    [packet("# service=git-upload-pack"), "0000".into(), packet(&format!("{COMMIT} HEAD\0agent=x"))].concat()
}

/// About a mebibyte of refs.
fn refs() -> String {
    let mut text = String::new();
    for number in 0..16384 {
        write!(text, "{}", packet(&format!("{COMMIT} refs/heads/{number:06}"))).unwrap();
    }
    text
}

fn first_part(asked: &Asked) -> &str {
    asked.uri.path().trim_start_matches('/').split('/').next().unwrap_or_default()
}

fn nonsense(asked: &Asked) -> Option<Response> {
    let advertise = |body: axum::body::Body| Some(reply(200, &[ADVERTISEMENT], body));
    match first_part(asked) {
        "trickle" => advertise(trickle(first_refs())),
        "endless-refs" => advertise(endless(first_refs() + &refs())),
        "endless-bytes" => advertise(endless(Bytes::from(vec![b'x'; 65536]))),
        "huge-headers" => Some(reply(200, &[ADVERTISEMENT, ("x-padding", &"x".repeat(1 << 20))], "")),
        "redirect-loopback" => Some(reply(302, &[("location", "https://127.0.0.1:8443/x/info/refs")], "")),
        "redirect-file" => Some(reply(302, &[("location", "file:///etc/info/refs")], "")),
        "odd-refs" => advertise((first_refs() + &packet(&format!("{COMMIT} refs/heads/\u{1b}[31m\u{7}"))).into()),
        _ => None,
    }
}

/// An ImageBuild from a hostile Git server, with a credential for it.
async fn build(tenant: &Tenant, name: &str, url: &str) -> Build {
    tenant.secret(GIT_SECRET, "Opaque", &[("username", "planted"), ("password", PASSWORD)]).await;
    tenant.secret("hostile-ca", "Opaque", &[("ca.crt", &ca())]).await;
    let ca = json!({"kind": "Secret", "name": "hostile-ca"});
    let source = json!({"git": {"url": url, "secretRef": {"name": GIT_SECRET}, "caRef": ca}});
    Build::inline(tenant, name, &[]).amd64().with(|spec| spec.source = serde_json::from_value(source).unwrap())
}

fn check(failed: &ImageBuild) {
    let ready = condition(failed, "Ready").unwrap();
    assert!(ready.message.len() < 2048, "{}: {} bytes", failed.name_any(), ready.message.len());
    assert!(!ready.message.chars().any(char::is_control), "{}: {:?}", failed.name_any(), ready.message);
    assert!(!ready.message.contains(PASSWORD), "{}: {}", failed.name_any(), ready.message);
}

async fn nonsense_and_endless_answers() {
    Tenant::run("hostile-git", async |tenant| {
        let before = operators(tenant).await;
        // Each has a server of its own: one that has failed some times is asked by one build at a time.
        let servers = NONSENSE.map(|_| HostileServer::start(&tenant.cluster, nonsense));
        let servers = futures::future::join_all(servers).await;
        for ((kind, _), server) in NONSENSE.into_iter().zip(&servers) {
            tenant.create_build(&build(tenant, kind, &format!("https://{}/{kind}/app.git", server.host)).await).await;
        }
        tenant.build(&Build::inline(tenant, "other", &[("Dockerfile", "FROM busybox\n")]).amd64()).await;
        for (kind, reason) in NONSENSE {
            let failed = tenant.not_ready(kind, reason).await;
            assert_eq!(run_of(&failed), "", "{kind}: no run");
            check(&failed);
        }
        assert_eq!(operators(tenant).await, before, "the operator is the same one");
    })
    .await;
}

/// The memory of the operator does not follow what Git servers send: eight at once with 48 MiB of refs each.
async fn a_million_refs() {
    Tenant::run("refs", async |tenant| {
        let before = operators(tenant).await;
        let body = Bytes::from(first_refs() + &refs().repeat(48) + "0000");
        let server =
            HostileServer::start(&tenant.cluster, move |_| Some(reply(200, &[ADVERTISEMENT], body.clone()))).await;
        for number in 0..8 {
            let build = build(tenant, &format!("app-{number}"), &format!("https://{}/app.git", server.host)).await;
            tenant.create_build(&build.with(|spec| git(spec).reference = Some("nowhere".to_owned()))).await;
        }
        for number in 0..8 {
            check(&tenant.not_ready(&format!("app-{number}"), "GitRefNotFound").await);
        }
        assert_eq!(operators(tenant).await, before, "the operator is the same one");
    })
    .await;
}

/// What a Git server begins with.
fn capabilities() -> Response {
    let lines = [packet("version 2"), packet("ls-refs"), packet("fetch=shallow"), packet("object-format=sha1")];
    reply(200, &[ADVERTISEMENT], lines.concat() + "0000")
}

/// Answers the operator as a Git server does; builders are answered otherwise.
pub fn only_for_builders(asked: &Asked, otherwise: impl FnOnce(&str) -> Option<Response>) -> Option<Response> {
    if !asked.by_operator() {
        return otherwise(first_part(asked));
    }
    Some(match asked.method.as_str() {
        "GET" => capabilities(),
        _ => reply(200, &[RESULT], packet(&format!("{COMMIT} HEAD symref-target:refs/heads/main")) + "0000"),
    })
}

/// A pack with one tree of 1.5 GiB, which Git reads whole into memory: more than its sandbox lets it have.
fn huge_tree() -> Vec<u8> {
    let size: u64 = 3 << 29;
    let mut pack = [b"PACK".as_slice(), &2_u32.to_be_bytes(), &1_u32.to_be_bytes()].concat();
    // The type and the lowest four bits, then seven bits a byte (gitformat-pack, "n-byte type and length").
    let (mut byte, mut rest) = (2 << 4 | (size & 0xf) as u8, size >> 4);
    while rest > 0 {
        pack.push(byte | 0x80);
        (byte, rest) = ((rest & 0x7f) as u8, rest >> 7);
    }
    pack.push(byte);
    pack.extend([0x78, 0x9c, 0x01]);
    let side_band = [format!("{:04x}\u{1}", pack.len() + 5).as_bytes(), &pack].concat();
    [packet("packfile").as_bytes(), &side_band, b"0000"].concat()
}

async fn honest_to_the_operator_alone() {
    Tenant::run("two-faced-git", async |tenant| {
        let other = HostileServer::start(&tenant.cluster, |_| Some(reply(404, &[], ""))).await;
        let elsewhere = format!("https://{}/x.git/info/refs?service=git-upload-pack", other.host);
        let server = HostileServer::start(&tenant.cluster, move |asked| {
            only_for_builders(asked, |kind| match kind {
                "loopback" => Some(reply(302, &[("location", "https://127.0.0.1:8443/x.git/info/refs")], "")),
                "elsewhere" => Some(reply(302, &[("location", &elsewhere)], "")),
                "pack" | "memory" if asked.method == "GET" => Some(capabilities()),
                "pack" => Some(reply(200, &[RESULT], packet("packfile") + "000ePACK wrong0000")),
                "memory" => Some(reply(200, &[RESULT], huge_tree())),
                _ => None,
            })
        })
        .await;
        let cases = [
            ("loopback", "AddressForbidden"),
            ("elsewhere", "GitRepositoryNotFound"),
            ("pack", "GitFailed"),
            ("memory", "GitRepositoryTooLarge"),
            ("silent", "BuildTimeout"),
        ];
        for (kind, _) in cases {
            let build = build(tenant, kind, &format!("https://{}/{kind}/app.git", server.host)).await;
            tenant
                .create_build(&build.with(|spec| {
                    spec.retries = Some(0);
                    spec.timeout = Some(Duration::from_secs(20).into());
                }))
                .await;
        }
        // Beside them, on the same builder.
        tenant.build(&Build::inline(tenant, "neighbour", &[("Dockerfile", "FROM busybox\n")]).amd64()).await;
        for (kind, reason) in cases {
            check(&tenant.not_ready(kind, reason).await);
        }
        assert!(server.asked().iter().any(|asked| asked.has_credential() && !asked.by_operator()), "builders log in");
        let seen = other.asked();
        assert!(!seen.is_empty(), "a redirect is followed");
        assert!(!seen.iter().any(Asked::has_credential), "without the credential: {seen:#?}");
    })
    .await;
}
