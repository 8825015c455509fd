//! What the beginning of an ELF file tells: its architecture, and the program that loads it.

/// The architecture of an ELF file, by its name in an OCI platform. None: it is no ELF file, or of an unknown one.
pub fn architecture(file: &[u8]) -> Option<&'static str> {
    let header = Header::of(file)?;
    match (header.half(18)?, header.is_64, header.is_little) {
        (3, _, _) => Some("386"),
        (62, _, _) => Some("amd64"),
        (40, _, _) => Some("arm"),
        (183, _, _) => Some("arm64"),
        (21, true, true) => Some("ppc64le"),
        (22, true, false) => Some("s390x"),
        (243, true, _) => Some("riscv64"),
        (258, true, _) => Some("loong64"),
        (8, true, true) => Some("mips64le"),
        _ => None,
    }
}

/// The usual name of an architecture.
pub fn usual(architecture: &str) -> &str {
    match architecture {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "armhf" => "arm",
        other => other,
    }
}

/// Whether a machine of the architecture `wanted` runs programs for `found`: the older ones of its family too.
pub fn runs(found: &str, wanted: &str) -> bool {
    found == wanted || matches!((found, wanted), ("386", "amd64") | ("arm", "arm64"))
}

/// The program that loads another.
#[derive(Debug, PartialEq, Eq)]
pub enum Interpreter {
    /// There is none: it is statically linked, or no ELF file.
    None,
    /// Its path.
    Named(String),
    /// Its path ends at that byte of the file, which was not read so far.
    At(usize),
}

/// The program that loads this one: its segment `PT_INTERP`.
pub fn interpreter(file: &[u8]) -> Interpreter {
    match segment(file) {
        None => Interpreter::None,
        Some((from, length)) => match from.checked_add(length) {
            None => Interpreter::None,
            Some(end) => file.get(from..end).map_or(Interpreter::At(end), |path| {
                let path = path.split(|byte| *byte == 0).next().unwrap_or_default();
                let path = std::str::from_utf8(path).ok().filter(|path| path.starts_with('/'));
                path.map_or(Interpreter::None, |path| Interpreter::Named(path.to_owned()))
            }),
        },
    }
}

/// The most segments that are looked through, and the longest path.
const MOST_SEGMENTS: usize = 128;
const LONGEST_PATH: usize = 4096;

/// Where the path lies, and how long it is.
fn segment(file: &[u8]) -> Option<(usize, usize)> {
    const PT_INTERP: usize = 3;
    let header = Header::of(file)?;
    let (table, size, count) = if header.is_64 {
        (header.long(32)?, header.half(54)?, header.half(56)?)
    } else {
        (header.word(28)?, header.half(42)?, header.half(44)?)
    };
    for number in 0..usize::from(count).min(MOST_SEGMENTS) {
        let entry = table.checked_add(number * usize::from(size))?;
        if header.word(entry)? == PT_INTERP {
            let (from, length) = if header.is_64 {
                (header.long(entry.checked_add(8)?)?, header.long(entry.checked_add(32)?)?)
            } else {
                (header.word(entry.checked_add(4)?)?, header.word(entry.checked_add(16)?)?)
            };
            return (length <= LONGEST_PATH).then_some((from, length));
        }
    }
    None
}

/// The beginning of an ELF file.
struct Header<'a> {
    file: &'a [u8],
    is_64: bool,
    is_little: bool,
}

impl<'a> Header<'a> {
    fn of(file: &'a [u8]) -> Option<Self> {
        let rest = file.strip_prefix(b"\x7fELF")?;
        Some(Self { file, is_64: rest.first()? == &2, is_little: rest.get(1)? == &1 })
    }

    fn half(&self, at: usize) -> Option<u16> {
        let bytes = self.file.get(at..at.checked_add(2)?)?.try_into().ok()?;
        Some(if self.is_little { u16::from_le_bytes(bytes) } else { u16::from_be_bytes(bytes) })
    }

    fn word(&self, at: usize) -> Option<usize> {
        let bytes = self.file.get(at..at.checked_add(4)?)?.try_into().ok()?;
        usize::try_from(if self.is_little { u32::from_le_bytes(bytes) } else { u32::from_be_bytes(bytes) }).ok()
    }

    fn long(&self, at: usize) -> Option<usize> {
        let bytes = self.file.get(at..at.checked_add(8)?)?.try_into().ok()?;
        usize::try_from(if self.is_little { u64::from_le_bytes(bytes) } else { u64::from_be_bytes(bytes) }).ok()
    }
}
