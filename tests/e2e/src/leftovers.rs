//! What a test program that was broken off has left: its namespaces, pools, repositories and files.

use std::fs::{File, TryLockError};
use std::path::Path;

use k8s_openapi::ClusterResourceScope;
use k8s_openapi::api::admissionregistration::v1::{ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding};
use k8s_openapi::api::core::v1::{Namespace, PersistentVolume};
use k8s_openapi::api::storage::v1::StorageClass;
use kiln_crds::BuilderPool;
use kube::api::{DeleteParams, ListParams};
use kube::{Api, ResourceExt as _};
use serde::de::DeserializeOwned;

use crate::Cluster;
use crate::cluster::cache_directory;
use crate::tenant::LABEL;

/// What the names of all that tests make begin with.
const PREFIX: &str = "e2e-";

/// Waits until no other test program of this machine runs, and keeps others from it as long as the value lives: what is
/// here belongs to nobody then.
pub fn only_program() -> File {
    let directory = cache_directory().unwrap_or_else(std::env::temp_dir);
    std::fs::create_dir_all(&directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    let path = directory.join("end-to-end-tests.lock");
    let file = File::create(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            eprintln!("waiting for another program of end-to-end tests");
            file.lock().unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        }
        Err(TryLockError::Error(error)) => panic!("{}: {error}", path.display()),
    }
    file
}

/// Removes it. Nothing is waited for: each test has names of its own.
pub fn remove() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime can be made").block_on(async {
        let cluster = Cluster::new().await;
        let namespaces: Api<Namespace> = Api::all(cluster.client.clone());
        let found = namespaces.list(&ListParams::default().labels(LABEL)).await.expect("namespaces can be listed");
        for namespace in found {
            gone(namespaces.delete(&namespace.name_any(), &DeleteParams::default()).await);
        }
        let pools: Api<BuilderPool> = Api::all(cluster.client.clone());
        let found = pools.list(&ListParams::default()).await.expect("BuilderPools can be listed; is Kiln installed?");
        for pool in found.iter().filter(|pool| pool.name_any().starts_with(PREFIX)) {
            gone(pools.delete(&pool.name_any(), &DeleteParams::default()).await);
        }
        // What belongs to no namespace has the name of one.
        remove_all::<PersistentVolume>(&cluster.client).await;
        remove_all::<StorageClass>(&cluster.client).await;
        remove_all::<ValidatingAdmissionPolicyBinding>(&cluster.client).await;
        remove_all::<ValidatingAdmissionPolicy>(&cluster.client).await;
        for root in [cluster.git_root, crate::web::root()] {
            remove_files(&root);
            remove_files(&root.join("private"));
        }
    });
}

async fn remove_all<K>(client: &kube::Client)
where
    K: kube::Resource<DynamicType = (), Scope = ClusterResourceScope> + Clone + std::fmt::Debug + DeserializeOwned,
{
    let api: Api<K> = Api::all(client.clone());
    let found = api.list(&ListParams::default()).await.unwrap_or_else(|error| panic!("{}: {error}", K::plural(&())));
    for object in found.iter().filter(|object| object.name_any().starts_with(PREFIX)) {
        gone(api.delete(&object.name_any(), &DeleteParams::default()).await);
    }
}

/// Deleting what somebody else deletes too is no failure.
fn gone<T>(deleted: kube::Result<T>) {
    match deleted {
        Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => {}
        Err(error) => panic!("removing what a former program of tests left: {error}"),
        Ok(_) => {}
    }
}

fn remove_files(directory: &Path) {
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(PREFIX) {
            let path = entry.path();
            let removed = if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
            removed.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        }
    }
}
