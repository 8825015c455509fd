//! Makes text fit to be shown: no control characters, no secret values, no endless lines.

use std::{borrow::Cow, collections::HashSet};

use aho_corasick::{AhoCorasick, AhoCorasickKind, MatchKind};
use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD},
};
use kiln_registry::text::{is_hidden, without_access};

/// What stands where a secret value stood.
const MASK: &str = "***";
/// Shorter values would mask ordinary words.
const SHORTEST_VALUE: usize = 4;
/// A line of a longer value says less by itself: lines such as `}` or `name: x` are left alone.
const SHORTEST_LINE: usize = 8;
/// `base64` begins a new line after so many characters.
const WRAPPED: usize = 76;
/// The most bytes of values and their forms that are looked for anywhere in a text, the shortest first: what looks for them
/// takes some forty times as much memory. Of the others, forms and lines of long values, whole lines alone are masked.
const MOST_LOOKED_FOR: usize = 1 << 20;
/// The longest line, in bytes.
pub const LONGEST_LINE: usize = 4096;

/// Knows a job's secret values and replaces them, and what in a URL gives access to what it names.
#[derive(Default)]
pub struct Masker {
    /// Takes the longest of those that begin at one place, so that a value which holds another one goes as a whole, and as
    /// long for many values as for one.
    anywhere: Option<AhoCorasick>,
    /// Those that are masked where they are a line.
    lines: HashSet<String>,
}

impl Masker {
    /// Masks each of `secrets` as it is, each of its lines, and its base64 forms: with and without padding, for URLs, with
    /// the line end that `echo` adds, and in lines of 76 characters as `base64` writes them; and as URLs, forms and JSON
    /// have it.
    ///
    /// That is all that is promised: a step that prints a value in parts, reversed or otherwise encoded shows it. Whoever
    /// writes a Dockerfile may read the secrets that its build is given; masking keeps them out of logs by mistake.
    pub fn new<'a>(secrets: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut values = Vec::new();
        for secret in secrets {
            let trimmed = secret.trim_ascii();
            for form in [secret, trimmed, &[trimmed, b"\n"].concat()] {
                if form.len() >= SHORTEST_VALUE {
                    let standard = STANDARD.encode(form);
                    if standard.len() > WRAPPED {
                        let lines = standard.as_bytes().chunks(WRAPPED).map(String::from_utf8_lossy);
                        values.extend(lines.filter(|line| line.len() >= SHORTEST_LINE).map(Cow::into_owned));
                    }
                    values.extend([
                        standard,
                        STANDARD_NO_PAD.encode(form),
                        URL_SAFE.encode(form),
                        URL_SAFE_NO_PAD.encode(form),
                    ]);
                }
            }
            // As the text will be that is looked through.
            let text = plain(&String::from_utf8_lossy(trimmed));
            let text = text.trim();
            if text.len() >= SHORTEST_VALUE && !text.contains('\n') {
                values.push(text.to_owned());
            }
            if trimmed.len() >= SHORTEST_VALUE {
                values.extend(escaped(trimmed));
            }
            if text.contains('\n') {
                values
                    .extend(text.lines().map(str::trim).filter(|line| line.len() >= SHORTEST_LINE).map(str::to_owned));
            }
        }
        values.sort_by(|a, b| a.len().cmp(&b.len()).then_with(|| a.cmp(b)));
        values.dedup();
        let mut left = MOST_LOOKED_FOR;
        let few =
            values.iter().take_while(|value| left.checked_sub(value.len()).inspect(|less| left = *less).is_some());
        let lines: HashSet<String> = values.split_off(few.count()).into_iter().collect();
        let mut builder = AhoCorasick::builder();
        builder.match_kind(MatchKind::LeftmostLongest).kind(Some(AhoCorasickKind::ContiguousNFA));
        // Its only error is that there are too many: of so few bytes there are not.
        let anywhere = if values.is_empty() { None } else { builder.build(&values).ok() };
        Self { anywhere, lines }
    }

    /// `text` without control characters and secret values, line ends kept.
    #[must_use]
    pub fn text(&self, text: &str) -> String {
        self.mask(plain(text))
    }

    /// One line of output as it may be shown: what a terminal would leave of it, masked, of bounded length.
    #[must_use]
    pub fn line(&self, line: &str) -> String {
        // A carriage return draws the line anew, as progress bars do: the last drawing counts.
        let line = line.trim_end_matches(['\r', '\n']);
        let line = line.rsplit('\r').find(|part| !part.is_empty()).unwrap_or_default();
        shorten(self.mask(plain(line)), LONGEST_LINE)
    }

    fn mask(&self, text: String) -> String {
        let mut text = text;
        if !self.lines.is_empty() && text.lines().any(|line| self.lines.contains(line.trim())) {
            let masked = |line: &str| match line.trim() {
                inside if self.lines.contains(inside) => line.replace(inside, MASK),
                _ => line.to_owned(),
            };
            text = text.split_inclusive('\n').map(masked).collect();
        }
        if let Some(anywhere) = self.anywhere.as_ref().filter(|anywhere| anywhere.is_match(&text)) {
            let mut out = String::with_capacity(text.len());
            anywhere.replace_all_with(&text, &mut out, |_, _, out| {
                out.push_str(MASK);
                true
            });
            text = out;
        }
        without_access(&text).into_owned()
    }
}

