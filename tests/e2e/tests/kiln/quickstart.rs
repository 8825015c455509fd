//! `docs/quickstart.md` does what it says, block by block. The cluster is this project's, with Kiln on it, so `helm` only
//! says what it would do; the BuilderPool that it would make is made for this test alone.

use std::collections::BTreeMap;

use kiln_crds::builder_pool::PoolRegistry;
use kiln_e2e::page;
use kiln_e2e::plain_front::PlainFront;
use kiln_e2e::registry::Registry;
use kiln_e2e::shell::Shell;
use kiln_e2e::tenant::REGISTRY_SECRET;
use kiln_e2e::{Tenant, build};
use serde_json::Value;

kiln_e2e::tests![the_page_leads_to_an_index_of_two_platforms];

/// The registries of the BuilderPool in a release, as `helm` prints it.
fn registries_of(release: &str) -> Vec<PoolRegistry> {
    let release: Value = serde_json::from_str(release).unwrap_or_else(|error| panic!("helm: {error}: {release}"));
    let manifest = release["manifest"].as_str().expect("a release has a manifest");
    let pool = manifest
        .split("\n---\n")
        .map(|object| serde_yaml_ng::from_str::<Value>(object).expect("a manifest is YAML"))
        .find(|object| object["kind"] == "BuilderPool")
        .expect("the chart makes a BuilderPool");
    serde_json::from_value(pool["spec"]["registries"].clone()).expect("the page sets registries")
}

async fn the_page_leads_to_an_index_of_two_platforms() {
    Tenant::fresh("quickstart", async |tenant| {
        let front = PlainFront::open_before_registry(&tenant.cluster).await;
        let pool = format!("{}-laptop", tenant.id);
        let path = format!("e2e/{}/hello", tenant.id);
        // Base images come from the registry that stands in for docker.io, which wants a login.
        tenant.account_pulls_with(REGISTRY_SECRET).await;
        let shell = Shell::of_admin(tenant)
            .with("KILN_OPERATOR_IMAGE", "kiln-operator:0123456789ab")
            .with("KILN_BUILDER_IMAGE", "kiln-builder:0123456789ab");
        // What the page says, and what holds here.
        let here = [
            ("helm upgrade --install", "helm upgrade --install --dry-run=server --output json"),
            ("kiln-registry:5000/hello", &format!("{}/{path}", front.host)),
            ("kiln-registry:5000", &front.host),
            ("localhost:5001/v2/hello", &format!("{}/v2/{path}", front.host)),
            ("  platforms:\n", &format!("  pool: {pool}\n  platforms:\n")),
        ];
        let mut unused = BTreeMap::from(here);
        let mut printed = String::new();
        for block in page::commands("quickstart.md") {
            let script = here.iter().fold(block.clone(), |script, (page, here)| {
                if script.contains(page) {
                    unused.remove(page);
                }
                script.replace(page, here)
            });
            let output = shell.run(&format!("set -euo pipefail\n{script}")).await;
            assert_eq!(output.code, 0, "{block}\n{}{}", output.stdout, output.stderr);
            if block.contains("helm ") {
                let registries = registries_of(&output.stdout);
                let made = tenant.pool("laptop", |spec| {
                    spec.registries.extend(registries);
                    // A laptop's nodes have one architecture.
                    let template = spec.template.get_or_insert_default();
                    template.node_selector.insert("kubernetes.io/arch".to_owned(), "amd64".to_owned());
                });
                assert_eq!(made.await, pool);
            } else {
                printed += &output.stdout;
            }
        }
        assert!(unused.is_empty(), "the page has not: {unused:?}");

        let lines: Vec<_> = printed.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).collect();
        for (platform, execution) in [("linux/amd64", "Native"), ("linux/arm64", "CopyOnly")] {
            assert!(lines.iter().any(|line| line.starts_with(&[platform, execution])), "{platform}: {printed}");
        }
        let reference = format!("{}/{path}@", front.host);
        let digest =
            printed.lines().find_map(|line| line.strip_prefix(&reference)).expect("the page prints the digest");
        let json = &printed[printed.find("\n{\n").expect("the page prints the index")..];
        let index = serde_json::Deserializer::from_str(json).into_iter::<Value>().next().unwrap().unwrap();
        let shown: Vec<_> = index["manifests"].as_array().unwrap().iter().map(|manifest| &manifest["digest"]).collect();
        let images = Registry::new(&tenant.cluster).images(&build::repository(tenant, "hello"), digest).await;
        let platforms: Vec<_> = images.iter().map(|image| image.platform.as_str()).collect();
        assert_eq!(platforms, ["linux/amd64", "linux/arm64"]);
        for (image, shown) in images.iter().zip(shown) {
            assert_eq!(shown, &image.digest);
            assert_eq!(image.text("site/index.html"), format!("Hello, I am for {}", image.platform));
        }
    })
    .await;
}
