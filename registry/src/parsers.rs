//! What reads bytes that registries and strangers wrote, by name: each a function from bytes to a result that must hold its
//! promises whatever they are. Stored inputs are replayed through them (`corpus/`, a folder each), and property tests make
//! up more.

use std::path::Path;

use super::reference::Reference;
use super::{challenge, inspect};

/// Reads the bytes, with an empty directory to work in; panics where a promise is broken.
pub type Parser = fn(&[u8], &Path);

/// All of them, by the name of their folder in `corpus/`.
pub const ALL: [(&str, Parser); 3] = [("challenge", challenge), ("manifest", manifest), ("reference", reference)];

/// `WWW-Authenticate` headers, a line each.
fn challenge(bytes: &[u8], _: &Path) {
    let text = String::from_utf8_lossy(bytes);
    if let Some(challenge::Challenge::Bearer { realm, .. }) = challenge::choose(text.lines()) {
        assert!(realm.len() <= text.len());
    }
}

/// A manifest or an index.
fn manifest(bytes: &[u8], _: &Path) {
    inspect::read(bytes);
}

/// The name of an image.
fn reference(bytes: &[u8], _: &Path) {
    if let Ok(reference) = String::from_utf8_lossy(bytes).parse::<Reference>() {
        let text = reference.to_string();
        assert!(text.chars().all(|c| c.is_ascii_graphic()), "{text:?}");
        assert!(text.parse::<Reference>().is_ok_and(|again| again == reference), "{text:?}");
    }
}

#[cfg(test)]
#[path = "../../tests/parsers/replay.rs"]
mod replay;
