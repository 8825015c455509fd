//! The API server's audit log: what Kiln asked for, told by its user agent.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};

use serde_json::Value;

use crate::cluster::variable;

/// The log from some moment on.
pub struct Audit {
    file: File,
}

impl Audit {
    /// From now on.
    #[must_use]
    pub fn from_now() -> Self {
        let log = variable("KILN_AUDIT_LOG");
        let mut file = File::open(&log).unwrap_or_else(|error| panic!("KILN_AUDIT_LOG names {log}: {error}"));
        file.seek(SeekFrom::End(0)).expect("a file has an end");
        Self { file }
    }

    /// Kiln's requests since then, or since the last call.
    pub fn of_kiln(&mut self) -> Vec<Value> {
        let mut text = String::new();
        self.file.read_to_string(&mut text).expect("the log can be read");
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).filter(of_kiln).collect()
    }
}

fn of_kiln(entry: &Value) -> bool {
    entry["userAgent"].as_str().is_some_and(|agent| agent.starts_with("kiln"))
}

/// Whether a request changes something, or tries to.
#[must_use]
pub fn is_write(entry: &Value) -> bool {
    entry["verb"].as_str().is_none_or(|verb| !matches!(verb, "get" | "list" | "watch"))
}

/// Whether it is about a Lease.
#[must_use]
pub fn is_lease(entry: &Value) -> bool {
    entry["objectRef"]["resource"] == "leases"
}

/// A request as a line for a person.
#[must_use]
pub fn shown(entry: &Value) -> String {
    let object = &entry["objectRef"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    format!(
        "{} {} {}/{}/{} {}: {}",
        text(&entry["requestReceivedTimestamp"]),
        text(&entry["verb"]),
        text(&object["resource"]),
        text(&object["namespace"]),
        text(&object["name"]),
        text(&object["subresource"]),
        entry["requestObject"].to_string().chars().take(500).collect::<String>()
    )
}
