//! Unpacks tarballs and the layers of images into a directory that nothing leaves: links are followed inside it only,
//! devices are not made, and times follow from the archive and the content.

use std::{
    collections::{BTreeMap, VecDeque},
    ffi::OsStr,
    fs::{self, File},
    io::{self, BufReader, Read, Write as _},
    os::unix::{
        ffi::{OsStrExt as _, OsStringExt as _},
        fs::{PermissionsExt as _, symlink},
    },
    path::{Component, Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tar::{Archive, Entry, EntryType, PaxExtensions};

use super::{checkout::LARGEST_TREE, inline::SECOND, mtime};

/// The most files of one source.
const MOST_ENTRIES: u64 = 500_000;
/// The longest extended header: a path and a few attributes.
const LONGEST_HEADER: u64 = 1 << 20;
/// The most memory that a decompressor may take, in KiB: what `xz -9` needs, twice.
const DECOMPRESSOR_MEMORY: u32 = 128 << 10;
/// How many links may be followed for one path, as the kernel does.
const MOST_LINKS: usize = 40;
/// A layer's marker that what lower layers have under a name is gone.
/// <https://github.com/opencontainers/image-spec/blob/main/layer.md#whiteouts>
const WHITEOUT: &[u8] = b".wh.";
/// A layer's marker that what lower layers have in its directory is gone.
const OPAQUE: &[u8] = b".wh..wh..opq";

/// Why an archive was not unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// It is damaged, or not an archive at all.
    #[error("it is no tarball, or a damaged one")]
    Read(#[source] io::Error),
    /// An entry that cannot be unpacked safely.
    #[error("it holds {path:?}, {why}")]
    Unsafe {
        /// The entry.
        path: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// More than a builder takes.
    #[error("it holds more than {MOST_ENTRIES} files, or more than {} GiB; a builder takes no more", LARGEST_TREE >> 30)]
    TooLarge,
    /// The volume refuses.
    #[error("{path:?} cannot be written to the builder's volume")]
    Write {
        /// The entry.
        path: String,
        /// The system's error.
        source: io::Error,
    },
}

/// What is unpacked, for rules that differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// A tarball: devices are refused.
    Tarball,
    /// A layer of an image: devices are left out, whiteouts remove.
    Layer,
}

/// Unpacks archives one over the other.
pub struct Unpacker {
    root: PathBuf,
    kind: Kind,
    bytes_left: u64,
    entries_left: u64,
    /// Mode and time of directories, set at the end: writing into one changes its time, and needs the right to.
    directories: BTreeMap<PathBuf, (u32, i64)>,
}

/// What an entry's headers say of it.
struct Meta {
    path: PathBuf,
    link: PathBuf,
    kind: EntryType,
    mode: u32,
    second: i64,
}

impl Unpacker {
    /// Unpacks into `root`, which is made.
    pub fn new(root: PathBuf, kind: Kind) -> io::Result<Self> {
        fs::create_dir_all(&root)?;
        let directories = BTreeMap::from([(root.clone(), (0o755, SECOND))]);
        Ok(Self { root, kind, bytes_left: LARGEST_TREE, entries_left: MOST_ENTRIES, directories })
    }

    /// Unpacks the archive in `file`, whatever it is compressed with.
    pub fn unpack(&mut self, file: File) -> Result<(), UnpackError> {
        let reader = decompress(file).map_err(UnpackError::Read)?;
        // What is skipped or read as a header counts too.
        let mut archive = Archive::new(reader.take(LARGEST_TREE.saturating_mul(2)));
        let (mut long_path, mut long_link, mut extensions) = (None, None, BTreeMap::new());
        // Raw: the crate itself would read extended headers of any length into memory.
        for entry in archive.entries().map_err(UnpackError::Read)?.raw(true) {
            let mut entry = entry.map_err(UnpackError::Read)?;
            self.entries_left = self.entries_left.checked_sub(1).ok_or(UnpackError::TooLarge)?;
            match entry.header().entry_type() {
                EntryType::GNULongName => long_path = Some(name(&mut entry)?),
                EntryType::GNULongLink => long_link = Some(name(&mut entry)?),
                EntryType::XHeader => extensions = pax(&mut entry)?,
                // What `git archive` writes: the commit's id.
                EntryType::XGlobalHeader => {}
                _ => {
                    let meta = meta(&entry, long_path.take(), long_link.take(), &std::mem::take(&mut extensions))?;
                    self.entry(&meta, &mut entry)?;
                }
            }
        }
        Ok(())
    }

    /// Sets what directories bear.
    pub fn finish(self) -> Result<(), UnpackError> {
        for (path, (mode, second)) in self.directories.iter().rev() {
            // A later entry may have removed it, or put something else there or above it, such as a link that leads out.
            let below = path.strip_prefix(&self.root).unwrap_or(path);
            let is_itself = resolve(&self.root, below, true).is_ok_and(|resolved| resolved == *path);
            if is_itself && path.symlink_metadata().is_ok_and(|metadata| metadata.is_dir()) {
                fs::set_permissions(path, fs::Permissions::from_mode(mode | 0o700))
                    .and_then(|()| mtime::set(path, mtime::of_directory(*second)))
                    .map_err(|source| UnpackError::Write { path: path.display().to_string(), source })?;
            }
        }
        Ok(())
    }

    fn entry(&mut self, meta: &Meta, content: &mut impl Read) -> Result<(), UnpackError> {
        let shown = || meta.path.display().to_string();
        let unsafe_entry = |why| UnpackError::Unsafe { path: shown(), why };
        let write = |source| UnpackError::Write { path: shown(), source };
        let path = clean(&meta.path).ok_or_else(|| unsafe_entry("whose path leaves the directory"))?;
        let Some(file_name) = path.file_name() else {
            if meta.kind == EntryType::Directory {
                self.directories.insert(self.root.clone(), (meta.mode, meta.second));
            }
            return Ok(());
        };
        let above = path.parent().unwrap_or(Path::new(""));
        let parent = self.directory(above).map_err(write)?;
        if self.kind == Kind::Layer && file_name.as_bytes().starts_with(WHITEOUT) {
            return whiteout(&parent, file_name.as_bytes()).map_err(write);
        }
        let target = parent.join(file_name);
        match meta.kind {
            EntryType::Directory => {
                if !target.symlink_metadata().is_ok_and(|metadata| metadata.is_dir()) {
                    remove(&target).and_then(|()| fs::create_dir(&target)).map_err(write)?;
                }
                self.directories.insert(target, (meta.mode, meta.second));
            }
            EntryType::Regular | EntryType::Continuous => {
                remove(&target).map_err(write)?;
                let digest = self.file(&target, content, &shown)?;
                fs::set_permissions(&target, fs::Permissions::from_mode(meta.mode | 0o600))
                    .and_then(|()| mtime::set(&target, mtime::of_content(meta.second, &digest)))
                    .map_err(write)?;
            }
            EntryType::Symlink => {
                remove(&target).map_err(write)?;
                let digest = Sha256::digest(meta.link.as_os_str().as_bytes());
                symlink(&meta.link, &target)
                    .and_then(|()| mtime::set(&target, mtime::of_content(meta.second, &digest)))
                    .map_err(write)?;
            }
            EntryType::Link => {
                let linked = clean(&meta.link).ok_or_else(|| unsafe_entry("a link that leaves the directory"))?;
                let linked = resolve(&self.root, &linked, false).map_err(write)?;
                if !linked.symlink_metadata().is_ok_and(|metadata| !metadata.is_dir()) {
                    return Err(unsafe_entry("a hard link to what is not there"));
                }
                if linked != target {
                    remove(&target).and_then(|()| fs::hard_link(&linked, &target)).map_err(write)?;
                }
            }
            _ if self.kind == Kind::Layer => {}
            EntryType::Char | EntryType::Block | EntryType::Fifo => return Err(unsafe_entry("a device or pipe")),
            _ => return Err(unsafe_entry("an entry of a kind that is not known")),
        }
        Ok(())
    }

    /// Writes a file, and gives its digest.
    fn file(
        &mut self,
        target: &Path,
        content: &mut impl Read,
        shown: &impl Fn() -> String,
    ) -> Result<[u8; 32], UnpackError> {
        let write = |source| UnpackError::Write { path: shown(), source };
        let mut file = File::create_new(target).map_err(write)?;
        let (mut hash, mut buffer) = (Sha256::new(), vec![0; 64 << 10]);
        loop {
            let read = content.read(&mut buffer).map_err(UnpackError::Read)?;
            if read == 0 {
                return Ok(hash.finalize().into());
            }
            self.bytes_left = self.bytes_left.checked_sub(read as u64).ok_or(UnpackError::TooLarge)?;
            hash.update(&buffer[..read]);
            file.write_all(&buffer[..read]).map_err(write)?;
        }
    }

    /// The real directory at `path`, made where it is missing.
    fn directory(&mut self, path: &Path) -> io::Result<PathBuf> {
        let directory = resolve(&self.root, path, true)?;
        let missing: Vec<&Path> =
            directory.ancestors().take_while(|path| *path != self.root && path.symlink_metadata().is_err()).collect();
        for path in missing.into_iter().rev() {
            fs::create_dir(path)?;
            self.directories.insert(path.to_owned(), (0o755, SECOND));
        }
        Ok(directory)
    }
}

/// The path without `.`; none where it is absolute or has `..`.
fn clean(path: &Path) -> Option<PathBuf> {
    let mut clean = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::Normal(name) => clean.push(name),
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(clean)
}

/// Where `path` leads below `root` when links are followed as if `root` were `/`; the last component only with
/// `follow_last`. What is not there is taken as it stands.
pub fn resolve(root: &Path, path: &Path, follow_last: bool) -> io::Result<PathBuf> {
    let mut resolved = PathBuf::new();
    let mut waiting: VecDeque<Vec<u8>> = components(path);
    let mut links = 0;
    while let Some(component) = waiting.pop_front() {
        match component.as_slice() {
            b"" | b"." => continue,
            b".." => {
                resolved.pop();
                continue;
            }
            _ => {}
        }
        let next = resolved.join(OsStr::from_bytes(&component));
        let here = root.join(&next);
        if (waiting.is_empty() && !follow_last) || !here.is_symlink() {
            resolved = next;
            continue;
        }
        links += 1;
        if links > MOST_LINKS {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many links"));
        }
        let target = fs::read_link(&here)?;
        if target.is_absolute() {
            resolved = PathBuf::new();
        }
        for component in components(&target).into_iter().rev() {
            waiting.push_front(component);
        }
    }
    Ok(root.join(resolved))
}

fn components(path: &Path) -> VecDeque<Vec<u8>> {
    path.as_os_str().as_bytes().split(|byte| *byte == b'/').map(<[u8]>::to_vec).collect()
}

fn remove(path: &Path) -> io::Result<()> {
    match path.symlink_metadata() {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(_) => Ok(()),
    }
}

fn whiteout(parent: &Path, name: &[u8]) -> io::Result<()> {
    if name == OPAQUE {
        for entry in fs::read_dir(parent)? {
            remove(&entry?.path())?;
        }
        return Ok(());
    }
    match &name[WHITEOUT.len()..] {
        b"" | b"." | b".." => Ok(()),
        name => remove(&parent.join(OsStr::from_bytes(name))),
    }
}

/// A long name that stands before its entry.
fn name(entry: &mut Entry<'_, impl Read>) -> Result<PathBuf, UnpackError> {
    let mut bytes = header(entry)?;
    while bytes.last() == Some(&0) {
        bytes.pop();
    }
    Ok(PathBuf::from(std::ffi::OsString::from_vec(bytes)))
}

/// An extended header: <https://pubs.opengroup.org/onlinepubs/9799919799/utilities/pax.html#tag_20_94_13_03>
fn pax(entry: &mut Entry<'_, impl Read>) -> Result<BTreeMap<String, Vec<u8>>, UnpackError> {
    let bytes = header(entry)?;
    PaxExtensions::new(&bytes)
        .map(|extension| {
            let extension = extension.map_err(UnpackError::Read)?;
            let key = String::from_utf8_lossy(extension.key_bytes()).into_owned();
            Ok((key, extension.value_bytes().to_vec()))
        })
        .collect()
}

fn header(entry: &mut Entry<'_, impl Read>) -> Result<Vec<u8>, UnpackError> {
    if entry.size() > LONGEST_HEADER {
        return Err(UnpackError::TooLarge);
    }
    let mut bytes = Vec::new();
    entry.read_to_end(&mut bytes).map_err(UnpackError::Read)?;
    Ok(bytes)
}

fn meta(
    entry: &Entry<'_, impl Read>,
    long_path: Option<PathBuf>,
    long_link: Option<PathBuf>,
    extensions: &BTreeMap<String, Vec<u8>>,
) -> Result<Meta, UnpackError> {
    let header = entry.header();
    let bytes = |key: &str| extensions.get(key).map(|value| PathBuf::from(OsStr::from_bytes(value)));
    let path = bytes("path").or(long_path);
    let path = path.unwrap_or_else(|| PathBuf::from(OsStr::from_bytes(&header.path_bytes())));
    let refuse = |why| Err(UnpackError::Unsafe { path: path.display().to_string(), why });
    if extensions.keys().any(|key| key.starts_with("GNU.sparse.")) || header.entry_type() == EntryType::GNUSparse {
        return refuse("a sparse file; make the tarball without --sparse");
    }
    let size = extensions.get("size").map(|size| String::from_utf8_lossy(size).parse::<u64>().ok());
    if size.is_some_and(|size| size != Some(entry.size())) {
        return refuse("a file of more than 8 GiB");
    }
    let link = bytes("linkpath").or(long_link);
    let link = link.or_else(|| header.link_name_bytes().map(|link| PathBuf::from(OsStr::from_bytes(&link))));
    let second = extensions.get("mtime").and_then(|mtime| {
        String::from_utf8_lossy(mtime).split('.').next().and_then(|second| second.parse::<i64>().ok())
    });
    // Old archives mark a directory by its name alone.
    let is_directory = header.entry_type() == EntryType::Regular && path.as_os_str().as_bytes().ends_with(b"/");
    Ok(Meta {
        kind: if is_directory { EntryType::Directory } else { header.entry_type() },
        link: link.unwrap_or_default(),
        mode: header.mode().unwrap_or(0o644) & 0o7777,
        second: second.unwrap_or_else(|| header.mtime().ok().and_then(|s| i64::try_from(s).ok()).unwrap_or(SECOND)),
        path,
    })
}

/// The archive itself: gzip, zstd, xz and bzip2 are known by their first bytes.
fn decompress(file: File) -> io::Result<Box<dyn Read>> {
    let mut reader = BufReader::with_capacity(128 << 10, file);
    let begin = std::io::BufRead::fill_buf(&mut reader)?;
    Ok(match begin {
        [0x1f, 0x8b, ..] => Box::new(flate2::bufread::MultiGzDecoder::new(reader)),
        // A frame, or a skippable one before it.
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => {
            Box::new(zstd::stream::read::Decoder::with_buffer(reader)?)
        }
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => {
            Box::new(lzma_rust2::XzReader::new_mem_limit(reader, true, DECOMPRESSOR_MEMORY))
        }
        [b'B', b'Z', b'h', ..] => Box::new(bzip2::bufread::MultiBzDecoder::new(reader)),
        _ => Box::new(reader),
    })
}

#[cfg(test)]
mod tests;
