//! A source that is an image, whose files are taken, or an OCI artifact with a tarball or with named files in its layers,
//! as `flux push artifact` and `oras push` make them.

use std::{
    fs,
    path::{Path, PathBuf},
};

use kiln_agent_proto::{ImageSource, Job as Spec};
use kiln_registry::{Client, Descriptor, ErrorKind, Identifier, Reference, Repository, http_client::FailureClass};
use oci_spec::image::{ImageIndex, ImageManifest};
use sha2::{Digest as _, Sha256};
use tokio_util::sync::CancellationToken;

use super::{
    Source,
    download::{self, DownloadError},
    inline::SECOND,
    mtime, process_failure,
    registries::Registries,
    tarball::{LARGEST_DOWNLOAD, beside, context, context_path},
    unpack::Kind,
    unpacking::Unpacking,
};
use crate::{
    files, paths,
    process::ProcessError,
    reasons::{JobFailure, Reason},
    sandbox::Sandbox,
};

/// A layer's file name: <https://github.com/opencontainers/image-spec/blob/main/annotations.md>
const TITLE: &str = "org.opencontainers.image.title";
/// Where `oras push` was given a directory: the layer is a tarball of it.
const UNPACK: &str = "io.deis.oras.content.unpack";
/// The configurations that make an image of a manifest.
const IMAGE_CONFIGS: [&str; 2] =
    ["application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"];

/// What a layer becomes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Layer {
    /// A file of this name.
    File(PathBuf),
    /// What its tarball holds.
    Tarball,
}

/// Fetches the image or artifact and writes its files to `directory`, which is made.
pub async fn fetch(
    source: &ImageSource,
    spec: &Spec,
    registries: &Registries,
    directory: &Path,
    sandbox: &Sandbox,
    stop: &CancellationToken,
) -> Result<Source, JobFailure> {
    let name = format!("the image {}", source.reference);
    let path = context_path(&source.path)?;
    let reference: Reference = source
        .reference
        .parse()
        .map_err(|error| JobFailure::new(Reason::InvalidJob, format!("source.image.ref: {error}")))?;
    let repository = &reference.repository;
    let client = registries
        .client(spec, repository)
        .map_err(|error| JobFailure::agent("read the CAs for registries", &error))?;
    let layers = async {
        let manifest = manifest(&client, &reference, &spec.platform, &name).await?;
        let is_image = IMAGE_CONFIGS.contains(&manifest.config().media_type().to_string().as_str());
        let mut archives = Vec::new();
        fs::create_dir_all(directory).map_err(|error| JobFailure::agent("make the source's directory", &error))?;
        for (number, layer) in manifest.layers().iter().enumerate() {
            let kind = if is_image { Layer::Tarball } else { layer_kind(layer, &name)? };
            let file = beside(directory, &format!(".layer-{number}"));
            blob(&client, repository, layer, &file, &name, stop).await?;
            match kind {
                Layer::Tarball => archives.push(file),
                Layer::File(path) => {
                    let directory = directory.to_owned();
                    // All of it is read, which may be gigabytes.
                    tokio::task::spawn_blocking(move || put(&file, &directory, &path))
                        .await
                        .map_err(|error| JobFailure::agent("write a layer's file", &error))??;
                }
            }
        }
        Ok((archives, is_image))
    };
    let (archives, is_image) = tokio::select! {
        layers = layers => layers?,
        () = stop.cancelled() => return Err(process_failure(ProcessError::Stopped)),
    };
    if !archives.is_empty() {
        let kind = if is_image { Kind::Layer } else { Kind::Tarball };
        Unpacking { archives, kind, directory }.run(&name, sandbox, stop).await?;
    }
    context(directory, &path, &name, "source.image.path")
}

/// The manifest; of an index, that for the platform, or else the first.
async fn manifest(
    client: &Client,
    reference: &Reference,
    platform: &str,
    name: &str,
) -> Result<ImageManifest, JobFailure> {
    let damaged = |what: &str| JobFailure::new(Reason::SourceInvalid, format!("{name} has {what} that cannot be read"));
    let get = async |identifier: &Identifier| {
        client.get_manifest(&reference.repository, identifier).await.map_err(|error| refused(&error, name))
    };
    let mut found = get(&reference.identifier).await?;
    if found.descriptor.media_type().to_string().ends_with("index.v1+json")
        || found.descriptor.media_type().to_string().ends_with("manifest.list.v2+json")
    {
        let index: ImageIndex = serde_json::from_slice(&found.bytes).map_err(|_| damaged("an index"))?;
        let (os, architecture) = platform.split_once('/').unwrap_or(("linux", platform));
        let fits = |manifest: &&Descriptor| {
            manifest.platform().as_ref().is_some_and(|of| {
                let variant = of.variant().as_ref().map(|variant| format!("/{variant}")).unwrap_or_default();
                let arch = of.architecture().to_string();
                of.os().to_string() == os && (arch == architecture || format!("{arch}{variant}") == architecture)
            })
        };
        // Attestations are no images.
        let is_image =
            |manifest: &&Descriptor| manifest.platform().as_ref().is_none_or(|of| of.os().to_string() != "unknown");
        let chosen = index.manifests().iter().find(fits).or_else(|| index.manifests().iter().find(is_image));
        let chosen = chosen.ok_or_else(|| damaged("an empty index"))?;
        found = get(&Identifier::Digest(chosen.digest().clone())).await?;
    }
    serde_json::from_slice(&found.bytes).map_err(|_| damaged("a manifest"))
}

