//! Admission policies of a test, which are the whole cluster's: each is bound to what the test owns.

use std::io::Write as _;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

/// A policy and its binding, of one name. Gone with the value, also after a panic.
pub struct AdmissionPolicy {
    kind: String,
    name: String,
}

impl AdmissionPolicy {
    /// Applies a policy such as a `ValidatingAdmissionPolicy` and the binding to it.
    ///
    /// # Panics
    /// Where the API server refuses them.
    #[must_use]
    pub fn apply(policy: &Value, binding: &Value) -> Self {
        let word = |value: &Value| value.as_str().expect("a policy has a kind and a name").to_owned();
        let applied = Self { kind: word(&policy["kind"]), name: word(&policy["metadata"]["name"]) };
        let list = json!({"apiVersion": "v1", "kind": "List", "items": [policy, binding]});
        let mut kubectl = Command::new("kubectl");
        let kubectl = kubectl.args(["apply", "-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::null());
        let mut kubectl = kubectl.spawn().expect("kubectl is in PATH");
        let mut input = kubectl.stdin.take().expect("it is piped");
        input.write_all(list.to_string().as_bytes()).expect("kubectl reads it");
        drop(input);
        assert!(kubectl.wait().expect("kubectl ends").success(), "the API server refuses {list:#}");
        applied
    }
}

impl Drop for AdmissionPolicy {
    fn drop(&mut self) {
        for kind in [format!("{}Binding", self.kind), self.kind.clone()] {
            let _ = Command::new("kubectl").args(["delete", &kind, &self.name]).stdout(Stdio::null()).status();
        }
    }
}
