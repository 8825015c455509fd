//! What a RUN step finds and reaches: credentials, sockets, the agent's port, other pods, the API server, the node.

use std::fmt::Write as _;

use k8s_openapi::api::core::v1::Secret;
use kiln_crds::SecurityProfile;
use kiln_crds::image_build::BuildSecret;
use kiln_crds::image_build_run::PlatformPhase;
use kiln_e2e::cluster::{builders_namespace, variable};
use kiln_e2e::registry::Registry;
use kiln_e2e::tenant::{image_of, run_of};
use kiln_e2e::wait::BUILD;
use kiln_e2e::{Build, Repository, Tenant};
use kube::{Api, ResourceExt as _};
use serde_json::json;

use crate::hostile::report::Report;

kiln_e2e::tests![under_user_namespace, under_rootless];

/// The probe: what each attempt does.
pub const PROBE: &str = include_str!("probe.pl");
/// An image with perl and openssl, which the local cluster has: the builder image's own base.
pub const TOOLS: &str = "moby/buildkit:v0.33.1-rootless";

/// What an attempt may get.
pub struct Expected {
    says: &'static str,
    holds: fn(&str) -> bool,
}

/// One attempt: its name, the probe's arguments (`{…}` filled in by the test), and what it may get under
/// UserNamespace and under Rootless.
pub struct Attempt(&'static str, &'static str, Expected, Expected);

const fn expect(says: &'static str, holds: fn(&str) -> bool) -> Expected {
    Expected { says, holds }
}

const REFUSED: Expected = expect("refused", |got| got == "refused");
const NOTHING: Expected = expect("nothing found", |got| got.starts_with("nothing in"));
const GIVEN: Expected = expect("found", |got| got == "found: own in /run/secrets/own");
const NO_CONNECTION: Expected = expect("no connection", |got| got == "no connection");
const TLS_REFUSED: Expected = expect("refused by TLS", |got| got.starts_with("refused: "));
/// Where steps share their builder's uid and process table, what the builder holds is not promised to be hidden. But it
/// is one ImageBuild's, and holds nothing else's.
const OWN_ONLY: Expected = expect("at most its own ImageBuild's", of_its_own);

fn of_its_own(got: &str) -> bool {
    (got.starts_with("nothing in") || got.starts_with("found: "))
        && !got.contains("neighbour")
        && !got.contains("stranger")
}

/// Whether a list names nothing but processes of the step's own builder.
fn own_builder(got: &str) -> bool {
    const OWN: [&str; 14] = [
        "rootlesskit",
        "exe",
        "buildkitd",
        "kiln-buildkitd",
        "sleep",
        "pasta",
        "slirp4netns",
        "runc",
        "buildkit-runc",
        "sh",
        "dash",
        "perl",
        "fuse-overlayfs",
        "git",
    ];
    got == "refused" || got.split_once(": ").is_some_and(|(_, names)| names.split(", ").all(|name| OWN.contains(&name)))
}

const OWN_BUILDER: Expected = expect("at most its own builder's processes", own_builder);

/// The one attempt that is given the ImageBuild's secret: it shows that the search finds what is there.
const CONTROL: &str = "(control) a secret that the step is given";

