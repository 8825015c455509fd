//! Whether the program that an image starts is one for its platform.
//!
//! BuildKit writes the target's architecture into an image whatever is in it. On a node of that architecture a wrong
//! program fails in its first RUN step; where nothing ran, or an emulator or a cross-compiler was at work, only its
//! header tells: <https://refspecs.linuxfoundation.org/elf/gabi4+/ch4.eheader.html>.

use std::path::PathBuf;

use super::content::Config;
use crate::files;

/// Where programs are sought that are named without a directory, unless the image says so itself.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The most directories that are looked through.
const MOST_DIRECTORIES: usize = 16;

/// The program that an image starts.
#[derive(Debug, PartialEq, Eq)]
pub struct Program {
    name: String,
    /// Where it may lie, the first that exists counts.
    paths: Vec<String>,
}

impl Program {
    /// What `config` names in ENTRYPOINT, or else in CMD. None: it names nothing that can be looked for.
    #[must_use]
    pub fn of(config: &Config) -> Option<Self> {
        let run = config.config.as_ref()?;
        let first = |words: &Option<Vec<String>>| words.iter().flatten().next().cloned();
        let name = first(&run.entrypoint).or_else(|| first(&run.cmd))?;
        // Written into a Dockerfile below; a file with such a name is no program that anybody starts.
        let is_plain = |text: &str| text.chars().all(|char| char.is_ascii_alphanumeric() || "/._+-@:".contains(char));
        if config.os != "linux" || name.is_empty() || !is_plain(&name) {
            return None;
        }
        let paths: Vec<String> = if name.starts_with('/') {
            vec![name.clone()]
        } else if name.contains('/') {
            vec![format!("{}/{name}", run.working_dir.trim_end_matches('/'))]
        } else {
            let path = run.env.iter().flatten().find_map(|variable| variable.strip_prefix("PATH=")).unwrap_or(PATH);
            let directories = path.split(':').filter(|directory| directory.starts_with('/') && is_plain(directory));
            directories
                .take(MOST_DIRECTORIES)
                .map(|directory| format!("{}/{name}", directory.trim_end_matches('/')))
                .collect()
        };
        (!paths.is_empty() && paths.iter().all(|path| is_plain(path))).then_some(Self { name, paths })
    }

    /// Where it may lie, the first that exists counts.
    #[must_use]
    pub fn paths(&self) -> &[String] {
        &self.paths
    }

    /// What is wrong with the program, which was taken out to the first of `files` that exists.
    #[must_use]
    pub fn check(&self, files: &[PathBuf], platform: &str) -> Option<String> {
        let header = files.iter().find_map(|file| files::read(file, 20).ok())?;
        let found = architecture(&header)?;
        let wanted = platform.split('/').nth(1).unwrap_or_default();
        (!is_for(found, wanted)).then(|| {
            format!(
                "{}, which the image starts, is a program for {found}, but the image is for {platform}; take the base image and the files of the final stage for the target (FROM without --platform=$BUILDPLATFORM), and compile for $TARGETARCH",
                self.name
            )
        })
    }
}

/// A Dockerfile that takes the file `path` out of the context `image`, as `program`. BuildKit follows links on the way.
#[must_use]
pub fn dockerfile(path: &str) -> String {
    format!("FROM scratch\nCOPY --from=image {path} /program\n")
}

/// The architecture of an ELF file, by its name in an OCI platform. None: it is no ELF file, or of an unknown one.
fn architecture(header: &[u8]) -> Option<&'static str> {
    let (magic, rest) = header.split_at_checked(4)?;
    if magic != b"\x7fELF" {
        return None;
    }
    let (is_64, is_little, machine) = (rest.first()? == &2, rest.get(1)? == &1, header.get(18..20)?.try_into().ok()?);
    let machine = if is_little { u16::from_le_bytes(machine) } else { u16::from_be_bytes(machine) };
    match (machine, is_64, is_little) {
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

/// Whether a machine of the architecture `wanted` runs programs for `found`: the older ones of its family too.
fn is_for(found: &str, wanted: &str) -> bool {
    let wanted = match wanted {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "armhf" => "arm",
        wanted => wanted,
    };
    found == wanted || matches!((found, wanted), ("386", "amd64") | ("arm", "arm64"))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;

    use super::*;

    fn config(json: &str) -> Config {
        serde_json::from_str(&format!(r#"{{"os":"linux","architecture":"arm64","config":{json}}}"#)).unwrap()
    }

    fn elf(machine: u16, class: u8) -> Vec<u8> {
        let mut header = vec![0x7f, b'E', b'L', b'F', class, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0];
        header.extend(machine.to_le_bytes());
        header
    }

    #[test]
    fn what_an_image_starts() {
        let cases = [
            (r#"{"Entrypoint":["/app"],"Cmd":["x"]}"#, Some(vec!["/app"])),
            (r#"{"Cmd":["app"],"Env":["PATH=/a:relative:/b/"]}"#, Some(vec!["/a/app", "/b/app"])),
            (r#"{"Cmd":["./app"],"WorkingDir":"/w/"}"#, Some(vec!["/w/./app"])),
            (r#"{"Cmd":["/bin/sh","-c","x"]}"#, Some(vec!["/bin/sh"])),
            (r#"{"Cmd":["/a b"]}"#, None),
            (r#"{"Cmd":["*"]}"#, None),
            ("{}", None),
            (r#"{"Cmd":[]}"#, None),
        ];
        for (json, expected) in cases {
            let paths = Program::of(&config(json)).map(|program| program.paths);
            let expected = expected.map(|paths| paths.into_iter().map(str::to_owned).collect::<Vec<_>>());
            assert_eq!(paths, expected, "{json}");
        }
    }

    #[test]
    fn whose_program_it_is() {
        let root = tempfile::tempdir().unwrap();
        let program = Program::of(&config(r#"{"Cmd":["app"],"Env":["PATH=/a:/b"]}"#)).unwrap();
        let files = [root.path().join("0"), root.path().join("1")];
        assert_eq!(program.check(&files, "linux/arm64"), None, "a missing file is somebody else's matter");
        let file = root.path().join("1");
        for (content, platform, is_wrong) in [
            (elf(62, 2), "linux/arm64", true),
            (elf(183, 2), "linux/arm64", false),
            (elf(183, 2), "linux/arm64/v8", false),
            (elf(40, 1), "linux/arm/v7", false),
            (elf(40, 1), "linux/arm64", false),
            (elf(3, 1), "linux/amd64", false),
            (elf(62, 2), "linux/386", true),
            (elf(243, 2), "linux/riscv64", false),
            (b"#!/bin/sh\n".to_vec(), "linux/arm64", false),
            (Vec::new(), "linux/arm64", false),
        ] {
            fs::write(&file, content).unwrap();
            assert_eq!(program.check(&files, platform).is_some(), is_wrong, "{platform}");
        }
        // The first in PATH counts.
        fs::write(root.path().join("0"), elf(62, 2)).unwrap();
        fs::write(&file, elf(183, 2)).unwrap();
        assert!(program.check(&files, "linux/arm64").unwrap().contains("is a program for amd64"));
    }

    proptest! {
        #[test]
        fn any_header_is_read(header in any::<Vec<u8>>()) {
            architecture(&header);
        }
    }
}
