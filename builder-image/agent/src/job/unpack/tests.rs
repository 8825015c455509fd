//! Archives of all kinds, and hostile ones.

use std::os::unix::fs::MetadataExt as _;

use tar::{Builder, Header};

use super::*;

/// Adds an entry under exactly this name, whatever it is.
fn add(builder: &mut Builder<Vec<u8>>, kind: EntryType, path: &str, content: &str) {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(if kind == EntryType::Directory { 0o755 } else { 0o644 });
    header.set_mtime(1_700_000_000);
    header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
    let content = if matches!(kind, EntryType::Symlink | EntryType::Link) {
        header.as_mut_bytes()[157..157 + content.len()].copy_from_slice(content.as_bytes());
        ""
    } else {
        content
    };
    header.set_size(content.len() as u64);
    header.set_cksum();
    builder.append(&header, content.as_bytes()).unwrap();
}

fn archive(entries: &[(EntryType, &str, &str)]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for (kind, path, content) in entries {
        add(&mut builder, *kind, path, content);
    }
    builder.into_inner().unwrap()
}

fn unpack(root: &Path, kind: Kind, archives: &[&[u8]]) -> Result<(), UnpackError> {
    let mut unpacker = Unpacker::new(root.to_owned(), kind).unwrap();
    for bytes in archives {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        io::Seek::rewind(&mut file).unwrap();
        unpacker.unpack(file)?;
    }
    unpacker.finish()
}

#[test]
fn every_compression_gives_the_same() {
    let plain = archive(&[
        (EntryType::Directory, "app/", ""),
        (EntryType::Regular, "app/file", "content"),
        (EntryType::Symlink, "app/link", "file"),
        (EntryType::Link, "app/hard", "app/file"),
    ]);
    let gzip = {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(&plain).unwrap();
        encoder.finish().unwrap()
    };
    let bzip2 = {
        let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
        encoder.write_all(&plain).unwrap();
        encoder.finish().unwrap()
    };
    let zstd = zstd::encode_all(plain.as_slice(), 1).unwrap();
    let mut seen = Vec::new();
    for bytes in [plain.clone(), gzip, bzip2, zstd] {
        let root = tempfile::tempdir().unwrap();
        let root = root.path().join("source");
        unpack(&root, Kind::Tarball, &[&bytes]).unwrap();
        assert_eq!(fs::read_to_string(root.join("app/hard")).unwrap(), "content");
        let times = ["", "app", "app/file", "app/link"].map(|path| {
            let metadata = root.join(path).symlink_metadata().unwrap();
            (metadata.mtime(), metadata.mtime_nsec(), metadata.mode())
        });
        assert_eq!((times[0].0, times[1].0, times[1].1), (SECOND, 1_700_000_000, 0));
        assert_ne!(times[2].1, 0, "the nanoseconds follow from the content");
        seen.push(times);
    }
    assert!(seen.iter().all(|times| *times == seen[0]));
}

#[test]
fn a_directory_that_a_link_replaces_is_forgotten() {
    let outside = tempfile::tempdir().unwrap();
    let jobs = outside.path().join("jobs");
    fs::create_dir(&jobs).unwrap();
    fs::set_permissions(&jobs, fs::Permissions::from_mode(0o700)).unwrap();
    let root = outside.path().join("root");
    let bytes = archive(&[
        (EntryType::Directory, "a/", ""),
        (EntryType::Directory, "a/jobs/", ""),
        (EntryType::Symlink, "a", outside.path().to_str().unwrap()),
    ]);
    unpack(&root, Kind::Tarball, &[&bytes]).unwrap();
    let metadata = jobs.symlink_metadata().unwrap();
    assert_eq!(metadata.mode() & 0o777, 0o700);
    assert_ne!(metadata.mtime(), 1_700_000_000);
    assert!(root.join("a").is_symlink());
}

