//! One static program for every platform, whether or not a node runs it.

use kiln_crds::image_build_run::Execution;
use kiln_e2e::registry::Registry;
use kiln_e2e::tenant::{REGISTRY_SECRET, image_of};
use kiln_e2e::{Tenant, elf};
use serde_json::json;

use crate::samples::app::App;

kiln_e2e::tests![ignored static_go];

/// Platform, what its program is compiled for, and how its steps are run on a cluster of amd64 and arm64 nodes.
const PLATFORMS: [(&str, &str, Execution); 7] = [
    ("linux/amd64", "amd64", Execution::Native),
    ("linux/arm64", "arm64", Execution::Cross),
    ("linux/arm/v7", "arm", Execution::Cross),
    ("linux/386", "386", Execution::Native),
    ("linux/s390x", "s390x", Execution::CopyOnly),
    ("linux/ppc64le", "ppc64le", Execution::CopyOnly),
    ("linux/riscv64", "riscv64", Execution::CopyOnly),
];

async fn static_go() {
    Tenant::fresh("app-static-go", async |tenant| {
        let platforms = PLATFORMS.map(|(platform, ..)| platform);
        let mut app = App::create(tenant, "static-go", &platforms, &[]).await;
        let (built, seconds) = app.built().await;
        println!("static-go: {seconds:.1} s at first, for {} platforms", platforms.len());

        let image = image_of(&built);
        let images = Registry::new(&tenant.cluster).images(&image.repository, &image.digest).await;
        let programs: Vec<_> = images
            .iter()
            .map(|image| {
                let program = image.entry("digest").expect("the program is in the image");
                (image.platform.as_str(), elf::architecture(&program.bytes))
            })
            .collect();
        assert_eq!(programs, PLATFORMS.map(|(platform, architecture, _)| (platform, architecture)));

        let run = tenant.run_of(&built).await.status.expect("a finished run has a status");
        let executions: Vec<_> =
            run.platforms.iter().map(|platform| (platform.name.as_str(), platform.execution)).collect();
        assert_eq!(executions, PLATFORMS.map(|(platform, _, execution)| (platform, Some(execution))));

        for architecture in ["amd64", "arm64"] {
            let pod = json!({
                "metadata": {"generateName": format!("digest-{architecture}-")},
                "spec": {
                    "restartPolicy": "Never",
                    "automountServiceAccountToken": false,
                    "nodeSelector": {"kubernetes.io/arch": architecture},
                    "tolerations": [{"key": "kubernetes.io/arch", "operator": "Exists"}],
                    "imagePullSecrets": [{"name": REGISTRY_SECRET}],
                    "securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
                    "containers": [{
                        "name": "digest",
                        "image": image.reference,
                        "args": ["--version"],
                        "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
                    }],
                },
            });
            assert_eq!(tenant.run_pod(pod).await, format!("digest 1.0 linux/{architecture}"));
        }
    })
    .await;
}
