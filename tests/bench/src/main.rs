//! Measures Kiln on a real cluster, next to the bare `buildctl`, and writes a table and a plot: `make bench`.
//!
//! | variable | what |
//! |---|---|
//! | `KILN_BENCH_RUNS` | how often each thing is measured; 7 unless set |
//! | `KILN_BENCH_ONLY` | names of measurements, with commas; all unless set |
//! | `KILN_BENCH_SCALE` | how many ImageBuilds `rest` has, such as 10000; it is left out unless set |
//! | `KILN_BENCH_OUTPUT` | the directory for `bench.md`, `bench.svg` and `bench.json`; `target/bench` unless set |
//!
//! Nothing here fails for being slow: a target that is missed is shown as such.
#![forbid(unsafe_code)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::missing_panics_doc,
    reason = "a panic is a failed measurement"
)]
#![allow(clippy::large_futures, reason = "a measurement's future is polled where it is made, and is not moved about")]
#![allow(clippy::cast_precision_loss, reason = "sizes and counts here are far below 2^53")]

mod bare;
mod builds;
mod figures;
mod measure;
mod observer;
mod phases;
mod plot;
mod project;
mod table;

use std::path::PathBuf;
use std::time::Instant;

use kiln_e2e::Cluster;
use serde_json::json;

use crate::figures::Figure;
use crate::measure::{at_rest, base_image, cold, many, multi_arch, operator, slow_registry, warm};
use crate::observer::{former_are_gone, remove_left_over};

const MEASUREMENTS: [(&str, &str); 9] = [
    ("operator", "the operator's start, memory and image"),
    ("warm", "a warm builder, next to the bare buildctl"),
    ("cold", "a cold builder"),
    ("multi", "two architectures"),
    ("ten", "ten ImageBuilds at once"),
    ("hundred", "a hundred ImageBuilds at once"),
    ("slow", "a base registry that answers after one second"),
    ("large", "a new namespace with a base image of 300 MB"),
    ("rest", "many ImageBuilds at rest"),
];

#[tokio::main]
async fn main() {
    let runs = std::env::var("KILN_BENCH_RUNS").map_or(7, |runs| runs.parse().expect("KILN_BENCH_RUNS is a number"));
    let only = std::env::var("KILN_BENCH_ONLY").ok();
    let scale = std::env::var("KILN_BENCH_SCALE").ok();
    let scale = scale.map(|scale| scale.parse().expect("KILN_BENCH_SCALE is a number"));
    let wanted = |name: &str| {
        let named = only.as_ref().is_none_or(|only| only.split(',').any(|one| one.trim() == name));
        named && (name != "rest" || scale.is_some())
    };
    let cluster = Cluster::new().await;
    remove_left_over(&cluster.client).await;
    let begin = Instant::now();
    let mut figures = Vec::new();
    for (name, what) in MEASUREMENTS.into_iter().filter(|(name, _)| wanted(name)) {
        former_are_gone(&cluster.client).await;
        let begin = Instant::now();
        println!("measuring {what}, {runs} runs …");
        figures.extend(measure(name, runs, scale).await);
        println!("  done {:.0} s", begin.elapsed().as_secs_f64());
    }
    former_are_gone(&cluster.client).await;
    if let Some(figure) = operator::memory_after_work(&cluster.client).await {
        let place = figures.iter().rposition(|other: &Figure| other.group == figure.group).map_or(0, |last| last + 1);
        figures.insert(place, figure);
    }
    let about = about(&cluster).await;
    let output = std::env::var_os("KILN_BENCH_OUTPUT")
        .map_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/bench")), PathBuf::from);
    std::fs::create_dir_all(&output).unwrap_or_else(|error| panic!("{}: {error}", output.display()));
    let json = serde_json::to_string_pretty(&json!({"about": about, "figures": figures})).expect("figures are JSON");
    for (name, content) in [
        ("bench.md", table::markdown(&figures, &about)),
        ("bench.svg", plot::svg(&figures, &about)),
        ("bench.json", json),
    ] {
        let path = output.join(name);
        std::fs::write(&path, content).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
    println!("\n{about}\n\n{}", table::text(&figures));
    let output = output.canonicalize().unwrap_or(output);
    println!("The plot: {}/bench.svg ({:.0} s in all)", output.display(), begin.elapsed().as_secs_f64());
}

async fn measure(name: &str, runs: usize, scale: Option<u32>) -> Vec<Figure> {
    match name {
        "operator" => operator::measure(runs).await,
        "warm" => warm::measure(runs).await,
        "cold" => cold::measure(runs).await,
        "multi" => multi_arch::measure(runs).await,
        "ten" => many::ten(runs).await,
        "hundred" => many::hundred(runs).await,
        "slow" => slow_registry::measure(runs).await,
        "large" => base_image::measure(runs).await,
        "rest" => at_rest::measure(scale.unwrap_or(10_000), runs).await,
        other => unreachable!("{other} is no measurement"),
    }
}

/// What was measured on, in one line.
async fn about(cluster: &Cluster) -> String {
    let version =
        cluster.client.apiserver_version().await.map_or_else(|error| error.to_string(), |info| info.git_version);
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let place = if std::env::var_os("KILN_LOCAL_CLUSTER").is_some() {
        format!(
            "the local cluster, {cores} cores for everything: Kubernetes {version}, registry, Git server and builds"
        )
    } else {
        format!("Kubernetes {version}")
    };
    let date = jiff::Timestamp::now().strftime("%Y-%m-%d");
    format!("Measured on {date} on {place}; Kiln {}.", env!("CARGO_PKG_VERSION"))
}
