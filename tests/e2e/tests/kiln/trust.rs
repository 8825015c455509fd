//! Whom a build trusts: a CA that only its ImageBuild names, a self-signed certificate, and what is said of one that
//! cannot be trusted.

use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kiln_crds::{CaRef, CaRefKind, SecretRef};
use kiln_e2e::build::{file, git};
use kiln_e2e::hostile_server::ca;
use kiln_e2e::registry_front::{Habit, RegistryFront};
use kiln_e2e::tenant::{condition, image_of};
use kiln_e2e::tls_front::TlsFront;
use kiln_e2e::{Build, Repository, Tenant};
use kube::ResourceExt as _;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

kiln_e2e::tests![
    a_new_ca_works_without_touching_the_pool,
    a_ca_counts_for_its_registry_alone,
    a_ca_counts_for_where_its_registry_sends_to,
    a_self_signed_certificate_is_trusted_where_it_is_named,
    a_certificate_for_another_name_says_how_to_make_a_good_one
];

const DOCKERFILE: [(&str, &str); 1] = [("Dockerfile", "FROM busybox\nRUN echo 1 > /file\n")];

fn key() -> KeyPair {
    KeyPair::generate().unwrap()
}

/// A self-signed certificate for these subject alternative names, marked as a CA or not, and its key.
fn self_signed(names: &[&str], is_ca: IsCa) -> (String, String) {
    let key = key();
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names).unwrap();
    params.distinguished_name.push(DnType::CommonName, "registry.example");
    params.is_ca = is_ca;
    (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
}

/// An ImageBuild that pushes to this front with the registry's credential, and names this CA.
async fn build(tenant: &Tenant, name: &str, front: &TlsFront, ca: &str) -> Build {
    build_at(tenant, name, &front.host, ca).await
}

async fn build_at(tenant: &Tenant, name: &str, host: &str, ca: &str) -> Build {
    let secret = |part| format!("{name}-{part}");
    let login =
        [("username", tenant.cluster.registry_user.as_str()), ("password", tenant.cluster.registry_password.as_str())];
    tenant.secret(&secret("login"), "kubernetes.io/basic-auth", &login).await;
    tenant.secret(&secret("ca"), "Opaque", &[("ca.crt", ca)]).await;
    let repository = format!("{host}/e2e/{}/{name}", tenant.namespace);
    Build::inline(tenant, name, &DOCKERFILE).amd64().with(|spec| {
        spec.image.as_mut().unwrap().repository = repository;
        spec.image.as_mut().unwrap().secret_ref = Some(SecretRef { name: secret("login") });
        // For the base image.
        spec.pull_secret_refs = vec![SecretRef { name: kiln_e2e::tenant::REGISTRY_SECRET.to_owned() }];
        spec.image.as_mut().unwrap().ca_ref =
            Some(CaRef { kind: Some(CaRefKind::Secret), name: secret("ca"), key: None });
    })
}

fn claims(volumes: &[PersistentVolumeClaim]) -> Vec<Option<String>> {
    volumes.iter().map(kube::ResourceExt::uid).collect()
}

/// An ImageBuild that names a CA which nobody knew has its builder replaced, and nothing else is to be done.
async fn a_new_ca_works_without_touching_the_pool() {
    Tenant::fresh("new-ca", async |tenant| {
        let former = Build::inline(tenant, "former", &DOCKERFILE).amd64();
        tenant.build(&former).await;
        let (builder, volumes) = (tenant.builders().await.remove(0), tenant.volumes().await);

        let ca = Unknown::new();
        let front = TlsFront::before_registry(&tenant.cluster, |host| ca.sign(host)).await;
        let built = tenant.build(&build(tenant, "app", &front, &ca.pem).await).await;
        assert!(image_of(&built).repository.starts_with(&front.host));
        let builders = tenant.builders().await;
        assert!(builders.iter().all(|pod| pod.uid() != builder.uid()), "the builder that lacked the CA was replaced");
        assert_eq!(claims(&tenant.volumes().await), claims(&volumes), "its cache was kept");

        // The new one serves those that need the CA and those that do not.
        tenant.rebuild("former", "again").await;
        tenant.rebuild("app", "again").await;
        let now: Vec<_> = tenant.builders().await.iter().map(kube::ResourceExt::uid).collect();
        assert_eq!(now, builders.iter().map(kube::ResourceExt::uid).collect::<Vec<_>>());
    })
    .await;
}

