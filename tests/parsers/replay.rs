// Tries what reads bytes of strangers: replays the stored inputs of its crate, and makes up more. Each crate with parsers
// includes this file beside its `ALL`; `fuzz/` gives the same functions to a fuzzer.

use std::fs;
use std::path::Path;

use proptest::prelude::*;

use super::{ALL, Parser};

fn corpus(name: &str) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
    let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<_> = entries
        .map(|entry| {
            let entry = entry.unwrap();
            (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap())
        })
        .collect();
    files.sort();
    assert!(!files.is_empty(), "{name}");
    files
}

fn run(parser: Parser, bytes: &[u8]) {
    let directory = tempfile::tempdir().unwrap();
    parser(bytes, directory.path());
}

#[test]
fn stored_inputs() {
    for (name, parser) in ALL {
        for (file, bytes) in corpus(name) {
            println!("{name}/{file}");
            run(parser, &bytes);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn made_up_inputs(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        for (_, parser) in ALL {
            run(parser, &bytes);
        }
    }

    /// A stored input with some bytes changed, cut or doubled: what a mutation of something valid looks like.
    #[test]
    fn changed_inputs(
        which in any::<prop::sample::Index>(),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        cut in any::<prop::sample::Index>(),
        doubled in any::<bool>(),
    ) {
        for (name, parser) in ALL {
            let files = corpus(name);
            let mut bytes = which.get(&files).1.clone();
            if bytes.is_empty() {
                continue;
            }
            for (at, value) in &changes {
                *at.get_mut(&mut bytes) = *value;
            }
            bytes.truncate(cut.index(bytes.len()) + 1);
            if doubled {
                bytes = [bytes.clone(), bytes].concat();
            }
            run(parser, &bytes);
        }
    }
}
