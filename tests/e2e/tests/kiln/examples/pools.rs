//! What needs a pool of its own.

use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kiln_e2e::cluster::builders_namespace;
use kiln_e2e::plain_front::PlainFront;
use kiln_e2e::registries::Login;
use kiln_e2e::tenant::image_of;
use kube::Api;
use kube::api::{DeleteParams, PostParams};
use serde_json::json;

use super::Example;

pub async fn syntax(example: &mut Example<'_>) {
    example.apply_one("syntax").await;
    assert_eq!(example.image("syntax").await.text("built"), "built");
    // The named frontend is pulled and used: where there is none under that name, the build fails for it.
    example.set("# syntax=docker/dockerfile:1", &format!("# syntax={}:none", example.repository("frontend")));
    example.apply().await;
    let failed = example.tenant.not_ready("syntax-frontend", "BaseImageNotFound").await;
    let message = failed.status.unwrap().failure.unwrap().message;
    assert!(message.contains("frontend:none"), "{message}");
    assert_eq!(example.image("syntax").await.text("built"), "built", "this pool ignores the line");
}

pub async fn pool(example: &mut Example<'_>) {
    let tenant = example.tenant;
    let login = format!("{}-mirror", tenant.namespace);
    let cluster = &tenant.cluster;
    let config = json!({"auths": {&cluster.registry: {"username": cluster.registry_user, "password": cluster.registry_password}}});
    let data = [(".dockerconfigjson", &*config.to_string())];
    let secrets = tenant.builders_secret(&login, "kubernetes.io/dockerconfigjson", &data).await;
    example.set("mirrors: [mirror.corp.example/docker.io]", &format!("mirrors: [{}/docker.io]", cluster.registry));
    example.set("host: mirror.corp.example", &format!("host: {}", cluster.registry));
    example.set("name: mirror-login", &format!("name: {login}"));
    let plain = PlainFront::before_registry(cluster).await;
    tenant.login_secret("plain-login", &[&Login::first().at(&plain.host)]).await;
    example.set("plain.corp.example:5000/you", &format!("{}/e2e/{}", plain.host, tenant.id));
    example.set("plain.corp.example:5000", &plain.host);
    example.apply().await;
    let image = image_of(&tenant.built("pool").await);
    assert!(image.repository.starts_with(&plain.host), "{}", image.repository);
    let image = example.registry.image_for(&example.repository("pool"), &image.digest, "linux/amd64").await;
    assert_eq!(image.text("args"), "https://packages.corp.example http://proxy.corp.example:3128");
    secrets.delete(&login, &DeleteParams::default()).await.unwrap();
}

pub async fn archive(example: &mut Example<'_>) {
    let name = format!("{}-archives", example.tenant.namespace);
    let claim: PersistentVolumeClaim = serde_json::from_value(json!({
        "metadata": {"name": name},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
    }))
    .unwrap();
    let claims: Api<PersistentVolumeClaim> =
        Api::namespaced(example.tenant.cluster.client.clone(), &builders_namespace());
    claims.create(&PostParams::default(), &claim).await.unwrap();
    example.set("claimName: image-archives", &format!("claimName: {name}"));
    // It pushes nowhere, and the mirror of docker.io wants a credential.
    example.tenant.account_pulls_with("registry-login").await;
    example.apply_one("archive-out").await;
    let out = example.tenant.built("archive-out").await;
    let platforms = example.tenant.run_of(&out).await.status.unwrap().platforms;
    assert_eq!(platforms[0].origin.as_deref(), Some("app.tar"));

    example.apply_one("archive-back").await;
    let back = example.tenant.built("archive-back").await;
    assert_eq!(example.image("archive-back").await.text("packed"), "packed");
    assert_eq!(Some(image_of(&back).platforms[0].digest.clone()), platforms[0].digest, "pushed as it is");
    claims.delete(&name, &DeleteParams::default()).await.unwrap();
}
