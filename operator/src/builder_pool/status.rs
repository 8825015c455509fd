//! What a pool's status says; pure.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use kiln_crds::builder_pool::{BuilderPoolStatus, BuilderStatus, PoolSummary, SourceSandbox};
use kiln_crds::{BuilderPool, BuilderPoolSpec, Platform, SecurityProfile};

use super::plan::Builder;
use crate::agent::Facts;
use crate::builder::node::NodeFacts;
use crate::builder::profile::Profile;
use crate::condition::{self, Wanted, date, seconds};
use crate::reason::Reason;

/// The condition that tells whether what handles other people's files is kept apart.
pub const SANDBOXED: &str = "SourcesSandboxed";
const MEBIBYTE: u64 = 1 << 20;
/// The most platforms of one builder that are shown.
const PLATFORMS: usize = 64;

/// The status. `profiles` are those of the nodes that could take builders.
#[must_use]
pub fn status(
    pool: &BuilderPool,
    builders: &[Builder],
    nodes: &[NodeFacts],
    profiles: &[Profile],
    now: Timestamp,
) -> BuilderPoolStatus {
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
    let living: Vec<&Builder> = builders.iter().filter(|builder| !builder.terminating && !builder.ended).collect();
    let wanted = [Some(ready), sandboxed(&living, &former)].into_iter().flatten().collect();
    let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    BuilderPoolStatus {
        observed_generation: pool.metadata.generation,
        conditions: date(wanted, &former.conditions, pool.metadata.generation, now),
        security_profile: Some(profile),
        builder_count: count(living.len()),
        job_count: count(living.iter().map(|builder| builder.jobs).sum()),
        builders: living.iter().take(1000).map(|builder| of_builder(builder)).collect(),
        summary: Some(PoolSummary {
            platforms: platforms(&pool.spec, nodes),
            cache: cache(&living),
            nodes: on(&living),
        }),
    }
}

fn of_builder(builder: &Builder) -> BuilderStatus {
    let mut status = BuilderStatus {
        name: builder.id.name(),
        namespace: builder.id.domain.namespace.clone(),
        architecture: builder.id.architecture.clone(),
        node: builder.node.clone(),
        security_profile: Some(builder.profile.in_api()),
        jobs: u32::try_from(builder.jobs).unwrap_or(u32::MAX),
        suspect_since: builder.suspect_since.map(|since| Time(seconds(since))),
        last_active_at: Some(Time(seconds(builder.last_active))),
        ..BuilderStatus::default()
    };
    if let Some(Facts { buildkit, platforms, cache_used, cache_limit, sandbox_problem, largest_id }) = &builder.facts {
        status.sandbox = Some(if sandbox_problem.is_empty() { SourceSandbox::Landlock } else { SourceSandbox::None });
        status.sandbox_message = Some(sandbox_problem.clone()).filter(|problem| !problem.is_empty());
        let (native, emulated) = split(platforms, &builder.id.architecture);
        status.buildkit = Some(buildkit.chars().take(64).collect());
        status.platforms = native;
        status.emulated_platforms = emulated;
        status.cache_used = Some(mebibytes(*cache_used));
        status.cache_limit = (*cache_limit > 0).then(|| mebibytes(*cache_limit));
        status.largest_id = (*largest_id > 0).then_some(*largest_id);
    }
    status
}

