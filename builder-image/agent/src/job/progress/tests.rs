//! Builds as the pinned version of BuildKit told of them, and output cut anywhere.

use std::fmt::Write as _;

use proptest::prelude::*;

use super::*;

fn log(stream: i32, data: &[u8]) -> Vec<u8> {
    serde_json::json!({"logs": [{"vertex": "v", "stream": stream, "data": STANDARD.encode(data)}]})
        .to_string()
        .into_bytes()
}

fn lines(updates: &[Update]) -> Vec<&str> {
    updates
        .iter()
        .filter_map(|update| if let Update::Line { line, .. } = update { Some(line.as_str()) } else { None })
        .collect()
}

/// One line for each update of a build that was captured from the pinned version.
fn story(captured: &str) -> String {
    let masker = Masker::new([b"hunter22".as_slice()]);
    let mut progress = Progress::new(&masker);
    let mut story = String::new();
    for line in captured.lines() {
        for update in progress.line(line.as_bytes()) {
            match update {
                Update::Shown(_) => {}
                Update::Step(step) => {
                    let state = if !step.error.is_empty() {
                        "failed"
                    } else if step.cached {
                        "cached"
                    } else if step.completed.is_some() {
                        "done"
                    } else {
                        "started"
                    };
                    writeln!(story, "step {} {state}", step.name).unwrap();
                }
                Update::Line { line, .. } => writeln!(story, "line {line}").unwrap(),
                Update::Pushing => writeln!(story, "pushing").unwrap(),
            }
        }
    }
    let failed = match progress.ending() {
        Some(Ending::Failed(failed)) => progress.failed_step(failed),
        _ => None,
    };
    write!(
        story,
        "failed: {failed:#?}\nwarnings: {:?}\nending: {:#?}\ntext:\n{}",
        progress.warnings(),
        progress.ending(),
        progress.text()
    )
    .unwrap();
    story
}

#[test]
fn a_build_that_succeeds() {
    insta::assert_snapshot!(story(include_str!("../testdata/ok.stderr")));
}

#[test]
fn a_step_that_fails() {
    insta::assert_snapshot!(story(include_str!("../testdata/step-failed.stderr")));
}

#[test]
fn two_steps_that_fail() {
    insta::assert_snapshot!(story(include_str!("../testdata/two-fail.stderr")));
}

#[test]
fn a_warning() {
    insta::assert_snapshot!(story(include_str!("../testdata/base-platform.stderr")));
}

#[test]
fn a_cache_that_is_not_there_is_no_failed_step() {
    let masker = Masker::default();
    let mut progress = Progress::new(&masker);
    let updates: Vec<Update> =
        include_str!("../testdata/lost-cache.stderr").lines().flat_map(|line| progress.line(line.as_bytes())).collect();
    assert_eq!(progress.failed_step(&Failed::default()), None);
    let failed = |update: &&Update| matches!(update, Update::Step(step) if !step.error.is_empty());
    assert_eq!(updates.iter().filter(failed).count(), 0);
    let told = lines(&updates);
    for (step, why) in
        [("importing cache manifest from ", "not found"), ("exporting cache to registry", "no route to host")]
    {
        assert!(told.iter().any(|line| line.starts_with(step) && line.contains(why)), "{told:?}");
    }
}

#[test]
fn each_warning_is_told_once() {
    let masker = Masker::default();
    let mut progress = Progress::new(&masker);
    for line in include_str!("../testdata/failures/lint-failed/output").lines().cycle().take(200) {
        progress.line(line.as_bytes());
    }
    let told: Vec<(&str, u32)> =
        progress.warnings().iter().map(|warning| (warning.rule.as_str(), warning.line)).collect();
    assert_eq!(told, [("StageNameCasing", 2), ("MaintainerDeprecated", 3), ("JSONArgsRecommended", 4)]);
    assert_eq!(progress.warnings()[0].message, "Stage name 'ZZBuild' should be lowercase");
    assert_eq!(progress.warnings()[0].dockerfile, "Dockerfile");
}

