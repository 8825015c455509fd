//! Git servers over smart HTTP and ssh, as far as the operator needs them: which commit a ref names
//! (<https://git-scm.com/docs/gitprotocol-http>, <https://git-scm.com/docs/gitprotocol-v2>).

mod advertisement;
mod credential;
mod error;
mod known_hosts;
mod refname;
mod resolve;
mod ssh;
#[cfg(test)]
mod wire_tests;

pub(crate) use advertisement::read as read_answer;
pub use credential::{BasicAuth, GitCredential, SecretError, SshKey};
pub use error::{Error, ErrorKind};
pub(crate) use known_hosts::keys as known_keys;
pub use resolve::{Resolved, resolve};
