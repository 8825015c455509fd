//! Waits for objects through a watch: nothing here looks again and again.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::pin::pin;
use std::time::Duration;

use futures::StreamExt as _;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Resource, ResourceExt as _};
use serde::de::DeserializeOwned;

/// For a condition that needs no build.
pub const SOON: Duration = Duration::from_mins(1);
/// For a build of a few small steps on a busy machine, with emulation and a cold builder.
pub const BUILD: Duration = Duration::from_secs(150);

/// Objects by name.
pub type Objects<K> = BTreeMap<String, K>;

/// What a look at the objects says: whether the condition holds, or why it never will.
pub type Verdict = Result<bool, String>;

/// A wait that ended without its condition.
pub struct Unmet<K> {
    /// What went wrong.
    pub why: String,
    /// The objects as they were last.
    pub last: Objects<K>,
}

/// Watches the selected objects until the condition holds.
pub async fn until<K>(
    api: Api<K>,
    select: watcher::Config,
    limit: Duration,
    mut condition: impl FnMut(&Objects<K>) -> Verdict,
) -> Result<Objects<K>, Unmet<K>>
where
    K: Clone + Debug + DeserializeOwned + Resource + Send + 'static,
{
    let mut objects = Objects::new();
    let mut listed = Objects::new();
    let mut complete = false;
    let mut stream = pin!(watcher(api, select).default_backoff());
    let deadline = tokio::time::sleep(limit);
    let mut deadline = pin!(deadline);
    loop {
        let event = tokio::select! {
            event = stream.next() => event.expect("a watch does not end"),
            () = &mut deadline => return Err(Unmet { why: format!("not within {} s", limit.as_secs()), last: objects }),
        };
        match event {
            Ok(Event::Init) => listed.clear(),
            Ok(Event::InitApply(object)) => drop(listed.insert(object.name_any(), object)),
            Ok(Event::InitDone) => {
                objects = std::mem::take(&mut listed);
                complete = true;
            }
            Ok(Event::Apply(object)) => drop(objects.insert(object.name_any(), object)),
            Ok(Event::Delete(object)) => drop(objects.remove(&object.name_any())),
            // The watch comes back by itself; the deadline ends what does not.
            Err(error) => eprintln!("watch: {error}"),
        }
        if complete {
            match condition(&objects) {
                Ok(true) => return Ok(objects),
                Ok(false) => {}
                Err(why) => return Err(Unmet { why, last: objects }),
            }
        }
    }
}

/// Selects one object.
#[must_use]
pub fn named(name: &str) -> watcher::Config {
    watcher::Config::default().fields(&format!("metadata.name={name}"))
}
