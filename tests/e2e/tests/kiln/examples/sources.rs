//! Where it is built from: Git in its ways, tarballs, images, and contexts beside the source.

use std::process::Command;

use kiln_e2e::build::file;
use kiln_e2e::git::Commit;
use kiln_e2e::registry::Image;
use kiln_e2e::tenant::run_of;
use kiln_e2e::web::{WebFile, tar_gz};
use kiln_e2e::{Repository, wait};

use super::Example;

/// A Dockerfile that keeps the whole context, and the file that tells of it.
const APP: [(&str, &str); 2] = [("Dockerfile", "FROM busybox:1.36\nCOPY . /src\n"), ("name", "app\n")];

pub async fn add(example: &mut Example<'_>) {
    let library = example.git("library");
    let commit = library.write(&[("lib.sh", "echo library\n")]);
    library.tag("v1.0", &commit);
    library.write(&[("lib.sh", "echo later\n")]);
    let content = tar_gz(&[("app-1.0/name", "released\n")]);
    let tarball = WebFile::public(example.tenant, "release.tar.gz", &content);
    example.set("https://downloads.example.com/you/release.tar.gz", &tarball.url);
    example.set(&format!("sha256:{}", "0".repeat(64)), &tarball.checksum);
    example.apply().await;
    let image = example.image("add").await;
    assert_eq!(image.text("library/lib.sh"), "echo library");
    assert_eq!(image.entry("release.tar.gz").unwrap().bytes, content, "a URL's file is not unpacked");
}

pub async fn contexts(example: &mut Example<'_>) {
    let library = example.git("library");
    library.write(&[("lib.sh", "echo library\n")]);
    let other = example.repository("busybox");
    example.registry.push_image(&other, "1.36", "linux/amd64", &[("etc/replaced", "another busybox")]).await;
    example.apply().await;
    let first = example.tenant.built("contexts").await;
    let image = example.image("contexts").await;
    assert_eq!(image.text("base"), "base");
    assert_eq!(image.text("lib.sh"), "echo library");
    assert_eq!(image.text("replaced"), "another busybox");
    let resolved = first.status.as_ref().unwrap().source.clone().unwrap().resolved;
    let fields: Vec<_> = resolved.iter().map(|one| one.field.as_str()).collect();
    assert_eq!(fields, ["contexts/base", "contexts/library", "contexts/busybox:stable"], "{resolved:?}");

    // A new image of the other ImageBuild makes a new run of this one.
    let base = |spec: &mut _| "FROM busybox:1.36\nRUN echo newer > /base\n".clone_into(file(spec, "Dockerfile"));
    example.tenant.edit("contexts-base", |build| base(&mut build.spec)).await;
    example.tenant.built_after("contexts", &run_of(&first)).await;
    assert_eq!(example.image("contexts").await.text("base"), "newer");
}

pub async fn git_ssh(example: &mut Example<'_>) {
    let repository = Repository::public(example.tenant, "app");
    repository.write(&APP);
    example.set(
        "git@github.com:you/app.git     # or ssh://git@github.com/you/app.git",
        &repository.ssh_url(example.tenant),
    );
    example.tenant.git_ssh_secret().await;
    example.apply().await;
    assert_eq!(example.image("git-ssh").await.text("src/name"), "app");
}

pub async fn submodules(example: &mut Example<'_>) {
    let library = Repository::public(example.tenant, "library");
    let commit = library.write(&[("lib.sh", "echo library\n")]);
    let repository = example.git("app");
    let relative = format!("../{}", library.url.rsplit('/').next().unwrap());
    let modules = format!("[submodule \"library\"]\n\tpath = vendor/library\n\turl = {relative}\n");
    repository.commit(&Commit {
        files: &[APP[0], (".gitmodules", &modules)],
        submodules: &[("vendor/library", &commit)],
        ..Commit::default()
    });
    example.apply().await;
    assert_eq!(example.image("submodules").await.text("src/vendor/library/lib.sh"), "echo library");
}

pub async fn git_lfs(example: &mut Example<'_>) {
    let repository = example.git("app");
    let pointer = repository.lfs(b"a large file\n");
    repository.write(&[
        APP[0],
        (".gitattributes", "*.bin filter=lfs diff=lfs merge=lfs -text\n"),
        ("large.bin", &pointer),
    ]);
    example.apply().await;
    assert_eq!(example.image("git-lfs").await.text("src/large.bin"), "a large file");
}

pub async fn git_history(example: &mut Example<'_>) {
    let repository = example.git("app");
    let first = repository.write(&APP);
    repository.tag("v1.0", &first);
    let second = repository.write(&[("name", "newer\n")]);
    example.apply().await;
    let image = example.image("git-history").await;
    assert_eq!(image.text("src/name"), "newer");
    let described = in_repository(&image, "src/.git", &["describe", "--tags"]);
    assert_eq!(described, format!("v1.0-1-g{}", second.get(..7).unwrap()));
    assert_eq!(in_repository(&image, "src/.git", &["rev-parse", "HEAD"]), second);
}

