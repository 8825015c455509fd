//! Images as tarballs with an OCI layout, on the builder's archive volume: where a build writes one in place of a push,
//! and how one is pushed as it is (<https://github.com/opencontainers/image-spec/blob/main/image-layout.md>).

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{self, Read as _, Seek as _, SeekFrom},
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use kiln_agent_proto::{ArchiveSource, Job as Spec, Result as JobResult};
use kiln_registry::{
    BlobStream, Client, Descriptor, Error, ErrorKind, Identifier, OpenBlob, Repository, http_client::FailureClass,
    sha256_digest,
};
use serde::Deserialize;
use tokio_util::sync::CancellationToken;

use super::{
    content::{self, Config, Content},
    registries::Registries,
    stages,
};
use crate::{
    files, paths,
    reasons::{JobFailure, Reason},
};

/// The most documents that are read of one tarball.
const MOST_DOCUMENTS: usize = 1024;
/// The largest manifest, index or configuration.
const LARGEST_DOCUMENT: u64 = 4 << 20;
/// The most files of an archive.
const MOST_FILES: usize = 10_000;
/// An index of indexes of indexes is deeper than anybody's.
const DEPTH: usize = 4;
const BLOBS_AT_ONCE: usize = 4;
/// Bytes that are read at once.
const CHUNK: usize = 256 << 10;

/// The tarball that a build writes.
#[derive(Debug)]
pub struct Target {
    temporary: PathBuf,
    path: PathBuf,
}

impl Target {
    /// The one that the job asks for, in the directory `archives`. Removes what an earlier attempt left of it.
    pub fn of(spec: &Spec, archives: Option<&Path>) -> Result<Option<Self>, JobFailure> {
        if spec.archive_path.is_empty() {
            return Ok(None);
        }
        let path = located(&spec.archive_path, archives)?;
        let directory = path.parent().unwrap_or(Path::new("/"));
        let fail = |error| {
            JobFailure::agent(format_args!("make the directory of the archive {:?}", spec.archive_path), &error)
        };
        fs::create_dir_all(directory).map_err(fail)?;
        let temporary = directory.join(format!(".{}.part", spec.id));
        let _ = fs::remove_file(&temporary);
        // Made here: `kiln-build` may write to it, but to nothing beside it.
        File::create_new(&temporary).map_err(fail)?;
        Ok(Some(Self { temporary, path }))
    }

    /// The file that is written, in the same directory.
    #[must_use]
    pub fn temporary(&self) -> &Path {
        &self.temporary
    }

    /// What the image holds that was written. None: it cannot be told.
    pub async fn content(&self, platform: &str) -> Option<Content> {
        let (path, platform) = (self.temporary.clone(), platform.to_owned());
        let read = tokio::task::spawn_blocking(move || Image::read(&path, &platform)).await.ok()?;
        let read = read.inspect_err(|problem| tracing::warn!(%problem, "the image's size cannot be told"));
        read.ok().map(|image| image.content)
    }

    /// Gives the whole file its name, at once.
    pub fn finish(self) -> Result<(), JobFailure> {
        File::open(&self.temporary)
            .and_then(|file| file.sync_all())
            .and_then(|()| fs::rename(&self.temporary, &self.path))
            .map_err(|error| JobFailure::agent("give the archive its name", &error))
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.temporary);
    }
}

/// The file of that path below `archives`, without leaving it by links.
fn located(path: &str, archives: Option<&Path>) -> Result<PathBuf, JobFailure> {
    let archives = archives.ok_or_else(|| {
        JobFailure::new(
            Reason::ArchivesUnavailable,
            "this pool has no volume for archives; set archives in the BuilderPool, or choose another pool",
        )
    })?;
    let relative = paths::relative_file(path)
        .map_err(|problem| JobFailure::new(Reason::InvalidJob, format!("the archive's path {path:?} {problem}")))?;
    let located = archives.join(relative);
    // Whoever else may write to the volume may have put a link there.
    let mut part = archives.to_owned();
    for name in located.strip_prefix(archives).unwrap_or(Path::new("")) {
        part.push(name);
        if part.is_symlink() {
            return Err(JobFailure::new(Reason::InvalidJob, format!("the archive's path {path:?} holds a link")));
        }
    }
    Ok(located)
}

