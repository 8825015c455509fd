//! Both versions' answers, whole and in pieces.

use super::*;
use proptest::prelude::*;

pub(super) fn packet(text: &str) -> String {
    format!("{:04x}{text}\n", text.len() + 5)
}

const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
const B: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

/// All at once and byte by byte: both must come to the same.
fn greeting(bytes: &[u8]) -> Result<Greeting, Malformed> {
    let read = |size: usize| {
        let mut reader = GreetingReader::new(&[]);
        bytes.chunks(size).try_for_each(|chunk| reader.feed(chunk))?;
        reader.finish()
    };
    assert_eq!(read(1), read(usize::MAX));
    read(usize::MAX)
}

fn ls_refs(bytes: &[u8]) -> Result<Refs, Malformed> {
    let read = |size: usize| {
        let mut reader = RefsReader::new(&[]);
        bytes.chunks(size).try_for_each(|chunk| reader.feed(chunk))?;
        reader.finish()
    };
    assert_eq!(read(1), read(usize::MAX));
    read(usize::MAX)
}

/// What is wanted is kept, however many others come before it, and of those no more than serve as hints.
#[test]
fn keeps_little_of_very_many_refs() {
    let wanted = ["refs/heads/wanted".to_owned(), "refs/tags/wanted".to_owned()];
    let mut reader = GreetingReader::new(&wanted);
    reader.feed(packet(&format!("{A} HEAD\0x")).as_bytes()).unwrap();
    let mut listed = RefsReader::new(&wanted);
    for number in 0..20_000 {
        let line = packet(&format!("{A} refs/heads/{number}"));
        reader.feed(line.as_bytes()).unwrap();
        listed.feed(line.as_bytes()).unwrap();
    }
    let last = packet(&format!("{A} refs/tags/wanted")) + &packet(&format!("{B} refs/tags/wanted^{{}}")) + "0000";
    reader.feed(last.as_bytes()).unwrap();
    let Greeting::Refs(refs) = reader.finish().unwrap() else { panic!("not v0") };
    assert_eq!((refs.commits.len(), refs.commits["refs/tags/wanted"].as_str()), (HINTS + 1, B));
    listed.feed((packet(&format!("{A} refs/tags/wanted peeled:{B}")) + "0000").as_bytes()).unwrap();
    let refs = listed.finish().unwrap();
    assert_eq!((refs.commits.len(), refs.commits["refs/tags/wanted"].as_str()), (HINTS + 1, B));
}

#[test]
fn v0() {
    let answer = [
        packet("# service=git-upload-pack"),
        "0000".into(),
        packet(&format!("{A} HEAD\0multi_ack symref=HEAD:refs/heads/main agent=git/2")),
        packet(&format!("{A} refs/heads/main")),
        packet(&format!("{A} refs/tags/v1")),
        packet(&format!("{B} refs/tags/v1^{{}}")),
        "0000".into(),
    ]
    .concat();
    let Greeting::Refs(refs) = greeting(answer.as_bytes()).unwrap() else { panic!("not v0") };
    assert_eq!(refs.head.as_deref(), Some("refs/heads/main"));
    assert_eq!(refs.commits["refs/tags/v1"], B);
    assert_eq!(refs.commits.len(), 3);
}

#[test]
fn v0_of_an_empty_repository() {
    let zero = "0".repeat(40);
    let answer = [
        packet("# service=git-upload-pack"),
        "0000".into(),
        packet(&format!("{zero} capabilities^{{}}\0x")),
        "0000".into(),
    ]
    .concat();
    assert_eq!(greeting(answer.as_bytes()), Ok(Greeting::Refs(Refs::default())));
}

#[test]
fn v2() {
    let answer = [
        packet("# service=git-upload-pack"),
        "0000".into(),
        packet("version 2"),
        packet("ls-refs=unborn"),
        packet("object-format=sha256"),
        "0000".into(),
    ]
    .concat();
    assert_eq!(greeting(answer.as_bytes()), Ok(Greeting::V2 { object_format: Some("sha256".into()) }));
    let refs = [
        packet(&format!("{A} HEAD symref-target:refs/heads/main")),
        packet(&format!("{A} refs/tags/v1 peeled:{B}")),
        packet("unborn x symref-target:refs/heads/y"),
        "0000".into(),
    ]
    .concat();
    let refs = ls_refs(refs.as_bytes()).unwrap();
    assert_eq!(refs.head.as_deref(), Some("refs/heads/main"));
    assert_eq!(refs.commits["refs/tags/v1"], B);
    assert_eq!(refs.commits.len(), 2);
}

#[test]
fn request() {
    insta::assert_snapshot!(
        String::from_utf8(ls_refs_request(Some("sha1"), &["refs/heads/main".into()])).unwrap().replace(env!("CARGO_PKG_VERSION"), "VERSION"),
        @r"
    0014command=ls-refs
    0015agent=kiln/VERSION
    0017object-format=sha1
    00010009peel
    000csymrefs
    001fref-prefix refs/heads/main
    0000
    "
    );
}

#[test]
fn nonsense() {
    for answer in [
        "",
        "<html>",
        "0000",
        "0003",
        "0004",
        "001e# service=git-receive-pack\n",
        "ffff",
        "0008abc",
        "zzzz",
        "+008abcd",
    ] {
        assert!(greeting(answer.as_bytes()).is_err(), "{answer}");
    }
    assert!(ls_refs(packet(&format!("{A} HEAD")).as_bytes()).is_err(), "cut off");
    assert!(ls_refs(b"0009nope\n0000").is_err());
}

proptest! {
    #[test]
    fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200), lines in proptest::collection::vec("[ -~]{1,30}", 0..5)) {
        let _ = greeting(&bytes);
        let _ = ls_refs(&bytes);
        let framed = lines.iter().map(|l| packet(l)).collect::<String>() + "0000";
        let _ = greeting(framed.as_bytes());
        let _ = ls_refs(framed.as_bytes());
    }
}
