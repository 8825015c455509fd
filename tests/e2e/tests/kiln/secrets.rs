//! Secrets appear nowhere: builds use one of each kind, and print one, and then everything that Kiln wrote anywhere is
//! searched for them.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::api::core::v1::Pod;
use kiln_crds::SecretRef;
use kiln_crds::image_build::BuildSecret;
use kiln_e2e::build::{file, git};
use kiln_e2e::builder::OF_TENANT;
use kiln_e2e::cluster::{builders_namespace, operator_namespace};
use kiln_e2e::hostile_server::{HostileServer, ca};
use kiln_e2e::registry::Registry;
use kiln_e2e::tenant::{PLANTED, image_of};
use kiln_e2e::{Build, Repository, Tenant, wait};
use kube::api::{DeleteParams, DynamicObject, ListParams, LogParams};
use kube::discovery::{Discovery, Scope, verbs};
use kube::{Api, ResourceExt as _};
use serde_json::{Value, json};

use crate::hostile_git::only_for_builders;

use crate::recovery::host::{is_local, processes};

kiln_e2e::tests![appear_nowhere];

/// Characters that URLs and JSON write otherwise.
const BUILD_SECRET: &str = "planted/build+secret=&\"7f3a";
const PULL_PASSWORD: &str = "planted/pull+password=&7f3b";
const IDENTITY_TOKEN: &str = "planted.identity.token.7f3c";
const OTHER_GIT: &str = "planted/other+git=&7f3d";

/// What the installation pulls Kiln's own images with.
const PULL_SECRET: &str = "registry-login";

/// The values, and each form in which one could get somewhere.
struct Marks(Vec<String>);

impl Marks {
    fn of(tenant: &Tenant) -> Self {
        let cluster = &tenant.cluster;
        let mut forms = Vec::new();
        for (user, value) in [
            (cluster.registry_user.as_str(), cluster.registry_password.as_str()),
            (&cluster.git_user, &cluster.git_password),
            ("planted", PULL_PASSWORD),
            ("planted", OTHER_GIT),
            ("", IDENTITY_TOKEN),
            ("", BUILD_SECRET),
        ] {
            let encoded = |text: &str| STANDARD.encode(text).trim_end_matches('=').to_owned();
            let mut url = reqwest::Url::parse("https://x/").unwrap();
            url.query_pairs_mut().append_pair("x", value);
            let query = url.query().unwrap().trim_start_matches("x=").to_owned();
            let json = Value::from(value).to_string().trim_matches('"').to_owned();
            forms.extend([value.to_owned(), encoded(value), encoded(&format!("{user}:{value}")), query, json]);
        }
        Self(forms)
    }

    fn check(&self, place: &str, text: &str) {
        for mark in &self.0 {
            let Some(at) = text.find(mark.as_str()) else { continue };
            let begin = (0..=at.saturating_sub(200)).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
            panic!("{place} holds a secret: …{}{mark}…", &text[begin..at]);
        }
    }

    fn check_bytes(&self, place: &str, bytes: &[u8]) {
        self.check(place, &String::from_utf8_lossy(bytes));
    }
}

/// A step that prints its secret in two forms, and then ends as told.
const TELLTALE: &str = "FROM busybox
ARG CODE=0
RUN --mount=type=secret,id=token,required=true sleep 2; cat /run/secrets/token; echo; base64 /run/secrets/token; exit $CODE
COPY . /src
";