/// Whether builders keep apart what handles other people's files. Without any that has answered it stays as it was.
fn sandboxed(builders: &[&Builder], former: &BuilderPoolStatus) -> Option<Wanted> {
    let mut facts = builders.iter().filter_map(|builder| Some((builder, builder.facts.as_ref()?))).peekable();
    if facts.peek().is_none() {
        let Condition { status, reason, message, .. } = condition::find(&former.conditions, SANDBOXED)?.clone();
        return Some(Wanted { kind: SANDBOXED, status: Some(status == "True"), reason, message });
    }
    let without = facts.find(|(_, facts)| !facts.sandbox_problem.is_empty());
    Some(match without {
        None => Wanted {
            kind: SANDBOXED,
            status: Some(true),
            reason: Reason::SourcesSandboxed.to_string(),
            message: "git, ssh, kiln-build and unpacking run in a sandbox of their own".to_owned(),
        },
        Some((builder, facts)) => Wanted {
            kind: SANDBOXED,
            status: Some(false),
            reason: Reason::SourceSandboxMissing.to_string(),
            message: format!(
                "builder {} on node {}: {}",
                builder.id.name(),
                builder.node.as_deref().unwrap_or("unknown"),
                facts.sandbox_problem
            ),
        },
    })
}

/// The platforms that a node of this architecture runs by itself, and those that it runs by emulation.
fn split(platforms: &[String], architecture: &str) -> (Vec<String>, Vec<String>) {
    let native = |platform: &String| {
        platform.parse::<Platform>().is_ok_and(|platform| {
            platform.architecture == architecture || (architecture == "amd64" && platform.architecture == "386")
        })
    };
    platforms.iter().filter(|platform| platform.len() <= 64).take(PLATFORMS).cloned().partition(native)
}

/// In whole mebibytes: less is not worth a write.
fn mebibytes(bytes: u64) -> Quantity {
    Quantity(format!("{}Mi", rounded(bytes)))
}

fn rounded(bytes: u64) -> u64 {
    bytes.saturating_add(MEBIBYTE / 2) / MEBIBYTE
}

/// The platforms that the nodes which could take builders run by themselves.
fn platforms(pool: &BuilderPoolSpec, nodes: &[NodeFacts]) -> Option<String> {
    let selector = pool.template.as_ref().map(|template| &template.node_selector);
    let architectures: BTreeSet<&str> = nodes
        .iter()
        .filter(|node| selector.is_none_or(|selector| node.matches(selector)))
        .map(|node| node.architecture.as_str())
        .filter(|architecture| {
            pool.architectures.as_ref().is_none_or(|named| named.iter().any(|named| named == architecture))
        })
        .take(16)
        .collect();
    let names: Vec<String> = architectures.iter().map(|architecture| format!("linux/{architecture}")).collect();
    (!names.is_empty()).then(|| names.join(","))
}

/// Such as `1.2Gi of 40Gi`.
fn cache(builders: &[&Builder]) -> Option<String> {
    let facts = || builders.iter().filter_map(|builder| builder.facts.as_ref());
    facts().next()?;
    let used = human(facts().map(|facts| rounded(facts.cache_used)).sum());
    let limit = facts().map(|facts| rounded(facts.cache_limit)).sum();
    Some(if limit == 0 { used } else { format!("{used} of {}", human(limit)) })
}

/// Such as `640Mi`, `1.2Gi` or `40Gi`.
fn human(mebibytes: u64) -> String {
    match (mebibytes, mebibytes * 10 / 1024) {
        (..1024, _) => format!("{mebibytes}Mi"),
        (_, tenths @ ..100) if tenths % 10 != 0 => format!("{}.{}Gi", tenths / 10, tenths % 10),
        (_, tenths) => format!("{}Gi", tenths / 10),
    }
}

