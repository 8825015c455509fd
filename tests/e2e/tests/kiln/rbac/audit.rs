//! What the API server's audit log tells of requests that the operator was refused.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::time::Duration;

use kiln_e2e::cluster::{builders_namespace, operator_namespace, variable};
use serde_json::Value;

use crate::rbac::roles::Place::{ApiServer, Builders, Everywhere, Own};
use crate::rbac::roles::Right;

/// The longest that the operator needs to come to what is refused: a pod that ends, one that starts, and a build.
const REFUSED: Duration = Duration::from_mins(1);

/// The API server's audit log from now on.
pub struct Audit(File, String);

impl Audit {
    /// Reads what is written after this.
    pub fn from_now() -> Self {
        let log = variable("KILN_AUDIT_LOG");
        let mut file = File::open(&log).unwrap_or_else(|error| panic!("KILN_AUDIT_LOG names {log}: {error}"));
        file.seek(SeekFrom::End(0)).unwrap();
        Self(file, String::new())
    }

    /// Waits until the operator was refused each of these.
    pub async fn refused(&mut self, rights: &[Right]) {
        let mut missing: Vec<&Right> = rights.iter().collect();
        let deadline = tokio::time::Instant::now() + REFUSED;
        while !missing.is_empty() {
            self.0.read_to_string(&mut self.1).unwrap();
            let entries: Vec<Value> =
                self.1.lines().filter_map(|line| serde_json::from_str(line).ok()).filter(refused).collect();
            missing.retain(|right| !entries.iter().any(|entry| is_of(entry, **right)));
            assert!(
                tokio::time::Instant::now() < deadline,
                "nothing fails without {missing:?}: the operator does not need it, or this test does not make it"
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

fn refused(entry: &Value) -> bool {
    entry["userAgent"].as_str().is_some_and(|agent| agent.starts_with("kiln")) && entry["responseStatus"]["code"] == 403
}

/// Whether this was refused for want of the right.
fn is_of(entry: &Value, (place, resource, verb): Right) -> bool {
    let object = &entry["objectRef"];
    let named = [&object["resource"], &object["subresource"]].map(|part| part.as_str().unwrap_or_default()).join("/");
    let there = match place {
        Everywhere => true,
        Own => object["namespace"] == operator_namespace(),
        Builders => object["namespace"] == builders_namespace(),
        ApiServer => object["namespace"] == "default",
    };
    // A server-side apply of what is not there is a patch that is refused for want of the right to create.
    let applies = verb == "create" && place == Builders && entry["verb"] == "patch";
    named.trim_end_matches('/') == resource && there && (entry["verb"] == verb || applies)
}
