//! For which platforms, and by whom.

use kiln_crds::image_build_run::Execution;
use kiln_e2e::tenant::image_of;
use serde_json::{Value, json};

use super::Example;

/// What a file says on each platform, in the order of the index.
async fn on_each(example: &Example<'_>, name: &str, path: &str) -> Vec<(String, String)> {
    let image = image_of(&example.tenant.built(name).await);
    let images = example.registry.images(&image.repository, &image.digest).await;
    images.iter().map(|image| (image.platform.clone(), image.text(path))).collect()
}

/// How each platform's steps were run, and on a node of which architecture.
async fn execution(example: &Example<'_>, name: &str) -> Vec<(String, Option<Execution>, String)> {
    let run = example.tenant.run_of(&example.tenant.built(name).await).await;
    let mut found = Vec::new();
    for platform in run.status.unwrap().platforms {
        let node = platform.builder.unwrap().node;
        found.push((platform.name, platform.execution, example.tenant.architecture_of(&node).await));
    }
    found
}

fn owned(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    expected.iter().map(|(platform, text)| ((*platform).to_owned(), (*text).to_owned())).collect()
}

pub async fn inline(example: &mut Example<'_>) {
    example.apply().await;
    let expected = owned(&[("linux/amd64", "x86_64"), ("linux/arm64", "aarch64")]);
    assert_eq!(on_each(example, "inline", "architecture").await, expected);
}

pub async fn platforms(example: &mut Example<'_>) {
    example.apply().await;
    let expected = owned(&[
        ("linux/amd64", "plain x86_64\nsmall"),
        ("linux/arm64", "special aarch64"),
        ("linux/amd64/v3", "plain x86_64\nsmall"),
        ("linux/riscv64", "linux/riscv64"),
        ("linux/ppc64le", "linux/ppc64le"),
    ]);
    assert_eq!(on_each(example, "platforms", "made").await, expected);
    for (name, execution, _) in execution(example, "platforms").await {
        let expected = if matches!(name.as_str(), "linux/riscv64" | "linux/ppc64le") {
            Execution::CopyOnly
        } else {
            Execution::Native
        };
        assert_eq!(execution, Some(expected), "{name}");
    }
}

pub async fn emulation(example: &mut Example<'_>) {
    example.apply().await;
    let expected = owned(&[("linux/riscv64", "riscv64"), ("linux/s390x", "s390x")]);
    assert_eq!(on_each(example, "emulation", "machine").await, expected);
    for (name, execution, _) in execution(example, "emulation").await {
        assert_eq!(execution, Some(Execution::Emulated), "{name}");
    }
}

pub async fn cross(example: &mut Example<'_>) {
    example.apply().await;
    let expected = owned(&[
        ("linux/amd64", "for linux/amd64 on x86_64"),
        ("linux/arm64", "for linux/arm64 on x86_64"),
        ("linux/s390x", "for linux/s390x on x86_64"),
    ]);
    assert_eq!(on_each(example, "cross", "app").await, expected);
    for (name, execution, architecture) in execution(example, "cross").await {
        let expected = if name == "linux/amd64" { Execution::Native } else { Execution::Cross };
        assert_eq!((execution, architecture.as_str()), (Some(expected), "amd64"), "{name}");
    }
}

pub async fn windows(example: &mut Example<'_>) {
    let base = example.repository("nanoserver");
    example.registry.push_image(&base, "ltsc2022", "windows(10.0.20348.2227)/amd64", &[("Files/base", "nano")]).await;
    example.apply().await;
    let image = image_of(&example.tenant.built("windows").await);
    let index: Value = example.registry.json(&image.repository, &format!("manifests/{}", image.digest)).await;
    // The version is that of the base.
    let expected = json!({"os": "windows", "architecture": "amd64", "os.version": "10.0.20348.2227"});
    assert_eq!(index["manifests"][0]["platform"], expected);
    let image = example.registry.image_for(&image.repository, &image.digest, "windows/amd64").await;
    // Where Windows has its files in a layer.
    assert_eq!(image.text("Files/app.exe"), "a program for windows");
}

pub async fn index(example: &mut Example<'_>) {
    let (linux, windows) = (example.repository("app-linux"), example.repository("app-windows"));
    let amd64 = example.registry.push_image(&linux, "amd64", "linux/amd64", &[("name", "amd64")]).await;
    let arm64 = example.registry.push_image(&linux, "arm64", "linux/arm64", &[("name", "arm64")]).await;
    example.registry.push_index(&linux, "1.0", &[amd64, arm64]).await;
    example.registry.push_image(&windows, "1.0", "windows(10.0.20348.2227)/amd64", &[("Files/name", "windows")]).await;
    example.apply().await;
    let built = example.tenant.built("index").await;
    let image = image_of(&built);
    assert_eq!(example.registry.digest(&image.repository, "1.0").await.as_deref(), Some(image.digest.as_str()));
    let index: Value = example.registry.json(&image.repository, &format!("manifests/{}", image.digest)).await;
    assert_eq!(index["manifests"][2]["platform"]["os.version"], "10.0.20348.2227");
    for (platform, path, text) in
        [("linux/amd64", "name", "amd64"), ("linux/arm64", "name", "arm64"), ("windows/amd64", "Files/name", "windows")]
    {
        // All layers are in this repository, too.
        assert_eq!(example.registry.image_for(&image.repository, &image.digest, platform).await.text(path), text);
    }
    let resolved = built.status.unwrap().source.unwrap().resolved;
    assert_eq!(resolved.len(), 3, "{resolved:?}");
    assert!(
        resolved.iter().all(|one| one.image.as_ref().is_some_and(|image| image.contains("@sha256:"))),
        "{resolved:?}"
    );
}