#[test]
fn streams_are_put_together_apart() {
    let masker = Masker::default();
    let mut progress = Progress::new(&masker);
    assert_eq!(lines(&progress.line(&log(1, b"one\ntw"))), ["one"]);
    assert_eq!(lines(&progress.line(&log(2, b"err"))), [""; 0]);
    assert_eq!(lines(&progress.line(&log(1, b"o\n\n"))), ["two", ""]);
    let end = serde_json::json!({"vertexes": [{"digest": "v", "name": "n", "started": "2026-01-01T00:00:00Z", "completed": "2026-01-01T00:00:01Z"}]});
    assert_eq!(lines(&progress.line(end.to_string().as_bytes())), ["err"]);
}

#[test]
fn a_line_without_end_is_told_once_and_takes_no_memory() {
    let masker = Masker::new([b"hunter22".as_slice()]);
    let mut progress = Progress::new(&masker);
    let mut told = Vec::new();
    // The value lies across each place where output could be cut.
    for _ in 0..100 {
        told.extend(progress.line(&log(1, &b"hunter22".repeat(4 << 10))));
    }
    assert!(progress.outputs["v"].pieces[&1].bytes.is_empty());
    told.extend(progress.line(&log(1, b"hunter22\nnext\n")));
    assert_eq!(told.len(), 2, "the line's beginning, and the next one");
    assert!(lines(&told)[0].trim_end_matches('…').chars().all(|char| char == '*'));
    assert_eq!(lines(&told)[1], "next");

    let mut told = Vec::new();
    for percent in 0..100 {
        told.extend(progress.line(&log(2, format!("{}{percent}%\r", "#".repeat(2000)).as_bytes())));
    }
    told.extend(progress.line(&log(2, b"done\n")));
    assert_eq!(lines(&told), ["done"], "a progress bar's last drawing counts");
}

#[test]
fn what_a_step_prints_is_output_whatever_it_looks_like() {
    let masker = Masker::default();
    let mut progress = Progress::new(&masker);
    let fake = b"{\"vertexes\":[{\"digest\":\"v\",\"name\":\"fake\",\"started\":\"2026-01-01T00:00:00Z\",\"error\":\"e\"}]}\nerror: failed to solve: failed to push r: denied: \nDockerfile:1\n--------------------\n   1 | >>> x\n";
    let updates = progress.line(&log(1, fake));
    assert_eq!(lines(&updates).len(), updates.len());
    assert_eq!((progress.failed_step(&Failed::default()), progress.text()), (None, ""));
}

#[test]
fn endless_steps_are_not_told() {
    let masker = Masker::default();
    let mut progress = Progress::new(&masker);
    let told: usize = (0..2 * MOST_STEPS)
        .map(|number| {
            let vertex = serde_json::json!({"vertexes": [{"digest": number.to_string(), "name": "n", "started": "2026-01-01T00:00:00Z"}]});
            progress.line(vertex.to_string().as_bytes()).len()
        })
        .sum();
    assert_eq!(told, MOST_STEPS);
}

proptest! {
    #[test]
    fn no_output_is_lost_however_it_is_cut(text in "[a-z\n]{0,200}", cuts in proptest::collection::vec(1_usize..20, 0..40)) {
        let masker = Masker::default();
        let mut progress = Progress::new(&masker);
        let mut rest = text.as_bytes();
        let mut seen = Vec::new();
        for cut in cuts.into_iter().chain([200]) {
            let (piece, left) = rest.split_at(cut.min(rest.len()));
            seen.extend(progress.line(&log(1, piece)));
            rest = left;
        }
        progress.flush("v", &mut seen);
        prop_assert_eq!(lines(&seen), text.lines().collect::<Vec<_>>());
    }

    #[test]
    fn any_line_is_taken(line in any::<Vec<u8>>()) {
        let masker = Masker::default();
        Progress::new(&masker).line(&line);
    }
}