async fn appear_nowhere() {
    Tenant::fresh("marks", async |tenant| {
        let marks = Marks::of(tenant);
        tenant.secret("token", "Opaque", &[("value", BUILD_SECRET)]).await;
        let auths = json!({"auths": {
            "pull.example": {"username": "planted", "password": PULL_PASSWORD},
            "token.example": {"username": "x", "identitytoken": IDENTITY_TOKEN},
        }});
        tenant.secret("pull", "kubernetes.io/dockerconfigjson", &[(".dockerconfigjson", &auths.to_string())]).await;
        tenant.secret("other-git", "Opaque", &[("username", "planted"), ("password", OTHER_GIT)]).await;
        tenant.secret("hostile-ca", "Opaque", &[("ca.crt", &ca())]).await;
        let secret: BuildSecret =
            serde_json::from_value(json!({"id": "token", "secretRef": {"name": "token", "key": "value"}})).unwrap();
        let uses_all = |build: Build| {
            build.amd64().with(|spec| {
                spec.secrets.push(secret.clone());
                spec.pull_secret_refs.push(SecretRef { name: "pull".to_owned() });
            })
        };
        let watcher = Processes::watch(tenant, Marks::of(tenant));

        let repository = Repository::private(tenant, "app");
        repository.write(&[("Dockerfile", TELLTALE)]);
        let built = tenant.build(&uses_all(Build::private_git(tenant, "app", &repository))).await;
        let failing = Build::inline(tenant, "failing", &[("Dockerfile", "")]);
        let failing = failing.with(|spec| TELLTALE.replace("CODE=0", "CODE=9").clone_into(file(spec, "Dockerfile")));
        tenant.create_build(&uses_all(failing)).await;
        let failed = tenant.not_ready("failing", "StepFailed").await;
        tenant.event("failing", "StepFailed").await;
        let tail = failed.status.unwrap().failure.unwrap().log_tail.join("\n");
        assert_eq!(tail.matches("***").count(), 2, "both forms were printed, and masked: {tail}");
        // A fetch that goes on until it has been looked at.
        let silent = HostileServer::start(&tenant.cluster, |asked| only_for_builders(asked, |_| None)).await;
        let fetching = Build::private_git(tenant, "fetching", &repository).with(|spec| {
            let git = git(spec);
            git.url = format!("https://{}/app.git", silent.host);
            git.secret_ref = Some(SecretRef { name: "other-git".to_owned() });
            git.ca_ref = serde_json::from_value(json!({"kind": "Secret", "name": "hostile-ca"})).unwrap();
        });
        tenant.create_build(&uses_all(fetching)).await;
        watcher.until_seen(&["git", "kiln-build", "buildkitd", "kiln-agent"]).await;
        tenant.builds().delete("fetching", &DeleteParams::default()).await.unwrap();

        objects(tenant, &marks).await;
        logs_and_metrics(tenant, &marks).await;
        let image = image_of(&built);
        let registry = Registry::new(&tenant.cluster);
        for image in registry.images(&image.repository, &image.digest).await {
            marks.check("a manifest", &serde_json::to_string(&image.manifest).unwrap());
            marks.check("a configuration", &serde_json::to_string(&image.config).unwrap());
            for entry in image.built() {
                marks.check_bytes(&format!("{} in the image", entry.path), &entry.bytes);
            }
        }
        marks.check("the index", &serde_json::to_string(&registry.index(&image.repository, "latest").await).unwrap());
        volumes(tenant, &marks).await;
        audit(&marks);
        memory(tenant).await;
    })
    .await;
}

/// Every object of the tenant's, the builders' and the operator's namespace, and Kiln's own of the whole cluster.
async fn objects(tenant: &Tenant, marks: &Marks) {
    let client = &tenant.cluster.client;
    let discovery = Discovery::new(client.clone()).run().await.expect("the API server tells its kinds");
    let mut kinds = BTreeSet::new();
    for group in discovery.groups() {
        for (kind, capabilities) in group.resources_by_stability() {
            if !capabilities.supports_operation(verbs::LIST) {
                continue;
            }
            let apis: Vec<Api<DynamicObject>> = if capabilities.scope == Scope::Namespaced {
                let namespaces = [tenant.namespace.clone(), builders_namespace(), operator_namespace()];
                namespaces.map(|namespace| Api::namespaced_with(client.clone(), &namespace, &kind)).into()
            } else {
                vec![Api::all_with(client.clone(), &kind)]
            };
            for api in apis {
                let Ok(list) = api.list(&ListParams::default()).await else { continue };
                for object in list {
                    let place = format!("{} {}", kind.kind, object.name_any());
                    if kind.kind == "Secret" {
                        // It holds one of the values because it was written there, by this test, another or the installation.
                        if object.labels().contains_key(PLANTED) || object.name_any() == PULL_SECRET {
                            continue;
                        }
                        for value in object.data["data"].as_object().into_iter().flat_map(|data| data.values()) {
                            let value = STANDARD.decode(value.as_str().unwrap_or_default()).unwrap_or_default();
                            marks.check_bytes(&place, &value);
                        }
                    }
                    marks.check(&place, &serde_json::to_string(&object).unwrap());
                    kinds.insert(kind.kind.clone());
                }
            }
        }
    }
    let read = [
        "ImageBuild",
        "ImageBuildRun",
        "BuilderPool",
        "Pod",
        "ConfigMap",
        "Secret",
        "Event",
        "Lease",
        "PersistentVolumeClaim",
    ];
    for kind in read {
        assert!(kinds.contains(kind), "objects of the kind {kind} were read; there were {kinds:?}");
    }
}

