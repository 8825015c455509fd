//! What builds and others reach over the network, tried from where they are: the chart's `NetworkPolicy` objects, the
//! rules on addresses for Git servers and registries, names that change their mind. A recorder stands where nobody may
//! come.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kiln_crds::image_build::CacheSpec;
use kiln_e2e::cluster::operator_namespace;
use kiln_e2e::git::Commit;
use kiln_e2e::plain_front::PlainFront;
use kiln_e2e::recorder::Recorder;
use kiln_e2e::registry::Registry;
use kiln_e2e::tenant::{CA, condition, image_of, run_of};
use kiln_e2e::{Build, Repository, Tenant};
use kube::api::{ListParams, PostParams};
use kube::{Api, ResourceExt as _};
use serde::Deserialize as _;
use serde_json::json;

kiln_e2e::tests![
    steps_reach_what_builds_need_and_nothing_else,
    private_addresses_can_be_closed,
    the_operator_reaches_all_but_metadata,
    git_servers_and_registries_at_forbidden_addresses,
    the_cluster_itself_is_no_source_and_no_registry,
    services_are_reached_where_the_pool_lists_them,
    rebinding_names_gain_nothing
];

/// For each `$TARGETS`, which are `host:port`, whether a connection is made.
const TRY: &str = "for target in $TARGETS; do nc -w 5 ${target%:*} ${target##*:} </dev/null >/dev/null 2>&1 && echo $target open || echo $target shut; done";

/// The port of agents.
const AGENT: u16 = 8443;

async fn steps_reach_what_builds_need_and_nothing_else() {
    let Some(recorder) = Recorder::here() else { return };
    Tenant::fresh("reach", async |tenant| {
        // Two builders: an ImageBuild with a cache of its own has a builder of its own.
        tenant.build(&Build::inline(tenant, "other", &[("Dockerfile", "FROM busybox\nRUN true\n")]).amd64()).await;
        let other = address(&tenant.builders().await[0]);
        tokio::net::TcpStream::connect((other, AGENT)).await.expect("the node itself reaches an agent, as probes do");

        let (registry, git) = (&tenant.cluster.registry, tenant.cluster.git.trim_start_matches("https://"));
        let api = api_server(tenant).await;
        let mut shut = vec![format!("{}:80", recorder.metadata), format!("metadata.{}:80", recorder.zone)];
        shut.extend(api.iter().map(ToString::to_string));
        shut.push(format!("{other}:{AGENT}"));
        // A private host, which the chart leaves open unless told otherwise.
        let open = [registry.as_str(), git, &format!("{}:80", recorder.forbidden)].map(str::to_owned);

        let dockerfile = format!("FROM busybox\nARG TARGETS\nRUN {TRY} >/tries\n");
        let build = Build::inline(tenant, "app", &[("Dockerfile", &dockerfile)]).amd64().with(|spec| {
            spec.cache = Some(serde_json::from_value::<CacheSpec>(json!({"scope": "ImageBuild"})).unwrap());
            spec.args.insert("TARGETS".to_owned(), [&open[..], &shut[..]].concat().join(" "));
        });
        let image = image_of(&tenant.build(&build).await);
        let image = Registry::new(&tenant.cluster).image_for(&image.repository, &image.digest, "linux/amd64").await;
        assert_eq!(image.text("tries"), lines(&open, &shut));

        let builders: Vec<_> = tenant.builders().await.iter().map(address).collect();
        assert_eq!(builders.len(), 2);
        let visits = recorder.visits(&builders);
        assert!(
            !visits.is_empty() && visits.iter().all(|visit| visit.destination.ip() == recorder.forbidden),
            "only the private host that is open has been visited: {visits:?}"
        );

        // A pod that no policy selects reaches all but agents, and is recorded: so the tries above do tell something.
        let targets = [&open[..], &shut[..]].concat();
        let (own, tries) = tries(tenant, &targets).await;
        let (shut, open): (Vec<_>, Vec<_>) =
            targets.into_iter().partition(|target| *target == format!("{other}:{AGENT}"));
        assert_eq!(tries, lines(&open, &shut));
        for reached in [recorder.metadata, recorder.forbidden] {
            let visits = recorder.visits(&[own]);
            assert!(visits.iter().any(|visit| visit.destination.ip() == reached), "{reached}: {visits:?}");
        }
    })
    .await;
}

