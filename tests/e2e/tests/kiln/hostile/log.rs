//! Output that pretends to be something else: control characters, terminal sequences, fake progress and errors.

use kiln_crds::SecurityProfile;
use kiln_e2e::{Build, Tenant};

use crate::hostile::report::Report;

kiln_e2e::tests![is_output_under_user_namespace, is_output_under_rootless];

/// Each line of the step's output: colours, a window title, a link, a bell, a line drawn over, text turned round, bytes
/// that are no text, BuildKit's own progress, its error, its excerpt, the agent's and the operator's.
const STEP: &str = r#"FROM busybox
RUN printf '\033[31mred\033[0m\n\033]0;title\007\n\033]8;;http://evil.invalid\033\\link\n\007\010bell\nhidden\rshown\n\342\200\256turned\n\377\376\300bytes\n\000nul\n' && \
  printf '{"vertexes":[{"digest":"sha256:fake","name":"fake step","started":"2026-01-01T00:00:00Z","completed":"2026-01-01T00:00:01Z","error":"fake error"}]}\n' && \
  printf 'Dockerfile:1\n--------------------\n   1 | >>> fake\n--------------------\nerror: failed to solve: failed to push r.example/x: denied: fake\n' >&2 && \
  exit 9
"#;

async fn is_output_under_user_namespace() {
    pretend("hostile-log-userns", SecurityProfile::UserNamespace).await;
}

async fn is_output_under_rootless() {
    pretend("hostile-log-rootless", SecurityProfile::Rootless).await;
}

async fn pretend(name: &str, profile: SecurityProfile) {
    Tenant::fresh(name, async |tenant| {
        let pool = tenant.pool("pool", |spec| spec.security_profile = Some(profile)).await;
        let build = Build::inline(tenant, "app", &[("Dockerfile", STEP)]).amd64().pool(&pool);
        tenant.create_build(&build).await;
        let failed = tenant.not_ready("app", "StepFailed").await;
        let run = tenant.run_of(&failed).await;
        let failure = failed.status.as_ref().and_then(|status| status.failure.clone()).expect("a failure is told");

        let mut report = Report::new(profile);
        let everything = serde_json::to_string(&(&failed.status, &run.status)).unwrap();
        let strange: Vec<char> = serde_json::from_str::<serde_json::Value>(&everything)
            .map(|value| strings(&value).chars().filter(|char| is_strange(*char)).collect())
            .unwrap();
        let got = if strange.is_empty() { "none in any status".to_owned() } else { format!("{strange:?}") };
        report.add("control characters in the log", "none in any status", &got, strange.is_empty());

        let steps = run.status.iter().flat_map(|status| &status.platforms).flat_map(|platform| &platform.steps);
        let steps: Vec<&str> = steps.map(|step| step.name.as_str()).filter(|name| name.contains("fake step")).collect();
        let told = steps.iter().all(|step| step.contains("RUN printf"))
            && failure.dockerfile.as_deref() == Some("Dockerfile")
            && failure.line == Some(2)
            && !failure.message.contains("denied");
        let got = format!("{} at line {}: {}", failure.reason, failure.line.unwrap_or(0), failure.message);
        report.add(
            "fake progress and errors in the log",
            "StepFailed at line 2, exit code 9",
            &got,
            told && got.contains("exit code 9"),
        );
        let shown = failure.log_tail.iter().any(|line| line == "shown")
            && failure.log_tail.iter().any(|line| line.contains("fake step"));
        assert!(shown, "they are there as text: {:?}", failure.log_tail);
        report.end();
    })
    .await;
}

/// All strings of a value.
fn strings(value: &serde_json::Value) -> String {
    match value {
        serde_json::Value::String(text) => text.clone(),
        serde_json::Value::Array(values) => values.iter().map(strings).collect(),
        serde_json::Value::Object(fields) => fields.values().map(strings).collect(),
        _ => String::new(),
    }
}

fn is_strange(char: char) -> bool {
    char.is_control() && char != '\n' && char != '\t' || ('\u{202a}'..='\u{202e}').contains(&char)
}
