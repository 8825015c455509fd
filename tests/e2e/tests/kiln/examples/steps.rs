//! What steps get: secrets, keys, mounts, limits.

use super::Example;

pub async fn secrets(example: &mut Example<'_>) {
    example.apply().await;
    assert_eq!(example.image("secrets").await.text("length"), "your-token".len().to_string());
}

pub async fn ssh_mount(example: &mut Example<'_>) {
    let key = kiln_e2e::git_ssh::client_key();
    example.tenant.secret("deploy-key", "kubernetes.io/ssh-auth", &[("ssh-privatekey", &key)]).await;
    example.apply().await;
    assert_eq!(example.image("ssh-mount").await.text("agent"), "there is an agent");
}

pub async fn mounts(example: &mut Example<'_>) {
    example.apply().await;
    let first = example.tenant.built("mounts").await;
    let image = example.image("mounts").await;
    assert_eq!(image.text("built-so-far"), "1");
    assert_eq!(image.text("sorted"), "apples\npears");
    assert_eq!(image.text("entrypoint.sh"), "#!/bin/sh\nexec cat \"$@\"");
    assert_eq!(image.entry("entrypoint.sh").unwrap().mode, 0o755);
    assert!(image.entry("var/cache/app/versions").is_none(), "a cache mount is in no layer");

    // On another builder, with the same volume.
    example.tenant.delete_builders().await;
    example.edited(&first, |build| drop(build.spec.args.insert("VERSION".to_owned(), "2".to_owned()))).await;
    assert_eq!(example.image("mounts").await.text("built-so-far"), "1\n2", "the cache mount survived its builder");
}

pub async fn limits(example: &mut Example<'_>) {
    example.apply().await;
    let image = example.image("limits").await;
    assert_eq!(image.text("nofile"), "512\n1024");
    assert_eq!(image.text("shm"), (128 << 10).to_string());
    let line: Vec<_> = image.text("hosts").split_whitespace().map(str::to_owned).collect();
    assert_eq!(line.first().map(String::as_str), Some("192.0.2.7"));
    let image = example.image("limits-no-network").await;
    assert_eq!((image.text("interfaces").as_str(), image.text("interfaces-of-a-step").as_str()), ("lo:", "lo:"));
}