/// A CA that nobody knows, and what it signs.
struct Unknown {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Unknown {
    fn new() -> Self {
        let key = key();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "a CA that nobody knew");
        Self { pem: params.self_signed(&key).unwrap().pem(), issuer: Issuer::new(params, key) }
    }

    /// Certificate and key for an address, in PEM.
    fn sign(&self, host: &str) -> (String, String) {
        let own = key();
        let certificate = CertificateParams::new(vec![host.to_owned()]).unwrap().signed_by(&own, &self.issuer).unwrap();
        (certificate.pem(), own.serialize_pem())
    }
}

/// What else that CA signs, another registry, a server that ADD downloads from, a Git server, is not trusted for it.
async fn a_ca_counts_for_its_registry_alone() {
    Tenant::fresh("own-ca", async |tenant| {
        let ca = Unknown::new();
        let sign = |host: &str| ca.sign(host);
        let own = TlsFront::before_registry(&tenant.cluster, sign).await;
        let other = TlsFront::before_registry(&tenant.cluster, sign).await;
        let forge = TlsFront::before_git(&tenant.cluster, sign).await;
        let repository = Repository::public(tenant, "added");
        repository.write(&DOCKERFILE);
        let path = repository.url.trim_start_matches(&tenant.cluster.git);
        // As the mirror of Docker Hub has it.
        let busybox = "docker.io/library/busybox:latest";
        let from_own = format!("FROM {}/{busybox}\nRUN echo 1 > /file\n", own.host);
        let cases = [
            ("base", format!("FROM {}/{busybox}\n", other.host), "RegistryCertificateUntrusted"),
            ("file", format!("FROM scratch\nADD https://{}/v2/ /file\n", own.host), "DownloadCertificateUntrusted"),
            ("add", format!("FROM scratch\nADD https://{}/v2/ /file\n", other.host), "DownloadCertificateUntrusted"),
            ("git", format!("FROM scratch\nADD https://{}{path} /src\n", forge.host), "DownloadCertificateUntrusted"),
        ];
        let with = async |name: &str, dockerfile: &str| {
            build(tenant, name, &own, &ca.pem).await.with(|spec| *file(spec, "Dockerfile") = dockerfile.to_owned())
        };
        tenant.build(&with("own", &from_own).await).await;
        for (name, dockerfile, _) in &cases {
            tenant.create_build(&with(name, dockerfile).await).await;
        }
        for (name, _, reason) in cases {
            let failed = tenant.not_ready(name, reason).await;
            let message = &condition(&failed, "Ready").unwrap().message;
            assert!(message.contains("caRefs"), "{name}: {message}");
        }
    })
    .await;
}

/// The registry's token service and the server of its blobs have certificates of the same CA, which nobody else names.
async fn a_ca_counts_for_where_its_registry_sends_to() {
    Tenant::fresh("sent", async |tenant| {
        let front = RegistryFront::before(&tenant.cluster, &tenant.cluster.registry, Habit::Apart).await;
        let from = format!("FROM {}/docker.io/library/busybox:latest\nRUN echo 1 > /file\n", front.host);
        let app = build_at(tenant, "app", &front.host, &ca()).await.with(|spec| {
            *file(spec, "Dockerfile") = from;
        });
        let built = image_of(&tenant.build(&app).await);
        assert!(built.repository.starts_with(&front.host));
        // The operator and the builder, both sent for a token; the builder for blobs.
        let sent = |status: u16, by_operator: bool| {
            let sent = front.passed().into_iter().filter(|passed| passed.status == status);
            sent.filter(|passed| passed.user_agent.starts_with("kiln/") == by_operator).count()
        };
        assert!(sent(401, true) > 0 && sent(401, false) > 0 && sent(307, false) > 0, "{:?}", front.passed());

        // Where a build names it for nothing, that server is a stranger.
        let add = format!("FROM scratch\nADD https://{}/v2/ /file\n", front.aside());
        let other = build_at(tenant, "other", &front.host, &ca()).await.with(|spec| *file(spec, "Dockerfile") = add);
        tenant.create_build(&other).await;
        tenant.not_ready("other", "DownloadCertificateUntrusted").await;
    })
    .await;
}

