//! What a build asks registries for, as far as the ImageBuild and the Dockerfile tell: which of them it may ask, and what it
//! shows to each.

use std::collections::BTreeMap;

use kiln_agent_proto::{failure::Class, source};
use kiln_registry::{Reference, Repository};

use super::super::{
    addresses::{Image, Permitted, Refused},
    dockerfile::Dockerfile,
    one_login,
    source::ContextContent,
    stages, unused_logins,
};
use super::Build;
use crate::reasons::{JobFailure, Reason};

/// Of how many repositories the logins are looked at: an honest build has fewer.
const MOST_REPOSITORIES: usize = 256;

/// What registries are asked for.
pub(super) struct Asked<'a> {
    /// Those that may be.
    pub permitted: Permitted<'a>,
    /// The repositories, that of the push first, and where each is mirrored.
    pub repositories: Vec<Repository>,
    /// What `kiln-build` calls the login of each registry that is shown one.
    pub hosts: BTreeMap<String, String>,
}

impl Build<'_> {
    /// Fails where a registry is none that the job may reach, or is to be shown more than one login.
    pub(super) async fn asked(
        &self,
        dockerfile: &Dockerfile<'_>,
        build: stages::Build<'_>,
    ) -> Result<Asked<'_>, JobFailure> {
        let contexts = self.source.contexts.iter().filter_map(|context| match &context.content {
            ContextContent::Image(reference) => Some(reference),
            ContextContent::Directory(_) => None,
        });
        let cache = self.spec.cache.iter().flat_map(|cache| cache.from.iter().chain([&cache.to]));
        let named = [&self.spec.repository].into_iter().chain(cache).chain(contexts);
        let named: Vec<String> = named.filter(|name| !name.is_empty()).cloned().collect();
        let images = stages::images(dockerfile, build);
        let source = match self.spec.source.as_ref().and_then(|source| source.kind.as_ref()) {
            Some(source::Kind::Image(image)) => Some(&image.reference),
            _ => None,
        };
        let all = named.iter().chain(source).chain(images.iter().map(|image| &image.reference));
        let all = all.filter_map(|name| Some(name.parse::<Reference>().ok()?.repository)).take(MOST_REPOSITORIES);
        let repositories = self.with_mirrors(all);
        let permitted = self.permitted(dockerfile, named, images).await?;
        let hosts = one_login::of(self.spec, &repositories, self.registry.registries()).await;
        let hosts = hosts.map_err(|failure| self.with_unused_logins(failure, &repositories))?;
        Ok(Asked { permitted, repositories, hosts })
    }

    /// Each repository, and where it is looked for in its place.
    pub(super) fn with_mirrors(&self, repositories: impl IntoIterator<Item = Repository>) -> Vec<Repository> {
        let and_mirrors = |repository: Repository| {
            let mirrored = self.spec.registry_mirrors.iter().filter(|of| of.registry == repository.registry);
            let mirrors = mirrored.flat_map(|of| &of.mirrors).rev().map(|mirror| repository.at_mirror(mirror));
            let mirrors: Vec<Repository> = mirrors.collect();
            std::iter::once(repository).chain(mirrors)
        };
        repositories.into_iter().flat_map(and_mirrors).collect()
    }

    /// Where a registry refused something, a Secret that is not used may be why.
    pub(super) fn with_unused_logins(&self, mut failure: JobFailure, repositories: &[Repository]) -> JobFailure {
        if failure.reason.class() == Class::Credential {
            failure.warnings.extend(unused_logins::warnings(self.spec, &repositories.iter().cloned().collect()));
        }
        failure
    }

    async fn permitted(
        &self,
        dockerfile: &Dockerfile<'_>,
        named: Vec<String>,
        images: Vec<Image>,
    ) -> Result<Permitted<'_>, JobFailure> {
        let refused = match Permitted::of(self.spec, named, images).await {
            Ok(permitted) => return Ok(permitted),
            Err(refused) => refused,
        };
        let message = refused.to_string();
        Err(match refused {
            Refused::Forbidden { image: Image { line: Some(line), .. }, .. } => {
                let message = format!("{message} (line {line} of {})", self.source.dockerfile.display());
                self.failure_at(line, dockerfile.text, Reason::AddressForbidden, message)
            }
            Refused::Forbidden { .. } => JobFailure::new(Reason::AddressForbidden, message),
            Refused::Unreadable(_) => JobFailure::new(Reason::InvalidJob, message),
        })
    }
}