/// A value as it stands in URLs (RFC 3986, with digits of either case), in forms, and in JSON (RFC 8259, with what some
/// writers escape besides).
fn escaped(value: &[u8]) -> impl Iterator<Item = String> {
    let percent = |upper: bool| -> String {
        let digits = |byte: u8| if upper { format!("%{byte:02X}") } else { format!("%{byte:02x}") };
        value
            .iter()
            .map(|byte| match byte {
                b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(*byte).to_string(),
                byte => digits(*byte),
            })
            .collect()
    };
    let form = url::form_urlencoded::byte_serialize(value).collect();
    let json = serde_json::Value::from(String::from_utf8_lossy(value)).to_string();
    let json = json.trim_matches('"').to_owned();
    let ascii = json.encode_utf16().map(|unit| match u8::try_from(unit) {
        Ok(byte) if byte.is_ascii() => char::from(byte).to_string(),
        _ => format!("\\u{unit:04x}"),
    });
    let ascii = ascii.collect();
    [percent(true), percent(false), form, json.replace('/', "\\/"), json, ascii].into_iter()
}

/// Where a builder keeps what is its own.
const OWN: [&str; 4] = ["/var/lib/kiln/", "/run/kiln/", "/etc/kiln/", "/run/buildkit/"];

/// `text` with the builder's own paths cut to the names of their files: the rest says nothing to whoever reads it.
#[must_use]
pub fn without_own_paths(text: &str) -> Cow<'_, str> {
    let first = |text: &str| OWN.iter().filter_map(|own| text.find(own)).min();
    let Some(mut at) = first(text) else { return Cow::Borrowed(text) };
    let (mut out, mut rest) = (String::new(), text);
    loop {
        let (before, path) = rest.split_at(at);
        out.push_str(before);
        let end = path.find(|char: char| char.is_whitespace() || "\"'`:;,()<>".contains(char)).unwrap_or(path.len());
        let (path, after) = path.split_at(end);
        out.push_str(path.trim_end_matches('/').rsplit('/').next().unwrap_or_default());
        rest = after;
        match first(rest) {
            Some(next) => at = next,
            None => break,
        }
    }
    out.push_str(rest);
    Cow::Owned(out)
}

/// `text` cut to `longest` bytes, with an ellipsis where something is missing.
#[must_use]
pub fn shorten(mut text: String, longest: usize) -> String {
    if text.len() > longest {
        let ellipsis = '…';
        let mut end = longest.saturating_sub(ellipsis.len_utf8());
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text.push(ellipsis);
    }
    text
}

