//! The bare tool: the same `buildctl build` that the agent runs, by hand, in the same builder pod, timed inside it.

use std::path::Path;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Pod, Secret};
use kiln_e2e::Tenant;
use kiln_e2e::tenant::REGISTRY_SECRET;
use kube::api::AttachParams;
use kube::{Api, ResourceExt as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::project::CHANGED;

/// Where the project and the credential are put, in the agent's container.
const DIRECTORY: &str = "/tmp/bench";

/// A builder pod with the project in it.
pub struct Bare {
    pods: Api<Pod>,
    pod: String,
    build: String,
}

impl Bare {
    /// Puts the project into the tenant's only builder. `base` is the build argument `BASE`.
    pub async fn new(tenant: &Tenant, files: &[(String, String)], base: Option<&str>) -> Self {
        let builders = tenant.builders().await;
        let [builder] = builders.as_slice() else { panic!("one builder is warm, not {}", builders.len()) };
        let repository = format!("{}/e2e/{}/bare", tenant.cluster.registry, tenant.namespace);
        let base = base.map(|base| format!("--opt=build-arg:BASE={base}")).unwrap_or_default();
        let build = format!(
            "cd {DIRECTORY} && export HOME={DIRECTORY} DOCKER_CONFIG={DIRECTORY}/docker \
             SSL_CERT_DIR=/etc/kiln/buildkitd/trust && begin=$(date +%s%N) && \
             {{ buildctl --addr unix:///run/buildkit/buildkitd.sock build --progress=rawjson \
             --frontend=dockerfile.v0 --local=context=source --local=dockerfile=source \
             --opt=cmdline=dockerfile.v0 --opt=filename=Dockerfile --opt=platform=linux/amd64 {base} \
             --metadata-file=metadata.json --output=type=image,name={repository},push=true,push-by-digest=true,\
             name-canonical=true,oci-mediatypes=true 2>log || {{ tail -n 5 log >&2; exit 1; }}; }} && \
             end=$(date +%s%N) && echo $((end - begin))"
        );
        let by_hand = Self { pods: tenant.builder_pods(), pod: builder.name_any(), build };
        let secret = tenant.api::<Secret>().get(REGISTRY_SECRET).await.expect("a tenant has the registry's credential");
        let ByteString(login) =
            secret.data.unwrap_or_default().remove(".dockerconfigjson").expect("its type has this key");
        let archive = archive(&login, files);
        let unpack = format!(
            "rm -rf {DIRECTORY} && mkdir {DIRECTORY} && head -c {} | tar -C {DIRECTORY} --no-same-owner -xf -",
            archive.len()
        );
        by_hand.shell(&unpack, &archive).await;
        by_hand
    }

    /// Times a build of the project as it is, in seconds.
    pub async fn unchanged(&self) -> f64 {
        self.timed(&self.build).await
    }

    /// Times a build with this content in the file that changes, in seconds.
    pub async fn changed(&self, content: &str) -> f64 {
        self.timed(&format!("printf %s '{content}' > {DIRECTORY}/source/{CHANGED} && {}", self.build)).await
    }

    async fn timed(&self, script: &str) -> f64 {
        let output = self.shell(script, &[]).await;
        let nanoseconds: f64 = output.trim().parse().unwrap_or_else(|_| panic!("the pod's clock tells {output:?}"));
        nanoseconds / 1e9
    }

    /// Runs a script in the agent's container; what it printed.
    async fn shell(&self, script: &str, input: &[u8]) -> String {
        let parameters = AttachParams::default().container("agent").stdin(!input.is_empty());
        let mut attached = self
            .pods
            .exec(&self.pod, ["sh", "-c", script], &parameters)
            .await
            .unwrap_or_else(|error| panic!("exec in {}: {error}", self.pod));
        let status = attached.take_status().expect("the status is told");
        if let Some(mut stdin) = attached.stdin() {
            stdin.write_all(input).await.expect("the pod reads");
            stdin.flush().await.expect("the pod reads");
        }
        let (mut stdout, mut stderr) = (attached.stdout().expect("stdout"), attached.stderr().expect("stderr"));
        let (mut output, mut errors) = (String::new(), String::new());
        let (read, said) = tokio::join!(stdout.read_to_string(&mut output), stderr.read_to_string(&mut errors));
        read.and(said).expect("the output of exec can be read");
        let status = status.await.unwrap_or_default();
        assert_eq!(status.status.as_deref(), Some("Success"), "in {}: {errors}", self.pod);
        output
    }
}

/// The project in `source/`, and a configuration for `buildctl` with the registry's credential, as a tar archive.
fn archive(login: &[u8], files: &[(String, String)]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    let mut add = |path: &Path, content: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_mtime(1_700_000_000);
        archive.append_data(&mut header, path, content).expect("an archive can be made in memory");
    };
    add(Path::new("docker/config.json"), login);
    for (path, content) in files {
        add(&Path::new("source").join(path), content.as_bytes());
    }
    archive.into_inner().expect("an archive can be made in memory")
}