#[test]
fn nothing_leaves() {
    let outside = tempfile::tempdir().unwrap();
    let secret = outside.path().join("secret");
    fs::write(&secret, "secret").unwrap();
    let elsewhere = outside.path().to_str().unwrap();
    for (entries, refused) in [
        (vec![(EntryType::Regular, "../x", "")], true),
        (vec![(EntryType::Regular, "/x", "")], true),
        (vec![(EntryType::Regular, "a/../../x", "")], true),
        (vec![(EntryType::Link, "x", "../secret")], true),
        (vec![(EntryType::Link, "x", secret.to_str().unwrap())], true),
        (vec![(EntryType::Char, "null", "")], true),
        (vec![(EntryType::Fifo, "pipe", "")], true),
        // Written to below the root, where the link would lead if the root were `/`.
        (vec![(EntryType::Symlink, "d", elsewhere), (EntryType::Regular, "d/x", "")], false),
        (vec![(EntryType::Symlink, "d", "../.."), (EntryType::Regular, "d/x", "")], false),
        (vec![(EntryType::Symlink, "x", secret.to_str().unwrap()), (EntryType::Regular, "x", "new")], false),
        (vec![(EntryType::Symlink, "x", secret.to_str().unwrap()), (EntryType::Link, "y", "x")], false),
        (vec![(EntryType::Symlink, "a", "b"), (EntryType::Symlink, "b", "a"), (EntryType::Regular, "a/x", "")], true),
    ] {
        let root = outside.path().join("root");
        let unpacked = unpack(&root, Kind::Tarball, &[&archive(&entries)]);
        assert_eq!(unpacked.is_err(), refused, "{entries:?}: {unpacked:?}");
        let names: Vec<_> = fs::read_dir(outside.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names.len(), 2, "{entries:?}: {names:?}");
        assert_eq!(fs::read_to_string(&secret).unwrap(), "secret");
        fs::remove_dir_all(&root).unwrap();
    }
}

#[test]
fn layers_remove() {
    let root = tempfile::tempdir().unwrap();
    let first = archive(&[
        (EntryType::Regular, "etc/a", "1"),
        (EntryType::Regular, "etc/b", "1"),
        (EntryType::Regular, "opaque/c", "1"),
        (EntryType::Symlink, "lib", "usr/lib"),
        (EntryType::Char, "dev/null", ""),
    ]);
    let second = archive(&[
        (EntryType::Regular, "etc/.wh.a", ""),
        (EntryType::Regular, "opaque/.wh..wh..opq", ""),
        (EntryType::Regular, "opaque/d", "2"),
        (EntryType::Regular, "lib/x", "2"),
        (EntryType::Regular, "etc/.wh...", ""),
    ]);
    unpack(root.path(), Kind::Layer, &[&first, &second]).unwrap();
    let exists = |path: &str| root.path().join(path).symlink_metadata().is_ok();
    assert!(!exists("etc/a") && exists("etc/b") && !exists("opaque/c") && exists("opaque/d") && !exists("dev/null"));
    assert!(exists("usr/lib/x") && root.path().join("lib").is_symlink());
}

#[test]
fn damaged_and_endless_ones() {
    let root = tempfile::tempdir().unwrap();
    let failed = |bytes: &[u8]| unpack(root.path(), Kind::Tarball, &[bytes]).unwrap_err();
    assert!(matches!(failed(b"<html>not a tarball, but long enough to be looked at</html>"), UnpackError::Read(_)));
    let whole = archive(&[(EntryType::Regular, "file", &"x".repeat(4096))]);
    assert!(matches!(failed(&whole[..2000]), UnpackError::Read(_)));
    // A header that announces more than memory holds.
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::XHeader);
    header.set_size(1 << 40);
    header.set_cksum();
    assert!(matches!(failed(header.as_bytes()), UnpackError::TooLarge));
    let mut unpacker = Unpacker::new(root.path().join("small"), Kind::Tarball).unwrap();
    unpacker.bytes_left = 10;
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&whole).unwrap();
    io::Seek::rewind(&mut file).unwrap();
    assert!(matches!(unpacker.unpack(file), Err(UnpackError::TooLarge)));
}

#[test]
fn long_names_come_in_both_ways() {
    let long = format!("{}/file", "directory".repeat(20));
    let mut gnu = Builder::new(Vec::new());
    let mut header = Header::new_gnu();
    header.set_size(1);
    header.set_mode(0o644);
    gnu.append_data(&mut header, &long, &b"x"[..]).unwrap();
    let gnu = gnu.into_inner().unwrap();
    let record = |key: &str, value: &str| {
        let rest = format!(" {key}={value}\n");
        let length = rest.len() + 3;
        format!("{length}{rest}")
    };
    let pax = archive(&[
        (EntryType::XGlobalHeader, "pax_global_header", &record("comment", &"a".repeat(100))),
        (EntryType::XHeader, "x", &record("path", &long)),
        (EntryType::Regular, "short", "x"),
    ]);
    for bytes in [gnu, pax] {
        let root = tempfile::tempdir().unwrap();
        unpack(root.path(), Kind::Tarball, &[&bytes]).unwrap();
        assert_eq!(fs::read_to_string(root.path().join(&long)).unwrap(), "x");
    }
}
