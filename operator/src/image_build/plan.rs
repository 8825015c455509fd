//! What should happen to an ImageBuild, from what was observed; pure.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use kiln_crds::image_build::{HistorySpec, PlatformSpec};
use kiln_crds::image_build_run::{RunPhase, SecretVersion};
use kiln_crds::{BuilderPool, ImageBuild, ImageBuildRun, Platform};
use kube::ResourceExt;

use crate::reason::{Reason, is_credential};
use crate::references::Fault;
use kiln_registry::Repository;

/// How often a ref is looked at unless its ImageBuild says it.
const INTERVAL: Duration = Duration::from_mins(5);

/// The platforms to build, their names normalised.
pub fn platforms(named: Option<&[PlatformSpec]>, default: &[Platform]) -> Result<Vec<PlatformSpec>, Fault> {
    let invalid = |message: String| Fault::user(Reason::PlatformInvalid, message);
    let Some(named) = named else {
        return Ok(default.iter().map(|platform| PlatformSpec::named(platform.to_string())).collect());
    };
    let mut seen = BTreeSet::new();
    let mut platforms = Vec::new();
    for spec in named {
        let platform: Platform = spec.name.parse().map_err(|error| invalid(format!("platforms: {error}")))?;
        if platform.os != "linux" {
            let message = format!("platforms: {} cannot be built: Kiln builds linux images", spec.name);
            return Err(invalid(message));
        }
        let name = platform.to_string();
        if !seen.insert(name.clone()) {
            let message = format!("platforms: {} is {name}, which is in the list already: remove one", spec.name);
            return Err(invalid(message));
        }
        platforms.push(PlatformSpec { name, ..spec.clone() });
    }
    Ok(platforms)
}

/// The older ImageBuild that has one of these tags of the same repository, and the tag. One of another namespace counts
/// only once it has pushed there: naming a repository is no right to it.
#[must_use]
pub fn tag_owner(build: &ImageBuild, others: &[Arc<ImageBuild>]) -> Option<(String, String)> {
    let key = |build: &ImageBuild| (build.creation_timestamp().map(|time| time.0), build.uid());
    let repository = |build: &ImageBuild| build.spec.image.as_ref()?.repository.parse::<Repository>().ok();
    let tags = |build: &ImageBuild| {
        let tags = build.spec.image.as_ref().map(|image| image.tags.clone()).unwrap_or_default();
        if tags.is_empty() { vec!["latest".to_owned()] } else { tags }
    };
    let own = repository(build)?;
    let wanted = tags(build);
    let older = others.iter().filter(|other| {
        other.uid() != build.uid() && other.metadata.deletion_timestamp.is_none() && key(other) < key(build)
    });
    let has_pushed = |other: &ImageBuild| {
        let image = other.status.as_ref().and_then(|status| status.image.as_ref());
        image.is_some_and(|image| image.repository.parse::<Repository>().ok().as_ref() == Some(&own))
    };
    let older = older.filter(|other| other.metadata.namespace == build.metadata.namespace || has_pushed(other));
    let clashing = older.filter(|other| repository(other).as_ref() == Some(&own)).filter_map(|other| {
        let tag = tags(other).into_iter().find(|tag| wanted.contains(tag))?;
        // Other namespaces are nobody else's business.
        let who = if other.namespace() == build.namespace() {
            format!("the ImageBuild {}", other.name_any())
        } else {
            "an ImageBuild of another namespace".to_owned()
        };
        Some((key(other), who, tag))
    });
    clashing.min().map(|(_, who, tag)| (who, tag))
}

/// When the ref is looked at again. `None`: never.
#[must_use]
pub fn next_look(build: &ImageBuild, looked_at: Timestamp) -> Option<Timestamp> {
    let git = build.spec.git()?;
    let interval = git.interval.map_or(INTERVAL, Duration::from);
    if interval.is_zero() { None } else { looked_at.checked_add(interval).ok() }
}

/// Whether the newest run should get a successor though nothing of the input has changed: it failed on a credential, and
/// one of the Secrets is another by now.
#[must_use]
pub fn credential_changed(newest: &ImageBuildRun, now: &[SecretVersion]) -> bool {
    newest.status.as_ref().is_some_and(|status| status.secrets != now)
}

