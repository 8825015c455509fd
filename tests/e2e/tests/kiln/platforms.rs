//! Platforms without a node of their own: emulated, cross-compiled, or only copied together.

use kiln_crds::image_build::PlatformSpec;
use kiln_crds::image_build_run::{Execution, PlatformStatus};
use kiln_e2e::build::{platform, repository};
use kiln_e2e::registry::Registry;
use kiln_e2e::tenant::image_of;
use kiln_e2e::{Build, Tenant, elf};

kiln_e2e::tests![
    a_pool_that_allows_it_emulates_what_no_node_runs,
    a_platform_whose_stages_only_copy_needs_no_node,
    what_runs_programs_is_refused_where_no_node_can_ever_run_them,
    build_on_compiles_for_one_architecture_on_anothers_builder,
    programs_of_another_architecture_fail_the_build_before_it_is_pushed,
    a_base_of_one_architecture_gives_files_to_others,
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
        // What a base image holds back counts too, for its Dockerfile only copies.
        let files = [("Dockerfile", "FROM scratch\nCOPY page /page\nONBUILD RUN uname -m > /machine\n"), ("page", "x")];
        let base = Build::inline(tenant, "base", &files).platforms(&["linux/s390x"]).pool(&pool);
        let base = image_of(&tenant.build(&base).await);
        let dockerfile = format!("FROM {}\nCOPY page /copied\n", base.reference);
        let build = Build::inline(tenant, "held-back", &[("Dockerfile", &dockerfile), ("page", "x")]);
        tenant.create_build(&build.platforms(&["linux/s390x"]).pool(&pool)).await;
        tenant.not_ready("held-back", "PlatformNotRunnable").await;
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

/// What brought a program of another architecture into an image, the lines of its Dockerfile that are named, and the cure.
const FOREIGN: [(&str, &str, u32, &str); 5] = [
    (
        "exec-form",
        "FROM --platform=linux/arm64 busybox AS other\nFROM scratch\nCOPY --from=other /bin/busybox /app\nENTRYPOINT [\"/app\"]\n",
        1,
        "other is FROM --platform=linux/arm64",
    ),
    (
        "shell-form",
        "FROM --platform=linux/arm64 busybox AS other\nFROM busybox\nCOPY --from=other /bin/busybox /app\nCMD A=b exec /app --serve\n",
        1,
        "compile it for $TARGETARCH there",
    ),
    (
        "entry-script",
        "FROM --platform=linux/arm64 busybox AS other\nFROM busybox\nCOPY --from=other /bin/busybox /usr/bin/server\nCOPY --chmod=755 <<EOF /entry\n#!/bin/sh\nexec \"$@\"\nEOF\nENTRYPOINT [\"/entry\"]\nCMD [\"server\"]\n",
        1,
        "compile it for $TARGETARCH there",
    ),
    ("silenced", "# check=skip=all\nFROM --platform=linux/arm64 busybox\nLABEL a=b\n", 2, "leave that out"),
    (
        "nothing-to-start",
        "FROM --platform=linux/arm64 busybox AS other\nFROM scratch\nCOPY --from=other /bin /bin\n",
        1,
        "other is FROM",
    ),
];

/// On a node of the platform itself, where nothing of the image has to run while it is built.
async fn programs_of_another_architecture_fail_the_build_before_it_is_pushed() {
    Tenant::run("wrong-arch", async |tenant| {
        for (name, dockerfile, ..) in FOREIGN {
            tenant.create_build(&Build::inline(tenant, name, &[("Dockerfile", dockerfile)]).amd64()).await;
        }
        let registry = Registry::new(&tenant.cluster);
        for (name, _, line, cure) in FOREIGN {
            let failed = tenant.not_ready(name, "WrongArchitecture").await;
            let failure = failed.status.unwrap().failure.unwrap();
            assert_eq!(failure.line, Some(line), "{name}: {failure:#?}");
            for word in ["is a program for arm64", "linux/amd64", cure] {
                assert!(failure.message.contains(word), "{word}: {}", failure.message);
            }
            assert_eq!(registry.digest(&repository(tenant, name), "latest").await, None, "{name}: nothing is pushed");
        }
        // Where it is meant.
        let (_, dockerfile, ..) = FOREIGN[0];
        let meant = Build::inline(tenant, "meant", &[("Dockerfile", dockerfile)]).amd64().with(|spec| {
            spec.image.as_mut().unwrap().allow_foreign_programs = vec!["/app".to_owned()];
        });
        tenant.build(&meant).await;
    })
    .await;
}

/// An image that is there for one architecture gives its files to any; what is built upon it is for that one.
async fn a_base_of_one_architecture_gives_files_to_others() {
    Tenant::run("one-arch", async |tenant| {
        let registry = Registry::new(&tenant.cluster);
        let base = repository(tenant, "only-amd64");
        registry.push_image(&base, "1", "linux/amd64", &[("page", "of amd64")]).await;
        let files = format!(
            "FROM {base}:1 AS files\nFROM scratch\nCOPY --from=files /page /page\nCOPY --from={base}:1 /page /too\n"
        );
        let build = Build::inline(tenant, "files", &[("Dockerfile", &files)]);
        let image = image_of(&tenant.build(&build).await);
        for platform in ["linux/amd64", "linux/arm64"] {
            let built = registry.image_for(&image.repository, &image.digest, platform).await;
            assert_eq!((built.text("page"), built.text("too")), ("of amd64".to_owned(), "of amd64".to_owned()));
        }
        // Its own programs are not.
        let shell = "FROM --platform=linux/amd64 busybox\n";
        tenant.build(&Build::inline(tenant, "base", &[("Dockerfile", shell)]).amd64()).await;
        let single = registry.images(&repository(tenant, "base"), "latest").await;
        assert_eq!(single.len(), 1);
        let upon = format!("FROM {}:latest\n", repository(tenant, "base"));
        let upon = Build::inline(tenant, "upon", &[("Dockerfile", &upon)]).platforms(&["linux/arm64"]);
        tenant.create_build(&upon).await;
        let failed = tenant.not_ready("upon", "BaseImageNotFound").await;
        let message = failed.status.unwrap().failure.unwrap().message;
        assert!(message.contains("FROM --platform="), "{message}");
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