/// Pushes the image of the job's platform out of a tarball, as it is.
pub async fn push(
    source: &ArchiveSource,
    spec: &Spec,
    archives: Option<&Path>,
    registries: &Registries,
    pushing: impl FnOnce(),
    stop: &CancellationToken,
) -> Result<JobResult, JobFailure> {
    let (path, platform) = (located(&source.path, archives)?, spec.platform.clone());
    let read = tokio::task::spawn_blocking(move || Image::read(&path, &platform));
    let image = read.await.map_err(|error| JobFailure::agent("read the archive", &error))?;
    let image = image.map_err(|problem| {
        JobFailure::new(Reason::ArchiveInvalid, format!("the archive {:?} cannot be used: {problem}", source.path))
    })?;
    let repository: Repository = spec.repository.parse().map_err(|error| {
        JobFailure::new(Reason::InvalidJob, format!("the repository {:?}: {error}", spec.repository))
    })?;
    let client = registries
        .client(spec, &repository)
        .map_err(|error| JobFailure::new(Reason::RegistryCertificateUntrusted, error.to_string()))?;
    pushing();
    tokio::select! {
        pushed = image.push(&client, &repository) => pushed.map_err(|error| refused(&error))?,
        () = stop.cancelled() => return Err(JobFailure::new(Reason::Cancelled, "the push was stopped")),
    }
    let mut result = JobResult {
        digest: image.manifest.digest().to_string(),
        size: image.manifest.size(),
        media_type: image.manifest.media_type().to_string(),
        ..JobResult::default()
    };
    image.content.put_into(&mut result);
    Ok(result)
}

fn refused(error: &Error) -> JobFailure {
    let reason = match (error.kind(), error.class()) {
        (ErrorKind::CertificateUntrusted | ErrorKind::CertificateNameMismatch | ErrorKind::NotTls, _) => {
            Reason::RegistryCertificateUntrusted
        }
        (ErrorKind::AddressForbidden, _) => Reason::AddressForbidden,
        (_, FailureClass::Credential) => Reason::PushDenied,
        (_, FailureClass::User) => Reason::RepositoryNotFound,
        _ => Reason::RegistryUnavailable,
    };
    JobFailure::new(reason, error.to_string())
}

/// What is wrong with an archive.
#[derive(Debug, thiserror::Error)]
enum Problem {
    #[error("it cannot be read ({0}); write it with archive, or with buildx, skopeo or docker save, uncompressed")]
    Read(#[from] io::Error),
    #[error("it has no {0}; it must be a tarball with an OCI layout, as docker save writes since version 25")]
    Missing(String),
    #[error("its {0} is not what OCI says")]
    Malformed(String),
    #[error("its {0} is damaged: digest or length differ")]
    Damaged(String),
    #[error("it has no image for {wanted}, only for {}", .found.join(", "))]
    Platform { wanted: String, found: Vec<String> },
}

/// One image of a tarball.
#[derive(Debug)]
struct Image {
    file: Arc<File>,
    manifest: Descriptor,
    bytes: Bytes,
    /// Where each blob lies in the file.
    blobs: Vec<(Descriptor, u64)>,
    content: Content,
}

/// The parts of an index or manifest that matter here.
#[derive(Deserialize)]
struct Links {
    #[serde(default)]
    manifests: Vec<Descriptor>,
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Vec<Descriptor>,
}

/// A tarball's files, each with its place and length.
struct Layout {
    file: File,
    places: HashMap<PathBuf, (u64, u64)>,
    /// How many more documents are read: an index may list itself.
    left: usize,
}

impl Layout {
    fn open(path: &Path) -> Result<Self, Problem> {
        let mut archive = tar::Archive::new(files::open(path)?);
        let mut places = HashMap::new();
        for entry in archive.entries_with_seek()?.take(MOST_FILES) {
            let entry = entry?;
            let name = entry.path()?;
            let name = name.strip_prefix("./").unwrap_or(&name).to_owned();
            places.insert(name, (entry.raw_file_position(), entry.size()));
        }
        Ok(Self { file: files::open(path)?, places, left: MOST_DOCUMENTS })
    }

    fn place(&self, name: &str) -> Result<(u64, u64), Problem> {
        self.places.get(Path::new(name)).copied().ok_or_else(|| Problem::Missing(name.to_owned()))
    }