/// Every attempt of this file.
pub const ATTEMPTS: &[Attempt] = &[
    Attempt(CONTROL, "files", GIVEN, GIVEN),
    Attempt("credentials in files", "files", NOTHING, OWN_ONLY),
    Attempt("credentials in /proc/*/environ", "environment", NOTHING, OWN_ONLY),
    Attempt("credentials in /proc/*/cmdline", "cmdline", NOTHING, OWN_ONLY),
    Attempt("credentials in /proc/*/mem", "memory", NOTHING, OWN_ONLY),
    Attempt("files of the builder through /proc/*/root", "roots", REFUSED, OWN_BUILDER_FILES),
    Attempt("sockets of buildkitd, its session and others", "sockets", REFUSED, OWN_SOCKET),
    Attempt("the agent's port, no certificate", "agent 127.0.0.1:8443", TLS_REFUSED, TLS_REFUSED),
    Attempt(
        "the agent's port, a certificate of its own making",
        "agent 127.0.0.1:8443 /wrong.crt /wrong.key",
        TLS_REFUSED,
        TLS_REFUSED,
    ),
    Attempt(
        "the agent's port, the builder's own stolen certificate",
        "agent 127.0.0.1:8443 /stolen.crt /stolen.key",
        TLS_REFUSED,
        TLS_REFUSED,
    ),
    Attempt(
        "another trust domain's agent",
        "agent {stranger}:8443 /stolen.crt /stolen.key",
        NO_CONNECTION,
        NO_CONNECTION,
    ),
    Attempt("another trust domain's cache volume", "volumes", NOT_THERE, OWN_VOLUME),
    Attempt(
        "a service-account token",
        "token",
        expect("no token", |got| got == "no token"),
        expect("no token", |got| got == "no token"),
    ),
    Attempt("the API server's address", "connect {api}", NO_CONNECTION, NO_CONNECTION),
    Attempt(
        "the API server's Service",
        "connect kubernetes.default.svc.cluster.local 443",
        NO_CONNECTION,
        NO_CONNECTION,
    ),
    Attempt("the node's kubelet", "connect {kubelet} 10250", KUBELET, KUBELET),
    Attempt("the metadata address", "http {metadata} 80 /hostile/{namespace}", NO_CONNECTION, NO_CONNECTION),
    Attempt("the host's files and settings", "host_files", REFUSED, REFUSED),
    Attempt("the host's devices", "devices", REFUSED, REFUSED),
    Attempt("mounts", "mounts", REFUSED, REFUSED),
    Attempt("modules, bpf, reboot, clock, host name", "kernel", REFUSED, REFUSED),
    Attempt("processes of others", "processes", expect("its own alone", |got| got == "its own alone"), OWN_BUILDER),
    Attempt("ptrace and memory of others", "ptrace", REFUSED, OWN_BUILDER),
    Attempt("signals to others", "signals", REFUSED, OWN_BUILDER),
    Attempt("namespaces of its own and of others", "namespaces", REFUSED, REFUSED),
    Attempt("escape by cgroups", "cgroups", REFUSED, REFUSED),
    Attempt("keys in kernel rings", "keys", REFUSED, REFUSED),
];

const OWN_BUILDER_FILES: Expected = expect("at most its own builder's", |got| {
    got == "refused" || got.strip_prefix("sees: the files of ").is_some_and(|names| own_builder(&format!(": {names}")))
});
const OWN_SOCKET: Expected = expect("at most its own buildkitd's", |got| {
    got == "refused"
        || got.strip_prefix("reached: ").is_some_and(|all| all.split(", ").all(|path| path.ends_with("buildkitd.sock")))
});
const NOT_THERE: Expected = expect("not there", |got| got == "not there");
const OWN_VOLUME: Expected =
    expect("at most its own builder's", |got| got == "not there" || got == "found: another process's /var/lib/kiln");
/// A policy may hold for the address or not; what counts is that nothing is told without a credential.
const KUBELET: Expected = expect("nothing but a port", |got| matches!(got, "connected" | "no connection"));

async fn under_user_namespace() {
    look("hostile-userns", SecurityProfile::UserNamespace).await;
}

async fn under_rootless() {
    look("hostile-rootless", SecurityProfile::Rootless).await;
}

async fn look(name: &str, profile: SecurityProfile) {
    Tenant::fresh(&format!("{name}-other"), async |stranger| {
        Tenant::fresh(name, async |tenant| attack(tenant, stranger, profile).await).await;
    })
    .await;
}

async fn attack(tenant: &Tenant, stranger: &Tenant, profile: SecurityProfile) {
    let pool = tenant.pool("pool", |spec| spec.security_profile = Some(profile)).await;
    let other = stranger.pool("pool", |spec| spec.security_profile = Some(profile)).await;
    let values = ["own", "neighbour", "stranger"].map(|whose| (whose, format!("planted-{whose}-{}", tenant.namespace)));
    let [own, neighbours, strangers] = values.each_ref().map(|(_, value)| value.as_str());

    // Two more ImageBuilds whose credentials are in use all the while: in the same namespace and in another one.
    let (_repositories, _) =
        tokio::join!(busy(tenant, "neighbour", &pool, neighbours), busy(stranger, "app", &other, strangers));

    let mut look_for: Vec<String> =
        values.iter().map(|(whose, value)| format!("{whose}={}", reversed(value))).collect();
    look_for.push(format!("registry={}", reversed(&tenant.cluster.registry_password)));
    look_for.push(format!("git={}", reversed(&tenant.cluster.git_password)));
    let (certificate, key) = stolen_certificate(tenant).await;
    let dockerfile = dockerfile(tenant, stranger).await;
    let files = [("Dockerfile", &*dockerfile), ("probe.pl", PROBE), ("stolen.crt", &certificate), ("stolen.key", &key)];
    tenant.secret("own", "Opaque", &[("value", own)]).await;
    let build = Build::inline(tenant, "app", &files).amd64().pool(&pool).with(|spec| {
        spec.args.insert("LOOK_FOR".to_owned(), look_for.join(" "));
        spec.secrets.push(secret("own"));
    });
    let image = image_of(&tenant.build(&build).await);
    let image = Registry::new(&tenant.cluster).image_for(&image.repository, &image.digest, "linux/amd64").await;

    let mut report = Report::new(profile);
    for (number, Attempt(name, _, user_namespace, rootless)) in ATTEMPTS.iter().enumerate() {
        let expected = if profile == SecurityProfile::Rootless { rootless } else { user_namespace };
        let got = image.text(&format!("got/{number}"));
        report.add(name, expected.says, &got, (expected.holds)(&got));
    }
    let recorded = std::fs::read_to_string(variable("KILN_RECORDER_LOG")).unwrap_or_default();
    let came = recorded.contains(&format!("/hostile/{}", tenant.namespace));
    report.add("what the metadata address recorded", "nothing", if came { "a request" } else { "nothing" }, !came);
    report.end();
}

