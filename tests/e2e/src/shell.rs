//! Runs what the documentation tells users to type, with bash, as somebody who works in a tenant's namespace.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::Tenant;

/// The repository's root, from which pages say that all is typed.
#[must_use]
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().expect("the repository is there")
}

/// A shell with a kubeconfig of its own, whose namespace is the tenant's.
pub struct Shell {
    /// Goes with the value.
    directory: TempDir,
    variables: Vec<(String, String)>,
}

/// What a script came to.
#[derive(Debug)]
pub struct Ran {
    /// Its exit code.
    pub code: i32,
    /// What it printed.
    pub stdout: String,
    /// What it said beside that.
    pub stderr: String,
}

impl Ran {
    /// What it printed, where it has ended well.
    ///
    /// # Panics
    /// Where it has not.
    #[allow(clippy::must_use_candidate, reason = "some tests need only that it ends well")]
    pub fn printed(self) -> String {
        assert_eq!(self.code, 0, "{}{}", self.stdout, self.stderr);
        self.stdout
    }
}

impl Shell {
    /// One of the cluster's administrator.
    #[must_use]
    pub fn of_admin(tenant: &Tenant) -> Self {
        Self::new(tenant, None)
    }

    /// One of a new service account of the tenant's namespace, with a `ClusterRole` there, or without any right.
    #[must_use]
    pub fn of_account(tenant: &Tenant, name: &str, role: Option<&str>) -> Self {
        let account = format!("--serviceaccount={}:{name}", tenant.namespace);
        kubectl(tenant, &["create", "serviceaccount", name]);
        if let Some(role) = role {
            kubectl(tenant, &["create", "rolebinding", name, &format!("--clusterrole={role}"), &account]);
        }
        Self::new(tenant, Some(&kubectl(tenant, &["create", "token", name])))
    }

    fn new(tenant: &Tenant, token: Option<&str>) -> Self {
        let text = kubectl(tenant, &["config", "view", "--raw", "--minify", "--flatten", "-o", "json"]);
        let mut config: Value = serde_json::from_str(&text).expect("a kubeconfig is JSON where asked for");
        config["contexts"][0]["context"]["namespace"] = json!(tenant.namespace);
        if let Some(token) = token {
            config["users"][0]["user"] = json!({"token": token.trim()});
        }
        let directory = tempfile::tempdir().expect("a directory can be made");
        let path = directory.path().join("kubeconfig");
        std::fs::write(&path, config.to_string()).expect("a kubeconfig can be written");
        let path = path.to_str().expect("a temporary path is UTF-8").to_owned();
        Self { directory, variables: vec![("KUBECONFIG".to_owned(), path)] }
    }

    /// Sets a variable; an empty value counts as none.
    #[must_use]
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.variables.push((name.to_owned(), value.to_owned()));
        self
    }

    /// A directory that goes with this shell.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Runs a script from the repository's root, to its end. It is killed where the future is dropped.
    pub async fn run(&self, script: &str) -> Ran {
        let output = tokio::process::Command::new("bash")
            .args(["-c", script])
            .current_dir(root())
            .envs(self.variables.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output()
            .await
            .expect("bash can be started");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ran { code: output.status.code().unwrap_or(-1), stdout: text(&output.stdout), stderr: text(&output.stderr) }
    }
}

/// Output of kubectl in the tenant's namespace, as the cluster's administrator.
///
/// # Panics
/// Where it fails.
#[allow(clippy::must_use_candidate, reason = "some tests need only that it ends well")]
pub fn kubectl(tenant: &Tenant, arguments: &[&str]) -> String {
    let output = Command::new("kubectl")
        .args(["--namespace", &tenant.namespace])
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("kubectl cannot be started ({error}); run: . .cluster/env"));
    assert!(output.status.success(), "kubectl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("kubectl prints UTF-8")
}
