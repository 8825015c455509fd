//! `WWW-Authenticate` challenges (RFC 9110 §11.6.1) as registries send them.

/// What a registry asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    /// User name and password with each request.
    Basic,
    /// A token of a token service
    /// (<https://distribution.github.io/distribution/spec/auth/token/>).
    Bearer {
        /// The token service's URL.
        realm: String,
        /// What the registry is called there.
        service: Option<String>,
        /// What the request needs, such as `repository:team/app:pull,push`.
        scope: Option<String>,
    },
}

/// The challenge to answer: Bearer where one is offered, else Basic, else none.
pub(super) fn choose<'a>(headers: impl Iterator<Item = &'a str>) -> Option<Challenge> {
    let mut basic = None;
    for header in headers {
        for (scheme, params) in parse(header) {
            let param = |name: &str| {
                params.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.clone())
            };
            if scheme.eq_ignore_ascii_case("bearer") {
                if let Some(realm) = param("realm") {
                    return Some(Challenge::Bearer { realm, service: param("service"), scope: param("scope") });
                }
            } else if scheme.eq_ignore_ascii_case("basic") {
                basic = Some(Challenge::Basic);
            }
        }
    }
    basic
}

type Params = Vec<(String, String)>;

/// Splits a header into its challenges. Lenient: what it cannot read it skips.
fn parse(header: &str) -> Vec<(String, Params)> {
    let mut challenges: Vec<(String, Params)> = Vec::new();
    let mut rest = header;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        if rest.is_empty() {
            return challenges;
        }
        let end = rest.find([' ', '\t', ',', '=']).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        if let Some(value) = after.trim_start().strip_prefix('=').filter(|_| !word.is_empty()) {
            let (value, after) = value_of(value.trim_start());
            if let Some((_, params)) = challenges.last_mut() {
                params.push((word.to_owned(), value));
            }
            rest = after;
        } else if word.is_empty() {
            // A stray "=": step over it, or this would never end.
            rest = &rest[1..];
        } else {
            challenges.push((word.to_owned(), Vec::new()));
            rest = after;
        }
    }
}

/// A quoted string or a token, and what follows it.
fn value_of(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ' ', '\t']).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => value.extend(chars.next().map(|(_, escaped)| escaped)),
            c => value.push(c),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Challenge {
        let own = |text: Option<&str>| text.map(str::to_owned);
        Challenge::Bearer { realm: realm.into(), service: own(service), scope: own(scope) }
    }

    #[test]
    fn table() {
        let hub = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push""#;
        for (headers, expected) in [
            (
                vec![hub],
                Some(bearer(
                    "https://auth.docker.io/token",
                    Some("registry.docker.io"),
                    Some("repository:a/b:pull,push"),
                )),
            ),
            (vec![r#"Basic realm="Registry Realm""#], Some(Challenge::Basic)),
            (vec!["basic"], Some(Challenge::Basic)),
            (
                vec![r#"Basic realm="x", Bearer realm="https://t/",service=reg"#],
                Some(bearer("https://t/", Some("reg"), None)),
            ),
            (vec![r#"Basic realm="x""#, r#"bearer Realm = "https://t/""#], Some(bearer("https://t/", None, None))),
            (vec![r#"Bearer realm="a\"b,c=d""#], Some(bearer("a\"b,c=d", None, None))),
            (vec!["Bearer error=\"x\""], None),
            (vec!["Negotiate abc=="], None),
            (vec!["= , =", ""], None),
        ] {
            assert_eq!(choose(headers.iter().copied()), expected, "{headers:?}");
        }
    }

    proptest! {
        #[test]
        fn never_panics_and_always_ends(header in "[ -~]{0,80}") {
            choose(std::iter::once(header.as_str()));
        }
    }
}
