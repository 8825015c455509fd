//! One parser of Kiln: `KILN_PARSER` names it as its folder in `corpus/` is called, such as `tarball`.
#![no_main]

use std::path::Path;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use tempfile::TempDir;

type Parser = fn(&[u8], &Path);

static PARSER: LazyLock<Parser> = LazyLock::new(|| {
    let name = std::env::var("KILN_PARSER").expect("KILN_PARSER names a parser");
    let all = kiln_agent::parsers::ALL.iter().chain(&kiln_operator::parsers::ALL).chain(&kiln_registry::parsers::ALL);
    all.clone()
        .find(|(known, _)| *known == name)
        .map(|(_, parser)| *parser)
        .unwrap_or_else(|| panic!("KILN_PARSER is one of {:?}", all.map(|(known, _)| known).collect::<Vec<_>>()))
});

static DIRECTORY: LazyLock<TempDir> = LazyLock::new(|| tempfile::tempdir().expect("a directory can be made"));

fuzz_target!(|bytes: &[u8]| PARSER(bytes, DIRECTORY.path()));
