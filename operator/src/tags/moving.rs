//! For which ImageBuilds this process moves tags: one run at a time, so that the next one knows what became of the writes
//! before it.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

/// The UIDs of those ImageBuilds.
#[derive(Default)]
pub struct Moving(Mutex<HashSet<String>>);

/// The turn of one run of an ImageBuild; it ends with the value.
pub struct Turn<'a> {
    moving: &'a Moving,
    uid: String,
}

impl Moving {
    /// `None`: another run of this ImageBuild moves its tags.
    pub fn begin(&self, uid: &str) -> Option<Turn<'_>> {
        let begun = self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(uid.to_owned());
        begun.then(|| Turn { moving: self, uid: uid.to_owned() })
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.moving.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.uid);
    }
}