/// A self-signed certificate that is its own CA bundle, as many a private registry and forge has one.
async fn a_self_signed_certificate_is_trusted_where_it_is_named() {
    Tenant::fresh("self-signed", async |tenant| {
        let marked = IsCa::Ca(BasicConstraints::Unconstrained);
        for (name, is_ca) in [("plain", IsCa::NoCa), ("explicit", IsCa::ExplicitNoCa), ("marked", marked)] {
            let mut ca = String::new();
            let front = TlsFront::before_registry(&tenant.cluster, |host| {
                let (certificate, key) = self_signed(&[host], is_ca);
                ca.clone_from(&certificate);
                (certificate, key)
            })
            .await;
            let built = tenant.build(&build(tenant, name, &front, &ca).await).await;
            let image = image_of(&built);
            assert!(image.repository.starts_with(&front.host), "{name}");
            let content = image.platforms[0].content.clone().unwrap();
            assert!(content.compressed_bytes > 0 && !content.layers.is_empty(), "{name}: {content:?}");

            let front = TlsFront::before_git(&tenant.cluster, |host| {
                let (certificate, key) = self_signed(&[host], is_ca);
                ca.clone_from(&certificate);
                (certificate, key)
            })
            .await;
            let repository = Repository::public(tenant, name);
            repository.write(&DOCKERFILE);
            let path = repository.url.trim_start_matches(&tenant.cluster.git).to_owned();
            tenant.secret(&format!("{name}-git"), "Opaque", &[("ca.crt", &ca)]).await;
            let source = Build::git(tenant, &format!("{name}-git"), &repository).amd64().with(|spec| {
                git(spec).url = format!("https://{}{path}", front.host);
                git(spec).ca_ref =
                    Some(CaRef { kind: Some(CaRefKind::Secret), name: format!("{name}-git"), key: None });
            });
            tenant.build(&source).await;
        }
    })
    .await;
}

/// A certificate without the right subject name says how to make a good one.
async fn a_certificate_for_another_name_says_how_to_make_a_good_one() {
    Tenant::fresh("wrong-name", async |tenant| {
        // For another name, and with a common name only.
        for (name, names) in [("other", &["other.example"][..]), ("none", &[])] {
            let mut ca = String::new();
            let identity = |host: &str, ca: &mut String| {
                assert!(!names.contains(&host));
                let (certificate, key) = self_signed(names, IsCa::NoCa);
                ca.clone_from(&certificate);
                (certificate, key)
            };
            let front = TlsFront::before_registry(&tenant.cluster, |host| identity(host, &mut ca)).await;
            tenant.create_build(&build(tenant, name, &front, &ca).await).await;
            let build = tenant.not_ready(name, "RegistryCertificateUntrusted").await;
            let address = front.host.rsplit_once(':').unwrap().0;
            let message = &condition(&build, "Ready").unwrap().message;
            for words in ["openssl req -x509", &format!("subjectAltName=IP:{address}"), "common name alone"] {
                assert!(message.contains(words), "{name}: {words}: {message}");
            }

            let front = TlsFront::before_git(&tenant.cluster, |host| identity(host, &mut ca)).await;
            let repository = Repository::public(tenant, name);
            repository.write(&DOCKERFILE);
            let path = repository.url.trim_start_matches(&tenant.cluster.git).to_owned();
            let secret = format!("{name}-git");
            tenant.secret(&secret, "Opaque", &[("ca.crt", &ca)]).await;
            let source = Build::git(tenant, &secret, &repository).amd64().with(|spec| {
                git(spec).url = format!("https://{}{path}", front.host);
                git(spec).ca_ref = Some(CaRef { kind: Some(CaRefKind::Secret), name: secret.clone(), key: None });
            });
            tenant.create_build(&source).await;
            let build = tenant.not_ready(&secret, "GitCertificateUntrusted").await;
            let message = &condition(&build, "Ready").unwrap().message;
            assert!(message.contains("openssl req -x509") && message.contains("subjectAltName=IP:"), "{message}");
        }
    })
    .await;
}
