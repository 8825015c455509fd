//! Text of strangers, made fit for statuses, Events and logs.

use std::borrow::Cow;

/// Whether a character has no place in a line that somebody reads: control characters, and what shows nothing or turns
/// the text around it (Unicode's `Default_Ignorable_Code_Point`, and the separators of lines and paragraphs), behind which
/// a name can look like another one.
#[must_use]
pub fn is_hidden(char: char) -> bool {
    char.is_control()
        || matches!(
            char,
            '\u{ad}'
                | '\u{34f}'
                | '\u{61c}'
                | '\u{115f}'..='\u{1160}'
                | '\u{17b4}'..='\u{17b5}'
                | '\u{180b}'..='\u{180f}'
                | '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{3164}'
                | '\u{fe00}'..='\u{fe0f}'
                | '\u{feff}'
                | '\u{ffa0}'
                | '\u{fff0}'..='\u{fffb}'
                | '\u{1bca0}'..='\u{1bca3}'
                | '\u{1d173}'..='\u{1d17a}'
                | '\u{e0000}'..='\u{e0fff}'
        )
}

/// A server's text as one line, without hidden characters and what gives access, cut at `limit` characters.
#[must_use]
pub fn plain_text(text: &str, limit: usize) -> String {
    let seen: String = text
        .chars()
        .take(limit * 4)
        .map(|char| if char.is_control() { ' ' } else { char })
        .filter(|char| !is_hidden(*char) && *char != '\u{fffd}')
        .collect();
    let line = seen.split_whitespace().collect::<Vec<_>>().join(" ");
    let line = without_access(&line);
    match line.char_indices().nth(limit) {
        Some((cut, _)) => format!("{}…", &line[..cut]),
        None => line.into_owned(),
    }
}

/// What the name of a parameter has in it whose value gives access to what the URL names: those of presigned URLs of
/// S3, Google, Azure and `CloudFront`, of registries' upload sessions, and what tokens are usually called.
const ACCESS: [&str; 16] = [
    "sig",
    "token",
    "secret",
    "credential",
    "passw",
    "pwd",
    "_state",
    "policy",
    "jwt",
    "auth",
    "apikey",
    "api_key",
    "key-pair",
    "session",
    "hdn",
    "hmac",
];

/// `text` whose URLs have neither user information nor, where a parameter gives access, a query.
#[must_use]
pub fn without_access(text: &str) -> Cow<'_, str> {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, url) = rest.split_at(at + 3);
        out.push_str(before);
        let end = url.find(|char: char| char.is_whitespace() || "\"'<>`\\".contains(char)).unwrap_or(url.len());
        let (url, after) = url.split_at(end);
        let authority = url.find(['/', '?', '#']).unwrap_or(url.len());
        let (authority, path) = url.split_at(authority);
        match authority.rsplit_once('@') {
            Some((_, host)) => out.extend(["***@", host]),
            None => out.push_str(authority),
        }
        // What follows # may say the same, and an address within the query has a query of its own.
        let (path, query) = path.split_at(path.find(['?', '#']).unwrap_or(path.len()));
        out.push_str(path);
        let gives_access = query.split(['?', '#', '&', ';']).any(|parameter| {
            let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            let (name, value) = (name.to_ascii_lowercase(), value.to_ascii_lowercase());
            let holds_address = value.contains("://") || value.contains("%3a");
            ["key", "code"].contains(&name.as_str()) || holds_address || ACCESS.iter().any(|part| name.contains(part))
        });
        if gives_access {
            out.extend([&query[..1], "***"]);
        } else {
            out.push_str(query);
        }
        rest = after;
    }
    if out.is_empty() {
        return Cow::Borrowed(text);
    }
    out.push_str(rest);
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn nothing_is_hidden() {
        assert_eq!(plain_text("a\x1b[31mred\r\n\u{202e}b\0", 100), "a [31mred b");
        assert_eq!(plain_text("a\u{61c}b\u{200b}c\u{2028}d\u{feff}e\u{e0041}f\u{ad}g", 100), "abcdefg");
        assert_eq!(plain_text("größer als 🧱, يوم", 100), "größer als 🧱, يوم");
        assert_eq!(plain_text("abcdef", 3), "abc…");
    }

    #[test]
    fn nothing_gives_access() {
        for (text, expected) in [
            ("no URL", "no URL"),
            ("GET https://h/x?page=2&size=3: 404", "GET https://h/x?page=2&size=3: 404"),
            ("\"https://h/x?X-Amz-Date=1&X-Amz-Signature=abc\" fails", "\"https://h/x?***\" fails"),
            ("https://h/v2/a/blobs/uploads/1?_state=abc", "https://h/v2/a/blobs/uploads/1?***"),
            ("https://h/c?sv=1&sig=abc%3D and http://u:p@h:80/y#z.", "https://h/c?*** and http://***@h:80/y#z."),
            ("ssh://git@h/x", "ssh://***@h/x"),
            ("https://h?access_token=1", "https://h?***"),
            ("https://h/#access_token=1", "https://h/#***"),
            ("https://h/?a=1#top", "https://h/?a=1#top"),
            ("https://p/?url=https://h/x?sig=1", "https://p/?***"),
            ("https://p/?url=https%3A%2F%2Fh%2Fx%3Fsig%3D1", "https://p/?***"),
            (
                "https://h/f?code=1 https://h/g?key=2 https://h/h?keyword=3",
                "https://h/f?*** https://h/g?*** https://h/h?keyword=3",
            ),
            ("https://u@x@h/", "https://***@h/"),
            ("://", "://"),
        ] {
            assert_eq!(without_access(text), expected);
        }
        assert_eq!(plain_text("at https://h/?sig=abc", 100), "at https://h/?***");
    }

    proptest! {
        #[test]
        fn plain_text_is_one_bounded_line(text in any::<String>(), limit in 1usize..50) {
            let plain = plain_text(&text, limit);
            prop_assert!(plain.chars().count() <= limit + 1);
            prop_assert!(!plain.chars().any(is_hidden));
        }

        #[test]
        fn no_signature_survives(before in "\\PC{0,20}", value in "[a-f0-9]{16}", after in "\\PC{0,20}") {
            let text = format!("{before} https://host/path?a=b&X-Goog-Signature={value} {after}");
            prop_assert!(!without_access(&text).contains(&value));
        }
    }
}
