//! OCI platform strings, such as `linux/arm64`, normalised as containerd does.

use std::fmt;
use std::str::FromStr;

/// A normalised OCI platform.
///
/// The text form is `os[(os.version)]/architecture[/variant]`; see
/// <https://github.com/opencontainers/image-spec/blob/main/image-index.md> for what the parts mean and
/// <https://pkg.go.dev/github.com/containerd/platforms> for the text.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Platform {
    /// Such as `linux`.
    pub os: String,
    /// Such as `10.0.20348`, for Windows.
    pub os_version: Option<String>,
    /// In Go's spelling, such as `amd64`.
    pub architecture: String,
    /// Such as `v7`; never the architecture's default variant.
    pub variant: Option<String>,
}

/// Why a text is no platform.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{text:?} is not a platform: write os/architecture or os/architecture/variant, such as linux/amd64")]
pub struct InvalidPlatform {
    /// What was written.
    pub text: String,
}

impl FromStr for Platform {
    type Err = InvalidPlatform;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidPlatform { text: text.to_owned() };
        let parts: Vec<&str> = text.split('/').collect();
        let (os, architecture, variant) = match parts[..] {
            [os, architecture] => (os, architecture, None),
            [os, architecture, variant] => (os, architecture, Some(variant)),
            _ => return Err(invalid()),
        };
        let (os, os_version) = match os.split_once('(') {
            Some((os, rest)) => (os, Some(rest.strip_suffix(')').ok_or_else(invalid)?)),
            None => (os, None),
        };
        let word = |text: &str| {
            !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'))
        };
        if ![Some(os), os_version, Some(architecture), variant].into_iter().flatten().all(word) {
            return Err(invalid());
        }
        let os = match os.to_ascii_lowercase().as_str() {
            "macos" => "darwin".to_owned(),
            other => other.to_owned(),
        };
        let (architecture, variant) =
            normalise(&architecture.to_ascii_lowercase(), variant.map(str::to_ascii_lowercase).as_deref());
        Ok(Self { os, os_version: os_version.map(str::to_owned), architecture, variant })
    }
}

/// The usual aliases, and the variants that are an architecture's default, as in containerd's `normalizeArch`.
fn normalise(architecture: &str, variant: Option<&str>) -> (String, Option<String>) {
    let (architecture, variant) = match (architecture, variant) {
        ("i386" | "i486" | "i586" | "i686" | "x86", _) => ("386", None),
        ("x86_64" | "x86-64" | "amd64", None | Some("v1")) => ("amd64", None),
        ("x86_64" | "x86-64" | "amd64", variant) => ("amd64", variant),
        ("aarch64" | "arm64", None | Some("8" | "v8")) => ("arm64", None),
        ("aarch64" | "arm64", variant) => ("arm64", variant),
        ("armhf", _) | ("arm", None | Some("7" | "v7")) => ("arm", Some("v7")),
        ("armel", _) | ("arm", Some("6")) => ("arm", Some("v6")),
        ("arm", Some("5")) => ("arm", Some("v5")),
        ("arm", Some("8")) => ("arm", Some("v8")),
        other => other,
    };
    (architecture.to_owned(), variant.map(str::to_owned))
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { os, os_version, architecture, variant } = self;
        f.write_str(os)?;
        if let Some(version) = os_version {
            write!(f, "({version})")?;
        }
        write!(f, "/{architecture}")?;
        if let Some(variant) = variant {
            write!(f, "/{variant}")?;
        }
        Ok(())
    }
}

/// The architectures that an image can be made for, as Go calls them: <https://go.dev/doc/install/source#environment>.
pub const ARCHITECTURES: [&str; 13] = [
    "386", "amd64", "arm", "arm64", "loong64", "mips", "mips64", "mips64le", "mipsle", "ppc64", "ppc64le", "riscv64",
    "s390x",
];

impl Platform {
    /// Whether there is such an architecture, and such a variant of it where the variants are known.
    #[must_use]
    pub fn is_known(&self) -> bool {
        let known: &[&str] = match self.architecture.as_str() {
            "arm" => &["v5", "v6", "v7", "v8"],
            "amd64" => &["v2", "v3", "v4"],
            other => return ARCHITECTURES.contains(&other),
        };
        self.variant.as_deref().is_none_or(|variant| known.contains(&variant))
    }

    /// The value of the node label `kubernetes.io/arch` on which this platform runs natively.
    #[must_use]
    pub fn node_architecture(&self) -> &str {
        &self.architecture
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_there_is_no_machine_for() {
        let known = |text: &str| text.parse::<Platform>().unwrap().is_known();
        for text in ["linux/amd64", "linux/x86_64/v3", "linux/arm", "linux/armel", "linux/arm64/v9", "linux/riscv64"] {
            assert!(known(text), "{text}");
        }
        for text in ["linux/amd46", "linux/x64", "linux/arm/v9", "linux/amd64/v7", "linux/arm46"] {
            assert!(!known(text), "{text}");
        }
    }

    #[test]
    fn aliases_and_default_variants_are_normalised() {
        for (text, expected) in [
            ("linux/amd64", "linux/amd64"),
            ("linux/x86_64", "linux/amd64"),
            ("linux/amd64/v1", "linux/amd64"),
            ("linux/amd64/v3", "linux/amd64/v3"),
            ("linux/aarch64", "linux/arm64"),
            ("linux/arm64/v8", "linux/arm64"),
            ("Linux/ARM64", "linux/arm64"),
            ("linux/armhf", "linux/arm/v7"),
            ("linux/arm", "linux/arm/v7"),
            ("linux/arm/6", "linux/arm/v6"),
            ("linux/i686", "linux/386"),
            ("linux/riscv64", "linux/riscv64"),
            ("windows(10.0.20348)/amd64", "windows(10.0.20348)/amd64"),
        ] {
            assert_eq!(text.parse::<Platform>().unwrap().to_string(), expected, "{text}");
        }
    }

    #[test]
    fn what_is_no_platform_is_refused() {
        for text in ["", "linux", "linux/", "/amd64", "linux/a/b/c", "linux/amd 64", "windows(10/amd64", "a(b)c/d"] {
            assert!(text.parse::<Platform>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn normalising_twice_changes_nothing(text in "[a-z]{1,6}(\\([0-9.]{1,8}\\))?/[a-z0-9_]{1,8}(/v?[0-9])?") {
            let once: Platform = text.parse().unwrap();
            let twice: Platform = once.to_string().parse().unwrap();
            prop_assert_eq!(once, twice);
        }

        #[test]
        fn parsing_never_panics(text in ".*") {
            let _ = text.parse::<Platform>();
        }
    }
}
