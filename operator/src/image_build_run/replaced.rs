//! What this operator has written of a run and not yet seen again. A reconcile that goes by an older copy would do its
//! work once more: an index would be pushed, and tags moved, after the run has said that it is done.

use kiln_crds::ImageBuildRun;
use kiln_crds::image_build_run::ImageBuildRunStatus;
use kube::ResourceExt;
use kube::api::ObjectMeta;

use crate::context::{self, Context, Remembered};

/// The resource versions that own writes have replaced, by the run's UID.
#[derive(Default)]
pub struct Replaced {
    versions: Remembered<Vec<String>>,
}

impl Replaced {
    /// A write has made one version into another. Where nothing has changed, they are the same.
    pub fn add(&self, uid: &str, before: Option<&str>, after: Option<&str>) {
        let Some(before) = before.filter(|before| after.is_some_and(|after| after != *before)) else { return };
        let mut versions = self.versions.get(uid);
        versions.push(before.to_owned());
        self.versions.set(uid, versions);
    }

    /// Whether the copy of a run shows what has been replaced: a newer one is on its way, and wakes the next reconcile.
    #[must_use]
    pub fn is_stale(&self, run: &ImageBuildRun) -> bool {
        let uid = run.uid().unwrap_or_default();
        let seen = run.resource_version();
        let versions = self.versions.get(&uid);
        let stale = seen.is_some_and(|seen| versions.contains(&seen));
        if !stale && !versions.is_empty() {
            self.versions.remove(&uid);
        }
        stale
    }

    /// Whether nothing waits to be seen.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.versions.is_empty()
    }

    /// Forgets all but the runs of these UIDs.
    pub fn retain(&self, keep: impl Fn(&str) -> bool) {
        self.versions.retain(keep);
    }
}

/// Writes a run's status, and keeps in mind which version it replaces.
pub async fn write_status(
    context: &Context,
    run: &ImageBuildRun,
    status: &ImageBuildRunStatus,
) -> Result<ObjectMeta, kube::Error> {
    let written = context::write_status(context, run, status).await?;
    let before = run.metadata.resource_version.as_deref();
    context.replaced.add(&run.uid().unwrap_or_default(), before, written.resource_version.as_deref());
    Ok(written)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_stale_until_the_last_own_write_is_seen() {
        let at = |version: &str| {
            let spec = serde_json::json!({
                "imageBuild": {"name": "app", "uid": "u"}, "number": 1, "inputHash": "h", "build": {},
            });
            let mut run = ImageBuildRun::new("app-1", serde_json::from_value(spec).unwrap());
            run.metadata.uid = Some("run".to_owned());
            run.metadata.resource_version = Some(version.to_owned());
            run
        };
        let replaced = Replaced::default();
        assert!(!replaced.is_stale(&at("1")));
        replaced.add("run", Some("1"), Some("1"));
        assert!(!replaced.is_stale(&at("1")), "nothing has changed");
        replaced.add("run", Some("1"), Some("4"));
        replaced.add("run", Some("4"), Some("7"));
        replaced.add("other", Some("7"), Some("8"));
        assert!(replaced.is_stale(&at("1")));
        assert!(replaced.is_stale(&at("4")));
        assert!(!replaced.is_stale(&at("7")));
        assert!(!replaced.is_stale(&at("9")), "somebody else's write came first");
        replaced.retain(|uid| uid == "run");
        assert!(replaced.is_empty());
    }
}