/// The policies of builders with another value, in a namespace of the test's own: its pods are then what builders are.
async fn private_addresses_can_be_closed() {
    let Some(recorder) = Recorder::here() else { return };
    Tenant::fresh("closed", async |tenant| {
        let api = api_server(tenant).await;
        let policies = tenant.api::<NetworkPolicy>();
        for policy in closed_policies(&tenant.namespace, &api) {
            policies.create(&PostParams::default(), &policy).await.expect("it is a NetworkPolicy");
        }
        let mut shut = vec![
            tenant.cluster.registry.clone(),
            format!("{}:80", recorder.forbidden),
            format!("private.{}:443", recorder.zone),
            format!("{}:80", recorder.metadata),
        ];
        shut.extend(api.iter().map(ToString::to_string));
        let (own, tries) = tries(tenant, &shut).await;
        assert_eq!(tries, lines(&[], &shut));
        let visits = recorder.visits(&[own]);
        assert!(visits.is_empty(), "{visits:?}");
    })
    .await;
}

/// The operator's policy, in a namespace of the test's own: its pod is then what the operator is. And the operator itself
/// answers those whom the chart's value lets read its metrics.
async fn the_operator_reaches_all_but_metadata() {
    let Some(recorder) = Recorder::here() else { return };
    Tenant::fresh("operator-policy", async |tenant| {
        let operators: Api<Pod> = Api::namespaced(tenant.cluster.client.clone(), &operator_namespace());
        let component = ListParams::default().labels("app.kubernetes.io/component=operator");
        let operator = address(&operators.list(&component).await.unwrap().items[0]);
        let mut open = vec![tenant.cluster.registry.clone(), format!("{operator}:8080")];
        open.extend(api_server(tenant).await.iter().map(ToString::to_string));
        let shut = vec![format!("{}:80", recorder.metadata)];
        for mut policy in rendered("operator-network-policy.yaml", &[]) {
            policy.metadata.namespace = Some(tenant.namespace.clone());
            policy.spec.get_or_insert_default().pod_selector = None;
            tenant.api().create(&PostParams::default(), &policy).await.expect("it is a NetworkPolicy");
        }
        let (own, tries) = tries(tenant, &[&open[..], &shut].concat()).await;
        assert_eq!(tries, lines(&open, &shut));
        let visits = recorder.visits(&[own]);
        assert!(visits.is_empty(), "{visits:?}");
    })
    .await;
}

async fn git_servers_and_registries_at_forbidden_addresses() {
    let Some(recorder) = Recorder::here() else { return };
    Tenant::fresh("forbidden", async |tenant| {
        let closed = serde_json::from_value(json!({"privateAddresses": false})).unwrap();
        let pool = tenant.pool("public", |spec| spec.allow = Some(closed)).await;
        let zone = &recorder.zone;
        // Host, and whether only that pool forbids it.
        let hosts = [
            (format!("metadata.{zone}"), false),
            (format!("loopback.{zone}"), false),
            (recorder.metadata.to_string(), false),
            (format!("private.{zone}"), true),
            (recorder.forbidden.to_string(), true),
        ];
        for (number, (host, private)) in hosts.iter().enumerate() {
            let place = |build: Build| if *private { build.pool(&pool) } else { build };
            let git =
                with_url(Build::inline(tenant, &format!("git-{number}"), &[]), &format!("https://{host}/app.git"));
            tenant.create_build(&place(git.amd64())).await;
            let pushed = Build::inline(tenant, &format!("push-{number}"), &[("Dockerfile", "FROM busybox\n")]).amd64();
            let pushed = pushed.with(|spec| {
                spec.image.as_mut().unwrap().repository = format!("{host}:5000/app");
                spec.image.as_mut().unwrap().secret_ref = None;
            });
            tenant.create_build(&place(pushed)).await;
        }
        for (number, (host, private)) in hosts.iter().enumerate() {
            for name in ["git", "push"] {
                let build = tenant.not_ready(&format!("{name}-{number}"), "AddressForbidden").await;
                assert_eq!(run_of(&build), "", "{host}: no run");
                let message = &condition(&build, "Ready").unwrap().message;
                assert_eq!(message.contains("allow.privateAddresses"), *private, "{host}: {message}");
            }
        }
        nobody_came(tenant, &recorder).await;
    })
    .await;
}

