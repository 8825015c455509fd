//! What the words of a command have its program start in turn: a shell its script's first command, `env` and `tini` what
//! follows them.

/// The words of the command that `name` starts when it is given `rest`. None: it is none that starts another, or which one
/// cannot be told.
pub fn started_by(name: &str, rest: &[String]) -> Option<Vec<String>> {
    let is_option = |word: &&String| word.starts_with('-');
    match name.rsplit('/').next().unwrap_or(name) {
        "sh" | "ash" | "bash" | "dash" | "ksh" | "zsh" => {
            // -c may stand with others, as in -ec; what follows it is the script.
            let Some(flag) = rest.iter().position(|word| is_flag(word, 'c')) else {
                // A script of its own.
                return rest.first().filter(|word| word.contains('/')).map(|script| vec![script.clone()]);
            };
            let options_only = rest[..flag].iter().all(|word| is_option(&word) || !word.contains('/'));
            rest.get(flag + 1).filter(|_| options_only).map(|script| first_command(script))
        }
        "env" => {
            let mut words = rest.to_vec();
            if let Some(option) = words.iter().position(|word| word.starts_with("-S") || word == "--split-string") {
                // It has the rest in one word.
                let split = words.split_off(option).join(" ");
                let split = split.trim_start_matches("--split-string").trim_start_matches("-S");
                words.extend(split.split_whitespace().map(str::to_owned));
            }
            Some(words.into_iter().skip_while(|word| is_option(&word) || is_assignment(word)).collect())
        }
        "tini" | "tini-static" | "dumb-init" | "catatonit" | "docker-init" => {
            let behind_options = rest.iter().skip_while(|word| is_option(word) && *word != "--");
            let mut words: Vec<String> = behind_options.cloned().collect();
            // An option's value, such as a signal's name, may stand before the dashes.
            if words.first().is_some_and(|word| word == "--") {
                words.remove(0);
            } else if words.get(1).is_some_and(|word| word == "--") && words.len() < rest.len() {
                words.drain(..2);
            }
            Some(words)
        }
        _ => None,
    }
}

/// Whether a word such as `-ec` holds the flag.
fn is_flag(word: &str, flag: char) -> bool {
    let flags = word.strip_prefix('-').unwrap_or_default();
    flags.contains(flag) && flags.chars().all(|char| char.is_ascii_alphabetic())
}

fn is_assignment(word: &str) -> bool {
    let name = word.split_once('=').map(|(name, _)| name).unwrap_or_default();
    !name.is_empty()
        && name.chars().all(|char| char.is_ascii_alphanumeric() || char == '_')
        && !name.starts_with(|first: char| first.is_ascii_digit())
}

/// The words of a script's first command, without assignments and `exec`. Ends where the shell would have to be asked.
fn first_command(script: &str) -> Vec<String> {
    let mut words = plain_words(script).into_iter().skip_while(|word| is_assignment(word)).peekable();
    if words.next_if(|word| word == "exec").is_some() {
        return words.skip_while(|word| word.starts_with('-')).collect();
    }
    words.collect()
}

/// Words up to the first that a shell replaces, and to the end of the command. What is assigned may be anything.
fn plain_words(script: &str) -> Vec<String> {
    let (mut words, mut word, mut begun, mut is_plain) = (Vec::new(), String::new(), false, true);
    let (mut quote, mut chars) = (None, script.chars());
    while let Some(char) = chars.next() {
        match (quote, char) {
            (Some(end), char) if char == end => quote = None,
            (None, '"' | '\'') => (quote, begun) = (Some(char), true),
            (None | Some('"'), '\\') => {
                word.extend(chars.next());
                begun = true;
            }
            (None | Some('"'), '$' | '`') | (None, '*' | '?' | '~' | '{') => is_plain = false,
            (None, ';' | '|' | '&' | '\n' | '(' | ')' | '<' | '>') => break,
            (None, char) if char.is_whitespace() => {
                if begun {
                    if !is_plain && !is_assignment(&word) {
                        return words;
                    }
                    words.push(std::mem::take(&mut word));
                }
                (begun, is_plain) = (false, true);
            }
            (_, char) => {
                word.push(char);
                begun = true;
            }
        }
    }
    words.extend((begun && is_plain).then_some(word));
    words
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn words(text: &[&str]) -> Vec<String> {
        text.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn what_a_command_starts() {
        for (name, rest, expected) in [
            ("/bin/sh", vec!["-c", "/app --port 80"], Some(vec!["/app", "--port", "80"])),
            ("bash", vec!["-ec", "A=1 B=\"$C\" exec /app"], Some(vec!["/app"])),
            ("sh", vec!["-c", "exec tini -- /app"], Some(vec!["tini", "--", "/app"])),
            ("sh", vec!["-c", "'/a b' x"], Some(vec!["/a b", "x"])),
            ("sh", vec!["-c", "/app;rm x"], Some(vec!["/app"])),
            ("sh", vec!["-c", "$APP x"], Some(vec![])),
            ("sh", vec!["-c", "/app $X y"], Some(vec!["/app"])),
            ("sh", vec!["-c", "A=`x` /app"], Some(vec!["/app"])),
            ("sh", vec!["/script", "-c", "x"], None),
            ("bash", vec!["/script", "x"], Some(vec!["/script"])),
            ("bash", vec!["script"], None),
            ("tini", vec!["box64", "--", "/app/x86"], Some(vec!["box64", "--", "/app/x86"])),
            ("tini", vec!["kubectl", "exec", "--", "/bin/x"], Some(vec!["kubectl", "exec", "--", "/bin/x"])),
            ("sh", vec!["-o", "pipefail", "-c", "/app"], Some(vec!["/app"])),
            ("sh", vec!["-c"], None),
            ("/usr/bin/env", vec!["-i", "A=b", "python3", "-u"], Some(vec!["python3", "-u"])),
            ("env", vec!["-S", "deno run --x"], Some(vec!["deno", "run", "--x"])),
            ("env", vec!["-Sdeno run", "/script"], Some(vec!["deno", "run", "/script"])),
            ("env", vec!["A=b c", "/app"], Some(vec!["/app"])),
            ("/sbin/tini", vec!["-g", "-p", "SIGTERM", "--", "/app"], Some(vec!["/app"])),
            ("tini", vec!["-s", "/app"], Some(vec!["/app"])),
            ("dumb-init", vec!["/app", "-x"], Some(vec!["/app", "-x"])),
            ("/app", vec!["-c", "x"], None),
        ] {
            assert_eq!(started_by(name, &words(&rest)), expected.map(|words_of| words(&words_of)), "{name} {rest:?}");
        }
    }

    proptest! {
        #[test]
        fn any_words_are_read(name in "sh|env|tini", rest in proptest::collection::vec(".{0,20}", 0..6)) {
            started_by(&name, &rest);
        }
    }
}
