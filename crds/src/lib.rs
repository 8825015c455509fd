//! The API of Kiln, group `kiln.build`: what a user writes and reads, as Rust types.
//!
//! The YAML in `crds/yaml/` and what the chart's values may say of a BuilderPool are generated from these types
//! (`cargo run -p kiln-crds`), and a test fails when they drift.
//! The doc comment of a field is what `kubectl explain` prints, so it speaks to the user.

// kube's derive macros name what they need `::kube::…`. It is all in kube-core and kube-derive, without client and runtime.
extern crate self as kube;
#[doc(hidden)]
pub use {kube_core as core, kube_derive::KubeSchema};

pub mod bounds;
pub mod builder_pool;
pub mod git_url;
pub mod image_build;
pub mod image_build_run;
pub mod manifest;
pub mod platform;
pub mod reference;
pub mod rules;
pub mod values_schema;

pub use builder_pool::{BuilderPool, BuilderPoolSpec, BuilderPoolStatus, SecurityProfile};
pub use git_url::{GitUrl, SshUrl, UrlError};
pub use image_build::{ImageBuild, ImageBuildSpec, ImageBuildStatus};
pub use image_build_run::{ImageBuildRun, ImageBuildRunSpec, ImageBuildRunStatus};
pub use platform::Platform;
pub use reference::{CaRef, CaRefKind, SecretKeyRef, SecretRef};

/// A new value of this annotation on an ImageBuild makes a new run, whatever the value is.
pub const REBUILD_ANNOTATION: &str = "kiln.build/rebuild";
