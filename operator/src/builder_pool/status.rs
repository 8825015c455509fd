//! What a pool's status says; pure.

use k8s_openapi::jiff::Timestamp;
use kiln_crds::builder_pool::{BuilderPoolStatus, BuilderStatus};
use kiln_crds::{BuilderPool, SecurityProfile};

use super::plan::Builder;
use crate::builder::profile::Profile;
use crate::condition::{Wanted, date};

/// The status. `profiles` are those of the nodes that could take builders.
#[must_use]
pub fn status(pool: &BuilderPool, builders: &[Builder], profiles: &[Profile], now: Timestamp) -> BuilderPoolStatus {
    let former = pool.status.clone().unwrap_or_default();
    let profile = match pool.spec.security_profile.unwrap_or_default() {
        SecurityProfile::Auto if profiles.is_empty() => SecurityProfile::Auto,
        SecurityProfile::Auto if profiles.iter().all(|profile| *profile == Profile::UserNamespace) => {
            SecurityProfile::UserNamespace
        }
        SecurityProfile::Auto => SecurityProfile::Rootless,
        explicit => explicit,
    };
    let message = match profile {
        SecurityProfile::Auto => "no nodes yet: the security profile is chosen with the first".to_owned(),
        SecurityProfile::UserNamespace => {
            "builders run in user namespaces: RUN steps cannot see their builder".to_owned()
        }
        SecurityProfile::Rootless => {
            "builders run rootless: RUN steps can read what their builder holds, so each ImageBuild has its own"
                .to_owned()
        }
    };
    let ready = Wanted { kind: "Ready", status: Some(true), reason: format!("{profile:?}"), message };
    let living = || builders.iter().filter(|builder| !builder.terminating && !builder.ended);
    BuilderPoolStatus {
        observed_generation: pool.metadata.generation,
        conditions: date(vec![ready], &former.conditions, pool.metadata.generation, now),
        security_profile: Some(profile),
        builder_count: u32::try_from(living().count()).unwrap_or(u32::MAX),
        builders: living()
            .take(1000)
            .map(|builder| BuilderStatus {
                name: builder.id.name(),
                namespace: builder.id.domain.namespace.clone(),
                architecture: builder.id.architecture.clone(),
                node: builder.node.clone(),
                jobs: u32::try_from(builder.jobs).unwrap_or(u32::MAX),
                ..BuilderStatus::default()
            })
            .collect(),
        ..BuilderPoolStatus::default()
    }
}