async fn the_cluster_itself_is_no_source_and_no_registry() {
    Tenant::fresh("own", async |tenant| {
        let front = PlainFront::open_before_registry(&tenant.cluster).await;
        let service = service_before(tenant, "unlisted", &front.host).await;
        tenant.build(&Build::inline(tenant, "first", &[("Dockerfile", "FROM busybox\n")]).amd64()).await;
        let builder = tenant.builders().await.remove(0);
        let node = builder.status.as_ref().and_then(|status| status.host_ip.clone()).expect("a pod knows its node");
        let pod = address(&builder);
        let mut hosts = vec![format!("{node}:10250"), format!("{pod}:{AGENT}"), service.clone()];
        hosts.extend(api_server(tenant).await.iter().map(ToString::to_string));
        hosts.push("kubernetes.default.svc".to_owned());
        // What is open and what is shut looks the same.
        hosts.push(format!("{node}:1"));
        for (number, host) in hosts.iter().enumerate() {
            let git = Build::inline(tenant, &format!("git-{number}"), &[]).amd64();
            tenant.create_build(&with_url(git, &format!("https://{host}/app.git"))).await;
            let from = format!("FROM busybox\nCOPY --from={host}/app / /\n");
            let built = Build::inline(tenant, &format!("from-{number}"), &[("Dockerfile", &from)]).amd64();
            tenant.create_build(&built.with(|spec| spec.image = None)).await;
            let pushed = Build::inline(tenant, &format!("push-{number}"), &[("Dockerfile", "FROM busybox\n")]).amd64();
            let pushed = pushed.with(|spec| {
                spec.image.as_mut().unwrap().repository = format!("{host}/app");
                spec.image.as_mut().unwrap().secret_ref = None;
            });
            tenant.create_build(&pushed).await;
        }
        for (number, host) in hosts.iter().enumerate() {
            for name in ["git", "push", "from"] {
                let build = tenant.not_ready(&format!("{name}-{number}"), "AddressForbidden").await;
                let message = condition(&build, "Ready").unwrap().message.clone();
                assert!(message.contains("allow.cluster lists"), "{host}: {message}");
                // The operator asks Git servers and the registry of the image; of base images only a builder knows.
                assert_eq!(!run_of(&build).is_empty(), name == "from", "{host}: {message}");
                assert_eq!(message.contains("line 2 of Dockerfile"), name == "from", "{host}: {message}");
            }
        }
        // What the agent's own look at a Dockerfile does not show it: BuildKit has to be refused it.
        let base = format!("FROM busybox\nONBUILD COPY --from={service}/app / /\n");
        let base = Build::inline(tenant, "base", &[("Dockerfile", &base)]).amd64();
        let base = image_of(&tenant.build(&base).await);
        for (name, dockerfile) in [
            ("of-a-base", format!("FROM {}@{}\n", base.repository, base.digest)),
            ("behind-a-quote", format!("FROM busybox AS first\nRUN echo \"<<END\"\nFROM {service}/app\n")),
        ] {
            tenant.create_build(&Build::inline(tenant, name, &[("Dockerfile", &dockerfile)]).amd64()).await;
            let build = tenant.not_ready(name, "AddressForbidden").await;
            let message = condition(&build, "Ready").unwrap().message.clone();
            assert!(message.contains("allow.cluster lists"), "{name}: {message}");
        }
        assert_eq!(front.connections(), 0, "nobody came to the Service");
    })
    .await;
}

async fn services_are_reached_where_the_pool_lists_them() {
    Tenant::fresh("listed", async |tenant| {
        let front = PlainFront::open_before_registry(&tenant.cluster).await;
        let service = service_before(tenant, "registry", &front.host).await;
        let port: u16 = service.rsplit_once(':').unwrap().1.parse().unwrap();
        let pool = |ports: Vec<u16>| {
            let listed = json!({"cluster": [{"namespace": tenant.namespace, "service": "registry", "ports": ports}]});
            let plain = json!([{"host": service, "plainHttp": true}]);
            tenant.pool(if ports.contains(&port) { "listed" } else { "other-port" }, move |spec| {
                spec.allow = Some(serde_json::from_value(listed).unwrap());
                spec.registries = serde_json::from_value(plain).unwrap();
            })
        };
        let (listed, other_port) = (pool(vec![port]).await, pool(vec![1]).await);
        let dockerfile = format!("FROM {service}/docker.io/library/busybox\nRUN echo built >/built\n");
        let build = |name: &str, pool: &str| {
            Build::inline(tenant, name, &[("Dockerfile", &dockerfile)]).amd64().pool(pool).with(|spec| {
                let image = spec.image.as_mut().unwrap();
                image.repository = format!("{service}/e2e/{}/{name}", tenant.id);
                image.secret_ref = None;
                image.ca_ref = None;
            })
        };
        tenant.create_build(&build("refused", &other_port)).await;
        let built = image_of(&tenant.build(&build("app", &listed)).await);
        assert!(built.repository.starts_with(&service), "{}", built.repository);
        let refused = tenant.not_ready("refused", "AddressForbidden").await;
        let message = &condition(&refused, "Ready").unwrap().message;
        assert!(message.contains("an address of the cluster"), "{message}");
        assert!(front.connections() > 0, "connections are counted");
    })
    .await;
}

