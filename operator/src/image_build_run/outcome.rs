//! What an agent says of a job that has ended, bounded as the schema wants it; pure.

use kiln_agent_proto::{Failure, Result, Warning};
use kiln_crds::image_build::{BuildFailure, BuildWarning, ImageContent, ImageLayer};
use kiln_registry::text::{is_hidden, plain_text, without_access};

/// The most layers of an image in a status.
const LAYERS: usize = 64;
/// The most warnings of a platform in a status.
const WARNINGS: usize = 32;

/// Size and layers of a platform's image.
#[must_use]
pub fn content(result: &Result) -> ImageContent {
    let layers = result.layers.iter().map(|layer| (layer.bytes, Some(layer.created_by.as_str())));
    ImageContent {
        unpacked_bytes: Some(signed(result.unpacked_bytes)).filter(|bytes| *bytes > 0),
        ..sized(result.compressed_bytes, layers)
    }
}

/// An image of `bytes`, with the bytes of each layer and the instruction that made it.
#[must_use]
pub fn sized<'a>(bytes: u64, layers: impl Iterator<Item = (u64, Option<&'a str>)>) -> ImageContent {
    ImageContent {
        compressed_bytes: signed(bytes),
        unpacked_bytes: None,
        layers: layers
            .take(LAYERS)
            .map(|(bytes, made)| ImageLayer {
                bytes: signed(bytes),
                created_by: made.map(one_line).filter(|made| !made.is_empty()),
            })
            .collect(),
    }
}

/// What BuildKit's lint says.
#[must_use]
pub fn warnings(warnings: &[Warning]) -> Vec<BuildWarning> {
    let warnings = warnings.iter().map(|warning| BuildWarning {
        rule: plain_text(&warning.rule, 63),
        message: plain_text(&warning.message, 511),
        platform: None,
        dockerfile: some(&warning.dockerfile),
        line: (warning.line > 0).then_some(warning.line),
    });
    warnings.take(WARNINGS).collect()
}

/// A platform's failure.
#[must_use]
pub fn failure(failure: &Failure, platform: &str) -> BuildFailure {
    let skip = failure.log_tail.len().saturating_sub(20);
    BuildFailure {
        run: None,
        commit: None,
        platform: Some(platform.to_owned()),
        reason: cut(&failure.reason, 64),
        message: cut(&failure.message, 4096),
        step: some(&failure.step),
        dockerfile: some(&failure.dockerfile),
        line: (failure.line > 0).then_some(failure.line),
        excerpt: failure.excerpt.iter().take(16).map(|line| cut(line, 256)).collect(),
        exit_code: failure.exit_code,
        log_tail: failure.log_tail.iter().skip(skip).map(|line| cut(line, 1024)).collect(),
    }
}

fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// An instruction, which may be a whole script, without what in its addresses gives access.
fn one_line(text: &str) -> String {
    let words: Vec<String> = without_access(text)
        .split_whitespace()
        .take(128)
        .map(|word| word.chars().filter(|char| !is_hidden(*char)).collect::<String>())
        .collect();
    cut(&words.join(" "), 128)
}

fn cut(text: &str, length: usize) -> String {
    text.chars().take(length).collect()
}

fn some(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| cut(text, 1024))
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_agent_proto::Layer;

    #[test]
    fn a_failure_in_the_status_is_bounded() {
        let long = Failure {
            message: "m".repeat(10_000),
            step: "s".repeat(5000),
            log_tail: (0..100).map(|line| format!("{line} {}", "x".repeat(3000))).collect(),
            ..Failure::default()
        };
        let bounded = failure(&long, "linux/amd64");
        assert_eq!(bounded.message.len(), 4096);
        assert_eq!(bounded.step.map(|step| step.len()), Some(1024));
        assert_eq!(bounded.log_tail.len(), 20);
        assert!(bounded.log_tail[19].starts_with("99 ") && bounded.log_tail[19].len() == 1024);
    }

    #[test]
    fn sizes_layers_and_warnings_are_bounded() {
        let layer = |made: String| Layer { bytes: 7, created_by: made };
        let result = Result {
            compressed_bytes: 100,
            layers: (0..70).map(|n| layer(if n == 0 { String::new() } else { "RUN\tx".repeat(60) })).collect(),
            warnings: (0..40).map(|line| Warning { rule: "R".repeat(99), line, ..Warning::default() }).collect(),
            ..Result::default()
        };
        let found = content(&result);
        assert_eq!((found.compressed_bytes, found.unpacked_bytes, found.layers.len()), (100, None, 64));
        assert_eq!(found.layers[0], ImageLayer { bytes: 7, created_by: None });
        assert_eq!(found.layers[1].created_by.as_ref().map(String::len), Some(128));
        let found = warnings(&result.warnings);
        assert_eq!((found.len(), found[0].rule.chars().count(), found[0].line, found[1].line), (32, 64, None, Some(1)));
    }
}
