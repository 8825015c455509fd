//! The table of attempts: attempt, profile, expected, got.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Mutex;

use kiln_crds::SecurityProfile;

/// What all tests of this program recorded, by attempt and profile.
static ROWS: Mutex<BTreeMap<(String, String), [String; 3]>> = Mutex::new(BTreeMap::new());

/// The attempts of one test.
pub struct Report {
    profile: SecurityProfile,
    rows: Vec<(String, String, String, bool)>,
}

impl Report {
    /// None yet, under this profile.
    pub fn new(profile: SecurityProfile) -> Self {
        Self { profile, rows: Vec::new() }
    }

    /// Records an attempt; `held`: it got no more than was expected.
    pub fn add(&mut self, attempt: &str, expected: &str, got: &str, held: bool) {
        self.rows.push((attempt.to_owned(), expected.to_owned(), got.to_owned(), held));
    }

    /// Writes the attempts down, and fails where one got more than was expected.
    pub fn end(self) {
        let profile = match self.profile {
            SecurityProfile::Rootless => "Rootless",
            _ => "UserNamespace",
        };
        let failed: Vec<String> = self
            .rows
            .iter()
            .filter(|(.., held)| !held)
            .map(|(attempt, expected, got, _)| format!("{attempt}: expected {expected:?}, got {got:?}"))
            .collect();
        let mut rows = ROWS.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        for (attempt, expected, got, held) in self.rows {
            let held = if held { "yes" } else { "NO" }.to_owned();
            rows.insert((attempt, profile.to_owned()), [expected, got, held]);
        }
        write(&rows);
        drop(rows);
        assert!(
            failed.is_empty(),
            "under {profile}, these attempts got more than was expected:\n{}",
            failed.join("\n")
        );
    }
}

fn write(rows: &BTreeMap<(String, String), [String; 3]>) {
    let mut text = "| attempt | profile | expected | got | held |\n|---|---|---|---|---|\n".to_owned();
    for ((attempt, profile), [expected, got, held]) in rows {
        writeln!(text, "| {attempt} | {profile} | {expected} | {} | {held} |", got.replace('|', "\\|")).unwrap();
    }
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target");
    std::fs::create_dir_all(folder).unwrap_or_else(|error| panic!("{folder}: {error}"));
    let path = format!("{folder}/hostile-attempts.md");
    std::fs::write(&path, text).unwrap_or_else(|error| panic!("{path}: {error}"));
}