/// What a layer of an artifact becomes.
pub(crate) fn layer_kind(layer: &Descriptor, name: &str) -> Result<Layer, JobFailure> {
    let annotation = |key: &str| layer.annotations().as_ref().and_then(|all| all.get(key)).map(String::as_str);
    match annotation(TITLE) {
        Some(title) if annotation(UNPACK) != Some("true") => {
            let path = paths::relative_file(title).map_err(|problem| {
                JobFailure::new(Reason::SourceInvalid, format!("{name} names a file {title:?}, which {problem}"))
            })?;
            Ok(Layer::File(path))
        }
        _ => Ok(Layer::Tarball),
    }
}

/// Downloads a blob and checks its digest.
async fn blob(
    client: &Client,
    repository: &Repository,
    layer: &Descriptor,
    file: &Path,
    name: &str,
    stop: &CancellationToken,
) -> Result<(), JobFailure> {
    if layer.size() > LARGEST_DOWNLOAD {
        let message =
            format!("{name} has a layer of more than {} GiB; a builder takes no more", LARGEST_DOWNLOAD >> 30);
        return Err(JobFailure::new(Reason::SourceTooLarge, message));
    }
    let response = client.open_blob(repository, layer.digest()).await.map_err(|error| refused(&error, name))?;
    let limit = usize::try_from(layer.size()).unwrap_or(usize::MAX);
    let (hash, _) = download::save(response, file, limit, stop).await.map_err(|error| match error {
        DownloadError::Stopped => process_failure(ProcessError::Stopped),
        DownloadError::Write(error) => JobFailure::agent(format_args!("write a layer of {name}"), &error),
        error => JobFailure::new(
            Reason::SourceDownloadFailed,
            format!("a layer of {name} cannot be downloaded: {}", crate::chain(&error)),
        ),
    })?;
    let digest = hash.iter().fold("sha256:".to_owned(), |text, byte| format!("{text}{byte:02x}"));
    if digest != layer.digest().to_string() {
        let message = format!("the registry gives other content than the layer {} of {name}", layer.digest());
        return Err(JobFailure::new(Reason::SourceInvalid, message));
    }
    Ok(())
}

/// Moves a downloaded file to its place; what was there before gives way.
fn put(file: &Path, directory: &Path, path: &Path) -> Result<(), JobFailure> {
    let target = directory.join(path);
    let place = || {
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::rename(file, &target)?;
        let mut hash = Sha256::new();
        std::io::copy(&mut files::open(&target)?, &mut hash)?;
        mtime::set(&target, mtime::of_content(SECOND, &hash.finalize()))?;
        for parent in target.ancestors().skip(1).take_while(|parent| parent.starts_with(directory)) {
            mtime::set(parent, mtime::of_directory(SECOND))?;
        }
        Ok(())
    };
    place()
        .map_err(|error: std::io::Error| JobFailure::agent(format_args!("write the file {:?}", path.display()), &error))
}

fn refused(error: &kiln_registry::Error, name: &str) -> JobFailure {
    let reason = match error.kind() {
        ErrorKind::Unauthorized | ErrorKind::Denied => Reason::SourceUnauthorized,
        ErrorKind::AddressForbidden => Reason::AddressForbidden,
        ErrorKind::CertificateUntrusted | ErrorKind::CertificateNameMismatch | ErrorKind::NotTls => {
            Reason::SourceCertificateUntrusted
        }
        _ if error.class() == FailureClass::Infrastructure => Reason::SourceDownloadFailed,
        _ => Reason::SourceNotFound,
    };
    JobFailure::new(reason, format!("{name} cannot be fetched: {}", crate::chain(error)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_of_artifacts() {
        let layer = |annotations: &[(&str, &str)]| {
            let annotations: serde_json::Map<String, serde_json::Value> =
                annotations.iter().map(|(key, value)| ((*key).to_owned(), (*value).into())).collect();
            let descriptor = serde_json::json!({
                "mediaType": "application/vnd.oci.image.layer.v1.tar",
                "digest": format!("sha256:{}", "a".repeat(64)),
                "size": 1,
                "annotations": annotations,
            });
            layer_kind(&serde_json::from_value(descriptor).unwrap(), "x").map_err(|failure| failure.reason)
        };
        assert_eq!(layer(&[]), Ok(Layer::Tarball));
        assert_eq!(layer(&[(TITLE, "src"), (UNPACK, "true")]), Ok(Layer::Tarball));
        assert_eq!(layer(&[(TITLE, "a/Dockerfile")]), Ok(Layer::File("a/Dockerfile".into())));
        assert_eq!(layer(&[(TITLE, "../x")]), Err(Reason::SourceInvalid));
        assert_eq!(layer(&[(TITLE, "/etc/x")]), Err(Reason::SourceInvalid));
    }
}