/// Whether the run failed on a credential.
#[must_use]
pub fn failed_on_credential(run: &ImageBuildRun) -> bool {
    run.status.as_ref().is_some_and(|status| {
        status.phase == RunPhase::Failed
            && status.failure.as_ref().is_some_and(|failure| is_credential(&failure.reason))
    })
}

/// The finished runs that history has no room for. The newest run always stays.
#[must_use]
pub fn to_trim(runs: &[Arc<ImageBuildRun>], history: Option<&HistorySpec>) -> Vec<Arc<ImageBuildRun>> {
    let mut runs = runs.to_vec();
    runs.sort_by_key(|run| std::cmp::Reverse(run.spec.number));
    let keep = |limit: Option<u32>| limit.unwrap_or(3) as usize;
    let mut good = keep(history.and_then(|history| history.successful));
    let mut bad = keep(history.and_then(|history| history.failed));
    let mut surplus = Vec::new();
    for (position, run) in runs.iter().enumerate() {
        let room = match run.status.as_ref().map(|status| status.phase) {
            Some(RunPhase::Succeeded) => &mut good,
            Some(RunPhase::Failed | RunPhase::Cancelled) => &mut bad,
            _ => continue,
        };
        if *room > 0 {
            *room -= 1;
        } else if position > 0 {
            surplus.push(run.clone());
        }
    }
    surplus
}

/// The number of the next run: one more than the last recorded.
#[must_use]
pub fn next_number(name: &str, recorded: Option<&str>, runs: &[Arc<ImageBuildRun>]) -> u64 {
    runs.iter().map(|run| run.spec.number).chain(recorded_number(name, recorded)).max().unwrap_or(0) + 1
}

/// The number of the run that the status names.
#[must_use]
pub fn recorded_number(name: &str, recorded: Option<&str>) -> Option<u64> {
    recorded.and_then(|run| run.strip_prefix(name)?.strip_prefix('-')?.parse().ok())
}

