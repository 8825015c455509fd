//! Pushing an index and moving its tags, so that a tag never points at an incomplete index and an older run never
//! overwrites a newer one's tag.

use std::future::Future;
use std::time::Duration;

use oci_spec::image::{Descriptor, Digest};

use super::client::Client;
use super::error::{Error, ErrorKind};
use super::index::IndexBytes;
use super::reference::{Identifier, Repository, Tag};
use crate::http_client::TransportFailure;

/// How often tags that someone else moved meanwhile are put right.
const ROUNDS: usize = 3;
/// How long the write of a tag may take, the token for it included. What has no answer by then may still be done later.
pub const TAG_DEADLINE: Duration = Duration::from_secs(30);

/// How a publication ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PublishOutcome {
    /// The registry has answered for the index and every tag.
    Published,
    /// A newer run, or another leader, has taken over; the tags are its to move.
    Superseded,
}

/// What becomes of a tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step<'a> {
    /// Its write is about to be sent. Until another step is told, nobody knows whether it is done, or will be.
    Writing,
    /// The write was not done, and will not be.
    Refused,
    /// The tag points at the index. It pointed there before.
    Moved(Option<&'a Digest>),
}

/// Pushes `index` by digest, then makes each of `tags` point at it.
///
/// Before each look at a tag, and before each write, `still_newest` is asked; the tag is left alone once it says no. A tag
/// that is right already is not written. After the last tag all are looked at again, and what differs is put right, at most
/// three times ([`ErrorKind::TagContended`] then). Who is superseded once all have moved has come too late for that: they
/// are published. `told` hears of each step.
pub async fn publish<F, Fut>(
    client: &Client,
    repository: &Repository,
    index: &IndexBytes,
    tags: &[Tag],
    still_newest: F,
    told: impl Fn(&Tag, Step<'_>) + Send + Sync,
) -> Result<PublishOutcome, Error>
where
    F: Fn() -> Fut + Send + Sync,
    Fut: Future<Output = bool> + Send,
{
    let by_digest = Identifier::from(index.digest.clone());
    client.put_manifest(repository, &by_digest, &index.media_type, index.bytes.clone()).await?;
    for round in 0..=ROUNDS {
        let superseded = if round == 0 { PublishOutcome::Superseded } else { PublishOutcome::Published };
        let mut written = false;
        for tag in tags {
            if !still_newest().await {
                return Ok(superseded);
            }
            let there = client.head_manifest(repository, &tag.clone().into()).await?;
            let there = there.as_ref().map(Descriptor::digest);
            if there != Some(&index.digest) {
                // The look may have taken its time.
                if !still_newest().await {
                    return Ok(superseded);
                }
                write_tag(client, repository, index, tag, |step| told(tag, step)).await?;
                written = true;
            }
            told(tag, Step::Moved(there));
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

/// Makes a tag point at `index`, which is in the registry. `told` hears that it is written, and that the registry refused.
pub async fn write_tag(
    client: &Client,
    repository: &Repository,
    index: &IndexBytes,
    tag: &Tag,
    told: impl Fn(Step<'_>) + Send + Sync,
) -> Result<(), Error> {
    write_within(TAG_DEADLINE, client, repository, index, tag, told).await
}

pub(super) async fn write_within(
    deadline: Duration,
    client: &Client,
    repository: &Repository,
    index: &IndexBytes,
    tag: &Tag,
    told: impl Fn(Step<'_>) + Send + Sync,
) -> Result<(), Error> {
    let by_tag = Identifier::from(tag.clone());
    told(Step::Writing);
    let writing = client.put_manifest(repository, &by_tag, &index.media_type, index.bytes.clone());
    match tokio::time::timeout(deadline, writing).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => {
            if error.is_refusal() {
                told(Step::Refused);
            }
            Err(error)
        }
        Err(_) => Err(client.attempt(repository, &format!("push {by_tag} to")).transport(&TransportFailure::Timeout)),
    }
}
