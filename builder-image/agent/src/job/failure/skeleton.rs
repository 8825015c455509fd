//! BuildKit's sentences without what is the user's in them: file names, images, addresses. What is left is the tools' own, so
//! that words in it mean something.

use std::borrow::Cow;

/// What BuildKit says before a name that it does not quote, and what it says behind it.
const UNQUOTED: [(&str, &str); 5] = [
    ("repository name (", ") must be lowercase"),
    ("failed to push ", ": "),
    ("failed to resolve source metadata for ", ": "),
    ("lstat ", ": no such file or directory"),
    ("failed to convert agent config {", "}"),
];

/// The sentence with `""` for what is quoted in it, and nothing for other names and addresses. What a registry or a program
/// answered stays: it comes last, behind what asked.
pub(super) fn skeleton(cause: &str) -> String {
    let mut text = Cow::Borrowed(cause);
    for (before, after) in UNQUOTED {
        let Some((opening, rest)) = text.split_once(before) else { continue };
        let Some((name, rest)) = rest.split_once(after) else { continue };
        // What could not be resolved stands before this as the Dockerfile has it, and behind it once more.
        let opening = if before.contains("resolve") { "" } else { opening };
        let rest = rest.strip_prefix(name).unwrap_or(rest);
        text = Cow::Owned(format!("{opening}{before}{after}{rest}"));
    }
    without_addresses(&without_quoted(&text))
}

/// With `""` for each text that Go has quoted.
fn without_quoted(text: &str) -> String {
    let (mut out, mut rest) = (String::new(), text);
    while let Some((before, quoted)) = rest.split_once('"') {
        out.push_str(before);
        let mut escaped = false;
        let end = quoted.find(|char: char| {
            let ends = char == '"' && !escaped;
            escaped = char == '\\' && !escaped;
            ends
        });
        let Some(end) = end else {
            rest = quoted;
            break;
        };
        out.push_str("\"\"");
        rest = &quoted[end + 1..];
    }
    out.push_str(rest);
    out
}

/// Without addresses, each of which ends before a colon and a space, or at white space.
fn without_addresses(text: &str) -> String {
    let (mut out, mut rest) = (String::new(), text);
    while let Some(at) = rest.find("://") {
        let scheme = rest[..at].rfind(|char: char| !char.is_ascii_alphanumeric()).map_or(0, |before| before + 1);
        // One character at least, whatever its length.
        let scheme = if rest.is_char_boundary(scheme) { scheme } else { at };
        out.push_str(&rest[..scheme]);
        let address = &rest[at..];
        let end = address.find(char::is_whitespace).unwrap_or(address.len());
        let colon = address[..end].ends_with(':');
        rest = &address[end - usize::from(colon)..];
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_are_left_out() {
        for (cause, expected) in [
            (
                "failed to compute cache key: failed to calculate checksum of ref a::b: \"/my secret file.txt\": not found",
                "failed to compute cache key: failed to calculate checksum of ref a::b: \"\": not found",
            ),
            (
                "x/404: failed to resolve source metadata for docker.io/x/404:latest: docker.io/x/404:latest: not found",
                "failed to resolve source metadata for : : not found",
            ),
            (
                "failed to push r.example/denied/x: failed to do request: Head \"https://r.example/v2/denied/\": dial tcp: EOF",
                "failed to push : failed to do request: Head \"\": dial tcp: EOF",
            ),
            (
                "failed to push r/x: unexpected status from HEAD request to https://r/v2/404/blobs/x?a=b: 503 Service Unavailable",
                "failed to push : unexpected status from HEAD request to : 503 Service Unavailable",
            ),
            ("lstat /no space left on device: no such file or directory", "lstat : no such file or directory"),
            ("\"a \\\" 404\" and \"open", "\"\" and open"),
            ("größe://x: y", "größe: y"),
        ] {
            assert_eq!(skeleton(cause), expected);
        }
    }

    proptest! {
        #[test]
        fn any_sentence_has_one(cause in "\\PC*|(failed to push |lstat |\"|\\\\|://|: |é){0,12}") {
            skeleton(&cause);
        }
    }
}
