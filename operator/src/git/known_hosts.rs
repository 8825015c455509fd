//! The keys that ssh servers may have (sshd(8), `SSH_KNOWN_HOSTS FILE FORMAT`).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::hmac;
use russh::keys::PublicKey;

/// The keys that `known_hosts` has for `host`, which is `[host]:port` where the port is not 22. A key that a line marks as
/// `@revoked` is none of them, wherever else it stands; one of an `@cert-authority` gives none.
pub(crate) fn keys(known_hosts: &str, host: &str) -> Vec<PublicKey> {
    let (mut keys, mut revoked) = (Vec::new(), Vec::new());
    for line in known_hosts.lines().map(str::trim).filter(|line| !line.starts_with('#')) {
        let (marker, line) = match line.strip_prefix('@').map(|rest| rest.split_once([' ', '\t'])) {
            None => ("", line),
            Some(None) => continue,
            Some(Some((marker, rest))) => (marker, rest.trim_start()),
        };
        let Some((hosts, key)) = line.split_once([' ', '\t']) else { continue };
        let Some(key) = PublicKey::from_openssh(key.trim()).ok().filter(|_| matches(hosts, host)) else { continue };
        match marker {
            "" => keys.push(key),
            "revoked" => revoked.push(key),
            _ => {}
        }
    }
    keys.retain(|key| revoked.iter().all(|revoked| revoked.key_data() != key.key_data()));
    keys
}

fn matches(hosts: &str, host: &str) -> bool {
    if let Some(hashed) = hosts.strip_prefix("|1|") {
        let Some((salt, hash)) = hashed.split_once('|') else { return false };
        let (Ok(salt), Ok(hash)) = (STANDARD.decode(salt), STANDARD.decode(hash)) else { return false };
        // What OpenSSH writes with HashKnownHosts.
        let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, &salt);
        return hmac::verify(&key, host.as_bytes(), &hash).is_ok();
    }
    let mut matched = false;
    for pattern in hosts.split(',') {
        match pattern.strip_prefix('!') {
            Some(pattern) if glob(pattern.as_bytes(), host.as_bytes()) => return false,
            Some(_) => {}
            None => matched |= glob(pattern.as_bytes(), host.as_bytes()),
        }
    }
    matched
}

/// `*` stands for any characters, `?` for one; upper and lower case are the same.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    // Where the last `*` was, and how much of the text it stands for: linear but for that.
    let (mut p, mut t, mut star) = (0, 0, None);
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(c) if *c == b'?' || c.eq_ignore_ascii_case(&text[t]) => {
                p += 1;
                t += 1;
            }
            _ => {
                let Some((at, taken)) = star else { return false };
                star = Some((at, taken + 1));
                (p, t) = (at + 1, taken + 1);
            }
        }
    }
    pattern[p..].iter().all(|c| *c == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ";
    const B: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILIG2T/B0l0gaqj3puu510tu9N1OkQ4znY3LYuEm5zCF";

    #[test]
    fn lines() {
        let text = format!(
            "# a comment\nhost,10.0.0.1 {A}\n[host]:2222 {B} me@there\n*.example,!bad.example {A}\n@revoked gone {A}\n\
             both {A}\nboth {B}\n@revoked *both {A}\n@cert-authority both {A}\n@broken\n\
             |1|O33ESRMWPVkMYIwJ1Uw+n877jTo=|nuuC5vEqXlEZ/8BXQR7m619W6Ak= {B}\nhost broken\nhost"
        );
        for (host, expected) in [
            ("host", vec![A]),
            ("HOST", vec![A]),
            ("10.0.0.1", vec![A]),
            ("[host]:2222", vec![B]),
            ("a.example", vec![A]),
            ("bad.example", vec![]),
            ("example.com", vec![B]),
            ("gone", vec![]),
            ("both", vec![B]),
            ("other", vec![]),
        ] {
            let expected: Vec<PublicKey> = expected.into_iter().map(|key| key.parse().unwrap()).collect();
            let found: Vec<PublicKey> = keys(&text, host);
            assert_eq!(
                found.iter().map(PublicKey::key_data).collect::<Vec<_>>(),
                expected.iter().map(PublicKey::key_data).collect::<Vec<_>>(),
                "{host}"
            );
        }
    }

    #[test]
    fn globs() {
        assert!(glob(b"*", b"") && glob(b"a*b*", b"aXXbYY") && glob(b"a?c", b"abc"));
        assert!(!glob(b"a?c", b"ac") && !glob(b"*.x", b"x") && !glob(b"", b"a"));
    }
}
