//! Platforms without a node of their own: emulated, cross-compiled, or only copied together.

use kiln_crds::image_build::PlatformSpec;
use kiln_crds::image_build_run::{Execution, PlatformStatus};
use kiln_e2e::build::platform;
use kiln_e2e::registry::Registry;
use kiln_e2e::tenant::image_of;
use kiln_e2e::{Build, Tenant, elf};

kiln_e2e::tests![
    a_pool_that_allows_it_emulates_what_no_node_runs,
    a_platform_whose_stages_only_copy_needs_no_node,
    what_runs_programs_is_refused_where_no_node_can_ever_run_them,
    build_on_compiles_for_one_architecture_on_anothers_builder,
    a_program_of_the_builder_under_the_targets_name_is_a_failure,
    every_image_holds_programs_of_its_platform
];

/// Runs a program of the platform, and keeps one.
const RUNS: &str = "FROM busybox\nRUN uname -m > /machine\n";
/// Runs nothing.
const COPIES: &str = "FROM scratch\nCOPY page /page\n";

async fn platforms_of(tenant: &Tenant, name: &str) -> Vec<PlatformStatus> {
    let built = tenant.builds().get(name).await.unwrap();
    tenant.run_of(&built).await.status.unwrap_or_default().platforms
}

fn executions(platforms: &[PlatformStatus]) -> Vec<(&str, Option<Execution>, &str)> {
    platforms
        .iter()
        .map(|platform| {
            let node = platform.builder.as_ref().map_or("", |builder| builder.node.as_str());
            (platform.name.as_str(), platform.execution, node)
        })
        .collect()
}

async fn a_pool_that_allows_it_emulates_what_no_node_runs() {
    Tenant::fresh("emulation", async |tenant| {
        let pool = tenant.pool("emulation", |spec| spec.allow.get_or_insert_default().emulation = Some(true)).await;
        let names = ["linux/amd64", "linux/386", "linux/arm/v7", "linux/s390x", "linux/ppc64le"];
        let build = Build::inline(tenant, "app", &[("Dockerfile", RUNS)]).platforms(&names).pool(&pool);
        let image = image_of(&tenant.build(&build).await);
        let platforms = platforms_of(tenant, "app").await;
        let execution: Vec<_> = executions(&platforms).iter().map(|(name, execution, _)| (*name, *execution)).collect();
        let (native, emulated) = (Some(Execution::Native), Some(Execution::Emulated));
        assert_eq!(
            execution,
            [
                ("linux/amd64", native),
                ("linux/386", native),
                ("linux/arm/v7", native),
                ("linux/s390x", emulated),
                ("linux/ppc64le", emulated),
            ]
        );
        let registry = Registry::new(&tenant.cluster);
        for (name, machine) in [("linux/s390x", "s390x"), ("linux/ppc64le", "ppc64le")] {
            let built = registry.image_for(&image.repository, &image.digest, name).await;
            assert_eq!(built.text("machine").trim(), machine, "a program of {name} has run");
        }
    })
    .await;
}

async fn a_platform_whose_stages_only_copy_needs_no_node() {
    Tenant::run("copy-only", async |tenant| {
        let names = ["linux/amd64", "linux/s390x", "linux/riscv64"];
        let files = [("Dockerfile", COPIES), ("page", "the same everywhere")];
        let image = image_of(&tenant.build(&Build::inline(tenant, "app", &files).platforms(&names)).await);
        let platforms = platforms_of(tenant, "app").await;
        let copied = Some(Execution::CopyOnly);
        let executions = executions(&platforms);
        assert_eq!(executions[1], ("linux/s390x", copied, "kiln-amd64"));
        assert_eq!(executions[2], ("linux/riscv64", copied, "kiln-amd64"));
        let registry = Registry::new(&tenant.cluster);
        for name in names {
            let built = registry.image_for(&image.repository, &image.digest, name).await;
            assert_eq!(built.text("page"), "the same everywhere");
        }
    })
    .await;
}

