//! What a Git server says of its refs, in both versions of the protocol: v0's advertisement
//! (<https://git-scm.com/docs/gitprotocol-pack#_reference_discovery>) and v2's `ls-refs`.

use std::borrow::Cow;
use std::collections::BTreeMap;

use gix_packetline::PacketLineRef;
use gix_packetline::decode::{Stream, streaming};

use super::refname::is_commit_id;

/// What `info/refs` answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Greeting {
    /// The server speaks version 2, and wants to be asked.
    V2 {
        /// `sha1` or `sha256`, where it says so.
        object_format: Option<String>,
    },
    /// The server speaks version 0 or 1: these are all its refs.
    Refs(Refs),
}

/// Refs by full name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Refs {
    /// The commit (a tag's is peeled) by ref.
    pub(super) commits: BTreeMap<String, String>,
    /// The branch that HEAD means.
    pub(super) head: Option<String>,
}

/// What is wrong with a server's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Malformed {
    #[error("it breaks off or is not in Git's packet format")]
    Packets,
    #[error("it does not announce git-upload-pack")]
    Service,
    #[error("a ref's line cannot be read")]
    Line,
}

/// How many refs beside the wanted ones are kept, for hints. A server may send any number.
const HINTS: usize = 4096;
/// Longer names are no hints.
const LONGEST_HINT: usize = 200;

/// An answer as it comes, cut into packets: what is kept does not grow with what is sent.
#[derive(Default)]
struct Packets {
    /// The beginning of a packet whose end has not come yet.
    begun: Vec<u8>,
}

impl Packets {
    /// Hands each packet that `chunk` completes to `each`; `None` for a flush or another delimiter.
    fn feed(
        &mut self,
        chunk: &[u8],
        mut each: impl FnMut(Option<&[u8]>) -> Result<(), Malformed>,
    ) -> Result<(), Malformed> {
        self.begun.extend_from_slice(chunk);
        let mut done = 0;
        while let Some(bytes) = self.begun.get(done..).filter(|bytes| !bytes.is_empty()) {
            // gix-packetline panics in debug builds on lengths below four, of which only 0 to 2 mean something.
            if matches!(bytes.get(..4), Some(b"0003" | b"0004")) {
                return Err(Malformed::Packets);
            }
            match streaming(bytes).map_err(|_| Malformed::Packets)? {
                Stream::Complete { line, bytes_consumed } => {
                    each(match line {
                        PacketLineRef::Data(data) => Some(data.strip_suffix(b"\n").unwrap_or(data)),
                        _ => None,
                    })?;
                    done += bytes_consumed;
                }
                Stream::Incomplete { .. } => break,
            }
        }
        self.begun.drain(..done);
        Ok(())
    }

    fn finish(&self) -> Result<(), Malformed> {
        if self.begun.is_empty() { Ok(()) } else { Err(Malformed::Packets) }
    }
}

impl Refs {
    /// Keeps a ref if it is wanted, or as a hint.
    fn keep(&mut self, wanted: &[String], name: &str, commit: &str) {
        let hint = || name.len() <= LONGEST_HINT && self.commits.len() < HINTS;
        if self.commits.contains_key(name) || wanted.iter().any(|wanted| wanted == name) || hint() {
            self.commits.insert(name.to_owned(), commit.to_owned());
        }
    }
}

/// Reads the answer to `info/refs?service=git-upload-pack`.
pub(super) struct GreetingReader<'a> {
    wanted: &'a [String],
    packets: Packets,
    part: Part,
    object_format: Option<String>,
    refs: Refs,
    /// Whether a flush came last.
    flushed: bool,
}

/// Which part of the answer is next.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    /// The service line, which version 2 servers may leave out.
    Service,
    /// The version, which version 0 servers leave out.
    Version,
    /// Version 2's capabilities.
    Capabilities,
    /// The first ref, with capabilities behind it.
    FirstRef,
    /// All others.
    Refs,
}