    fn document(&mut self, name: &str) -> Result<Vec<u8>, Problem> {
        let (at, length) = self.place(name)?;
        let left = self.left.checked_sub(1).filter(|_| length <= LARGEST_DOCUMENT);
        self.left = left.unwrap_or_default();
        if left.is_none() {
            return Err(Problem::Malformed(name.to_owned()));
        }
        self.file.seek(SeekFrom::Start(at))?;
        let mut bytes = Vec::new();
        (&self.file).take(length).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// Where a blob lies, which has the length that `blob` says.
    fn blob(&self, blob: &Descriptor) -> Result<u64, Problem> {
        let name = blob_name(blob);
        let (at, length) = self.place(&name)?;
        if length == blob.size() { Ok(at) } else { Err(Problem::Damaged(name)) }
    }

    /// A small blob, whose digest is right.
    fn checked(&mut self, blob: &Descriptor) -> Result<Vec<u8>, Problem> {
        let name = blob_name(blob);
        let bytes = self.document(&name)?;
        if sha256_digest(&bytes) == *blob.digest() { Ok(bytes) } else { Err(Problem::Damaged(name)) }
    }

    fn links(&mut self, blob: &Descriptor) -> Result<(Vec<u8>, Links), Problem> {
        let bytes = self.checked(blob)?;
        let links = serde_json::from_slice(&bytes).map_err(|_| Problem::Malformed(blob_name(blob)))?;
        Ok((bytes, links))
    }

    /// The manifests of images below `descriptors`, with the platform of each.
    fn images(&mut self, descriptors: Vec<Descriptor>, depth: usize) -> Result<Vec<(Descriptor, String)>, Problem> {
        let mut images = Vec::new();
        for descriptor in descriptors {
            let (_, links) = self.links(&descriptor)?;
            if let Some(config) = links.config {
                let config: Config = serde_json::from_slice(&self.checked(&config)?).unwrap_or_default();
                let Config { os, architecture, variant, .. } = config;
                // Attestations have no architecture.
                if !os.is_empty() && os != "unknown" {
                    let variant = if variant.is_empty() { variant } else { format!("/{variant}") };
                    images.push((descriptor, format!("{os}/{architecture}{variant}")));
                }
            } else if depth > 0 {
                images.extend(self.images(links.manifests, depth - 1)?);
            }
        }
        Ok(images)
    }
}

fn blob_name(blob: &Descriptor) -> String {
    format!("blobs/{}/{}", blob.digest().algorithm().as_ref(), blob.digest().digest())
}

impl Image {
    /// Finds the image for `platform`.
    fn read(path: &Path, platform: &str) -> Result<Self, Problem> {
        let mut layout = Layout::open(path)?;
        let index = layout.document("index.json")?;
        let index: Links = serde_json::from_slice(&index).map_err(|_| Problem::Malformed("index.json".to_owned()))?;
        let images = layout.images(index.manifests, DEPTH)?;
        let wanted = stages::normalised(platform);
        let Some((manifest, _)) = images.iter().find(|(_, found)| stages::normalised(found) == wanted) else {
            let found = images.into_iter().map(|(_, platform)| platform).collect();
            return Err(Problem::Platform { wanted: platform.to_owned(), found });
        };
        let manifest = manifest.clone();
        let (bytes, links) = layout.links(&manifest)?;
        let config = links.config.ok_or_else(|| Problem::Malformed(blob_name(&manifest)))?;
        let config_bytes = layout.checked(&config)?;
        let mut content = Content::of(&bytes, &config_bytes).ok_or_else(|| Problem::Malformed(blob_name(&manifest)))?;
        let (mut blobs, mut unpacked) = (vec![(config.clone(), layout.blob(&config)?)], Some(0_u64));
        for layer in links.layers {
            // Layers with URLs are fetched from there by whoever pulls.
            if layer.urls().as_ref().is_some_and(|urls| !urls.is_empty()) {
                unpacked = None;
                continue;
            }
            let at = layout.blob(&layer)?;
            let mut end = [0; 4];
            let has_end = content::has_length_at_its_end(&layer) && layer.size() >= 4;
            if has_end {
                layout.file.seek(SeekFrom::Start(at + layer.size() - 4))?;
                layout.file.read_exact(&mut end)?;
            }
            unpacked = unpacked
                .zip(content::unpacked(&layer, has_end.then_some(end)))
                .map(|(sum, one): (u64, u64)| sum.saturating_add(one));
            blobs.push((layer, at));
        }
        content.unpacked = unpacked;
        Ok(Self { file: Arc::new(layout.file), manifest, bytes: bytes.into(), blobs, content })
    }

    async fn push(&self, client: &Client, repository: &Repository) -> Result<(), Error> {
        let sending: Vec<_> =
            self.blobs.iter().map(|(blob, at)| self.push_blob(client, repository, blob, *at)).collect();
        futures::stream::iter(sending).buffer_unordered(BLOBS_AT_ONCE).try_collect::<()>().await?;
        let identifier = Identifier::from(self.manifest.digest().clone());
        let media_type = self.manifest.media_type().to_string();
        client.put_manifest(repository, &identifier, &media_type, self.bytes.clone()).await.map(drop)
    }

    async fn push_blob(
        &self,
        client: &Client,
        repository: &Repository,
        blob: &Descriptor,
        at: u64,
    ) -> Result<(), Error> {
        let (file, size) = (Arc::clone(&self.file), blob.size());
        let open: OpenBlob<'_> = &|| Box::pin(std::future::ready(Ok(part(&file, at, size))));
        client.push_blob(repository, blob, open).await
    }
}

/// `length` bytes of `file` from `at`.
fn part(file: &Arc<File>, at: u64, length: u64) -> BlobStream {
    let file = Arc::clone(file);
    futures::stream::try_unfold((file, at, length), |(file, at, left)| async move {
        if left == 0 {
            return Ok(None);
        }
        let count = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
        let reading = tokio::task::spawn_blocking(move || {
            let mut bytes = vec![0; count];
            std::os::unix::fs::FileExt::read_exact_at(&*file, &mut bytes, at).map(|()| (Bytes::from(bytes), file))
        });
        let (bytes, file) = reading.await.map_err(io::Error::other)??;
        Ok(Some((bytes, (file, at + count as u64, left - count as u64))))
    })
    .boxed()
}

#[cfg(test)]
mod tests;
