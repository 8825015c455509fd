//! Files on the test web server, such as tarballs.

use std::path::PathBuf;

use flate2::Compression;
use flate2::write::GzEncoder;
use sha2::{Digest as _, Sha256};

use crate::Tenant;
use crate::cluster::variable;

/// The Secret that [`Tenant::web_secret`] makes.
pub const WEB_SECRET: &str = "web";

/// The directory that the web server serves.
pub(crate) fn root() -> PathBuf {
    std::env::var_os("KILN_WEB_ROOT")
        .map_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../.cluster/web")), PathBuf::from)
}

/// A file on the web server. It goes with the value.
pub struct WebFile {
    file: PathBuf,
    /// Its https URL.
    pub url: String,
    /// `sha256:` and 64 hexadecimal digits.
    pub checksum: String,
}

impl WebFile {
    /// A file that everybody may get.
    #[must_use]
    pub fn public(tenant: &Tenant, name: &str, content: &[u8]) -> Self {
        Self::new(&format!("{}-{name}", tenant.id), content)
    }

    /// A file that needs the web server's password.
    #[must_use]
    pub fn private(tenant: &Tenant, name: &str, content: &[u8]) -> Self {
        Self::new(&format!("private/{}-{name}", tenant.id), content)
    }

    fn new(path: &str, content: &[u8]) -> Self {
        let file = root().join(path);
        std::fs::write(&file, content).unwrap_or_else(|error| {
            panic!(
                "{}: {error}; run: make cluster (or set KILN_WEB_ROOT to the directory that KILN_WEB serves)",
                file.display()
            )
        });
        Self {
            file,
            url: format!("{}/{path}", variable("KILN_WEB")),
            checksum: format!("sha256:{:x}", Sha256::digest(content)),
        }
    }

    /// A URL that redirects to this file on the same host.
    #[must_use]
    pub fn moved(&self) -> String {
        self.by("moved")
    }

    /// A URL that redirects to this file on the same server under another name, which is another host to a client.
    #[must_use]
    pub fn elsewhere(&self) -> String {
        self.by("elsewhere")
    }

    /// A URL that redirects to this file without TLS.
    #[must_use]
    pub fn plain(&self) -> String {
        self.by("plain")
    }

    /// A URL that redirects to itself.
    #[must_use]
    pub fn round(&self) -> String {
        self.by("round")
    }

    fn by(&self, way: &str) -> String {
        let base = variable("KILN_WEB");
        let path = self.url.strip_prefix(&base).expect("the file is on the web server");
        format!("{base}/{way}{path}")
    }
}

impl Drop for WebFile {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.file) {
            eprintln!("{} stays: {error}", self.file.display());
        }
    }
}

impl Tenant {
    /// Makes [`WEB_SECRET`] with the web server's credential.
    pub async fn web_secret(&self) {
        let (user, password) = (variable("KILN_WEB_USER"), variable("KILN_WEB_PASSWORD"));
        self.secret(WEB_SECRET, "kubernetes.io/basic-auth", &[("username", &user), ("password", &password)]).await;
    }
}

/// A tarball of these files, compressed with gzip, all of one time: the same files always make the same bytes.
#[must_use]
pub fn tar_gz(files: &[(&str, &str)]) -> Vec<u8> {
    let mut archive = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::default()));
    for (path, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(if content.starts_with("#!") { 0o755 } else { 0o644 });
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_700_000_000);
        archive.append_data(&mut header, path, content.as_bytes()).expect("a tarball can be written");
    }
    archive.into_inner().and_then(GzEncoder::finish).expect("a tarball can be written")
}
