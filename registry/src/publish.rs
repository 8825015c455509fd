//! Pushing an index and moving its tags, so that a tag never points at an incomplete index and an older run never
//! overwrites a newer one's tag.

use std::future::Future;

use oci_spec::image::{Descriptor, Digest};

use super::client::Client;
use super::error::{Error, ErrorKind};
use super::index::IndexBytes;
use super::reference::{Identifier, Repository, Tag};

/// How often tags that someone else moved meanwhile are put right.
const ROUNDS: usize = 3;

/// How a publication ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PublishOutcome {
    /// The registry has answered for the index and every tag.
    Published,
    /// A newer run, or another leader, has taken over; the tags are its to move.
    Superseded,
}

/// Pushes `index` by digest, then makes each of `tags` point at it.
///
/// Before each look at a tag `still_newest` is asked; the tag is left alone once it says no. A tag that is right
/// already is not written. After the last tag all are looked at again, and what differs is put right, at most three
/// times ([`ErrorKind::TagContended`] then). Each time that a tag is right, `moved` is told, with what it pointed at before.
pub async fn publish<F, Fut>(
    client: &Client,
    repository: &Repository,
    index: &IndexBytes,
    tags: &[Tag],
    still_newest: F,
    moved: impl Fn(&Tag, Option<&Digest>) + Send + Sync,
) -> Result<PublishOutcome, Error>
where
    F: Fn() -> Fut + Send + Sync,
    Fut: Future<Output = bool> + Send,
{
    let by_digest = Identifier::from(index.digest.clone());
    client.put_manifest(repository, &by_digest, &index.media_type, index.bytes.clone()).await?;
    for _ in 0..=ROUNDS {
        let mut written = false;
        for tag in tags {
            if !still_newest().await {
                return Ok(PublishOutcome::Superseded);
            }
            let by_tag = Identifier::from(tag.clone());
            let there = client.head_manifest(repository, &by_tag).await?;
            let there = there.as_ref().map(Descriptor::digest);
            if there != Some(&index.digest) {
                client.put_manifest(repository, &by_tag, &index.media_type, index.bytes.clone()).await?;
                written = true;
            }
            moved(tag, there);
        }
        if !written {
            return Ok(PublishOutcome::Published);
        }
    }
    Err(client.attempt(repository, "move the tags of").fail(
        ErrorKind::TagContended,
        "something else keeps moving the same tags: let only one ImageBuild or pipeline push them",
    ))
}
