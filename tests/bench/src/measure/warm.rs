//! A warm builder: from the request to the digest, next to the bare `buildctl` in the same pod, the two by turns.

use kiln_e2e::{Build, Repository, Tenant};

use crate::bare::Bare;
use crate::builds::Builds;
use crate::figures::{Figure, Target, Unit};
use crate::project::{CHANGED, files};

/// The project as a Git repository.
#[must_use]
pub fn repository(tenant: &Tenant, files: &[(String, String)]) -> Repository {
    let repository = Repository::public(tenant, "app");
    repository.write(&files.iter().map(|(path, content)| (path.as_str(), content.as_str())).collect::<Vec<_>>());
    repository
}

/// Builds the unchanged tree and one with a changed file, `runs` times.
pub async fn measure(runs: usize) -> Vec<Figure> {
    let mut figures = Vec::new();
    Tenant::fresh("bench-warm", async |tenant| figures = in_tenant(tenant, runs).await).await;
    figures
}

async fn in_tenant(tenant: &Tenant, runs: usize) -> Vec<Figure> {
    let files = files();
    let repository = repository(tenant, &files);
    let mut builds = Builds::of(tenant).await;
    builds.create(&Build::git(tenant, "app", &repository).amd64()).await;
    let bare = Bare::new(tenant, &files, None).await;
    bare.unchanged().await;

    let (mut same, mut same_bare, mut changed, mut changed_bare) = (vec![], vec![], vec![], vec![]);
    // The first round only warms up.
    for round in 0..=runs {
        same.push(builds.rebuild("app", &format!("same-{round}")).await);
        same_bare.push(bare.unchanged().await);
        // Not the same content for both: the second would find the first one's layers in the builder's cache.
        repository.write(&[(CHANGED, &format!("kiln {round}\n"))]);
        changed.push(builds.rebuild("app", &format!("changed-{round}")).await);
        changed_bare.push(bare.changed(&format!("bare {round}")).await);
    }

    let mut figures = Vec::new();
    for (group, timed, bare, target) in [
        ("warm builder, nothing changed", same, same_bare, Some((0.5, 0.3))),
        ("warm builder, one file changed", changed, changed_bare, None),
    ] {
        let timed: Vec<_> = timed.into_iter().skip(1).map(|timed| (timed.seconds, timed.phases)).collect();
        let bare = bare[1..].to_vec();
        let over: Vec<f64> = timed.iter().zip(&bare).map(|((kiln, _), bare)| kiln - bare).collect();
        let ratio = timed.iter().zip(&bare).map(|((kiln, _), bare)| kiln / bare).collect();
        let ratio = Figure::new(group, "", Unit::Count, ratio);
        let kiln = Figure::timed(group, "Kiln, apply → digest", timed);
        let over = Figure::new(group, "Kiln over buildctl, pair by pair", Unit::Seconds, over).note(format!(
            "{:.1} times as long (from {:.1} to {:.1})",
            ratio.median(),
            ratio.min(),
            ratio.max()
        ));
        let (kiln, over) = match target {
            Some((whole, more)) => (kiln.target(Target::AtMost(whole)), over.target(Target::AtMost(more))),
            None => (kiln, over),
        };
        figures.extend([kiln, Figure::new(group, "bare buildctl in the same pod", Unit::Seconds, bare), over]);
    }
    figures
}