/// A Service of the tenant's before an address that is none of the cluster's; `name:port`.
async fn service_before(tenant: &Tenant, name: &str, place: &str) -> String {
    let (address, port) = place.rsplit_once(':').expect("address and port");
    let port: u16 = port.parse().unwrap();
    let service: Service = serde_json::from_value(json!({
        "metadata": {"name": name},
        "spec": {"ports": [{"port": port, "targetPort": port}]},
    }))
    .unwrap();
    tenant.api::<Service>().create(&PostParams::default(), &service).await.unwrap();
    let slice: EndpointSlice = serde_json::from_value(json!({
        "metadata": {"name": name, "labels": {"kubernetes.io/service-name": name}},
        "addressType": "IPv4",
        "endpoints": [{"addresses": [address]}],
        "ports": [{"port": port, "protocol": "TCP"}],
    }))
    .unwrap();
    tenant.api::<EndpointSlice>().create(&PostParams::default(), &slice).await.unwrap();
    format!("{name}.{}.svc:{port}", tenant.namespace)
}

/// A name that is a good server when the operator looks it up, and another address when the builder does.
async fn rebinding_names_gain_nothing() {
    let Some(recorder) = Recorder::here() else { return };
    Tenant::fresh("rebind", async |tenant| {
        let repository = Repository::public(tenant, "app");
        repository.commit(&Commit { files: &[("Dockerfile", "FROM busybox\n")], ..Commit::default() });
        let path = repository.url.strip_prefix(&tenant.cluster.git).expect("it is on the Git server");
        let port = tenant.cluster.git.rsplit_once(':').expect("the Git server's URL has a port").1;
        let url = |host: &str| format!("https://{host}:{port}{path}");
        let build = |name: &str, host: &str| with_url(Build::git(tenant, name, &repository), &url(host)).amd64();

        // The server does answer to names, and one good address of two is used.
        tenant.build(&build("steady", &format!("git.{}", recorder.zone))).await;
        tenant.build(&build("mixed", &format!("mixed.{}", recorder.zone))).await;

        for label in ["metadata", "loopback"] {
            let host = recorder.rebinding(&tenant.namespace, label);
            tenant.create_build(&build(label, &host)).await;
            let failed = tenant.not_ready(label, "AddressForbidden").await;
            // The operator saw the good address, so there is a run, and it was the builder that refused.
            assert_ne!(run_of(&failed), "", "{host}");
            let failure = tenant.run_of(&failed).await.status.unwrap().failure.unwrap();
            assert_eq!(failure.reason, "AddressForbidden", "{failure:?}");
        }
        nobody_came(tenant, &recorder).await;
    })
    .await;
}

fn with_url(build: Build, url: &str) -> Build {
    let source = json!({"git": {"url": url, "caRef": {"name": CA}}});
    build.with(|spec| spec.source = serde_json::from_value(source).unwrap())
}

fn lines(open: &[String], shut: &[String]) -> String {
    let mut lines = String::new();
    for (targets, word) in [(open, "open"), (shut, "shut")] {
        for target in targets {
            writeln!(lines, "{target} {word}").unwrap();
        }
    }
    lines.trim_end().to_owned()
}

/// Tries the targets from a pod of the tenant's; its address, and what it got.
async fn tries(tenant: &Tenant, targets: &[String]) -> (IpAddr, String) {
    let pod = json!({
        "metadata": {"generateName": "tries-"},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": false,
            "terminationGracePeriodSeconds": 0,
            "nodeSelector": {"kubernetes.io/arch": "amd64"},
            "securityContext": {"runAsNonRoot": true, "runAsUser": 65534, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{
                "name": "tries",
                "image": "busybox",
                "command": ["sh", "-c", format!("hostname -i; {TRY}")],
                "env": [{"name": "TARGETS", "value": targets.join(" ")}],
                "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
            }],
        },
    });
    let printed = tenant.run_pod(pod).await;
    let (own, tries) = printed.split_once('\n').expect("an address and a line for each try");
    (own.parse().expect("a pod knows its address"), tries.to_owned())
}