/// What git says in a repository that an image holds.
fn in_repository(image: &Image, path: &str, arguments: &[&str]) -> String {
    let directory = std::env::temp_dir().join(format!("kiln-e2e-{}", image.digest.replace(':', "-")));
    for entry in image.below(path) {
        let place = directory.join(entry.path.strip_prefix(path).unwrap().trim_start_matches('/'));
        if entry.is_file {
            std::fs::create_dir_all(place.parent().unwrap()).unwrap();
            std::fs::write(place, &entry.bytes).unwrap();
        } else {
            std::fs::create_dir_all(place).unwrap();
        }
    }
    let output = Command::new("git").arg("--git-dir").arg(&directory).args(arguments).output().unwrap();
    std::fs::remove_dir_all(&directory).unwrap();
    assert!(output.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

pub async fn private_git(example: &mut Example<'_>) {
    let repository = Repository::private(example.tenant, "app");
    repository.write(&[(
        "Dockerfile",
        "FROM busybox:1.36\nRUN --mount=type=secret,id=npm wc -c < /run/secrets/npm > /length\n",
    )]);
    let cluster = example.tenant.cluster.clone();
    example.set("https://git.corp.example/team/app.git", &repository.url);
    example.set("registry.corp.example/team/app", &example.repository("app"));
    example.set("username: kiln                         #", &format!("username: {} #", cluster.git_user));
    example.set("password: your-token", &format!("password: {}", cluster.git_password));
    let bundle = format!("{}\n{}", cluster.registry_ca, cluster.git_ca);
    let lines: Vec<_> = bundle.lines().map(|line| format!("    {line}")).collect();
    example.set("    -----BEGIN CERTIFICATE-----\n    …\n    -----END CERTIFICATE-----", &lines.join("\n"));
    example.apply().await;
    assert_eq!(example.image("private-git").await.text("length"), "your-token".len().to_string());
}

pub async fn dockerfile(example: &mut Example<'_>) {
    let repository = example.git("app");
    repository.write(&[
        ("docker/web.Dockerfile", "FROM busybox:1.36\nCOPY . /srv\n"),
        ("docker/web.Dockerfile.dockerignore", "*.md\n"),
        ("services/web/index.html", "a page\n"),
        ("services/web/notes.md", "notes\n"),
        ("services/api/secret", "another service\n"),
    ]);
    example.apply().await;
    let outside = example.image("dockerfile-outside").await;
    assert_eq!(outside.text("srv/index.html"), "a page");
    assert!(outside.entry("srv/notes.md").is_none(), "the Dockerfile's own .dockerignore holds");
    assert!(outside.entry("srv/secret").is_none());
    let inline = example.image("dockerfile-inline").await;
    assert_eq!(inline.text("srv/notes.md"), "notes");
}

pub async fn http(example: &mut Example<'_>) {
    let files = [("app-1.0/Dockerfile", APP[0].1), ("app-1.0/name", "released\n"), ("other/name", "other\n")];
    let tarball = WebFile::public(example.tenant, "release.tar.gz", &tar_gz(&files));
    example.set("https://downloads.example.com/you/release.tar.gz", &tarball.url);
    example.set(&format!("sha256:{}", "0".repeat(64)), &tarball.checksum);
    example.apply().await;
    let image = example.image("http").await;
    assert_eq!(image.text("src/name"), "released");
    assert!(image.entry("src/other").is_none());
}

pub async fn image_source(example: &mut Example<'_>) {
    let source = example.repository("source");
    let files = [("app/Dockerfile", APP[0].1), ("app/name", "in an artifact\n")];
    example.registry.push_artifact(&source, "1.0", &files).await;
    example.apply().await;
    let first = example.tenant.built("image-source").await;
    assert_eq!(example.image("image-source").await.text("src/name"), "in an artifact");
    let url = first.status.unwrap().source.unwrap().url.unwrap();
    assert!(url.starts_with(&format!("{source}@sha256:")), "the tag was resolved: {url}");

    // An image does as well as an artifact.
    let image = example.repository("source-image");
    let files = [("app/Dockerfile", APP[0].1), ("app/name", "in an image\n")];
    example.registry.push_image(&image, "1.0", "linux/amd64", &files).await;
    example.set(&format!("{source}:1.0"), &format!("{image}:1.0"));
    example.apply().await;
    example
        .tenant
        .wait_build("image-source", "built from the image", wait::BUILD, |build| {
            Ok(build
                .status
                .as_ref()
                .and_then(|status| status.source.as_ref()?.url.clone())
                .is_some_and(|url| url.starts_with(&image)))
        })
        .await;
    assert_eq!(example.image("image-source").await.text("src/name"), "in an image");
}