async fn logs_and_metrics(tenant: &Tenant, marks: &Marks) {
    let client = &tenant.cluster.client;
    let mut read = 0;
    for namespace in [operator_namespace(), builders_namespace()] {
        let pods: Api<Pod> = Api::namespaced(client.clone(), &namespace);
        for pod in pods.list(&ListParams::default()).await.unwrap() {
            let spec = pod.spec.as_ref().unwrap();
            for container in spec.containers.iter().chain(spec.init_containers.iter().flatten()) {
                for previous in [false, true] {
                    let parameters =
                        LogParams { container: Some(container.name.clone()), previous, ..LogParams::default() };
                    let Ok(log) = pods.logs(&pod.name_any(), &parameters).await else { continue };
                    marks.check(&format!("the log of {}, {}", pod.name_any(), container.name), &log);
                    read += usize::from(!log.is_empty());
                }
            }
            if namespace == operator_namespace() {
                let path = format!("/api/v1/namespaces/{namespace}/pods/{}:8080/proxy/metrics", pod.name_any());
                let request = http::Request::get(path).body(Vec::new()).unwrap();
                let metrics = client.request_text(request).await.expect("the operator has metrics");
                assert!(metrics.contains("kiln_"), "{metrics}");
                marks.check("a metric", &metrics);
            }
        }
    }
    assert!(read >= 3, "the operator's, the agent's and buildkitd's logs were read");
}

/// The cache volumes with the agents' logs, repositories and BuildKit's state; where they are on this machine.
async fn volumes(tenant: &Tenant, marks: &Marks) {
    if std::env::var_os("KILN_LOCAL_CLUSTER").is_none() {
        eprintln!("not tested: secrets on the cache volumes; they are not on this machine");
        return;
    }
    let mut logs = 0;
    for claim in tenant.volumes().await {
        let mut directories = vec![tenant.directory_of(&claim).await];
        while let Some(directory) = directories.pop() {
            for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
                let Ok(kind) = entry.file_type() else { continue };
                if kind.is_dir() {
                    directories.push(entry.path());
                } else if kind.is_file() {
                    let bytes = fs::read(entry.path()).unwrap_or_default();
                    marks.check_bytes(&entry.path().display().to_string(), &bytes);
                    logs += usize::from(String::from_utf8_lossy(&bytes).contains("***"));
                }
            }
        }
    }
    assert!(logs > 0, "the agents' logs were read");
}

/// The agents cannot be dumped: all in /proc that holds their memory is root's of their namespace, not their user's.
async fn memory(tenant: &Tenant) {
    if !is_local("the agents' memory") {
        return;
    }
    for pod in tenant.builders().await {
        let agents = processes(&pod.uid().unwrap(), "kiln-agent");
        assert!(!agents.is_empty(), "{} has an agent", pod.name_any());
        for agent in agents {
            let owner = |file: &str| fs::metadata(format!("/proc/{agent}/{file}")).unwrap().uid();
            assert_ne!(owner("mem"), owner(""), "the agent's memory is its user's to read");
        }
    }
}

