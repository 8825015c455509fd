//! Git servers over smart HTTP, as far as the operator needs them: which commit a ref names
//! (<https://git-scm.com/docs/gitprotocol-http>, <https://git-scm.com/docs/gitprotocol-v2>).

mod advertisement;
mod error;
mod refname;
mod resolve;
mod url;
#[cfg(test)]
mod wire_tests;

pub use error::{Error, ErrorKind};
pub use resolve::{BasicAuth, Resolved, SecretError, resolve};
pub use url::{GitUrl, UrlError};