/// Starts an ImageBuild from a private repository whose step holds a secret value until it is deleted.
async fn busy(tenant: &Tenant, name: &str, pool: &str, value: &str) -> (Repository, ()) {
    tenant.secret(name, "Opaque", &[("value", value)]).await;
    let repository = Repository::private(tenant, name);
    let step =
        format!("FROM busybox\nRUN --mount=type=secret,id={name},env=TOKEN --mount=type=secret,id={name} sleep 300\n");
    repository.write(&[("Dockerfile", &step)]);
    let build =
        Build::private_git(tenant, name, &repository).amd64().pool(pool).with(|spec| spec.secrets.push(secret(name)));
    tenant.create_build(&build).await;
    let build = tenant.wait_build(name, "has a run", BUILD, |build| Ok(!run_of(build).is_empty())).await;
    tenant
        .wait_run(&run_of(&build), "building", BUILD, |run| {
            let platforms = run.status.iter().flat_map(|status| &status.platforms);
            Ok(platforms.into_iter().any(|platform| platform.phase == PlatformPhase::Building))
        })
        .await;
    (repository, ())
}

fn secret(name: &str) -> BuildSecret {
    serde_json::from_value(json!({"id": name, "secretRef": {"name": name, "key": "value"}})).unwrap()
}

fn reversed(value: &str) -> String {
    value.chars().rev().collect()
}

/// Certificate and key of one of the tenant's builders, which no step can get by itself.
async fn stolen_certificate(tenant: &Tenant) -> (String, String) {
    let pod = tenant.builders().await.first().expect("a builder is there").name_any();
    let secrets: Api<Secret> = Api::namespaced(tenant.cluster.client.clone(), &builders_namespace());
    let data =
        secrets.get(&format!("{pod}-tls")).await.expect("each builder has a certificate").data.unwrap_or_default();
    let text = |key: &str| String::from_utf8(data[key].0.clone()).unwrap();
    (text("tls.crt"), text("tls.key"))
}

async fn dockerfile(tenant: &Tenant, stranger: &Tenant) -> String {
    let builder = stranger.builders().await.pop().expect("the stranger has a builder");
    let address =
        |builder: &k8s_openapi::api::core::v1::Pod| builder.status.as_ref().and_then(|status| status.pod_ip.clone());
    let stranger_address = address(&builder).expect("a builder that builds has an address");
    let node = builder.status.as_ref().and_then(|status| status.host_ip.clone()).expect("a pod is on a node");
    let api = kube::Config::infer().await.unwrap().cluster_url;
    let api = format!("{} {}", api.host().unwrap(), api.port_u16().unwrap_or(443));
    let mut text = format!(
        "FROM {TOOLS} AS hostile\nUSER 0\nCOPY probe.pl stolen.crt stolen.key /\nARG LOOK_FOR\nRUN mkdir /got && openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj /CN=kiln-operator -addext subjectAltName=DNS:kiln-operator -keyout /wrong.key -out /wrong.crt 2>/dev/null\n"
    );
    for (number, Attempt(name, arguments, ..)) in ATTEMPTS.iter().enumerate() {
        let arguments = arguments
            .replace("{stranger}", &stranger_address)
            .replace("{kubelet}", &node)
            .replace("{api}", &api)
            .replace("{metadata}", &variable("KILN_METADATA_ADDRESS"))
            .replace("{namespace}", &tenant.namespace);
        let mount = if *name == CONTROL { "--mount=type=secret,id=own " } else { "" };
        writeln!(text, "RUN {mount}timeout 60 perl /probe.pl {arguments} > /got/{number} 2>&1; true").unwrap();
    }
    text + "FROM busybox\nCOPY --from=hostile /got /got\n"
}