async fn what_runs_programs_is_refused_where_no_node_can_ever_run_them() {
    Tenant::fresh("not-runnable", async |tenant| {
        let pool = tenant.pool("narrow", |spec| spec.architectures = Some(vec!["amd64".to_owned()])).await;
        let build = Build::inline(tenant, "app", &[("Dockerfile", RUNS)]).platforms(&["linux/s390x"]).pool(&pool);
        tenant.create_build(&build).await;
        let failed = tenant.not_ready("app", "PlatformNotRunnable").await;
        let message = failed.status.unwrap().failure.unwrap().message;
        for word in ["linux/s390x", "amd64", "buildOn", "allow.emulation"] {
            assert!(message.contains(word), "{word}: {message}");
        }
    })
    .await;
}

/// Compiles on the builder, for the target.
const CROSS: &str = "FROM --platform=$BUILDPLATFORM busybox AS build
ARG TARGETARCH BUILDPLATFORM
RUN echo \"$(uname -m) $BUILDPLATFORM for $TARGETARCH\" > /how
FROM scratch
COPY --from=build /how /how
";

fn on_amd64(name: &str) -> PlatformSpec {
    PlatformSpec { build_on: Some("linux/x86_64".to_owned()), ..platform(name) }
}

async fn build_on_compiles_for_one_architecture_on_anothers_builder() {
    Tenant::run("build-on", async |tenant| {
        let build = Build::inline(tenant, "app", &[("Dockerfile", CROSS)])
            .with(|spec| spec.platforms = Some(vec![on_amd64("linux/arm64"), on_amd64("linux/s390x")]));
        let image = image_of(&tenant.build(&build).await);
        let platforms = platforms_of(tenant, "app").await;
        assert_eq!(
            executions(&platforms),
            [
                ("linux/arm64", Some(Execution::Cross), "kiln-amd64"),
                ("linux/s390x", Some(Execution::Cross), "kiln-amd64"),
            ]
        );
        let registry = Registry::new(&tenant.cluster);
        for (name, target) in [("linux/arm64", "arm64"), ("linux/s390x", "s390x")] {
            let how = registry.image_for(&image.repository, &image.digest, name).await.text("how");
            assert_eq!(how.trim(), format!("x86_64 linux/amd64 for {target}"));
        }
    })
    .await;
}

async fn a_program_of_the_builder_under_the_targets_name_is_a_failure() {
    Tenant::run("wrong-arch", async |tenant| {
        let dockerfile = "FROM --platform=$BUILDPLATFORM busybox AS build\nFROM scratch\n\
            COPY --from=build /bin/busybox /app\nENTRYPOINT [\"/app\"]\n";
        let build = Build::inline(tenant, "app", &[("Dockerfile", dockerfile)])
            .with(|spec| spec.platforms = Some(vec![on_amd64("linux/arm64")]));
        tenant.create_build(&build).await;
        let failed = tenant.not_ready("app", "WrongArchitecture").await;
        let message = failed.status.unwrap().failure.unwrap().message;
        for word in ["/app", "amd64", "arm64"] {
            assert!(message.contains(word), "{word}: {message}");
        }
    })
    .await;
}

async fn every_image_holds_programs_of_its_platform() {
    Tenant::run("variants", async |tenant| {
        let build =
            Build::inline(tenant, "app", &[("Dockerfile", "FROM busybox\nCOPY --from=busybox /bin/busybox /own\n")])
                .platforms(&["linux/amd64/v3", "linux/aarch64", "linux/armhf", "linux/i386"]);
        let image = image_of(&tenant.build(&build).await);
        let names: Vec<&str> = image.platforms.iter().map(|platform| platform.name.as_str()).collect();
        assert_eq!(names, ["linux/amd64/v3", "linux/arm64", "linux/arm/v7", "linux/386"]);
        let registry = Registry::new(&tenant.cluster);
        for (name, machine) in [("linux/amd64/v3", "amd64"), ("linux/arm/v7", "arm"), ("linux/386", "386")] {
            let built = registry.image_for(&image.repository, &image.digest, name).await;
            let own = built.entry("own").expect("it was copied");
            assert_eq!(elf::architecture(&own.bytes), machine, "{name}");
        }
    })
    .await;
}