/// Neither the operator nor a builder of the tenant's has come to the recorder's addresses.
async fn nobody_came(tenant: &Tenant, recorder: &Recorder) {
    let pods: Api<Pod> = Api::namespaced(tenant.cluster.client.clone(), &operator_namespace());
    let mut from: Vec<_> = pods.list(&ListParams::default()).await.unwrap().iter().map(address).collect();
    assert!(!from.is_empty(), "there is an operator");
    from.extend(tenant.builders().await.iter().map(address));
    // A line is there as soon as a connection is, but for the time that the recorder needs to write it.
    tokio::time::sleep(Duration::from_millis(200)).await;
    let visits = recorder.visits(&from);
    assert!(visits.is_empty(), "{visits:?}");
}

fn address(pod: &Pod) -> IpAddr {
    let address = pod.status.as_ref().and_then(|status| status.pod_ip.as_deref());
    address.unwrap_or_else(|| panic!("{} has an address", pod.name_any())).parse().unwrap()
}

/// All addresses of the API server: the Service's and the real ones.
async fn api_server(tenant: &Tenant) -> Vec<SocketAddr> {
    let services: Api<Service> = Api::namespaced(tenant.cluster.client.clone(), "default");
    let service = services.get("kubernetes").await.unwrap().spec.unwrap();
    let port = u16::try_from(service.ports.unwrap()[0].port).unwrap();
    let mut found = vec![SocketAddr::new(service.cluster_ip.unwrap().parse().unwrap(), port)];
    let slices: Api<EndpointSlice> = Api::namespaced(tenant.cluster.client.clone(), "default");
    let of_service = ListParams::default().labels("kubernetes.io/service-name=kubernetes");
    for slice in slices.list(&of_service).await.unwrap() {
        let port = u16::try_from(slice.ports.as_ref().unwrap()[0].port.unwrap()).unwrap();
        let addresses = slice.endpoints.iter().flat_map(|endpoint| &endpoint.addresses);
        found.extend(addresses.map(|address| SocketAddr::new(address.parse().unwrap(), port)));
    }
    assert!(found.len() > 1, "a Service has endpoints: {found:?}");
    found
}

/// The policies of a template of the chart.
fn rendered(template: &str, values: &[&str]) -> Vec<NetworkPolicy> {
    let chart = concat!(env!("CARGO_MANIFEST_DIR"), "/../../charts/kiln");
    let output = Command::new("helm")
        .args(["template", "kiln", chart, "--namespace", &operator_namespace()])
        .args(["--show-only", &format!("templates/{template}")])
        .args(values)
        .output()
        .expect("helm is in PATH");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let documents = serde_yaml_ng::Deserializer::from_slice(&output.stdout);
    documents.map(|document| NetworkPolicy::deserialize(document).expect("it is a NetworkPolicy")).collect()
}

/// The chart's policies for a builders namespace of this name, and what the operator's plan makes of closed private
/// addresses: its snapshot, with the API server's addresses for those of the unit test.
fn closed_policies(namespace: &str, api: &[SocketAddr]) -> Vec<NetworkPolicy> {
    let value = format!("builder.namespace.name={namespace}");
    let mut policies = rendered("network-policies.yaml", &["--set", &value]);
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
    let path = "operator/src/network_policy/snapshots/kiln_operator__network_policy__plan__tests__closed_to_private_addresses.snap";
    let snapshot = std::fs::read_to_string(format!("{root}/{path}")).expect("the snapshot is there");
    let (_, snapshot) = snapshot.trim_start_matches("---\n").split_once("---\n").expect("it has a head");
    let mut closed: NetworkPolicy = serde_yaml_ng::from_str(snapshot).expect("it is a NetworkPolicy");
    for peer in closed.spec.iter_mut().flat_map(|spec| spec.egress.iter_mut().flatten()).flat_map(|rule| &mut rule.to) {
        for block in peer.iter_mut().filter_map(|peer| peer.ip_block.as_mut()).filter(|block| block.cidr == "0.0.0.0/0")
        {
            block.except.get_or_insert_default().extend(api.iter().map(|one| format!("{}/32", one.ip())));
            // Which ranges are private the chart says.
            block.except.get_or_insert_default().extend(["172.16.0.0/12", "192.168.0.0/16"].map(str::to_owned));
        }
    }
    policies.push(closed);
    policies
}