fn audit(marks: &Marks) {
    let Some(path) = std::env::var_os("KILN_AUDIT_LOG") else {
        eprintln!("not tested: secrets in the API server's audit log; KILN_AUDIT_LOG does not name it");
        return;
    };
    let log = fs::read_to_string(path).expect("KILN_AUDIT_LOG can be read");
    let mut read = 0;
    for line in log.lines().filter(|line| line.contains("\"userAgent\":\"kiln")) {
        read += 1;
        marks.check("the API server's audit log", line);
    }
    assert!(read > 0, "Kiln is in the audit log");
}

/// Looks at the processes of a tenant's builders and of the operator, again and again.
struct Processes {
    seen: Arc<std::sync::Mutex<BTreeSet<String>>>,
    fault: Arc<std::sync::Mutex<Option<String>>>,
    end: Arc<AtomicBool>,
    local: bool,
}

impl Processes {
    fn watch(tenant: &Tenant, marks: Marks) -> Self {
        let local = std::env::var_os("KILN_LOCAL_CLUSTER").is_some();
        if !local {
            eprintln!(
                "not tested: secrets on command lines and in environments; the nodes' processes are not on this machine"
            );
        }
        let watching = Self { seen: Arc::default(), fault: Arc::default(), end: Arc::default(), local };
        if watching.local {
            let (seen, fault, end) = (watching.seen.clone(), watching.fault.clone(), watching.end.clone());
            let pods = tenant.builder_pods();
            let list = ListParams::default().labels(&format!("{OF_TENANT}={}", tenant.namespace));
            tokio::spawn(async move {
                while !end.load(Ordering::Relaxed) {
                    let pods = pods.list(&list).await.map(|list| list.items).unwrap_or_default();
                    let uids: Vec<String> = pods.iter().filter_map(kube::ResourceExt::uid).collect();
                    for _ in 0..10 {
                        let looked = std::panic::catch_unwind(|| look(&uids, &marks));
                        match looked {
                            Ok(names) => seen.lock().unwrap().extend(names),
                            Err(panic) => {
                                let text = panic.downcast_ref::<String>().cloned().unwrap_or_default();
                                *fault.lock().unwrap() = Some(text);
                            }
                        }
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                }
            });
        }
        watching
    }

    /// Waits until programs of these names were among them; fails where one was told a secret.
    async fn until_seen(self, names: &[&str]) {
        let deadline = tokio::time::Instant::now() + wait::BUILD;
        loop {
            if let Some(fault) = self.fault.lock().unwrap().take() {
                panic!("{fault}");
            }
            let seen = self.seen.lock().unwrap().clone();
            if !self.local || names.iter().all(|name| seen.contains(*name)) {
                return;
            }
            assert!(tokio::time::Instant::now() < deadline, "{names:?} work; seen were {seen:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
    }
}

/// The names of the processes of these pods, once their command lines and environments are found to be without secrets.
/// What `git` reads its configuration from is its environment, which nobody else in its container's namespaces sees: of
/// that, only the command line counts.
fn look(uids: &[String], marks: &Marks) -> Vec<String> {
    let mut names = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let directory = entry.path();
        let read = |file: &str| fs::read(Path::new(&directory).join(file)).unwrap_or_default();
        let group = String::from_utf8_lossy(&read("cgroup")).replace('_', "-");
        if !uids.iter().any(|uid| group.contains(uid.as_str())) {
            continue;
        }
        let name = String::from_utf8_lossy(&read("comm")).trim().to_owned();
        // The agent's child that confines itself, and is `git` a moment later.
        let words = String::from_utf8_lossy(&read("cmdline")).into_owned();
        let becomes_git = words.split('\0').nth(1) == Some("sandbox") && words.split('\0').any(|word| word == "git");
        marks.check_bytes(&format!("the command line of {name}"), &read("cmdline"));
        if !name.starts_with("git") && !becomes_git {
            marks.check_bytes(&format!("the environment of {name}"), &read("environ"));
        }
        names.push(name);
    }
    names
}
