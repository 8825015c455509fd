//! On which architecture's builder a platform is built, and how its RUN steps are run there; pure.

use std::collections::BTreeSet;

use kiln_crds::image_build_run::Execution;
use kiln_crds::{BuilderPool, Platform};

use crate::builder::node::NodeFacts;

/// Where a platform is built.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Placement {
    /// The builder's architecture, as in the node label `kubernetes.io/arch`.
    pub architecture: String,
    /// How RUN steps of the platform are run there.
    pub execution: Execution,
}

/// What a platform asks for.
#[derive(Clone, Copy, Debug)]
pub struct Wish<'a> {
    /// The platform.
    pub platform: &'a Platform,
    /// What `buildOn` names.
    pub build_on: Option<&'a Platform>,
    /// Whether a builder has found that its steps run programs.
    pub needs_node: bool,
}

/// What a pool has to build on.
#[derive(Clone, Debug, Default)]
pub struct Available<'a> {
    /// Architectures of the nodes that the pool may use.
    pub nodes: BTreeSet<&'a str>,
    /// Architectures that the pool is limited to.
    pub limited_to: Option<&'a [String]>,
    /// Whether the pool allows emulation.
    pub emulation: bool,
    /// Architecture of each builder that has described itself, and the platforms that it can run, emulated ones too.
    pub described: Vec<(&'a str, Vec<Platform>)>,
}

impl<'a> Available<'a> {
    /// What a pool has, by its spec, its status, and the cluster's nodes.
    #[must_use]
    pub fn of(pool: &'a BuilderPool, nodes: &'a [NodeFacts]) -> Self {
        let selector = pool.spec.template.as_ref().map(|template| &template.node_selector);
        let usable = nodes.iter().filter(|node| selector.is_none_or(|selector| node.matches(selector)));
        let builders = pool.status.iter().flat_map(|status| &status.builders);
        let described = builders.filter(|builder| builder.buildkit.is_some()).map(|builder| {
            let platforms = builder.platforms.iter().chain(&builder.emulated_platforms);
            (builder.architecture.as_str(), platforms.filter_map(|name| name.parse().ok()).collect())
        });
        Self {
            nodes: usable.map(|node| node.architecture.as_str()).collect(),
            limited_to: pool.spec.architectures.as_deref(),
            emulation: pool.spec.allow.as_ref().and_then(|allow| allow.emulation).unwrap_or(false),
            described: described.collect(),
        }
    }

    fn may_use(&self, architecture: &str) -> bool {
        self.limited_to.is_none_or(|named| named.iter().any(|named| named == architecture))
    }

    fn has(&self, architecture: &str) -> bool {
        self.may_use(architecture) && self.nodes.contains(architecture)
    }

    /// Whether builders of an architecture run a platform. `None`: none of them has said so yet.
    fn runs(&self, architecture: &str, platform: &Platform) -> Option<bool> {
        let mut known = None;
        for (_, platforms) in self.described.iter().filter(|(of, _)| *of == architecture) {
            known = Some(known.unwrap_or(false) || platforms.contains(platform));
        }
        known
    }

    /// The architectures with nodes, the most common ones first.
    fn present(&self) -> Vec<&'a str> {
        let mut present: Vec<&str> = self.nodes.iter().copied().filter(|name| self.may_use(name)).collect();
        present.sort_by_key(|name| (*name != "amd64", *name != "arm64", *name));
        present
    }
}

/// Why a platform cannot be built in a pool at all.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Impossible {
    /// The pool has no nodes of this architecture, and does not emulate.
    #[error(
        "its steps run programs, and the pool builds on {on} only: cross-compile it with platforms[].buildOn and \
         FROM --platform=$BUILDPLATFORM, name another pool, or let its owner set allow.emulation"
    )]
    NotServed {
        /// The pool's architectures.
        on: String,
    },
    /// The pool emulates, and no node of it has a handler for this platform.
    #[error(
        "its steps run programs, and no node of the pool has an emulator for it: install handlers (the chart's \
         emulation.enabled), or cross-compile it with platforms[].buildOn and FROM --platform=$BUILDPLATFORM"
    )]
    NoHandler,
}

/// Decides.
///
/// A native node goes before everything. Where none is there, a platform is emulated if the pool allows that; else any
/// builder tries it, which is enough for stages that only copy files, and says so before it builds anything if it is not.
/// Then the platform waits for a node, which an autoscaler may bring.
pub fn placement(wish: Wish<'_>, available: &Available<'_>) -> Result<Placement, Impossible> {
    let Wish { platform, build_on, needs_node } = wish;
    let at = |architecture: &str, execution| Placement { architecture: architecture.to_owned(), execution };
    let own = platform.architecture.as_str();
    if let Some(build_on) = build_on {
        let on = build_on.node_architecture();
        let native = natives(platform).any(|native| native == on);
        return Ok(at(on, if native { Execution::Native } else { Execution::Cross }));
    }
    let is_linux = platform.os == "linux";
    let native = natives(platform)
        .filter(|native| available.has(native))
        .find(|native| *native == own || available.runs(native, platform) != Some(false));
    if let Some(native) = native.filter(|_| is_linux) {
        return Ok(at(native, Execution::Native));
    }
    let present = available.present();
    let named = available.limited_to.is_some() && available.may_use(own);
    let Some(first) = present.first().filter(|_| !named || !is_linux) else {
        return Ok(at(own, Execution::Native));
    };
    let emulating = present
        .iter()
        .find(|present| available.runs(present, platform) == Some(true))
        .or_else(|| present.iter().find(|present| available.runs(present, platform).is_none()));
    if let Some(emulating) = emulating.filter(|_| available.emulation && is_linux) {
        return Ok(at(emulating, Execution::Emulated));
    }
    if !needs_node {
        return Ok(at(first, Execution::CopyOnly));
    }
    if available.may_use(own) {
        return Ok(at(own, Execution::Native));
    }
    Err(if available.emulation {
        Impossible::NoHandler
    } else {
        Impossible::NotServed { on: available.limited_to.unwrap_or_default().join(", ") }
    })
}

