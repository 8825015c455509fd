use proptest::prelude::*;

use super::*;

fn config(json: &str) -> Config {
    serde_json::from_str(&format!(r#"{{"os":"linux","architecture":"arm64","config":{json}}}"#)).unwrap()
}

/// A program of that machine, which that program loads; its path lies at that byte.
fn elf(machine: u16, interpreter: Option<(&str, usize)>) -> Vec<u8> {
    let mut file = vec![0; 120];
    file[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    file[18..20].copy_from_slice(&machine.to_le_bytes());
    if let Some((path, at)) = interpreter {
        file[32] = 64;
        (file[54], file[56], file[64]) = (56, 1, 3);
        file[72..80].copy_from_slice(&(at as u64).to_le_bytes());
        file[96..104].copy_from_slice(&(path.len() as u64 + 1).to_le_bytes());
        file.resize(at.max(120), 0);
        file.extend(path.as_bytes());
        file.push(0);
    }
    file
}

const AMD64: u16 = 62;
const ARM64: u16 = 183;

/// Looks into an image that has these files, as `kiln-build` reads them.
fn looked(config: &Config, platform: &str, permitted: &[&str], image: &[(&str, Vec<u8>)]) -> (Verdict, Files) {
    let permitted: Vec<String> = permitted.iter().map(|path| (*path).to_owned()).collect();
    let mut files = Files::new();
    for _ in 0..MOST_FILES {
        match look(config, platform, &permitted, &files) {
            Look::Done(verdict) => return (verdict, files),
            Look::Read(wanted) => {
                for (path, asked) in wanted {
                    assert!(files.get(&path).is_none_or(|known| known.asked < asked), "{path} is read twice");
                    let found = image.iter().find(|(name, _)| *name == path);
                    let bytes = found.map(|(_, file)| file[..file.len().min(asked)].to_vec());
                    files.insert(path, Beginning { asked, bytes });
                }
            }
        }
    }
    panic!("it never has enough: {files:?}");
}

fn foreign(config_json: &str, image: &[(&str, Vec<u8>)]) -> Option<String> {
    looked(&config(config_json), "linux/arm64", &[], image).0.foreign.map(|foreign| foreign.path)
}

/// Words that start each other again and again, each sought in as many directories as a configuration holds.
#[test]
fn a_configuration_takes_as_much_work_as_an_honest_one() {
    let words = vec!["env"; 9];
    let path = format!("PATH=/b{}", ":".repeat(4 << 20));
    let run = serde_json::json!({"Entrypoint": words, "Cmd": words, "Env": [path]});
    let script = format!("#!{}\n", words.join(" ")).into_bytes();
    let (verdict, files) = looked(&config(&run.to_string()), "linux/arm64", &[], &[("/b/env", script)]);
    assert_eq!((verdict, files.len()), (Verdict::default(), 1));
    let run = serde_json::json!({"Cmd": ["sh", "-c", format!("env {}", "a ".repeat(2 << 20))]});
    let started = look(&config(&run.to_string()), "linux/arm64", &[], &Files::new());
    assert!(
        matches!(started, Look::Read(wanted) if wanted.len() == PATH.split(':').count()),
        "a longer script is not read"
    );
}

#[test]
fn no_more_programs_are_followed_than_are_counted() {
    let run = serde_json::json!({"Entrypoint": ["/s", "/s", "env"], "Cmd": ["env", "env", "/s"]});
    let config = config(&run.to_string());
    let script = b"#!/s env env env env env env env env\n".to_vec();
    let files = BTreeMap::from([("/s".to_owned(), Beginning { asked: FIRST, bytes: Some(script) })]);
    let wanted = elf::usual("arm64");
    let mut looking = Looking {
        config: &config,
        wanted,
        permitted: &[],
        files: &files,
        read: BTreeMap::new(),
        verdict: Verdict::default(),
        directories: directories(&config),
        started: 0,
    };
    looking.all();
    assert!(looking.started <= MOST_STARTED, "{}", looking.started);
}

/// As `allowForeignPrograms` and a Dockerfile's COPY name it.
#[test]
fn a_program_has_one_path() {
    for command in ["./app", "/w/./app", "//w//app", ".//app", "/w/app"] {
        let config = config(&serde_json::json!({"Cmd": [command], "WorkingDir": "/w"}).to_string());
        let image = [("/w/app", elf(AMD64, None))];
        let found = |permitted| looked(&config, "linux/arm64", permitted, &image).0.foreign.map(|foreign| foreign.path);
        assert_eq!(found(&[]).as_deref(), Some("/w/app"), "{command}");
        assert_eq!(found(&["/w/app"]), None, "{command}");
    }
}

#[test]
fn the_program_that_is_foreign() {
    let (own, other) = (elf(ARM64, None), elf(AMD64, None));
    let script = |first: &str| format!("#!{first}\nexec \"$@\"\n").into_bytes();
    for (config, image, expected) in [
        (r#"{"Entrypoint":["/app"],"Cmd":["x"]}"#, vec![("/app", other.clone())], Some("/app")),
        (r#"{"Cmd":["/app"]}"#, vec![("/app", own.clone())], None),
        (r#"{"Cmd":["/app"]}"#, vec![], None),
        (r#"{"Cmd":["app"],"Env":["PATH=/a:relative:/b/"]}"#, vec![("/b/app", other.clone())], Some("/b/app")),
        // The first in PATH counts.
        (r#"{"Cmd":["app"],"Env":["PATH=/a:/b"]}"#, vec![("/a/app", own.clone()), ("/b/app", other.clone())], None),
        (r#"{"Cmd":["./app"],"WorkingDir":"/w/"}"#, vec![("/w/app", other.clone())], Some("/w/app")),
        (
            r#"{"Cmd":["/bin/sh","-c","exec /app"]}"#,
            vec![("/bin/sh", own.clone()), ("/app", other.clone())],
            Some("/app"),
        ),
        (
            r#"{"Cmd":["/bin/sh","-c","/app"]}"#,
            vec![("/bin/sh", other.clone()), ("/app", own.clone())],
            Some("/bin/sh"),
        ),
        (
            r#"{"Entrypoint":["tini","--"],"Cmd":["/app"]}"#,
            vec![("/sbin/tini", own.clone()), ("/app", other.clone())],
            Some("/app"),
        ),
        (
            r#"{"Entrypoint":["/entry"],"Cmd":["app"]}"#,
            vec![("/entry", script("/bin/sh")), ("/bin/sh", own.clone()), ("/bin/app", other.clone())],
            Some("/bin/app"),
        ),
        (
            r#"{"Entrypoint":["/sbin/tini","--","/entry"],"Cmd":["/app"]}"#,
            vec![("/sbin/tini", own.clone()), ("/entry", script("/bin/sh -e")), ("/app", other.clone())],
            Some("/app"),
        ),
        (
            r#"{"Cmd":["/run"]}"#,
            vec![
                ("/run", script("/usr/bin/env python3")),
                ("/usr/bin/env", own.clone()),
                ("/usr/bin/python3", other.clone()),
            ],
            Some("/usr/bin/python3"),
        ),
        // A script that names itself.
        (r#"{"Cmd":["/run"]}"#, vec![("/run", script("/run"))], None),
        (r#"{"Cmd":["/run"]}"#, vec![("/run", b"#!".to_vec())], None),
        // Nothing to start: its shell tells.
        ("{}", vec![("/bin/sh", other.clone())], Some("/bin/sh")),
        ("{}", vec![("/data", other.clone())], None),
        (
            r#"{"Cmd":["/app"]}"#,
            vec![("/app", elf(ARM64, Some(("/lib/ld.so", 900_000)))), ("/lib/ld.so", other.clone())],
            Some("/lib/ld.so"),
        ),
    ] {
        assert_eq!(foreign(config, &image).as_deref(), expected, "{config}");
    }
    let windows: Config = serde_json::from_str(r#"{"os":"windows","config":{"Cmd":["/app"]}}"#).unwrap();
    assert_eq!(looked(&windows, "windows/amd64", &[], &[("/app", own)]).1, Files::new());
}

#[test]
fn an_interpreter_that_is_missing_is_told() {
    for at in [120, 5000, 900_000, 2 << 20] {
        let image = [("/app", elf(ARM64, Some(("/lib/ld-musl.so.1", at))))];
        let (verdict, _) = looked(&config(r#"{"Cmd":["/app"]}"#), "linux/arm64", &[], &image);
        let missing = (at < MOST).then(|| ("/lib/ld-musl.so.1".to_owned(), "/app".to_owned()));
        assert_eq!(verdict, Verdict { missing, ..Verdict::default() }, "at {at}");
    }
}

#[test]
fn a_script_with_line_ends_as_on_windows_is_told() {
    for (script, expected) in [
        ("#!/bin/sh\r\nexec \"$@\"\r\n", Some("/entry.sh")),
        ("#!/usr/bin/env -S python3 -u\r\n", Some("/entry.sh")),
        ("#!/bin/sh\nprintf '\r\n'\n", None),
        // It may go on where nothing was read.
        ("#!/bin/sh\r", None),
    ] {
        let image = [("/entry.sh", script.as_bytes().to_vec()), ("/bin/sh", elf(ARM64, None))];
        let (verdict, _) =
            looked(&config(r#"{"Entrypoint":["/entry.sh"],"Cmd":["/app"]}"#), "linux/arm64", &[], &image);
        assert_eq!(verdict.windows_lines.as_deref(), expected, "{script:?}");
    }
}

#[test]
fn what_is_permitted_may_be_foreign() {
    let image = [("/app", elf(AMD64, None))];
    let cmd = config(r#"{"Cmd":["/app"]}"#);
    assert_eq!(looked(&cmd, "linux/arm64", &["/app"], &image).0, Verdict::default());
    assert!(looked(&cmd, "linux/arm64", &["/ap"], &image).0.foreign.is_some());
}

#[test]
fn whose_program_it_is() {
    for (machine, class, platform, found) in [
        (AMD64, 2, "linux/arm64", Some("amd64")),
        (ARM64, 2, "linux/arm64", None),
        (ARM64, 2, "linux/arm64/v8", None),
        (40, 1, "linux/arm/v7", None),
        (40, 1, "linux/arm64", None),
        (3, 1, "linux/amd64", None),
        (AMD64, 2, "linux/386", Some("amd64")),
        (243, 2, "linux/riscv64", None),
        (9999, 2, "linux/arm64", None),
    ] {
        let mut file = elf(machine, None);
        file[4] = class;
        let (verdict, _) = looked(&config(r#"{"Cmd":["/app"]}"#), platform, &[], &[("/app", file)]);
        assert_eq!(verdict.foreign.map(|foreign| foreign.found), found, "{machine} for {platform}");
    }
}

proptest! {
    /// Whatever an image holds, a look ends within its bounds.
    #[test]
    fn any_image_is_looked_at(
        entrypoint in proptest::collection::vec("(/bin/)?[a-z]{1,2}|sh|-c|env|.{0,9}", 0..4),
        contents in proptest::collection::vec(("(/bin/|/usr/bin/|/)[a-z]{1,2}", prop_oneof![
            any::<Vec<u8>>(),
            "#!.{0,20}".prop_map(String::into_bytes),
            (any::<u64>(), any::<u64>(), any::<u64>()).prop_map(|(table, from, length)| {
                let mut file = elf(ARM64, Some(("/lib/x", 120)));
                file[32..40].copy_from_slice(&(table % 200).to_le_bytes());
                file[72..80].copy_from_slice(&from.to_le_bytes());
                file[96..104].copy_from_slice(&length.to_le_bytes());
                file
            }),
        ]), 0..8),
    ) {
        let config = config(&serde_json::json!({"Entrypoint": entrypoint, "Cmd": ["a"]}).to_string());
        let image: Vec<(&str, Vec<u8>)> = contents.iter().map(|(path, bytes)| (path.as_str(), bytes.clone())).collect();
        let (_, files) = looked(&config, "linux/arm64", &[], &image);
        prop_assert!(files.len() <= MOST_FILES);
        prop_assert!(files.values().all(|read| read.asked <= MOST));
    }
}
