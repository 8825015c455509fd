//! Makes, cancels and removes runs.

use http::header::ACCEPT;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use k8s_openapi::jiff::Timestamp;
use kiln_crds::image_build::{BuiltImage, PlatformSpec};
use kiln_crds::image_build_run::ImageBuildRef;
use kiln_crds::{ImageBuild, ImageBuildRun, ImageBuildRunSpec, ImageBuildSpec};
use kube::api::{ObjectMeta, PartialObjectMeta, Patch, PatchParams, PostParams};
use kube::{Client, Resource as _, ResourceExt};

use super::dereference::Found;
use crate::context::{FIELD_MANAGER, METADATA_ALONE, namespaced};
use crate::removal::{Seen, delete};
use crate::trim;

/// The label with the ImageBuild's name.
pub const IMAGE_BUILD: &str = "kiln.build/image-build";
/// The annotation with the time at which Kiln saw what the run was made for, before source and registry were asked.
pub const REQUESTED_AT: &str = "kiln.build/requested-at";

/// What a run is made for.
#[derive(Clone, Debug, Default)]
pub struct Input {
    /// Digest of all of it.
    pub input_hash: String,
    /// Digest of what matters to the image's content.
    pub content_hash: String,
    /// What was looked up.
    pub found: Found,
    /// The platforms, normalised.
    pub platforms: Vec<PlatformSpec>,
    /// Whether it is built without any cache.
    pub fresh: bool,
    /// How many runs of this input the infrastructure has ended, one after the other.
    pub failed_before: Option<u32>,
    /// The image that is copied instead.
    pub copy_of: Option<BuiltImage>,
}

/// The run of an input.
#[must_use]
pub fn run(build: &ImageBuild, number: u64, input: Input, requested_at: Timestamp) -> ImageBuildRun {
    let name = build.name_any();
    let uid = build.uid().unwrap_or_default();
    let Input { input_hash, content_hash, found, platforms, fresh, failed_before, copy_of } = input;
    let Found { source, names } = found;
    let (commit, reference) = source.map(|source| (Some(source.commit), source.ref_name)).unwrap_or_default();
    let mut run = ImageBuildRun::new(
        &format!("{name}-{number}"),
        ImageBuildRunSpec {
            image_build: ImageBuildRef { name: name.clone(), uid: uid.clone() },
            number,
            commit,
            reference,
            input_hash,
            content_hash: Some(content_hash),
            resolved: names,
            fresh,
            failed_before,
            copy_of,
            build: ImageBuildSpec { platforms: Some(platforms), suspend: false, history: None, ..build.spec.clone() },
            cancel: false,
        },
    );
    run.metadata = ObjectMeta {
        name: run.metadata.name,
        namespace: build.namespace(),
        labels: Some(
            [(IMAGE_BUILD.to_owned(), name.clone()), ("app.kubernetes.io/managed-by".to_owned(), "kiln".to_owned())]
                .into(),
        ),
        annotations: Some([(REQUESTED_AT.to_owned(), requested_at.to_string())].into()),
        owner_references: Some(vec![OwnerReference {
            api_version: "kiln.build/v1alpha1".to_owned(),
            kind: "ImageBuild".to_owned(),
            name,
            uid,
            controller: Some(true),
            block_owner_deletion: None,
        }]),
        ..ObjectMeta::default()
    };
    run
}

/// Makes the run; what its copy will hold comes back. One of the same name, owner and input is the same run: it was made
/// before.
pub async fn create(client: &Client, mut run: ImageBuildRun) -> Result<ImageBuildRun, kube::Error> {
    let namespace = run.namespace().unwrap_or_default();
    let params = PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
    // It may have a megabyte of files, of which the answer would have another.
    let text = serde_json::to_vec(&run).map_err(kube::Error::SerdeError)?;
    trim::run(&mut run);
    let url = ImageBuildRun::url_path(&(), Some(&namespace));
    let mut request = kube::core::Request::new(url).create(&params, text).map_err(kube::Error::BuildRequest)?;
    request.headers_mut().insert(ACCEPT, METADATA_ALONE);
    let made: Result<PartialObjectMeta<ImageBuildRun>, _> = client.request(request).await;
    match made {
        Err(kube::Error::Api(status)) if status.is_already_exists() => {
            let mut found = namespaced::<ImageBuildRun>(client, &namespace).get(&run.name_any()).await?;
            let same = found.spec.image_build == run.spec.image_build && found.spec.input_hash == run.spec.input_hash;
            trim::run(&mut found);
            if same { Ok(found) } else { Err(kube::Error::Api(status)) }
        }
        made => {
            let metadata = trim::written_over(made?.metadata, &run.metadata);
            Ok(ImageBuildRun { metadata, ..run })
        }
    }
}

/// Asks a run to stop.
pub async fn cancel(client: &Client, run: &ImageBuildRun) -> Result<(), kube::Error> {
    let api = namespaced::<ImageBuildRun>(client, &run.namespace().unwrap_or_default());
    let patch = serde_json::json!({"spec": {"cancel": true}});
    match api.patch_metadata(&run.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await {
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
        other => other.map(drop),
    }
}

/// Removes a finished run.
pub async fn remove(client: &Client, run: &ImageBuildRun) -> Result<(), kube::Error> {
    let api = namespaced::<ImageBuildRun>(client, &run.namespace().unwrap_or_default());
    let uid = run.uid().unwrap_or_default();
    delete(&api, Seen { name: &run.name_any(), uid: &uid, version: None }, None).await
}
