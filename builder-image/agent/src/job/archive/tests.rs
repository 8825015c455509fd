//! Tarballs as several tools write them, and such as nobody should.

use std::io::Write as _;

use super::*;

const LAYER: &[u8] = b"layer";

/// A layout with the images of `platforms` behind an index each, as BuildKit writes them for one platform.
fn layout(platforms: &[(&str, &str)]) -> Vec<(String, Vec<u8>)> {
    let mut files = vec![("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec())];
    let mut blob = |kind: &str, bytes: Vec<u8>| {
        let digest = sha256_digest(&bytes);
        let descriptor = serde_json::json!({
            "mediaType": format!("application/vnd.oci.image.{kind}"), "digest": digest.to_string(), "size": bytes.len(),
        });
        files.push((format!("blobs/sha256/{}", digest.digest()), bytes));
        descriptor
    };
    let layer = blob("layer.v1.tar", LAYER.to_vec());
    let mut manifests = Vec::new();
    for (os, architecture) in platforms {
        let config = serde_json::json!({"os": os, "architecture": architecture, "os.version": "1.2"});
        let config = blob("config.v1+json", config.to_string().into_bytes());
        let manifest = serde_json::json!({"schemaVersion": 2, "config": config, "layers": [layer]});
        manifests.push(blob("manifest.v1+json", manifest.to_string().into_bytes()));
    }
    let inner = blob("index.v1+json", serde_json::json!({"manifests": manifests}).to_string().into_bytes());
    files.push(("index.json".to_owned(), serde_json::json!({"manifests": [inner]}).to_string().into_bytes()));
    files
}

fn tarball(files: &[(String, Vec<u8>)]) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    let mut builder = tar::Builder::new(Vec::new());
    for (name, bytes) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        header.set_cksum();
        builder.append_data(&mut header, name, bytes.as_slice()).unwrap();
    }
    file.write_all(&builder.into_inner().unwrap()).unwrap();
    file
}

#[tokio::test]
async fn the_image_of_a_platform() {
    let file = tarball(&layout(&[("unknown", "unknown"), ("linux", "amd64"), ("linux", "arm64")]));
    let image = Image::read(file.path(), "linux/arm64/v8").unwrap();
    assert_eq!(
        (image.content.config.architecture.as_str(), image.content.config.os_version.as_str()),
        ("arm64", "1.2")
    );
    assert_eq!(image.content.unpacked, Some(LAYER.len() as u64));
    let (layer, at) = &image.blobs[1];
    let bytes: Vec<Bytes> = part(&image.file, *at, layer.size()).try_collect().await.unwrap();
    assert_eq!(bytes.concat(), LAYER);
    let problem = Image::read(file.path(), "linux/s390x").unwrap_err();
    assert_eq!(problem.to_string(), "it has no image for linux/s390x, only for linux/amd64, linux/arm64");
}

#[test]
fn what_is_no_archive_of_an_image() {
    let whole = layout(&[("linux", "amd64")]);
    let without = |name: &str| whole.iter().filter(|(other, _)| !other.starts_with(name)).cloned().collect::<Vec<_>>();
    let mut damaged = whole.clone();
    damaged.iter_mut().filter(|(name, _)| name.contains("blobs")).for_each(|(_, bytes)| bytes[1] ^= 1);
    let mut short = whole.clone();
    short[1].1.pop();
    for (files, words) in [
        (without("index.json"), "no index.json"),
        (without("blobs"), "no blobs/sha256/"),
        (damaged, "is damaged"),
        (short, "is damaged"),
        (vec![("index.json".to_owned(), b"{".to_vec())], "its index.json is not what OCI says"),
    ] {
        let problem = Image::read(tarball(&files).path(), "linux/amd64").unwrap_err().to_string();
        assert!(problem.contains(words), "{problem}");
    }
    let mut nothing = tempfile::NamedTempFile::new().unwrap();
    nothing.write_all(&[1; 4000]).unwrap();
    assert!(matches!(Image::read(nothing.path(), "linux/amd64"), Err(Problem::Read(_))));
    assert!(matches!(Image::read(Path::new("/nowhere"), "linux/amd64"), Err(Problem::Read(_))));
}

#[test]
fn an_archive_stays_in_its_directory() {
    let root = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink("/etc", root.path().join("link")).unwrap();
    for path in ["../x.tar", "/x.tar", "link/x.tar", "a/../../x.tar", ""] {
        assert!(located(path, Some(root.path())).is_err(), "{path}");
    }
    assert_eq!(located("a.tar", None).unwrap_err().reason, Reason::ArchivesUnavailable);
    assert_eq!(located("ns/a.tar", Some(root.path())).unwrap(), root.path().join("ns/a.tar"));
}

#[tokio::test]
async fn what_was_written_is_told_before_it_has_its_name() {
    let root = tempfile::tempdir().unwrap();
    let spec = Spec { id: "job".to_owned(), archive_path: "a.tar".to_owned(), ..Spec::default() };
    let target = Target::of(&spec, Some(root.path())).unwrap().unwrap();
    assert_eq!(target.content("linux/amd64").await, None);
    fs::copy(tarball(&layout(&[("linux", "amd64")])).path(), target.temporary()).unwrap();
    let content = target.content("linux/amd64").await.unwrap();
    assert_eq!((content.layers.len(), content.unpacked), (1, Some(LAYER.len() as u64)));
    assert!(content.compressed > LAYER.len() as u64);
}

#[test]
fn an_archive_appears_as_a_whole() {
    let root = tempfile::tempdir().unwrap();
    let spec = Spec { id: "job".to_owned(), archive_path: "ns/a.tar".to_owned(), ..Spec::default() };
    let target = Target::of(&spec, Some(root.path())).unwrap().unwrap();
    fs::write(target.temporary(), "x").unwrap();
    drop(target);
    assert_eq!(fs::read_dir(root.path().join("ns")).unwrap().count(), 0, "nothing is left of a failed build");
    let target = Target::of(&spec, Some(root.path())).unwrap().unwrap();
    fs::write(target.temporary(), "x").unwrap();
    target.finish().unwrap();
    assert_eq!(fs::read(root.path().join("ns/a.tar")).unwrap(), b"x");
}
