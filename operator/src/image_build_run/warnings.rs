//! What a run warns of: the lint of its Dockerfiles, images that grew, and tags that something else moves; pure.

use kiln_crds::image_build::{BuildWarning, BuiltImage};
use kiln_crds::image_build_run::PlatformStatus;

use crate::reason::Reason;

/// The lint of all platforms, each warning once: with the platform where not all that were built have it.
#[must_use]
pub fn of_platforms(platforms: &[PlatformStatus]) -> Vec<BuildWarning> {
    let built: Vec<&PlatformStatus> = platforms
        .iter()
        .filter(|platform| platform.phase.is_final() && !(platform.steps.is_empty() && platform.warnings.is_empty()))
        .collect();
    let mut all: Vec<BuildWarning> = Vec::new();
    for warning in built.iter().flat_map(|platform| &platform.warnings) {
        let have: Vec<_> = built.iter().filter(|platform| platform.warnings.contains(warning)).collect();
        let named: Vec<Option<String>> = if have.len() == built.len() {
            vec![None]
        } else {
            have.iter().map(|platform| Some(platform.name.clone())).collect()
        };
        for platform in named {
            let warning = BuildWarning { platform, ..warning.clone() };
            if !all.contains(&warning) {
                all.push(warning);
            }
        }
    }
    all
}

/// Whether a warning is of an image that grew.
#[must_use]
pub fn is_growth(warning: &BuildWarning) -> bool {
    warning.rule == Reason::ImageGrew.as_str()
}

/// Whether a warning is of tags that something else has moved.
#[must_use]
pub fn is_of_tags(warning: &BuildWarning) -> bool {
    warning.rule == Reason::TagMoved.as_str()
}

/// A warning for each platform whose image is larger than that of the last good one by more than `percent`.
#[must_use]
pub fn grown(platforms: &[PlatformStatus], last_good: &BuiltImage, percent: u32) -> Vec<BuildWarning> {
    let grown = platforms.iter().filter_map(|platform| {
        let before = last_good.platforms.iter().find(|former| former.name == platform.name)?;
        let before = before.content.as_ref()?.compressed_bytes;
        let now = platform.content.as_ref()?.compressed_bytes;
        let more = i128::from(now - before) * 100;
        (before > 0 && more > i128::from(before) * i128::from(percent)).then(|| BuildWarning {
            rule: Reason::ImageGrew.to_string(),
            message: format!(
                "{}: the image grew by {} %, from {} to {}; image.growthWarningPercent is {percent}",
                platform.name,
                more / i128::from(before),
                human_bytes(before),
                human_bytes(now)
            ),
            platform: Some(platform.name.clone()),
            ..BuildWarning::default()
        })
    });
    grown.collect()
}

/// Bytes as a person reads them, such as `1.5 MiB`.
fn human_bytes(bytes: i64) -> String {
    let mut tenths = i128::from(bytes.max(0)) * 10;
    for unit in ["bytes", "KiB", "MiB", "GiB"] {
        if tenths < 10_240 {
            return if unit == "bytes" {
                format!("{} bytes", tenths / 10)
            } else {
                format!("{}.{} {unit}", tenths / 10, tenths % 10)
            };
        }
        tenths /= 1024;
    }
    format!("{}.{} TiB", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use k8s_openapi::jiff::Timestamp;
    use kiln_crds::image_build::{ImageContent, PlatformImage};
    use kiln_crds::image_build_run::{PlatformPhase, StepStatus};

    fn platform(name: &str, rules: &[&str]) -> PlatformStatus {
        let warning = |rule: &&str| BuildWarning { rule: (*rule).to_owned(), ..BuildWarning::default() };
        PlatformStatus {
            name: name.into(),
            phase: PlatformPhase::Succeeded,
            warnings: rules.iter().map(warning).collect(),
            steps: vec![StepStatus::default()],
            ..PlatformStatus::default()
        }
    }

    #[test]
    fn each_warning_is_told_once_and_with_its_platform_where_not_all_have_it() {
        let taken = PlatformStatus { steps: Vec::new(), ..platform("c", &[]) };
        let running = PlatformStatus { phase: PlatformPhase::Building, ..platform("d", &[]) };
        for (platforms, expected) in [
            (vec![platform("a", &["X", "Y"])], vec!["X", "Y"]),
            (vec![platform("a", &["X"]), platform("b", &["X"])], vec!["X"]),
            (vec![platform("a", &["X"]), platform("b", &[])], vec!["X a"]),
            (vec![platform("a", &["X", "Y"]), platform("b", &["Y"])], vec!["X a", "Y"]),
            // What was not built, or not yet, has no lint.
            (vec![platform("a", &["X"]), taken, running], vec!["X"]),
            (vec![platform("a", &["X"]), platform("b", &["X"]), platform("c", &[])], vec!["X a", "X b"]),
        ] {
            let told: Vec<String> = of_platforms(&platforms)
                .iter()
                .map(|warning| format!("{} {}", warning.rule, warning.platform.as_deref().unwrap_or("")))
                .map(|told| told.trim().to_owned())
                .collect();
            assert_eq!(told, expected);
        }
    }

    #[test]
    fn growth_counts_from_the_share_on() {
        let content = |bytes: Option<i64>| {
            bytes.map(|compressed_bytes| ImageContent { compressed_bytes, ..ImageContent::default() })
        };
        for (before, now, percent, expected) in [
            (Some(1000), Some(1100), 10, None),
            (Some(1000), Some(1101), 10, Some(10)),
            (Some(1000), Some(900), 10, None),
            (Some(1000), Some(3000), 10, Some(200)),
            (Some(0), Some(10), 10, None),
            (None, Some(10), 10, None),
            (Some(10), None, 10, None),
            (Some(i64::MAX / 2), Some(i64::MAX), 50, Some(100)),
        ] {
            let image = BuiltImage {
                reference: String::new(),
                repository: String::new(),
                tags: Vec::new(),
                digest: String::new(),
                pushed_at: Time(Timestamp::UNIX_EPOCH),
                platforms: vec![PlatformImage {
                    name: "a".into(),
                    digest: String::new(),
                    origin: None,
                    content: content(before),
                }],
                copies: Vec::new(),
            };
            let platform = PlatformStatus { content: content(now), ..platform("a", &[]) };
            let warnings = grown(&[platform], &image, percent);
            let by = expected.map(|by| format!("grew by {by} %"));
            assert_eq!(warnings.len(), usize::from(by.is_some()), "{before:?} {now:?}");
            assert!(by.is_none_or(|by| warnings[0].message.contains(&by)), "{warnings:?}");
        }
        for (bytes, expected) in [(1000, "1000 bytes"), (1536, "1.5 KiB"), (5 << 20, "5.0 MiB"), (3 << 40, "3.0 TiB")] {
            assert_eq!(human_bytes(bytes), expected);
        }
    }
}
