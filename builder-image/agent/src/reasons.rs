//! Every reason for which a job can fail, and whose matter it is.
//!
//! A reason's name is part of Kiln's API: it stands in statuses and Events, so it never changes its meaning.

use std::fmt;

use kiln_agent_proto::{Warning, failure::Class};

use crate::job::excerpt::Excerpt;

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident: $class:ident,)*) => {
        /// Why a job failed.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Reason {
            $($(#[$doc])* $name,)*
        }

        impl Reason {
            /// Whose matter it is, and so whether trying again may help.
            #[must_use]
            pub fn class(self) -> Class {
                match self {
                    $(Self::$name => Class::$class,)*
                }
            }

            /// The name as it stands in statuses and Events.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($name),)*
                }
            }
        }
    };
}

reasons! {
    /// The job itself breaks a rule: a path that leaves the source, a URL that is not https.
    InvalidJob: User,
    /// The repository has no Dockerfile where the build says.
    DockerfileNotFound: User,
    /// The repository has no directory where the build says.
    ContextNotFound: User,
    /// The Git server asks for a credential or refuses the one it got.
    GitUnauthorized: Credential,
    /// The Git server knows no such repository, or hides it from this credential.
    GitRepositoryNotFound: User,
    /// The commit or its ref is gone from the repository.
    GitRefNotFound: User,
    /// The Git server cannot be reached or is in trouble.
    GitUnavailable: Infrastructure,
    /// The Git server's certificate is not signed by a trusted CA.
    GitCertificateUntrusted: User,
    /// The Git server's address, or one it redirects to, is one that builds may not reach.
    AddressForbidden: User,
    /// What the Git server sends, or what the commit holds, is more than a builder takes.
    GitRepositoryTooLarge: User,
    /// The repository holds what no Git writes and what could be written to elsewhere than its own directory.
    GitTreeRefused: User,
    /// The pool wants sources to be handled in a sandbox, and the builder's node has none.
    SourceSandboxMissing: User,
    /// The ssh server's key is not in `known_hosts`, or is another one than there.
    GitHostKeyUnknown: Credential,
    /// The server has no files of Git LFS, or not those that the commit names.
    GitLfsFailed: User,
    /// The tarball's or registry's server asks for a credential or refuses the one it got.
    SourceUnauthorized: Credential,
    /// There is no such tarball, image or artifact.
    SourceNotFound: User,
    /// The tarball, image or artifact cannot be fetched now.
    SourceDownloadFailed: Infrastructure,
    /// The certificate of the tarball's or registry's server is not to be trusted.
    SourceCertificateUntrusted: User,
    /// The tarball, image or artifact is more than a builder takes.
    SourceTooLarge: User,
    /// The tarball, image or artifact is damaged, or holds what cannot be unpacked safely.
    SourceInvalid: User,
    /// What the URL gives is not what the checksum says.
    ChecksumMismatch: User,
    /// Git failed in a way that none of the others names.
    GitFailed: Infrastructure,
    /// A RUN step ended with a status other than 0.
    StepFailed: User,
    /// The kernel killed a step that used more memory than it may.
    OutOfMemory: User,
    /// A step ran a program of another architecture.
    ExecFormatError: User,
    /// The Dockerfile has a syntax error.
    DockerfileInvalid: User,
    /// COPY, ADD or a mount names a file that the context, a stage or an image lacks.
    FileNotFound: User,
    /// A secret mount is required and its id is not in the build's `secrets`.
    SecretIdNotFound: User,
    /// The registry has no room for the image.
    QuotaExceeded: User,
    /// The registry, or a proxy before it, takes no layer of this size.
    UploadTooLarge: User,
    /// The registry does not take the image's media types.
    MediaTypesUnsupported: User,
    /// A file of an image belongs to a user or group that builders do not have.
    IdTooLarge: User,
    /// The stage to build is not in the Dockerfile.
    TargetNotFound: User,
    /// No such base image, or none for this platform.
    BaseImageNotFound: User,
    /// What the registry gave as base image is none, or lacks a part.
    BaseImageInvalid: User,
    /// The base image that the registry gave is of another platform than the build's.
    BaseImagePlatform: User,
    /// The image holds a program of another architecture than its platform's.
    WrongArchitecture: User,
    /// A warning: the image lacks the program that loads what it starts.
    MissingInterpreter: User,
    /// A warning: a Secret that the ImageBuild names holds no login that the build has use for.
    LoginUnused: User,
    /// The Dockerfile runs something for a platform that no node was sought for.
    NodeNeeded: User,
    /// The Dockerfile runs something for Windows, which no builder can.
    WindowsStep: User,
    /// A step needs a host that it cannot reach, or whose name nobody knows.
    StepNoNetwork: User,
    /// The Dockerfile's lint has a warning, and warnings are to fail the build.
    LintFailed: User,
    /// The build printed nothing for too long.
    NoOutput: User,
    /// An image's name in the Dockerfile or the build is not valid.
    ReferenceInvalid: User,
    /// A step needs a key for ssh and its id is not in the build's `ssh`.
    SshKeyNotFound: User,
    /// A key for ssh cannot be read.
    SshKeyInvalid: User,
    /// The tarball with an image is not there, or is none.
    ArchiveInvalid: User,
    /// This pool has no volume for archives.
    ArchivesUnavailable: User,
    /// The Dockerfile asks for what builders do not allow.
    NotAllowed: User,
    /// A registry refused to hand out a base image.
    RegistryUnauthorized: Credential,
    /// The registry does not make repositories by itself, and this one is not there.
    RepositoryNotFound: User,
    /// What ADD downloads cannot be reached.
    DownloadFailed: Infrastructure,
    /// The server that ADD downloads from asks for a credential or refuses the one it got.
    DownloadRefused: Credential,
    /// The certificate of the server that ADD downloads from is not signed by a trusted CA.
    DownloadCertificateUntrusted: User,
    /// A registry without tokens is shown one login in a build, and two of its repositories have different ones.
    RegistryLoginAmbiguous: Credential,
    /// A registry refused to take the image.
    PushDenied: Credential,
    /// A registry's certificate is not signed by a trusted CA.
    RegistryCertificateUntrusted: User,
    /// A registry cannot be reached, is in trouble, or asks to wait.
    RegistryUnavailable: Infrastructure,
    /// The builder's cache volume is full.
    NoSpaceLeft: Infrastructure,
    /// buildkitd does not answer.
    BuildkitUnavailable: Infrastructure,
    /// buildkitd was killed for want of memory, and several builds ran.
    BuilderOutOfMemory: Infrastructure,
    /// The build failed in a way that none of the others names.
    BuildFailed: User,
    /// The agent itself failed: a file it cannot write, a program it cannot start.
    AgentFailed: Infrastructure,
    /// The build took longer than its timeout.
    BuildTimeout: Timeout,
    /// The run was cancelled.
    Cancelled: Cancelled,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How a job failed, before secret values are masked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobFailure {
    /// Why.
    pub reason: Reason,
    /// What was attempted, on what, and what to do.
    pub message: String,
    /// The step that failed, such as `[build 2/4] RUN make`; may be empty.
    pub step: String,
    /// The Dockerfile that holds it; may be empty.
    pub dockerfile: String,
    /// Its line, from 1; 0: unknown.
    pub line: u32,
    /// The step's exit code.
    pub exit_code: Option<i32>,
    /// The last lines of the step's output.
    pub log_tail: Vec<String>,
    /// The lines of the Dockerfile around the one that failed.
    pub excerpt: Box<Excerpt>,
    /// What BuildKit's lint says of the Dockerfile.
    pub warnings: Vec<Warning>,
    /// Where buildkitd ended, and only the kubelet can know whether want of memory was the cause: whether no other build ran,
    /// so that it would be this one's.
    pub alone: Option<bool>,
}

impl JobFailure {
    /// A failure that has no step.
    #[must_use]
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
            step: String::new(),
            dockerfile: String::new(),
            line: 0,
            exit_code: None,
            log_tail: Vec::new(),
            excerpt: Box::default(),
            warnings: Vec::new(),
            alone: None,
        }
    }

    /// The agent could not do its own part: `what` it attempted, and the error.
    #[must_use]
    pub fn agent(what: impl fmt::Display, error: &dyn std::error::Error) -> Self {
        let error = crate::chain(error);
        let reason = if error.contains("No space left on device") { Reason::NoSpaceLeft } else { Reason::AgentFailed };
        Self::new(reason, format!("the builder could not {what}: {error}"))
    }
}