/// Such as `node-a: 2, node-b: 1`.
fn on(builders: &[&Builder]) -> Option<String> {
    let mut nodes: BTreeMap<&str, usize> = BTreeMap::new();
    for node in builders.iter().filter_map(|builder| builder.node.as_deref()) {
        *nodes.entry(node).or_default() += 1;
    }
    let mut text = String::new();
    for (node, builders) in nodes {
        let separator = if text.is_empty() { "" } else { ", " };
        let next = format!("{separator}{node}: {builders}");
        // The schema's bound, with room for this.
        if text.len() + next.len() > 4000 {
            text.push_str(", …");
            break;
        }
        text.push_str(&next);
    }
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builder::{BuilderId, TrustDomain};
    use kiln_crds::image_build::CacheScope;

    fn builder(architecture: &str, slot: u32) -> Builder {
        let domain = TrustDomain::new("team", "uid", "", CacheScope::Namespace);
        Builder {
            id: BuilderId { pool: "default".into(), domain, architecture: architecture.into(), slot },
            uid: String::new(),
            node: Some("node-a".into()),
            profile: Profile::UserNamespace,
            facts: Some(Facts {
                buildkit: "v0.33.1".into(),
                platforms: ["linux/amd64", "linux/amd64/v2", "linux/arm64", "linux/386"].map(str::to_owned).into(),
                cache_used: 700 * MEBIBYTE + 1,
                cache_limit: 20 << 30,
                sandbox_problem: String::new(),
                largest_id: 65_534,
            }),
            jobs: 1,
            created: Timestamp::UNIX_EPOCH,
            failures: 0,
            last_active: Timestamp::from_microsecond(5_500_000).unwrap(),
            wanted: false,
            ended: false,
            suspect_since: None,
            terminating: false,
            orphaned: false,
            standing: crate::builder_pool::warm::Standing::Idle,
        }
    }

    #[test]
    fn a_pool_tells_what_its_builders_are() {
        let pool = BuilderPool::new("default", BuilderPoolSpec::default());
        let nodes = ["arm64", "amd64", "amd64"].map(|architecture| NodeFacts {
            architecture: architecture.into(),
            labels: [].into(),
            user_namespaces: true,
        });
        let coming = Builder { node: None, facts: None, jobs: 0, ..builder("amd64", 1) };
        let leaving = Builder { terminating: true, ..builder("amd64", 2) };
        let silent = Builder { suspect_since: Timestamp::from_second(7).ok(), ..builder("arm64", 0) };
        let builders = [builder("amd64", 0), coming, leaving, silent];
        let status = status(&pool, &builders, &nodes, &[Profile::UserNamespace; 3], Timestamp::UNIX_EPOCH);
        insta::assert_yaml_snapshot!(status);
    }

    #[test]
    fn a_builder_without_a_sandbox_is_told() {
        let mut pool = BuilderPool::new("default", BuilderPoolSpec::default());
        let at = |builders: &[Builder], pool: &BuilderPool| {
            let status = status(pool, builders, &[], &[], Timestamp::UNIX_EPOCH);
            let told = condition::find(&status.conditions, SANDBOXED);
            (told.map(|told| (told.status.clone(), told.reason.clone(), told.message.clone())), status)
        };
        assert_eq!(at(&[], &pool).0, None);
        let good = builder("amd64", 0);
        let mut bad = builder("amd64", 1);
        bad.facts.as_mut().unwrap().sandbox_problem = "no Landlock".into();
        let coming = Builder { facts: None, ..builder("amd64", 2) };
        let (told, status) = at(&[good.clone(), bad.clone(), coming.clone()], &pool);
        insta::assert_compact_debug_snapshot!(told);
        insta::assert_yaml_snapshot!(
            status.builders.iter().map(|one| (one.sandbox, one.sandbox_message.as_deref())).collect::<Vec<_>>()
        );
        // With the builders gone, what was known of the pool stays.
        pool.status = Some(status);
        assert_eq!(at(&[coming], &pool).0, told);
        assert_eq!(at(&[good], &pool).0.unwrap().0, "True");
    }

    #[test]
    fn sizes_are_short() {
        for (mebibytes, expected) in
            [(0, "0Mi"), (1023, "1023Mi"), (1024, "1Gi"), (1300, "1.2Gi"), (10_240, "10Gi"), (40_999, "40Gi")]
        {
            assert_eq!(human(mebibytes), expected);
        }
    }

    #[test]
    fn what_is_less_than_a_mebibyte_changes_nothing() {
        assert_eq!(mebibytes(5 * MEBIBYTE), mebibytes(5 * MEBIBYTE + 4096));
    }
}
