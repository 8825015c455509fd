//! What reads bytes that strangers wrote, by name: each a function from bytes to a result that must hold its promises
//! whatever they are. Stored inputs are replayed through them (`corpus/`, a folder each), and property tests make up more.

use std::{
    collections::HashMap,
    fs,
    path::{Component, Path},
};

use crate::{
    job::{
        artifact, checkout,
        content::Config,
        dockerfile::Dockerfile,
        lfs,
        mask::Masker,
        programs::viewer::Viewer,
        progress::{Progress, Update},
        stages,
        unpack::{Kind, Unpacker},
    },
    paths,
};

/// Reads the bytes, with an empty directory to work in; panics where a promise is broken.
pub type Parser = fn(&[u8], &Path);

/// All of them, by the name of their folder in `corpus/`.
pub const ALL: [(&str, Parser); 7] = [
    ("dockerfile", dockerfile),
    ("gitmodules", gitmodules),
    ("layers", layers),
    ("lfs-pointer", lfs_pointer),
    ("progress", progress),
    ("tarball", tarball),
    ("tree", tree),
];

/// A Dockerfile, and which images it names for a target.
fn dockerfile(bytes: &[u8], _: &Path) {
    let text = String::from_utf8_lossy(bytes);
    let dockerfile = Dockerfile::read(&text);
    let arguments = HashMap::from([("TARGET".to_owned(), "build".to_owned())]);
    for target in ["", "build", "0"] {
        let build = stages::Build {
            target,
            platform: "linux/arm64",
            builder: "linux/amd64",
            arguments: &arguments,
            contexts: &["base"],
        };
        for image in stages::images(&dockerfile, build) {
            let lines = text.lines().count();
            assert!(image.line.is_some_and(|line| line as usize <= lines), "the line is one of the file's");
        }
    }
}

/// What `git config -z --list` says of a `.gitmodules`.
fn gitmodules(bytes: &[u8], _: &Path) {
    for path in checkout::gitmodules(&String::from_utf8_lossy(bytes)).keys() {
        assert!(paths::relative_file(path).is_ok(), "{path:?} stays in the tree");
    }
}

/// The layers of an artifact's manifest, and an image's configuration.
fn layers(bytes: &[u8], _: &Path) {
    if let Ok(manifest) = serde_json::from_slice::<oci_spec::image::ImageManifest>(bytes) {
        for layer in manifest.layers() {
            if let Ok(artifact::Layer::File(path)) = artifact::layer_kind(layer, "x") {
                assert!(path.is_relative() && !path.as_os_str().is_empty());
            }
        }
    }
    drop(serde_json::from_slice::<oci_spec::image::ImageIndex>(bytes));
    drop(serde_json::from_slice::<Config>(bytes));
}

/// The pointer to a file of Git LFS.
fn lfs_pointer(bytes: &[u8], _: &Path) {
    if let Some(pointer) = lfs::pointer(bytes) {
        assert!(pointer.oid.len() == 64 && pointer.oid.bytes().all(|byte| byte.is_ascii_hexdigit()));
    }
}

/// What `kiln-build` writes to its standard error.
fn progress(bytes: &[u8], _: &Path) {
    let masker = Masker::new([b"secret value".as_slice()]);
    let mut progress = Progress::new(&masker);
    let mut viewer = Viewer::new("linux/arm64", true, &[]);
    for line in bytes.split(|byte| *byte == b'\n') {
        for update in progress.line(line) {
            let text = match update {
                Update::Step(step) => step.name,
                Update::Line { line, .. } => line,
                Update::Pushing => String::new(),
                Update::Shown(shown) => {
                    assert!(viewer.answer(shown).ends_with(b"}\n"));
                    String::new()
                }
            };
            assert!(!text.contains("secret value") && !text.contains('\u{1b}'), "{text:?}");
        }
    }
}

/// A tarball, as a source and as a layer: nothing outside of its directory is made or changed.
fn tarball(bytes: &[u8], directory: &Path) {
    let write = |name: &str, content: &[u8]| assert!(fs::write(directory.join(name), content).is_ok());
    for kind in [Kind::Tarball, Kind::Layer] {
        write("archive", bytes);
        write("outside", b"as it was");
        let root = directory.join("root");
        let unpacked = Unpacker::new(root.clone(), kind).ok().zip(fs::File::open(directory.join("archive")).ok());
        if let Some((mut unpacker, archive)) = unpacked
            && unpacker.unpack(archive).is_ok()
        {
            drop(unpacker.finish());
        }
        let mut names: Vec<_> =
            fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.file_name()).collect();
        names.sort();
        assert_eq!(names, ["archive", "outside", "root"]);
        assert_eq!(fs::read(directory.join("outside")).unwrap_or_default(), b"as it was");
        assert!(fs::remove_dir_all(root).is_ok());
    }
}

/// What `git ls-tree -r -l -z` says of a commit.
fn tree(bytes: &[u8], _: &Path) {
    let Some(entries) = checkout::entries(bytes) else { return };
    if checkout::check(&entries).is_err() {
        return;
    }
    for entry in &entries {
        let is_inside = |part: Component<'_>| match part {
            Component::Normal(name) => !name.eq_ignore_ascii_case(".git"),
            _ => false,
        };
        assert!(entry.path.components().all(is_inside), "{} stays in the tree", entry.path.display());
    }
}

#[cfg(test)]
#[path = "../../../tests/parsers/replay.rs"]
mod replay;
