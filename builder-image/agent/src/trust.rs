//! Whom the agent and its programs trust beside the system: what the operator's ConfigMap of the builder says.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Directories of CA certificates in PEM; either may be absent.
#[derive(Clone, Debug, Default)]
pub struct Trust {
    everywhere: PathBuf,
    registries: PathBuf,
}

impl Trust {
    /// Those in `everywhere` count for everything, `REGISTRY.crt` in `registries` for that registry alone, with its token
    /// service and whom it sends to for blobs.
    #[must_use]
    pub fn new(everywhere: PathBuf, registries: PathBuf) -> Self {
        Self { everywhere, registries }
    }

    /// The directory of those that count for everything, if it is there.
    #[must_use]
    pub fn everywhere(&self) -> Option<&Path> {
        self.everywhere.is_dir().then_some(&*self.everywhere)
    }

    /// Both directories.
    #[must_use]
    pub fn directories(&self) -> Vec<PathBuf> {
        vec![self.everywhere.clone(), self.registries.clone()]
    }

    /// What counts for a registry, in PEM.
    #[must_use]
    pub fn of_registry(&self, registry: &str) -> String {
        let mut files = files(&self.everywhere);
        files.extend(self.file_of(registry));
        let texts = files.iter().filter_map(|file| fs::read_to_string(file).ok());
        texts.filter(|text| text.contains("-----BEGIN CERTIFICATE-----")).collect::<Vec<_>>().join("\n")
    }

    /// The file with what counts for a registry alone, if it has one.
    #[must_use]
    pub fn file_of(&self, registry: &str) -> Option<PathBuf> {
        Some(self.registries.join(format!("{registry}.crt"))).filter(|file| file.is_file())
    }
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(|path| path.is_file()).collect();
    files.sort();
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registrys_certificates_count_for_it_alone() {
        let root = tempfile::tempdir().unwrap();
        let trust = Trust::new(root.path().join("trust"), root.path().join("registries"));
        assert_eq!((trust.everywhere(), trust.of_registry("a.example").as_str()), (None, ""));
        let pem = |name: &str| format!("-----BEGIN CERTIFICATE-----\n{name}\n");
        for (file, text) in [
            ("trust/pool.crt", pem("pool")),
            ("trust/note", "no certificate".to_owned()),
            ("registries/a.example:5000.crt", pem("a")),
            ("registries/b.example.crt", pem("b")),
        ] {
            let path = root.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        assert_eq!(trust.of_registry("a.example:5000"), format!("{}\n{}", pem("pool"), pem("a")));
        assert_eq!(trust.of_registry("a.example"), pem("pool"));
        for (registry, has_one) in [("a.example:5000", true), ("b.example", true), ("a.example", false)] {
            assert_eq!(trust.file_of(registry).is_some(), has_one, "{registry}");
        }
    }
}