/// `text` without terminal escape sequences (ECMA-48) and hidden characters other than line end and tab.
#[must_use]
pub fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(char) = chars.next() {
        match char {
            '\n' | '\t' => out.push(char),
            '\u{1b}' => match chars.next() {
                // CSI: parameters, then one final byte.
                Some('[') => {
                    for next in chars.by_ref() {
                        if ('\u{40}'..='\u{7e}').contains(&next) {
                            break;
                        }
                    }
                }
                // OSC, DCS, SOS, PM, APC: a string up to BEL or ST.
                Some(']' | 'P' | 'X' | '^' | '_') => {
                    while let Some(next) = chars.next() {
                        if next == '\u{7}' || next == '\u{9c}' {
                            break;
                        }
                        if next == '\u{1b}' {
                            chars.next_if_eq(&'\\');
                            break;
                        }
                    }
                }
                // Two-character sequences with an intermediate byte, such as the choice of a character set.
                Some(' '..='/') => {
                    chars.next();
                }
                _ => {}
            },
            char if is_hidden(char) => {}
            char => out.push(char),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn of_long_values_whole_lines_are_masked() {
        let long = (0..60_000).fold(String::new(), |text, number| text + &format!("line-{number:08}\n"));
        let masker = Masker::new([long.as_bytes(), b"hunter22"]);
        assert_eq!(masker.line("a hunter22 b"), "a *** b");
        assert_eq!(masker.line("  line-00000007 "), "  *** ");
        assert_eq!(masker.text("x\nline-00000007\nline-00059999\ny\n"), "x\n***\n***\ny\n");
        let wrapped = &STANDARD.encode(&long)[WRAPPED..2 * WRAPPED];
        assert_eq!(masker.line(wrapped), MASK);
    }

    #[test]
    fn masks_values_lines_and_base64_forms() {
        let masker = Masker::new([
            b"hunter22".as_slice(),
            b"-----BEGIN KEY-----\nabcdefghijkl\n}\n",
            b"abc",
            b"\xff\xfe\xfd\xfc",
        ]);
        let cases = [
            ("password hunter22!", "password ***!"),
            ("aHVudGVyMjI=", "***"),
            ("token=aHVudGVyMjI", "token=***"),
            ("x abcdefghijkl }", "x *** }"),
            ("abc stays", "abc stays"),
            ("//79/A==", "***"),
            ("\u{1b}[31mhun\u{1b}[0mter22", "***"),
        ];
        for (line, expected) in cases {
            assert_eq!(masker.line(line), expected, "{line:?}");
        }
    }

    #[test]
    fn masks_what_echo_and_base64_make_of_a_value() {
        let long = "0123456789".repeat(12);
        let masker =
            Masker::new([b"hunter22".as_slice(), long.as_bytes(), b"\xff\xfebinary-value", b"tab\tand\x01bell"]);
        let echoed = STANDARD.encode("hunter22\n");
        let wrapped = STANDARD.encode(format!("{long}\n"));
        for line in [
            &*echoed,
            &wrapped[..WRAPPED],
            &wrapped[WRAPPED..2 * WRAPPED],
            &wrapped[2 * WRAPPED..],
            "\u{fffd}\u{fffd}binary-value",
            "tab\tand\u{1}bell",
        ] {
            assert_eq!(masker.line(line).trim_end_matches('='), MASK, "{line:?}");
        }
    }

    #[test]
    fn masks_what_urls_forms_and_json_make_of_a_value() {
        let masker = Masker::new(["p/ss w\"rd+ä".as_bytes(), b"first line\nsecond line"]);
        for line in [
            "p%2Fss%20w%22rd%2B%C3%A4",
            "p%2fss%20w%22rd%2b%c3%a4",
            "p%2Fss+w%22rd%2B%C3%A4",
            r#"p/ss w\"rd+ä"#,
            r#"p\/ss w\"rd+ä"#,
            r#"p/ss w\"rd+\u00e4"#,
            r"first line\nsecond line",
            "first%20line%0Asecond%20line",
        ] {
            assert_eq!(masker.line(&format!("x={line}&")), "x=***&", "{line:?}");
        }
    }

    #[test]
    fn what_a_url_gives_access_with_goes() {
        let masker = Masker::default();
        assert_eq!(masker.line("PUT https://h/x?X-Amz-Signature=1 fails"), "PUT https://h/x?*** fails");
        assert_eq!(masker.text("fetching https://h/x?v=1"), "fetching https://h/x?v=1");
    }

    #[test]
    fn the_longer_value_goes_first() {
        let masker = Masker::new([b"secret".as_slice(), b"secret-and-more"]);
        assert_eq!(masker.line("a secret-and-more b"), "a *** b");
    }

    #[test]
    fn shows_what_a_terminal_would_leave() {
        let masker = Masker::default();
        let cases = [
            ("10%\r50%\r100%\r", "100%"),
            ("\u{1b}]0;title\u{7}text", "text"),
            ("\u{1b}]8;;http://x\u{1b}\\link", "link"),
            ("a\u{8}b\u{0}c\td", "abc\td"),
            ("\u{1b}(Bplain", "plain"),
            ("safe\u{202e}gpj.exe", "safegpj.exe"),
            ("a\u{61c}\u{200b}\u{2028}\u{feff}\u{e0041}b", "ab"),
        ];
        for (line, expected) in cases {
            assert_eq!(masker.line(line), expected, "{line:?}");
        }
        assert_eq!(masker.line(&"ä".repeat(LONGEST_LINE)).len(), LONGEST_LINE - 1);
    }

    #[test]
    fn the_builders_own_paths_are_nobodys_business() {
        for (text, expected) in [
            ("open /var/lib/kiln/agent/work/1/source/Dockerfile: no such file", "open Dockerfile: no such file"),
            ("'/run/kiln/jobs/1/docker/config.json' and /etc/kiln/tls/", "'config.json' and tls"),
            ("unix:///run/buildkit/buildkitd.sock", "unix://buildkitd.sock"),
            ("/var/lib/other and /var/lib/kiln", "/var/lib/other and /var/lib/kiln"),
        ] {
            assert_eq!(without_own_paths(text), expected);
        }
    }

    proptest! {
        #[test]
        fn no_control_character_and_no_secret_survives(secret in "[a-zA-Z0-9+/]{8,40}", before in "\\PC{0,20}", after in any::<String>()) {
            let masker = Masker::new([secret.as_bytes()]);
            let line = masker.line(&format!("{before}{secret}{after}"));
            prop_assert!(!line.contains(&secret));
            prop_assert!(line.chars().all(|char| char == '\t' || char == '\n' || !char.is_control()));
            prop_assert!(line.len() <= LONGEST_LINE);
        }
    }
}
