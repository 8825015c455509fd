//! The scripts on a cluster of one's own, which KUBECONFIG names: they tell all that is missing at once, and change nothing;
//! docker makes Kiln's images. What is always missing here are the rights, or Kiln's images: a script that went too far
//! would change nothing.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use kiln_e2e::Tenant;
use kiln_e2e::registries::Login;
use kiln_e2e::shell::{Ran, Shell, root};

kiln_e2e::tests![
    all_that_is_missing_is_said_at_once,
    registry_git_server_and_nodes_are_asked,
    docker_makes_the_images_and_the_nodes_get_them,
    version_storage_and_nodes_are_looked_at,
    plain the_operators_dockerfile_compiles_the_workspace_as_it_is,
];

/// What `.cluster/env` sets, and a user's environment has not.
const VARIABLES: [&str; 11] = [
    "KILN_COSTS",
    "KILN_LOCAL_CLUSTER",
    "KILN_CLUSTER_STARTED",
    "KILN_OPERATOR_IMAGE",
    "KILN_BUILDER_IMAGE",
    "KILN_IMAGES",
    "KILN_REGISTRY",
    "KILN_REGISTRY_USER",
    "KILN_REGISTRY_PASSWORD",
    "KILN_REGISTRY_CA",
    "KILN_GIT",
];

fn without_variables(shell: Shell) -> Shell {
    VARIABLES.iter().fold(shell, |shell, name| shell.with(name, ""))
}

/// The lines that say what is missing; there are some.
fn missing(ran: &Ran) -> Vec<&str> {
    assert_eq!(ran.code, 1, "{}{}", ran.stdout, ran.stderr);
    let (_, lines) = ran.stderr.split_once("nothing was changed. What is missing:\n").unwrap_or_else(|| {
        panic!("it says what is missing:\n{}{}", ran.stdout, ran.stderr);
    });
    lines.lines().map(str::trim).collect()
}

fn assert_lines(ran: &Ran, beginnings: &[&str]) {
    let lines = missing(ran);
    let same =
        lines.len() == beginnings.len() && lines.iter().zip(beginnings).all(|(line, begin)| line.starts_with(begin));
    assert!(same, "{lines:#?}\nbegin with {beginnings:#?}");
}

async fn all_that_is_missing_is_said_at_once() {
    Tenant::fresh("preflight", async |tenant| {
        let account = || without_variables(Shell::of_account(tenant, "nobody", None));
        let rights = [
            "the right to create namespaces:",
            "the right to create customresourcedefinitions.apiextensions.k8s.io:",
            "the right to create clusterroles.rbac.authorization.k8s.io:",
            "the right to create clusterrolebindings.rbac.authorization.k8s.io:",
            "the right to list storageclasses:",
        ];
        let images = ["the variable KILN_OPERATOR_IMAGE:", "the variable KILN_BUILDER_IMAGE:"];
        let variables = [
            "the variable KILN_REGISTRY:",
            "the variable KILN_REGISTRY_USER:",
            "the variable KILN_REGISTRY_PASSWORD:",
            "the variable KILN_GIT:",
        ];
        let shell = account();
        let demo = shell.run("tests/demo").await;
        assert_lines(&demo, &[&images[..], &variables, &rights, &["the right to list nodes:"]].concat());
        assert_lines(&shell.run("tests/install").await, &[&images[..], &rights].concat());
    })
    .await;
}

async fn registry_git_server_and_nodes_are_asked() {
    Tenant::fresh("preflight-asks", async |tenant| {
        // The cluster's administrator, so that nodes and StorageClasses are seen.
        let ask = async |login: &Login, password: &str, git: &str| {
            let shell = without_variables(Shell::of_admin(tenant))
                .with("KILN_BUILDER_IMAGE", "builder:1")
                .with("KILN_REGISTRY", &login.host)
                .with("KILN_REGISTRY_USER", &login.user)
                .with("KILN_REGISTRY_PASSWORD", password)
                .with("KILN_REGISTRY_CA", &kiln_e2e::cluster::variable("KILN_REGISTRY_CA"))
                .with("KILN_GIT", git);
            shell.run("tests/demo").await
        };
        let image = "the variable KILN_OPERATOR_IMAGE:";
        let git = &tenant.cluster.git;
        for login in [Login::first(), Login::token()] {
            assert_lines(&ask(&login, &login.password, git).await, &[image]);
            let refused = format!("access to {}: it refuses KILN_REGISTRY_USER={} ", login.host, login.user);
            assert_lines(&ask(&login, "wrong \"\\", git).await, &[image, &refused]);
        }
        let nobody = Login { host: format!("{}:1", tenant.cluster.registry_host()), ..Login::first() };
        let unreachable = format!("a way to KILN_REGISTRY={}: curl: (7) ", nobody.host);
        let closed = format!("https://{}", nobody.host);
        let no_git = format!("a way to KILN_GIT={closed}: curl: (7) ");
        assert_lines(&ask(&nobody, "secret", &closed).await, &[image, &unreachable, &no_git]);
        let plain = ["an https URL in KILN_GIT=http://git.example"];
        let ran = ask(&Login::first(), &Login::first().password, plain[0].rsplit('=').next().unwrap()).await;
        assert_lines(&ran, &[image, plain[0]]);
        assert!(!ran.stderr.contains(&Login::first().password), "no password is told");
    })
    .await;
}

/// A cluster that is too old, whose arm64 nodes take no pods, and whose StorageClass is not the default one.
const KUBECTL: &str = r#"#!/bin/sh
case $* in
*"config view"*) echo https://laptop.example ;;
*/version*) echo '{"major": "1", "minor": "29+"}' ;;
*storageclasses*) echo '{"storageclass.kubernetes.io/is-default-class":"false"}' ;;
*"get nodes"*)
	echo 'amd64 True unschedulable= kubernetes.io/arch=NoSchedule spare=PreferNoSchedule'
	echo 'arm64 True unschedulable=true'
	echo 'arm64 Unknown unschedulable='
	echo 'arm64 True unschedulable= kubernetes.io/arch=NoSchedule gpu=NoExecute'
	;;
