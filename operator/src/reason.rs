//! The reasons in conditions, failures and Events: Kiln's interface to people and scripts, kept in one place.
//!
//! `docs/reasons.md` tells each one's cause and cure.

use std::fmt;

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        /// A stable CamelCase reason.
        #[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
        pub enum Reason {
            $($(#[doc = $doc])+ $name,)+
        }

        impl Reason {
            /// Every reason that the operator itself gives.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// The text in conditions, failures and Events.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($name),)+
                }
            }
        }
    };
}

reasons! {
    /// The image of the current input is pushed.
    Succeeded,
    /// A run waits for its builders.
    Pending,
    /// Builders work.
    Building,
    /// Index and tags are being pushed.
    Publishing,
    /// `spec.suspend` is set and no image has been built, or none of what is written now.
    Suspended,
    /// A run was made.
    RunCreated,
    /// A user stopped the run.
    Cancelled,
    /// A newer run took its place.
    Superseded,
    /// The image is larger than the last good one by more than `image.growthWarningPercent`.
    ImageGrew,

    /// The spec of an ImageBuild is larger than the operator works on.
    SpecTooLarge,
    /// A referenced Secret is not there.
    SecretNotFound,
    /// A referenced Secret lacks the keys that are needed.
    SecretInvalid,
    /// A referenced CA bundle is not there.
    CaNotFound,
    /// A referenced CA bundle is no PEM bundle.
    CaInvalid,
    /// No pool serves the namespace, or the named one does not exist.
    PoolNotFound,
    /// The named pool does not serve the namespace.
    PoolNotAllowed,
    /// The pool has no volume for archives.
    ArchivesNotConfigured,
    /// A platform is named twice, or is none that Kiln can build.
    PlatformInvalid,
    /// A platform's steps run programs, and the pool has neither nodes nor emulators for it.
    PlatformNotRunnable,
    /// The repository or a tag is not well formed.
    RepositoryInvalid,
    /// Another ImageBuild has the same tag of the same repository, or moves it now.
    TagConflict,
    /// Something else had moved a tag since Kiln did.
    TagMoved,
    /// A named image is not in its registry.
    ImageNotFound,
    /// A named index has no image for a platform.
    PlatformNotInIndex,
    /// An ImageBuild that is named as a context has no image yet.
    ContextNotReady,
    /// ImageBuilds name each other as contexts.
    ContextCycle,

    /// The Git URL cannot be used.
    GitUrlInvalid,
    /// The Git server refused the credential, or wants one.
    GitUnauthorized,
    /// There is no such Git repository.
    GitNotFound,
    /// There is no such branch, tag or commit.
    GitRefNotFound,
    /// The Git server cannot be reached, or fails.
    GitUnavailable,
    /// The Git server's certificate is not trusted.
    GitCertificateUntrusted,
    /// The Git server's ssh key is not known, or another one is.
    GitHostKeyUnknown,

    /// The registry refused the credential, or wants one.
    RegistryUnauthorized,
    /// The registry does not let this credential push there.
    PushDenied,
    /// The registry cannot be reached, or fails.
    RegistryUnavailable,
    /// The registry's certificate is not trusted.
    RegistryCertificateUntrusted,
    /// The registry's answer makes no sense.
    RegistryProtocol,
    /// The registry refuses to overwrite a tag.
    TagImmutable,
    /// The registry has no room for the image.
    QuotaExceeded,
    /// The registry does not take the image's manifest or index.
    MediaTypesUnsupported,
    /// The address is one that builds must not reach.
    AddressForbidden,

    /// No node can take a builder yet.
    WaitingForNode,
    /// A builder has been made and is coming up.
    WaitingForBuilder,
    /// Builders of this namespace are all at work.
    WaitingForCapacity,
    /// The API server does not let a builder be made.
    BuilderRejected,
    /// The API server could not be asked.
    ApiUnavailable,
    /// A `ResourceQuota` of the namespace lets no run be made.
    NamespaceQuotaExceeded,
    /// An admission policy of the cluster refuses a run or a status.
    AdmissionRefused,
    /// No node could take a builder within the pool's scheduling timeout.
    BuilderUnschedulable,
    /// The builder went away while it worked.
    BuilderLost,
    /// buildkitd does not answer, so no job is taken.
    BuildkitUnavailable,
    /// A build, alone on its builder, was killed for want of memory.
    OutOfMemory,
    /// A builder was killed for want of memory, and several builds were there.
    BuilderOutOfMemory,
    /// The run took longer than `spec.timeout`.
    BuildTimeout,
    /// The cluster does not support the security profile that the pool asks for.
    SecurityProfileUnsupported,
    /// Builders keep what handles other people's files in a sandbox.
    SourcesSandboxed,
    /// A builder's node cannot keep what handles other people's files in a sandbox.
    SourceSandboxMissing,
    /// A status that Kiln cannot have written was reset.
    StatusReset,
    /// A newer version of Kiln has written an object, and this one cannot read it.
    Unreadable,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Whether a failure with this reason, the operator's or an agent's, can be mended by changing a Secret, or what a CA is in.
#[must_use]
pub fn is_credential(reason: &str) -> bool {
    const OF_AGENTS_ALONE: &[&str] = &[
        "SourceUnauthorized",
        "SourceCertificateUntrusted",
        "RegistryLoginAmbiguous",
        "DownloadRefused",
        "DownloadCertificateUntrusted",
        // A server hides a repository from who may not read it.
        "GitRepositoryNotFound",
    ];
    const CREDENTIAL: &[Reason] = &[
        Reason::SecretNotFound,
        Reason::SecretInvalid,
        Reason::CaNotFound,
        Reason::CaInvalid,
        Reason::GitUnauthorized,
        Reason::GitNotFound,
        Reason::GitHostKeyUnknown,
        Reason::GitCertificateUntrusted,
        Reason::RegistryUnauthorized,
        Reason::RegistryCertificateUntrusted,
        Reason::PushDenied,
    ];
    OF_AGENTS_ALONE.contains(&reason) || CREDENTIAL.iter().any(|known| known.as_str() == reason)
}

/// Whether a run that has failed for this reason, the operator's or an agent's, was ended by the infrastructure, so that
/// another one may do better though nobody changes anything.
///
/// Not what another run meets again, at its neighbours' cost: a builder that was killed for want of memory, a volume that is
/// full. Nor what a pool's owner has bounded: the wait for a node.
#[must_use]
pub fn is_infrastructure(reason: &str) -> bool {
    const OF_AGENTS_ALONE: &[&str] = &["GitFailed", "SourceDownloadFailed", "DownloadFailed", "AgentFailed"];
    const INFRASTRUCTURE: &[Reason] =
        &[Reason::BuilderLost, Reason::BuildkitUnavailable, Reason::RegistryUnavailable, Reason::GitUnavailable];
    OF_AGENTS_ALONE.contains(&reason) || INFRASTRUCTURE.iter().any(|known| known.as_str() == reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_the_infrastructures_for_an_agent_is_so_for_the_operator() {
        let agents = include_str!("../../builder-image/agent/src/reasons.rs");
        let of_agents: Vec<&str> =
            agents.lines().filter_map(|line| line.trim().strip_suffix(": Infrastructure,")).collect();
        assert!(of_agents.len() > 7, "{of_agents:?}");
        for reason in of_agents {
            let left_out = ["BuilderOutOfMemory", "NoSpaceLeft"].contains(&reason);
            assert_eq!(is_infrastructure(reason), !left_out, "{reason}");
            assert!(!is_credential(reason), "{reason}");
        }
        for reason in ["StepFailed", "BuildTimeout", "BuilderUnschedulable", "Cancelled", "TagConflict", ""] {
            assert!(!is_infrastructure(reason), "{reason}");
        }
        assert!(is_infrastructure("BuilderLost"));
    }

    #[test]
    fn what_a_credential_mends_for_an_agent_it_mends_for_the_operator() {
        let agents = include_str!("../../builder-image/agent/src/reasons.rs");
        let mended: Vec<&str> = agents.lines().filter_map(|line| line.trim().strip_suffix(": Credential,")).collect();
        assert!(mended.len() > 4, "{mended:?}");
        for reason in mended {
            assert!(is_credential(reason), "{reason}");
        }
    }
}