/// Whether the pool builds for the platforms' architectures.
pub fn served(platforms: &[PlatformSpec], pool: &BuilderPool) -> Result<(), Fault> {
    let Some(architectures) = &pool.spec.architectures else { return Ok(()) };
    for spec in platforms {
        let architecture = spec.name.parse::<Platform>().map(|platform| platform.architecture).unwrap_or_default();
        if !architectures.contains(&architecture) {
            let message = format!(
                "platforms: {} cannot be built by the BuilderPool {}, which builds on {}: name another pool or platform",
                spec.name,
                pool.name_any(),
                architectures.join(", ")
            );
            return Err(Fault::user(Reason::PlatformInvalid, message));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_crds::image_build_run::ImageBuildRunStatus;

    fn build(name: &str, second: i64, repository: &str, tags: &[&str]) -> Arc<ImageBuild> {
        let spec = serde_json::json!({
            "source": {"git": {"url": "https://git.example/app.git"}},
            "image": {"repository": repository, "tags": tags},
        });
        let mut build = ImageBuild::new(name, serde_json::from_value(spec).unwrap());
        build.metadata.uid = Some(name.to_owned());
        build.metadata.namespace = Some("ns".to_owned());
        let created = Timestamp::from_second(second).unwrap();
        build.metadata.creation_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(created));
        Arc::new(build)
    }

    fn run(number: u64, phase: RunPhase) -> Arc<ImageBuildRun> {
        let spec = serde_json::json!({
            "imageBuild": {"name": "app", "uid": "u"}, "number": number, "inputHash": "v1:x",
            "build": build("app", 0, "r.example/app", &[]).spec,
        });
        let mut run = ImageBuildRun::new(&format!("app-{number}"), serde_json::from_value(spec).unwrap());
        run.status = Some(ImageBuildRunStatus { phase, ..ImageBuildRunStatus::default() });
        Arc::new(run)
    }

    #[test]
    fn platforms_are_normalised_and_told_apart() {
        let names = |names: &[&str]| {
            let specs: Vec<PlatformSpec> =
                names.iter().map(|name| serde_json::from_value(serde_json::json!({"name": name})).unwrap()).collect();
            platforms(Some(&specs), &[])
                .map(|platforms| platforms.into_iter().map(|platform| platform.name).collect::<Vec<_>>().join(" "))
                .map_err(|fault| fault.reason)
        };
        assert_eq!(names(&["linux/x86_64", "linux/aarch64"]).as_deref(), Ok("linux/amd64 linux/arm64"));
        assert_eq!(names(&["linux/amd64", "linux/x86_64"]), Err(Reason::PlatformInvalid));
        assert_eq!(names(&["windows/amd64"]), Err(Reason::PlatformInvalid));
        let default = platforms(None, &["linux/arm64".parse().unwrap()]).unwrap();
        assert_eq!(default[0].name, "linux/arm64");
    }

    #[test]
    fn the_older_image_build_keeps_its_tag() {
        let old = build("old", 1, "docker.io/library/app", &["a", "b"]);
        let new = build("new", 2, "app", &["b"]);
        let other = build("other", 1, "app", &["c"]);
        let all = [old.clone(), new.clone(), other];
        assert_eq!(tag_owner(&new, &all), Some(("the ImageBuild old".into(), "b".into())));
        // The oldest of the repository need not be the one with the tag.
        let oldest = build("oldest", 0, "app", &["z"]);
        let all = [oldest, old.clone(), new.clone()];
        assert_eq!(tag_owner(&new, &all), Some(("the ImageBuild old".into(), "b".into())));
        assert_eq!(tag_owner(&old, &all), None);
    }

    #[test]
    fn naming_the_repository_of_another_namespace_keeps_nothing_until_it_is_pushed_to() {
        let mut foreign = (*build("foreign", 1, "docker.io/library/app", &["b"])).clone();
        foreign.metadata.namespace = Some("elsewhere".into());
        let new = build("new", 2, "app", &["b"]);
        assert_eq!(tag_owner(&new, &[foreign.clone().into(), new.clone()]), None);
        let image = |repository: &str| {
            let image = serde_json::json!({"ref": "r", "repository": repository, "digest": "d", "pushedAt": "2026-01-01T00:00:00Z"});
            serde_json::from_value(serde_json::json!({"image": image})).unwrap()
        };
        foreign.status = Some(image("docker.io/library/other"));
        assert_eq!(tag_owner(&new, &[foreign.clone().into(), new.clone()]), None);
        foreign.status = Some(image("docker.io/library/app"));
        let owner = Some(("an ImageBuild of another namespace".into(), "b".into()));
        assert_eq!(tag_owner(&new, &[foreign.into(), new.clone()]), owner);
    }

    #[test]
    fn history_keeps_the_newest_and_its_limits() {
        use RunPhase::{Building, Failed, Succeeded};
        let runs = [(1, Succeeded), (2, Failed), (3, Succeeded), (4, Failed), (5, Succeeded), (6, Building)]
            .map(|(n, p)| run(n, p));
        let trimmed = |successful, failed| {
            let history = HistorySpec { successful: Some(successful), failed: Some(failed) };
            to_trim(&runs, Some(&history)).iter().map(|run| run.spec.number).collect::<Vec<_>>()
        };
        assert_eq!(trimmed(1, 1), [3, 2, 1]);
        assert_eq!(trimmed(9, 0), [4, 2]);
        let newest = [run(1, Failed), run(2, Failed)];
        let none = HistorySpec { successful: Some(0), failed: Some(0) };
        assert_eq!(to_trim(&newest, Some(&none)).len(), 1);
        assert_eq!(to_trim(&newest, None).len(), 0);
    }

    #[test]
    fn numbers_go_on_from_the_last_recorded() {
        assert_eq!(next_number("app", None, &[]), 1);
        assert_eq!(next_number("app", Some("app-7"), &[run(3, RunPhase::Failed)]), 8);
        assert_eq!(next_number("app", Some("app-7"), &[run(9, RunPhase::Failed)]), 10);
        assert_eq!(next_number("app", Some("app-x-1"), &[]), 1);
    }

    #[test]
    fn zero_means_never_look_again() {
        let mut build = (*build("app", 0, "r.example/app", &[])).clone();
        let at = Timestamp::from_second(1000).unwrap();
        assert_eq!(next_look(&build, at).map(Timestamp::as_second), Some(1300));
        if let Some(git) = build.spec.source.as_mut().and_then(|source| source.git.as_mut()) {
            git.interval = serde_json::from_str("\"0s\"").ok();
        }
        assert_eq!(next_look(&build, at), None);
    }
}
