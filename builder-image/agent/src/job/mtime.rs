//! The times that files of a context bear. BuildKit looks for changed files by size, mode and mtime, to the
//! nanosecond, and cuts the mtime to the second in layers. So the second is the same for all files of a source, which
//! makes layers reproducible, and the nanoseconds follow from the content, which makes every change seen.

use std::{io, path::Path};

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};

/// The last second that every archive format can hold (tar's twelve octal digits, to be read by 32-bit programs).
const LAST_SECOND: i64 = i32::MAX as i64;

/// A time whose second is `second`, within what archives hold, and whose nanoseconds follow from the `id` of the
/// content, a digest.
#[must_use]
pub fn of_content(second: i64, id: &[u8]) -> Timespec {
    let number = id.iter().take(8).fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
    Timespec { tv_sec: second.clamp(0, LAST_SECOND), tv_nsec: (number % 1_000_000_000).cast_signed() }
}

/// A directory's time: the second alone.
#[must_use]
pub fn of_directory(second: i64) -> Timespec {
    Timespec { tv_sec: second.clamp(0, LAST_SECOND), tv_nsec: 0 }
}

/// Sets the time of `path`, of a symbolic link itself.
pub fn set(path: &Path, time: Timespec) -> io::Result<()> {
    Ok(utimensat(CWD, path, &Timestamps { last_access: time, last_modification: time }, AtFlags::SYMLINK_NOFOLLOW)?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn links_get_their_own_time() {
        let root = tempfile::tempdir().unwrap();
        let link = root.path().join("link");
        std::os::unix::fs::symlink("nowhere", &link).unwrap();
        set(&link, of_content(1_000_000_000, &[0, 0, 0, 0, 0, 0, 1, 2])).unwrap();
        let metadata = link.symlink_metadata().unwrap();
        assert_eq!((metadata.mtime(), metadata.mtime_nsec()), (1_000_000_000, 258));
    }

    proptest! {
        #[test]
        fn a_time_is_valid_and_follows_from_the_content(second in any::<i64>(), id in any::<[u8; 20]>()) {
            let time = of_content(second, &id);
            prop_assert!((0..1_000_000_000).contains(&time.tv_nsec));
            prop_assert!((0..=LAST_SECOND).contains(&time.tv_sec));
            prop_assert_eq!(time, of_content(second, &id));
        }
    }
}