/// The architectures whose nodes run a platform by themselves, its own first. Not every arm64 processor runs 32-bit programs:
/// its builders tell.
fn natives(platform: &Platform) -> impl Iterator<Item = &str> {
    let wider = match platform.architecture.as_str() {
        "386" => Some("amd64"),
        "arm" => Some("arm64"),
        _ => None,
    };
    std::iter::once(platform.architecture.as_str()).chain(wider)
}

#[cfg(test)]
mod tests {
    use super::*;
    use Execution::{CopyOnly, Cross, Emulated, Native};

    fn decide(
        platform: &str,
        build_on: Option<&str>,
        needs_node: bool,
        available: &Available<'_>,
    ) -> Result<(String, Execution), Impossible> {
        let platform: Platform = platform.parse().unwrap();
        let build_on: Option<Platform> = build_on.map(|name| name.parse().unwrap());
        let wish = Wish { platform: &platform, build_on: build_on.as_ref(), needs_node };
        placement(wish, available).map(|placement| (placement.architecture, placement.execution))
    }

    fn both() -> Available<'static> {
        Available { nodes: ["arm64", "amd64"].into(), ..Available::default() }
    }

    #[test]
    fn a_native_node_goes_before_everything() {
        for (platform, on) in [
            ("linux/amd64", "amd64"),
            ("linux/amd64/v3", "amd64"),
            ("linux/arm64", "arm64"),
            ("linux/386", "amd64"),
            ("linux/arm/v7", "arm64"),
        ] {
            let emulating = Available { emulation: true, ..both() };
            assert_eq!(decide(platform, None, false, &emulating), Ok((on.into(), Native)), "{platform}");
        }
    }

    #[test]
    fn a_platform_without_a_node() {
        let riscv = |emulation, needs_node, described: &[(&'static str, &[&str])], limited_to: Option<&[String]>| {
            let described = described
                .iter()
                .map(|(architecture, names)| (*architecture, names.iter().map(|name| name.parse().unwrap()).collect()))
                .collect();
            let available = Available { limited_to, emulation, described, ..both() };
            decide("linux/riscv64", None, needs_node, &available)
        };
        let amd64 = |execution| Ok(("amd64".to_owned(), execution));
        let waits = Ok(("riscv64".to_owned(), Native));
        let not: &[(&str, &[&str])] = &[("amd64", &["linux/amd64"]), ("arm64", &["linux/arm64"])];
        let arm_can: &[(&str, &[&str])] = &[("amd64", &["linux/amd64"]), ("arm64", &["linux/arm64", "linux/riscv64"])];
        // Any builder tries first; what runs programs waits for a node.
        assert_eq!(riscv(false, false, &[], None), amd64(CopyOnly));
        assert_eq!(riscv(false, true, &[], None), waits);
        // Emulation, where a builder can or may be able to.
        assert_eq!(riscv(true, false, &[], None), amd64(Emulated));
        assert_eq!(riscv(true, false, arm_can, None), Ok(("arm64".to_owned(), Emulated)));
        assert_eq!(riscv(true, false, not, None), amd64(CopyOnly));
        assert_eq!(riscv(true, true, not, None), waits);
        // A pool that names the architecture has such nodes, now or later.
        let named = ["amd64".to_owned(), "riscv64".to_owned()];
        assert_eq!(riscv(true, false, &[], Some(&named)), waits);
        // One that names others never will.
        let others = ["amd64".to_owned()];
        assert_eq!(riscv(false, false, &[], Some(&others)), amd64(CopyOnly));
        assert_eq!(riscv(false, true, &[], Some(&others)), Err(Impossible::NotServed { on: "amd64".into() }));
        assert_eq!(riscv(true, true, not, Some(&others)), Err(Impossible::NoHandler));
    }

    #[test]
    fn build_on_and_what_is_not_linux() {
        assert_eq!(decide("linux/arm64", Some("linux/amd64"), false, &both()), Ok(("amd64".into(), Cross)));
        assert_eq!(decide("linux/386", Some("linux/amd64"), false, &both()), Ok(("amd64".into(), Native)));
        assert_eq!(decide("windows/amd64", None, false, &both()), Ok(("amd64".into(), CopyOnly)));
        // No node at all yet.
        assert_eq!(decide("linux/arm64", None, false, &Available::default()), Ok(("arm64".into(), Native)));
    }

    #[test]
    fn a_builder_that_cannot_run_32_bit_programs_is_not_asked_to() {
        let described = vec![("arm64", vec!["linux/arm64".parse().unwrap()])];
        let available = Available { described, ..both() };
        assert_eq!(decide("linux/arm/v7", None, false, &available), Ok(("amd64".into(), CopyOnly)));
        assert_eq!(decide("linux/arm/v7", None, true, &available), Ok(("arm".into(), Native)));
    }
}