impl<'a> GreetingReader<'a> {
    /// Of the refs, those in `wanted` are kept for sure.
    pub(super) fn new(wanted: &'a [String]) -> Self {
        Self {
            wanted,
            packets: Packets::default(),
            part: Part::Service,
            object_format: None,
            refs: Refs::default(),
            flushed: false,
        }
    }

    /// As [`Self::new`], for an answer without the service line, as ssh servers give it.
    pub(super) fn without_service(wanted: &'a [String]) -> Self {
        Self { part: Part::Version, ..Self::new(wanted) }
    }

    /// Whether the closing flush has come, behind which an ssh server waits.
    pub(super) fn is_complete(&self) -> bool {
        self.flushed
    }

    /// Takes the next piece.
    pub(super) fn feed(&mut self, chunk: &[u8]) -> Result<(), Malformed> {
        let Self { wanted, packets, part, object_format, refs, flushed } = self;
        packets.feed(chunk, |line| {
            *flushed = line.is_none();
            greeting_line(line, wanted, part, object_format, refs)
        })
    }

    /// What the whole answer said.
    pub(super) fn finish(self) -> Result<Greeting, Malformed> {
        self.packets.finish()?;
        match self.part {
            Part::Capabilities => Ok(Greeting::V2 { object_format: self.object_format }),
            Part::Refs => Ok(Greeting::Refs(self.refs)),
            Part::Service | Part::Version | Part::FirstRef => Err(Malformed::Service),
        }
    }
}

fn greeting_line(
    line: Option<&[u8]>,
    wanted: &[String],
    part: &mut Part,
    object_format: &mut Option<String>,
    refs: &mut Refs,
) -> Result<(), Malformed> {
    if *part == Part::Service {
        *part = Part::Version;
        match line {
            Some(b"# service=git-upload-pack") => return Ok(()),
            Some(line) if line.starts_with(b"# service=") => return Err(Malformed::Service),
            _ => {}
        }
    }
    let Some(line) = line else { return Ok(()) };
    if *part == Part::Version {
        *part = if line == b"version 2" { Part::Capabilities } else { Part::FirstRef };
        if matches!(line, b"version 1" | b"version 2") {
            return Ok(());
        }
    }
    if *part == Part::Capabilities {
        let format = line.strip_prefix(b"object-format=").and_then(|format| String::from_utf8(format.to_vec()).ok());
        if let Some(format) = format.filter(|format| matches!(format.as_str(), "sha1" | "sha256")) {
            object_format.get_or_insert(format);
        }
        return Ok(());
    }
    let line = if *part == Part::FirstRef {
        *part = Part::Refs;
        // The capabilities follow the first ref.
        let (line, capabilities) = split_once(line, 0).ok_or(Malformed::Service)?;
        let symref = capabilities.split(|b| *b == b' ').find_map(|c| c.strip_prefix(b"symref=HEAD:"));
        refs.head = symref.and_then(|name| text(name).ok()).map(Cow::into_owned);
        line
    } else {
        line
    };
    let (id, name) = split_once(line, b' ').ok_or(Malformed::Line)?;
    if line.starts_with(b"shallow ") {
        return Ok(());
    }
    let (id, name) = (object_id(id)?, text(name)?);
    match name.strip_suffix("^{}") {
        // An empty repository's only line.
        Some("capabilities") => {}
        // A peeled tag follows the tag, and takes its place.
        Some(tag) => refs.keep(wanted, tag, id),
        None => refs.keep(wanted, &name, id),
    }
    Ok(())
}

/// What an answer that comes in pieces of this size says: as a greeting over https and over ssh, and as one to `ls-refs`.
/// The same bytes say the same, whatever their pieces.
pub(crate) fn read(bytes: &[u8], size: usize) -> impl PartialEq + std::fmt::Debug {
    let greeting = |mut reader: GreetingReader<'_>| {
        bytes.chunks(size).try_for_each(|chunk| reader.feed(chunk))?;
        reader.finish()
    };
    let mut reader = RefsReader::new(&[]);
    let listed = bytes.chunks(size).try_for_each(|chunk| reader.feed(chunk)).and_then(|()| reader.finish());
    if let Ok(refs) = &listed {
        assert!(refs.commits.len() <= HINTS && refs.commits.values().all(|commit| is_commit_id(commit)));
    }
    (greeting(GreetingReader::new(&[])), greeting(GreetingReader::without_service(&[])), listed)
}

