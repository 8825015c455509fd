//! What reads bytes that Git servers and users wrote, by name: each a function from bytes to a result that must hold its
//! promises whatever they are. Stored inputs are replayed through them (`corpus/`, a folder each), and property tests make
//! up more.

use std::path::Path;

use crate::git;

/// Reads the bytes, with an empty directory to work in; panics where a promise is broken.
pub type Parser = fn(&[u8], &Path);

/// All of them, by the name of their folder in `corpus/`.
pub const ALL: [(&str, Parser); 2] = [("known-hosts", known_hosts), ("pkt-line", pkt_line)];

/// A `known_hosts` file.
fn known_hosts(bytes: &[u8], _: &Path) {
    let text = String::from_utf8_lossy(bytes);
    assert!(git::known_keys(&text, "git.example").len() <= text.lines().count());
}

/// A Git server's answer, in whatever pieces it comes.
fn pkt_line(bytes: &[u8], _: &Path) {
    let whole = git::read_answer(bytes, usize::MAX);
    for size in [1, 7] {
        assert_eq!(git::read_answer(bytes, size), whole);
    }
}

#[cfg(test)]
#[path = "../../tests/parsers/replay.rs"]
mod replay;
