//! The chart's emulators: a `DaemonSet` brings one that the nodes had not, and a build that waited for it goes on.

use std::path::Path;
use std::process::Command;

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::Namespace;
use kiln_crds::BuilderPool;
use kiln_crds::builder_pool::PoolAllow;
use kiln_crds::image_build_run::Execution;
use kiln_e2e::cluster::variable;
use kiln_e2e::shell::root;
use kiln_e2e::{Build, Tenant, wait};
use kube::api::DeleteParams;
use kube::{Api, ResourceExt as _};

kiln_e2e::tests![an_emulator_that_the_chart_installs_is_noticed];

/// One that nothing else in these tests registers.
const HANDLER: &str = "/proc/sys/fs/binfmt_misc/qemu-loongarch64";

/// A program for linux/loong64 that ends with 0, and nothing else: 132 bytes of ELF.
const PROGRAM: &str = "f0VMRgIBAQAAAAAAAAAAAAIAAgEBAAAAeAAAIAEAAABAAAAAAAAAAAAAAAAAAAAAQwAAAEAAOAABAEAAAAAAAAEAAAAFAAAA\
                       AAAAAAAAAAAAAAAgAQAAAAAAACABAAAAhAAAAAAAAACEAAAAAAAAAAAAAQAAAAAAC3SBAwQAgAMAACsA";

/// What a command prints; it must succeed.
fn output(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}: {errors}", output.status);
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// An image with an emulator of this machine's packages; its digest.
fn image(name: &str) -> String {
    let context = std::env::temp_dir().join(name);
    let images = root().join("tests/cluster/images");
    let put = |from: &Path, to: &str| {
        let to = context.join(to);
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        std::fs::copy(from, to).unwrap_or_else(|error| panic!("{}: {error}", from.display()));
    };
    put(&images.join("binfmt"), "usr/bin/binfmt");
    put(Path::new("/usr/libexec/qemu-binfmt/loongarch64-binfmt-P"), "usr/libexec/qemu-binfmt/loongarch64-binfmt-P");
    put(Path::new("/usr/lib/binfmt.d/qemu-loongarch64.conf"), "etc/binfmt/loong64");
    let dockerfile = images.join("binfmt.Dockerfile");
    let digest = output(Command::new(images.join("build")).arg("binfmt").arg(&context).arg(dockerfile));
    std::fs::remove_dir_all(&context).unwrap();
    digest
}

async fn an_emulator_that_the_chart_installs_is_noticed() {
    if std::env::var_os("KILN_LOCAL_CLUSTER").is_none() {
        eprintln!(
            "not tested: an emulator that is installed; the test registers it with the kernel of all nodes: the local cluster's is this machine's"
        );
        return;
    }
    Tenant::fresh_at("emulation", "privileged", async |tenant| {
        assert!(!Path::new(HANDLER).exists(), "{HANDLER} is there already: echo -1 > {HANDLER}");
        let pool = tenant
            .pool("emulation", |spec| {
                spec.min_builders = Some(1);
                spec.allow = Some(PoolAllow { emulation: Some(true), ..PoolAllow::default() });
            })
            .await;
        let pools: Api<BuilderPool> = Api::all(tenant.cluster.client.clone());
        let warm = Build::inline(tenant, "warm", &[("Dockerfile", "FROM busybox\n")]).amd64().pool(&pool);
        tenant.create_build(&warm.with(|spec| spec.suspend = true)).await;
        tenant
            .wait(pools.clone(), wait::named(&pool), "a builder has said what it emulates", wait::BUILD, |pools| {
                let builders = pools.values().flat_map(|pool| &pool.status).flat_map(|status| &status.builders);
                Ok(builders.clone().any(|builder| builder.buildkit.is_some()))
            })
            .await;
        // The program comes from a stage of the builder's own platform; then it runs.
        let dockerfile = format!(
            "FROM --platform=$BUILDPLATFORM busybox AS program\n\
             RUN echo {PROGRAM} | base64 -d > /exit && chmod +x /exit\n\
             FROM scratch\nCOPY --from=program /exit /exit\nRUN [\"/exit\"]\n"
        );
        let build =
            Build::inline(tenant, "app", &[("Dockerfile", &dockerfile)]).platforms(&["linux/loong64"]).pool(&pool);
        tenant.create_build(&build).await;
        let emulates = |pool: &BuilderPool| {
            let builders = pool.status.iter().flat_map(|status| &status.builders);
            builders.flat_map(|builder| &builder.emulated_platforms).any(|platform| platform == "linux/loong64")
        };
        let waiting = tenant
            .wait_run("app-1", "waits for a node", wait::BUILD, |run| {
                let conditions = run.status.iter().flat_map(|status| &status.conditions);
                Ok(conditions.clone().any(|condition| condition.reason == "WaitingForNode"))
            })
            .await;
        assert!(waiting.status.unwrap().platforms[0].needs_node);
        assert!(!emulates(&pools.get(&pool).await.unwrap()));

        // The tenant's own namespace stands in for the chart's.
        let name = &tenant.namespace;
        let chart = root().join("charts/kiln");
        let manifest = output(
            Command::new("helm").arg("template").arg(name).arg(chart).args(["-s", "templates/emulation.yaml"]).args([
                "--set".to_owned(),
                format!("emulation.enabled=true,emulation.namespace.name={name},emulation.namespace.create=false"),
                "--set".to_owned(),
                "emulation.architectures={loong64},emulation.imagePullSecrets[0].name=registry".to_owned(),
                "--set".to_owned(),
                format!("emulation.image.repository={}/kiln/binfmt", variable("KILN_REGISTRY")),
                "--set".to_owned(),
                format!("emulation.image.digest={}", image(name)),
                "--set".to_owned(),
                builder_image(tenant).await,
            ]),
        );
        let set: DaemonSet = serde_yaml_ng::from_str(&manifest).unwrap();
        let set = tenant.api::<DaemonSet>().create(&kube::api::PostParams::default(), &set).await.unwrap();
        let select = wait::named(&set.name_any());
        tenant
            .wait(tenant.api::<DaemonSet>(), select, "the DaemonSet is ready", wait::BUILD, |sets| {
                let status = sets.values().find_map(|set| set.status.as_ref());
                Ok(status.is_some_and(|status| {
                    status.desired_number_scheduled > 0 && status.number_ready == status.desired_number_scheduled
                }))
            })
            .await;
        assert!(std::fs::read_to_string(HANDLER).unwrap().contains("flags: "), "it is registered");

        let built = tenant.built("app").await;
        let platform = tenant.run_of(&built).await.status.unwrap().platforms.remove(0);
        assert_eq!(platform.execution, Some(Execution::Emulated));
        assert!(emulates(&pools.get(&pool).await.unwrap()));

        tenant.api::<DaemonSet>().delete(&set.name_any(), &DeleteParams::default()).await.unwrap();
        std::fs::write(HANDLER, "-1").unwrap();
        let namespaces: Api<Namespace> = Api::all(tenant.cluster.client.clone());
        assert!(namespaces.get("kiln-emulation").await.is_err(), "the chart makes nothing of it unless told");
    })
    .await;
}

/// The builder's image of the cluster, as a value of the chart.
async fn builder_image(tenant: &Tenant) -> String {
    let pods = tenant.builders().await;
    let image = pods[0].spec.as_ref().unwrap().containers[0].image.clone().unwrap();
    let (repository, digest) = image.split_once('@').expect("tests/install names it by digest");
    format!("builder.image.repository={repository},builder.image.digest={digest}")
}