/// The body of an `ls-refs` request for the refs that begin with one of `prefixes`.
pub(super) fn ls_refs_request(object_format: Option<&str>, prefixes: &[String]) -> Vec<u8> {
    let mut body = Vec::new();
    let mut line = |text: &str| body.extend_from_slice(format!("{:04x}{text}\n", text.len() + 5).as_bytes());
    line("command=ls-refs");
    line(concat!("agent=kiln/", env!("CARGO_PKG_VERSION")));
    if let Some(format) = object_format {
        line(&format!("object-format={format}"));
    }
    body.extend_from_slice(b"0001");
    let mut line = |text: &str| body.extend_from_slice(format!("{:04x}{text}\n", text.len() + 5).as_bytes());
    line("peel");
    line("symrefs");
    for prefix in prefixes {
        line(&format!("ref-prefix {prefix}"));
    }
    body.extend_from_slice(b"0000");
    body
}

/// Reads the answer to `ls-refs`.
pub(super) struct RefsReader<'a> {
    wanted: &'a [String],
    packets: Packets,
    flushed: bool,
    refs: Refs,
}

impl<'a> RefsReader<'a> {
    /// Of the refs, those in `wanted` are kept for sure.
    pub(super) fn new(wanted: &'a [String]) -> Self {
        Self { wanted, packets: Packets::default(), flushed: false, refs: Refs::default() }
    }

    /// Takes the next piece.
    pub(super) fn feed(&mut self, chunk: &[u8]) -> Result<(), Malformed> {
        let Self { wanted, packets, flushed, refs } = self;
        packets.feed(chunk, |line| {
            *flushed = line.is_none();
            line.map_or(Ok(()), |line| refs_line(line, wanted, refs))
        })
    }

    /// Whether the closing flush has come.
    pub(super) fn is_complete(&self) -> bool {
        self.flushed
    }

    /// What the whole answer said.
    pub(super) fn finish(self) -> Result<Refs, Malformed> {
        self.packets.finish()?;
        // Without the closing flush the answer is cut off, and a ref that is not in it may exist.
        if self.flushed { Ok(self.refs) } else { Err(Malformed::Packets) }
    }
}

fn refs_line(line: &[u8], wanted: &[String], refs: &mut Refs) -> Result<(), Malformed> {
    let mut words = line.split(|b| *b == b' ');
    let (Some(id), Some(name)) = (words.next(), words.next()) else { return Err(Malformed::Line) };
    let name = text(name)?;
    let mut peeled = None;
    for attribute in words {
        if let Some(target) = attribute.strip_prefix(b"symref-target:") {
            if name == "HEAD" {
                refs.head = Some(text(target)?.into_owned());
            }
        } else if let Some(id) = attribute.strip_prefix(b"peeled:") {
            peeled = Some(object_id(id)?);
        }
    }
    if id != b"unborn" {
        let commit = match peeled {
            Some(peeled) => peeled,
            None => object_id(id)?,
        };
        refs.keep(wanted, &name, commit);
    }
    Ok(())
}

fn split_once(bytes: &[u8], at: u8) -> Option<(&[u8], &[u8])> {
    let position = bytes.iter().position(|b| *b == at)?;
    Some((&bytes[..position], &bytes[position + 1..]))
}

/// Text that is looked at: a server may send millions of lines, so only what is kept is copied.
fn text(bytes: &[u8]) -> Result<Cow<'_, str>, Malformed> {
    // A ref need not be UTF-8; one that is not cannot be asked for, so how it is shown does not matter.
    let text = String::from_utf8_lossy(bytes);
    if text.is_empty() || text.chars().any(char::is_control) { Err(Malformed::Line) } else { Ok(text) }
}

fn object_id(bytes: &[u8]) -> Result<&str, Malformed> {
    std::str::from_utf8(bytes).ok().filter(|id| is_commit_id(id)).ok_or(Malformed::Line)
}

#[cfg(test)]
mod tests;