esac
"#;

async fn version_storage_and_nodes_are_looked_at() {
    Tenant::fresh("preflight-old", async |tenant| {
        let shell = without_variables(Shell::of_admin(tenant));
        let shell = with_programs(shell, &[("kubectl", KUBECTL)])
            .with("KILN_GIT", &tenant.cluster.git)
            .with("KILN_BUILDER_IMAGE", "builder:1");
        // Nobody has named the CA of the Git server.
        let untrusted = format!("a way to KILN_GIT={}: curl: (60) ", tenant.cluster.git);
        let expected = [
            "the variable KILN_OPERATOR_IMAGE:",
            "the variable KILN_REGISTRY:",
            "the variable KILN_REGISTRY_USER:",
            "the variable KILN_REGISTRY_PASSWORD:",
            &untrusted,
            "Kubernetes 1.30 or later: this one is 1.29",
            "a default StorageClass",
            "a node of arm64 that is ready and takes pods",
        ];
        let ran = shell.run("tests/demo").await;
        assert_lines(&ran, &expected);
        assert!(ran.stderr.contains("KILN_REGISTRY_CA"), "{}", ran.stderr);
    })
    .await;
}

/// Puts programs before those of the machine.
fn with_programs(shell: Shell, programs: &[(&str, &str)]) -> Shell {
    let directory = shell.directory().join("bin");
    std::fs::create_dir(&directory).unwrap();
    for (name, program) in programs {
        std::fs::write(directory.join(name), program).unwrap();
        std::fs::set_permissions(directory.join(name), Permissions::from_mode(0o755)).unwrap();
    }
    let path = format!("{}:{}", directory.display(), std::env::var("PATH").unwrap());
    shell.with("PATH", &path)
}

/// A program that notes how it was called, and does what its arguments ask for.
const DOCKER: &str = r#"#!/bin/sh
echo "docker $*" >>"$CALLS"
case $* in
*inspect*) echo sha256:0123456789abcdef ;;
*--metadata-file*) while [ "$1" != --metadata-file ]; do shift; done; echo '{"containerimage.digest": "sha256:fed"}' >"$2" ;;
esac
"#;
const KIND: &str = "#!/bin/sh\necho \"kind $*\" >>\"$CALLS\"\n";

async fn docker_makes_the_images_and_the_nodes_get_them() {
    Tenant::fresh("images", async |tenant| {
        let shell = without_variables(Shell::of_admin(tenant));
        let calls = shell.directory().join("calls");
        let shell = with_programs(shell, &[("docker", DOCKER), ("kind", KIND)]).with("CALLS", calls.to_str().unwrap());

        // Which command loads them depends on the context's name.
        let other = shell.run("tests/images").await;
        assert_lines(&other, &["the variable KILN_IMAGES:"]);
        let rename = "kubectl config rename-context \"$(kubectl config current-context)\" kind-mine >/dev/null";
        shell.run(rename).await.printed();
        let loaded = shell.run("tests/images").await.printed();
        let names = ["kiln-operator:0123456789ab", "kiln-builder:0123456789ab"];
        assert_eq!(
            loaded,
            format!("export KILN_OPERATOR_IMAGE={}\nexport KILN_BUILDER_IMAGE={}\n", names[0], names[1])
        );
        let called = std::fs::read_to_string(&calls).unwrap();
        for name in names {
            assert!(called.contains(&format!("kind load docker-image --name mine {name}\n")), "{called}");
        }
        std::fs::remove_file(&calls).unwrap();

        let shell = shell.with("KILN_IMAGES", "registry.example/you");
        let pushed = shell.run("tests/images").await.printed();
        assert_eq!(
            pushed,
            "export KILN_OPERATOR_IMAGE=registry.example/you/kiln-operator@sha256:fed\n\
             export KILN_BUILDER_IMAGE=registry.example/you/kiln-builder@sha256:fed\n"
        );
        let called = std::fs::read_to_string(&calls).unwrap();
        assert!(called.contains("--push --platform linux/amd64"), "for the nodes: {called}");
        assert!(!called.contains("kind "), "{called}");
    })
    .await;
}

/// The local cluster's image takes a binary that is there already, so nothing else would notice.
fn the_operators_dockerfile_compiles_the_workspace_as_it_is() {
    let read = |path: &str| std::fs::read_to_string(root().join(path)).unwrap();
    let manifest = read("Cargo.toml");
    let (_, members) = manifest.split_once("members = [").unwrap();
    let (members, _) = members.split_once(']').unwrap();
    let ignored = read("operator/Dockerfile.dockerignore");
    let given: Vec<_> = ignored.lines().filter_map(|line| line.strip_prefix('!')).map(Path::new).collect();
    for member in members.split(',').map(|member| member.trim().trim_matches('"')) {
        let member = Path::new(member);
        assert!(given.iter().any(|given| member.starts_with(given)), "{} is in the context", member.display());
    }
    let toolchain = read("rust-toolchain.toml");
    let version = toolchain.lines().find_map(|line| line.strip_prefix("channel = ")).unwrap().trim_matches('"');
    for dockerfile in ["operator/Dockerfile", "builder-image/Dockerfile"] {
        let text = read(dockerfile);
        for line in [format!("FROM rust:{version}-"), format!("ENV RUSTUP_TOOLCHAIN={version}")] {
            assert!(text.lines().any(|there| there.starts_with(&line)), "{dockerfile} has {line}");
        }
    }
}
