//! What transfers of blobs may take together, in memory and in time: a registry that asks for much, or that stops reading,
//! holds up its own tenant's alone.

use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use super::room::{Place, Room};
use super::upload::BlobStream;
use futures::stream::StreamExt as _;

/// How many blobs this process sends at once. Each holds one part of at most 4 MiB.
const AT_ONCE: usize = 4;
/// How many of them for one tenant: another one's are not held up by a registry of his that is slow.
const OF_ONE: usize = 2;
/// How often progress is looked at.
const WINDOW: Duration = Duration::from_secs(30);
/// What a registry has to take within that time, in bytes, until it has all.
const LEAST: u64 = 2 << 20;
/// What it puts together in a second at least, in bytes: some make one blob of its parts only once they have all.
const ASSEMBLED: u64 = 32 << 20;

static ROOM: LazyLock<Room> = LazyLock::new(|| Room::new(AT_ONCE, OF_ONE));
/// How many answers of some MiB, manifests and configurations, are read at once, and how many for one tenant.
static ANSWERS: LazyLock<Room> = LazyLock::new(|| Room::new(8, 2));

tokio::task_local! {
    /// For whom blobs are sent.
    static TENANT: String;
}

/// Does `work`, whose transfers are for this tenant; those outside of any such are for one that has no name.
pub async fn of_tenant<T>(tenant: &str, work: impl Future<Output = T>) -> T {
    TENANT.scope(tenant.to_owned(), work).await
}

/// Waits until there is room for another transfer.
pub async fn begin() -> Place {
    let tenant = TENANT.try_with(Clone::clone).unwrap_or_default();
    ROOM.enter(&tenant).await
}

/// Waits until there is room to read another manifest or configuration.
pub(super) async fn begin_answer() -> Place {
    let tenant = TENANT.try_with(Clone::clone).unwrap_or_default();
    ANSWERS.enter(&tenant).await
}

/// How long a registry may take to answer once it has all of a blob of so many bytes.
#[must_use]
pub fn answer(length: u64) -> Duration {
    // A registry that needs an hour for one has said nothing for an hour.
    (WINDOW + Duration::from_secs(length / ASSEMBLED)).min(Duration::from_hours(1))
}

/// How much of a body has been handed to the connection.
pub struct Progress {
    sent: Arc<AtomicU64>,
    length: u64,
}

/// The body of so many bytes, and how far it is.
#[must_use]
pub fn watched(body: BlobStream, length: u64) -> (BlobStream, Progress) {
    let sent = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&sent);
    let body = body.inspect(move |chunk| {
        if let Ok(chunk) = chunk {
            counter.fetch_add(chunk.len() as u64, Ordering::Relaxed);
        }
    });
    (body.boxed(), Progress { sent, length })
}

impl Progress {
    /// The outcome of `sending`. None: the registry has stopped reading, or does not answer.
    pub async fn until<T>(&self, sending: impl Future<Output = T>) -> Option<T> {
        self.until_stalled(sending, WINDOW, answer(self.length)).await
    }

    async fn until_stalled<T>(
        &self,
        sending: impl Future<Output = T>,
        window: Duration,
        answer: Duration,
    ) -> Option<T> {
        let mut sending = pin!(sending);
        let (mut before, mut waited) = (0, Duration::ZERO);
        loop {
            if let Ok(outcome) = tokio::time::timeout(window, &mut sending).await {
                return Some(outcome);
            }
            let now = self.sent.load(Ordering::Relaxed);
            if now >= self.length {
                waited += window;
                if waited >= answer {
                    return None;
                }
            } else if now - before < LEAST {
                return None;
            }
            before = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn body(chunks: usize, size: usize) -> BlobStream {
        futures::stream::iter((0..chunks).map(move |_| Ok(Bytes::from(vec![0; size])))).boxed()
    }

    #[test]
    fn large_blobs_take_longer_to_put_together() {
        let seconds = |length: u64| answer(length).as_secs();
        assert_eq!((seconds(0), seconds(1 << 20), seconds(10 << 30), seconds(u64::MAX)), (30, 30, 350, 3600));
    }

    #[tokio::test]
    async fn a_registry_that_stops_reading_is_given_up() {
        let window = Duration::from_millis(50);
        let stalled = async |taken: usize, answers: Option<Duration>| {
            let (mut body, progress) = watched(body(10, 1 << 20), 10 << 20);
            let reading = async {
                for _ in 0..taken {
                    body.next().await;
                }
                match answers {
                    Some(after) => tokio::time::sleep(after).await,
                    None => std::future::pending().await,
                }
            };
            progress.until_stalled(reading, window, window * 10).await.is_none()
        };
        assert!(stalled(0, None).await, "it reads nothing");
        assert!(stalled(5, None).await, "it stops");
        assert!(stalled(10, None).await, "it does not answer");
        assert!(!stalled(10, Some(window * 3)).await, "it takes its time at the end");
        assert!(!stalled(10, Some(Duration::ZERO)).await);
    }
}
