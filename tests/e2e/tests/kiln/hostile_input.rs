//! Hostile input in an ImageBuild and in its source: URLs that lead to the operator itself, links that lead out of the
//! source, words that look like options, and as much as an object can hold. What the schema refuses is in `api_rules.rs`.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use k8s_openapi::api::events::v1::Event;
use kiln_crds::image_build::ImageBuildSpec;
use kiln_crds::image_build_run::{BuilderRef, PlatformPhase};
use kiln_crds::{ImageBuild, ImageBuildRun};
use kiln_e2e::build::{file, git};
use kiln_e2e::git::{Commit, Tree};
use kiln_e2e::registry::{Image, Registry};
use kiln_e2e::tenant::{condition, image_of, run_of};
use kiln_e2e::{Build, Repository, Tenant, wait};
use kube::ResourceExt as _;
use kube::api::{Patch, PatchParams, PostParams};
use kube::runtime::watcher;
use serde_json::json;

kiln_e2e::tests![
    addresses_in_disguise,
    urls_of_other_kinds,
    links_out_of_the_source,
    a_tree_that_writes_through_its_own_link,
    a_program_that_is_a_pipe,
    a_forged_run_reaches_nobody_else,
    odd_words_arrive_as_they_are,
    words_that_no_program_takes,
    as_much_as_an_object_holds,
    what_copies_leave_out,
    odd_names
];

/// Addresses of the operator's own pod and of its link, in every form that something might read as one.
const ADDRESSES: [&str; 18] = [
    "127.0.0.1:8080",
    "127.1:8080",
    "2130706433:8080",
    "0x7f000001:8080",
    "0177.0.0.1:8080",
    "0x7f.0.0.0x1:8080",
    "0:8080",
    "0.0.0.0:8080",
    "localhost:8080",
    "LOCALHOST:8080",
    "[::1]:8080",
    "[::]:8080",
    "[::ffff:127.0.0.1]:8080",
    "[::ffff:7f00:1]:8080",
    "[0:0:0:0:0:ffff:7f00:0001]:8080",
    "[64:ff9b::127.0.0.1]:8080",
    "\u{ff11}\u{ff12}\u{ff17}.0.0.1:8080",
    "127\u{3002}0\u{3002}0\u{3002}1:8080",
];

async fn addresses_in_disguise() {
    Tenant::run("addresses", async |tenant| {
        for (number, address) in ADDRESSES.iter().enumerate() {
            let source = json!({"git": {"url": format!("https://{address}/app.git")}});
            let from_git = Build::inline(tenant, &format!("git-{number}"), &[]).amd64();
            tenant.create_build(&from_git.with(|spec| spec.source = serde_json::from_value(source).unwrap())).await;
        }
        for (number, address) in ADDRESSES.iter().enumerate() {
            let failed = tenant.not_ready(&format!("git-{number}"), "AddressForbidden").await;
            assert_eq!(run_of(&failed), "", "{address}: no run");
        }
    })
    .await;
}

async fn urls_of_other_kinds() {
    Tenant::run("urls", async |tenant| {
        let urls = [
            "file:///etc/passwd",
            "/etc/passwd",
            "ext::sh -c id",
            "ext::sh",
            "-oProxyCommand=id",
            "--upload-pack=id",
            "ssh://-oProxyCommand=id/x",
            "ssh://git:pw@git.example/x",
            "git://git.example/x",
            "ftp://git.example/x",
            "https:git.example/x",
            "https:///x",
            "https://-x/y",
            "https://git.example",
            "https://git.example\\@10.217.0.1/x",
            "https://git.example\t/x",
            "https://git.example/\u{0}",
            "https://git.example/\u{7f}",
            "https://user@git.example/x",
            "https://git.example:99999/x",
            "https://git.example/\u{2028}x",
        ];
        for (number, url) in urls.iter().enumerate() {
            let name = format!("app-{number}");
            let source = json!({"git": {"url": url}});
            let build = Build::inline(tenant, &name, &[]).amd64();
            let build = build.with(|spec| spec.source = serde_json::from_value(source).unwrap());
            match tenant.builds().create(&PostParams::default(), &build.object).await {
                Ok(_) => {
                    let failed = tenant.not_ready(&name, "GitUrlInvalid").await;
                    assert_eq!(run_of(&failed), "", "{url:?}: no run");
                }
                Err(error) => assert!(error.to_string().contains("git.url"), "{url:?}: {error}"),
            }
        }
    })
    .await;
}

/// What would be in a status or image if a link had been followed: any image with users has this line.
const PASSWD: &str = "root:x:0:0";

async fn failed(tenant: &Tenant, build: &Build, reasons: &[&str]) -> ImageBuild {
    let build = tenant.create_build(build).await;
    let name = build.metadata.name.as_deref().unwrap();
    let failed = tenant
        .wait_build(name, "failed", wait::BUILD, |build| {
            let image = build.status.as_ref().is_some_and(|status| status.image.is_some());
            if image {
                Err("it was built".to_owned())
            } else {
                Ok(build.status.as_ref().is_some_and(|s| s.failure.is_some()))
            }
        })
        .await;
    let failure = failed.status.as_ref().unwrap().failure.as_ref().unwrap();
    assert!(reasons.contains(&failure.reason.as_str()), "{name}: {failure:#?}");
    let everything = kiln_e2e::diagnosis::of(&tenant.cluster.client, &tenant.namespace).await;
    assert!(!everything.contains(PASSWD), "{name}: a file of the builder is in a status, Event or log");
    failed
}

async fn links_out_of_the_source() {
    Tenant::run("links", async |tenant| {
        let repository = Repository::public(tenant, "app");
        let good = "FROM busybox\nCOPY file /file\n";
        repository.commit(&Commit {
            files: &[
                ("file", "own"),
                ("real/Dockerfile", "FROM busybox\nCOPY real/Dockerfile /file\n"),
                ("copy/Dockerfile", "FROM busybox\nCOPY passwd /file\n"),
                ("through/Dockerfile", "FROM busybox\nCOPY root/etc/passwd /file\n"),
                ("all/Dockerfile", "FROM busybox\nCOPY . /all\n"),
                ("Dockerfile", good),
            ],
            links: &[
                ("linked.Dockerfile", "real/Dockerfile"),
                ("absolute.Dockerfile", "/etc/passwd"),
                ("upwards.Dockerfile", "../../../../../../../../../../../etc/passwd"),
                ("environ.Dockerfile", "/proc/self/environ"),
                ("circle.Dockerfile", "circle.Dockerfile"),
                ("root", "/"),
                ("copy/passwd", "/etc/passwd"),
                ("through/root", "/"),
                ("all/passwd", "/etc/passwd"),
                ("all/root", "../../../../../../../../../.."),
                (".dockerignore", "/etc/passwd"),
            ],
            ..Commit::default()
        });
        let build = |name: &str| Build::git(tenant, name, &repository).amd64();
        let with_dockerfile = |name: &str, path: &str| build(name).with(|spec| spec.dockerfile = Some(path.to_owned()));
        let with_path = |name: &str, path: &str| build(name).with(|spec| git(spec).path = Some(path.to_owned()));

        // A link that stays inside works.
        let linked = tenant.build(&with_dockerfile("linked", "linked.Dockerfile")).await;
        assert!(image(tenant, &linked).await.text("file").contains("COPY"));
        let nowhere = ["DockerfileNotFound", "DockerfileInvalid", "FileNotFound", "BuildFailed"];
        for name in ["absolute", "upwards", "environ", "circle"] {
            failed(tenant, &with_dockerfile(name, &format!("{name}.Dockerfile")), &nowhere).await;
        }
        failed(tenant, &with_dockerfile("below", "root/etc/passwd"), &nowhere).await;
        for (name, path) in [("root", "root"), ("etc", "root/etc"), ("git", ".git")] {
            failed(tenant, &with_path(name, path), &["ContextNotFound", "InvalidJob"]).await;
        }
        failed(tenant, &with_path("copy", "copy"), &["FileNotFound"]).await;
        failed(tenant, &with_path("through", "through"), &["FileNotFound"]).await;
        // A directory's links are copied as what they are.
        let all = tenant.build(&with_path("all", "all")).await;
        let all = image(tenant, &all).await;
        let paths: Vec<_> = all.built().map(|entry| entry.path.as_str()).collect();
        assert!(paths.contains(&"all/passwd") && paths.contains(&"all/root"), "{paths:?}");
        assert!(!paths.iter().any(|path| path.starts_with("all/root/")), "{paths:?}");
        assert!(all.built().all(|entry| !String::from_utf8_lossy(&entry.bytes).contains(PASSWD)));
    })
    .await;
}

/// A tree that Git itself would not make: a link, and files that lie below it.
async fn a_tree_that_writes_through_its_own_link() {
    Tenant::fresh("tree", async |tenant| {
        let repository = Repository::public(tenant, "app");
        repository.commit_tree(&Tree::Entries(&[
            ("100644", "Dockerfile", Tree::Blob("FROM busybox\nCOPY . /src\n")),
            ("120000", "out", Tree::Blob("/tmp")),
            ("40000", "out", Tree::Entries(&[("100644", "written", Tree::Blob("through the link"))])),
        ]));
        failed(tenant, &Build::git(tenant, "app", &repository).amd64(), &["GitTreeRefused"]).await;
        // A submodule in the place of a link.
        let planted = Repository::public(tenant, "planted");
        let commit = planted.write(&[("written", "through the link")]);
        let module = format!("[submodule \"out\"]\n\tpath = out\n\turl = {}\n", planted.url);
        let modules = Repository::public(tenant, "modules");
        modules.commit_tree(&Tree::Entries(&[
            ("100644", ".gitmodules", Tree::Blob(&module)),
            ("100644", "Dockerfile", Tree::Blob("FROM busybox\nCOPY . /src\n")),
            ("120000", "out", Tree::Blob("/tmp")),
            ("160000", "out", Tree::Commit(&commit)),
        ]));
        let build = Build::git(tenant, "modules", &modules).amd64().with(|spec| git(spec).submodules = true);
        failed(tenant, &build, &["GitTreeRefused"]).await;
        // What LFS and a submodule's checkout would write beside a file, and a target that is a repository itself.
        let pointer = format!("version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize 7\n", "a".repeat(64));
        let beside = Repository::public(tenant, "beside");
        let module = format!("[submodule \"in\"]\n\tpath = in\n\turl = {}\n", planted.url);
        let bare = [("100644", "HEAD", Tree::Blob("ref: refs/heads/main\n")), ("40000", "objects", Tree::Entries(&[]))];
        beside.commit_tree(&Tree::Entries(&[
            ("100644", ".gitattributes", Tree::Blob("large filter=lfs\n")),
            ("100644", ".gitmodules", Tree::Blob(&module)),
            ("100644", "Dockerfile", Tree::Blob("FROM busybox\nCOPY . /src\n")),
            ("40000", "bare.git", Tree::Entries(&bare)),
            ("160000", "in", Tree::Commit(&commit)),
            ("120000", "in.index", Tree::Blob("/tmp/written")),
            ("100644", "large", Tree::Blob(&pointer)),
            ("120000", "large.lfs-part", Tree::Blob("/tmp/written")),
        ]));
        let below = format!("{}#main:bare.git", beside.url);
        // What ADD names, buildkitd fetches by itself: whatever its git makes of such a tree.
        let added = [
            ("add", &repository.url),
            ("add-modules", &modules.url),
            ("add-beside", &beside.url),
            ("add-below", &below),
        ];
        for (name, url) in added {
            let add = format!("FROM scratch\nADD {url} /src\n");
            tenant.create_build(&Build::inline(tenant, name, &[("Dockerfile", &add)]).amd64()).await;
            tenant
                .wait_build(name, "has ended", wait::BUILD, |build| {
                    Ok(condition(build, "Ready").is_some_and(|ready| ready.status != "Unknown"))
                })
                .await;
        }
        for pod in tenant.builders().await {
            for container in ["agent", "buildkitd"] {
                let written = tenant.has_file(&pod.name_any(), container, "/tmp/written").await;
                assert!(!written, "{container}: nothing is written outside the source's directory");
            }
        }
    })
    .await;
}

/// Whoever opened it would wait for ever: the builder looks at what an image starts that was built for another platform.
async fn a_program_that_is_a_pipe() {
    Tenant::run("pipe", async |tenant| {
        let dockerfile = "FROM --platform=$BUILDPLATFORM busybox AS made\nRUN mkfifo /run\n\
            FROM busybox\nCOPY --from=made /run /run\nENTRYPOINT [\"/run\"]\n";
        let build = Build::inline(tenant, "pipe", &[("Dockerfile", dockerfile)]).platforms(&["linux/arm64"]);
        let build = build.with(|spec| spec.platforms.as_mut().unwrap()[0].build_on = Some("linux/amd64".to_owned()));
        tenant.create_build(&build).await;
        // The same builder goes on.
        tenant.build(&Build::inline(tenant, "beside", &[("Dockerfile", "FROM busybox\nRUN true\n")]).amd64()).await;
        tenant
            .wait_build("pipe", "has ended", wait::BUILD, |build| {
                Ok(condition(build, "Ready").is_some_and(|ready| ready.status != "Unknown"))
            })
            .await;
        let run = tenant.runs().get("pipe-1").await.expect("it has a run");
        assert_eq!(run.status.unwrap().platforms[0].attempt, 1, "no builder was lost");
    })
    .await;
}

/// What a run says may be a stranger's words: it stops no run of another namespace, and no builder there takes its job.
/// Waits for the Event that a status of that kind was not Kiln's.
async fn told_of_a_forged_status(tenant: &Tenant, kind: &str) {
    let about = format!("regarding.kind={kind},reason=StatusReset");
    let select = watcher::Config::default().fields(&about);
    tenant.wait(tenant.api::<Event>(), select, &about, wait::SOON, |events| Ok(!events.is_empty())).await;
}

async fn a_forged_run_reaches_nobody_else() {
    let step = |seconds: u32| format!("FROM busybox\nRUN sleep {seconds}\n");
    Tenant::fresh("victim", async |victim| {
        victim.create_build(&Build::inline(victim, "app", &[("Dockerfile", &step(15))]).amd64()).await;
        let own =
            victim.wait_run("app-1", "its step runs", wait::BUILD, |run| Ok(phase(run) == PlatformPhase::Building));
        let own = own.await;
        Tenant::fresh("thief", async |thief| {
            let mut newer = ImageBuildRun::new("app-1000", own.spec.clone());
            newer.spec.number = 1000;
            thief.runs().create(&PostParams::default(), &newer).await.unwrap();

            thief.create_build(&Build::inline(thief, "own", &[("Dockerfile", &step(2))]).amd64()).await;
            let given = thief.wait_run("own-1", "has a builder", wait::BUILD, |run| Ok(builder(run).is_some()));
            given.await;
            let forged = json!({"status": {"platforms": [{
                "name": "linux/amd64", "phase": "Starting", "attempt": 2, "builder": builder(&own),
            }]}});
            thief.runs().patch_status("own-1", &PatchParams::default(), &Patch::Merge(forged)).await.unwrap();
            let ended = thief.wait_run("own-1", "has ended", wait::BUILD, |run| {
                Ok(run.status.as_ref().is_some_and(|status| status.phase.is_final()))
            });
            let ended = ended.await;
            assert_eq!(phase(&ended), PlatformPhase::Succeeded, "{:#?}", ended.status);
            told_of_a_forged_status(thief, "ImageBuildRun").await;
            // Together with Kiln's own more than the schema lets pass: Kiln could not write any more.
            let time = "2026-01-01T00:00:00Z";
            let condition = |number| {
                json!({"type": format!("Forged{number}"), "status": "True", "reason": "Forged", "message": "", "lastTransitionTime": time})
            };
            // Once it has said all that it has to say, in one condition.
            let kilns = thief.built("own").await.status.unwrap().conditions;
            assert_eq!(kilns.len(), 1, "{kilns:#?}");
            let mut conditions: Vec<_> = kilns.iter().map(|condition| json!(condition)).collect();
            conditions.extend((conditions.len()..16).map(condition));
            let forged = json!({"status": {"conditions": conditions}});
            thief.builds().patch_status("own", &PatchParams::default(), &Patch::Merge(forged)).await.unwrap();
            // A change that has a condition of another type.
            let nowhere = |build: &mut ImageBuild| "FROM busybox\nRUN exit 3\n".clone_into(file(&mut build.spec, "Dockerfile"));
            thief.edit("own", nowhere).await;
            told_of_a_forged_status(thief, "ImageBuild").await;
            let failed = thief.not_ready("own", "StepFailed").await;
            let left = failed.status.unwrap().conditions;
            assert!(left.iter().all(|condition| !condition.type_.starts_with("Forged")), "{left:#?}");
            // What no schema lets pass is not written at all.
            let is_refused = |written: Result<(), kube::Error>| {
                assert!(matches!(&written, Err(kube::Error::Api(status)) if status.code == 422), "{written:?}");
            };
            for attempt in [5_000_000, u32::MAX] {
                let platform = json!({"name": "linux/amd64", "phase": "Queued", "attempt": attempt});
                let status = Patch::Merge(json!({"status": {"platforms": [platform]}}));
                is_refused(thief.runs().patch_status("own-1", &PatchParams::default(), &status).await.map(drop));
            }
            let mut newest = ImageBuildRun::new("app-newest", own.spec.clone());
            newest.spec.number = u64::MAX;
            is_refused(thief.runs().create(&PostParams::default(), &newest).await.map(drop));
        })
        .await;
        let ended = victim.wait_run("app-1", "has ended", wait::BUILD, |run| {
            Ok(run.status.as_ref().is_some_and(|status| status.phase.is_final()))
        });
        assert_eq!(phase(&ended.await), PlatformPhase::Succeeded, "a run of another namespace is no newer one");
    })
    .await;
}

fn phase(run: &ImageBuildRun) -> PlatformPhase {
    run.status.iter().flat_map(|status| &status.platforms).next().map(|platform| platform.phase).unwrap_or_default()
}

fn builder(run: &ImageBuildRun) -> Option<&BuilderRef> {
    run.status.as_ref()?.platforms.first()?.builder.as_ref()
}

async fn image(tenant: &Tenant, build: &ImageBuild) -> Image {
    let image = image_of(build);
    Registry::new(&tenant.cluster).image_for(&image.repository, &image.digest, "linux/amd64").await
}

/// Words that end an option, begin another, or mean something to CSV, shells and key=value lists.
const ODD: [&str; 12] = [
    "a,push=false,name=elsewhere",
    "\"quoted\"",
    "\",push=false,\"",
    "a=b=c",
    "--output=type=local,dest=/tmp",
    "$(id) `id` $HOME ${HOME}",
    "line\nbreak\r\n--opt=target=other",
    " blanks around ",
    "tab\there",
    "'; rm -rf /; '",
    "\\ back\\slash \\n",
    "\u{202e}\u{1f9f1}",
];

fn odd() -> BTreeMap<String, String> {
    ODD.iter().enumerate().map(|(number, value)| (format!("odd_{number}"), (*value).to_owned())).collect()
}

async fn odd_words_arrive_as_they_are() {
    Tenant::run("odd-words", async |tenant| {
        let dockerfile = "folder, \"one\"/Docker=file,x=y 'a' $HOME";
        let mut text = "FROM busybox\n".to_owned();
        for name in odd().keys() {
            write!(text, "ARG {name}\nRUN printf %s \"${name}\" > /{name}\n").unwrap();
        }
        let files = [(dockerfile, text.as_str()), ("Dockerfile", "FROM nowhere.invalid/x\n")];
        let build = Build::inline(tenant, "app", &files).amd64().with(|spec| {
            spec.dockerfile = Some(dockerfile.to_owned());
            spec.args = odd();
            spec.labels = odd();
            spec.labels.insert("key, with \"odd\" words".replace(' ', "-"), "x".to_owned());
            spec.annotations = odd();
        });
        let finished = tenant.build(&build).await;
        assert_eq!(image_of(&finished).repository, build.object.spec.image.as_ref().unwrap().repository);
        let registry = Registry::new(&tenant.cluster);
        let image = image(tenant, &finished).await;
        for (name, value) in odd() {
            let written = String::from_utf8_lossy(&image.entry(&name).unwrap().bytes).into_owned();
            assert_eq!(written, value, "argument {name}");
            let labels = image.config.config().as_ref().unwrap().labels().clone().unwrap();
            assert_eq!(labels.get(&name), Some(&value), "label {name}");
            assert_eq!(image.manifest.annotations().clone().unwrap().get(&name), Some(&value), "annotation {name}");
        }
        let index = registry.index(&image_of(&finished).repository, "latest").await;
        assert_eq!(index.annotations().clone().unwrap(), odd().into_iter().collect(), "annotations of the index");

        // A stage of that name is not there, and nothing else is meant by it.
        for target in ["x,filename=Dockerfile", "--no-cache", "a\nb", "\u{0}"] {
            tenant.edit("app", |build| build.spec.target = Some(target.to_owned())).await;
            let failed = tenant
                .wait_build("app", "failed", wait::BUILD, |build| {
                    Ok(kiln_e2e::tenant::is_current(build)
                        && condition(build, "Stalled").is_some_and(|stalled| stalled.status == "True"))
                })
                .await;
            let reason = &condition(&failed, "Stalled").unwrap().reason;
            assert!(["TargetNotFound", "InvalidJob"].contains(&reason.as_str()), "{target:?}: {reason}");
        }
    })
    .await;
}

/// What no program can be told is the user's to mend, not the builder's failure.
async fn words_that_no_program_takes() {
    Tenant::run("no-words", async |tenant| {
        type Change = fn(&mut ImageBuildSpec);
        let cases: [(&str, Change); 3] = [
            ("arg", |spec| drop(spec.args.insert("A".to_owned(), "a\u{0}b".to_owned()))),
            ("label", |spec| drop(spec.labels.insert("a".to_owned(), "a\u{0}b".to_owned()))),
            ("key", |spec| drop(spec.labels.insert("a=b".to_owned(), "x".to_owned()))),
        ];
        for (name, change) in cases {
            tenant
                .create_build(&Build::inline(tenant, name, &[("Dockerfile", "FROM busybox\n")]).amd64().with(change))
                .await;
        }
        for (name, _) in cases {
            tenant.not_ready(name, "InvalidJob").await;
        }
    })
    .await;
}

/// Much, and still right.
async fn as_much_as_an_object_holds() {
    Tenant::run("much", async |tenant| {
        let content = "0123456789abcdef".repeat(16_000);
        let build = Build::inline(tenant, "app", &[("Dockerfile", "FROM busybox\nCOPY big* /\nARG K127\n")]).amd64();
        let build = build.with(|spec| {
            for number in 0..2 {
                content.clone_into(file(spec, &format!("big{number}")));
            }
            spec.args = (0..128).map(|number| (format!("K{number}"), "x".repeat(2000))).collect();
            spec.image.as_mut().unwrap().tags = (0..32).map(|number| format!("{number:0>128}")).collect();
        });
        let finished = tenant.build(&build).await;
        assert_eq!(image_of(&finished).tags.len(), 32);
        assert_eq!(image(tenant, &finished).await.entry("big1").unwrap().bytes.len(), content.len());

        // Just as much as the API server stores, and no more: neither a status nor a run fits beside it. An Event tells.
        let brim = Build::inline(tenant, "brim", &[("Dockerfile", "FROM busybox\n")]).amd64().with(|spec| {
            for number in 0..3 {
                "x".repeat(262_144).clone_into(file(spec, &format!("big{number}")));
            }
            spec.args = (0..94).map(|number| (format!("K{number}"), "x".repeat(8150))).collect();
        });
        let mut size = 30_000;
        loop {
            let mut object = brim.object.clone();
            *file(&mut object.spec, "rest") = "x".repeat(size);
            match tenant.builds().create(&PostParams::default(), &object).await {
                Ok(_) => break,
                Err(error) => assert!(error.to_string().contains("too large"), "{error}"),
            }
            size = size.checked_sub(250).expect("the API server takes so much");
        }
        tenant.event("brim", "ApiUnavailable").await;
    })
    .await;
}

/// The operator's copies of objects leave out what is large: it reaches image and status all the same.
async fn what_copies_leave_out() {
    Tenant::run("left-out", async |tenant| {
        let large = "0123456789abcdef".repeat(500);
        let mut dockerfile =
            "FROM busybox\nARG A B\nRUN echo ${#A} ${#B} > /lengths && grep left.example /etc/hosts\n".to_owned();
        for number in 0..60 {
            writeln!(dockerfile, "COPY a /{number}-{}", "x".repeat(100)).expect("a string takes it");
        }
        let build = Build::inline(tenant, "app", &[("a", "1")]).amd64().with(|spec| {
            spec.dockerfile_inline = Some(dockerfile.clone());
            spec.args.insert("A".to_owned(), large.clone());
            spec.platforms.as_mut().unwrap()[0].args.insert("B".to_owned(), large.clone());
            spec.labels.insert("large".to_owned(), large.clone());
            spec.annotations.insert("org.example.Large".to_owned(), large.clone());
            spec.host_aliases =
                serde_json::from_value(json!([{"ip": "192.0.2.1", "hostnames": ["left.example"]}])).unwrap();
        });
        let first = tenant.build(&build).await;
        let built = image_of(&first);
        let registry = Registry::new(&tenant.cluster);
        let image = registry.image_for(&built.repository, &built.digest, "linux/amd64").await;
        assert_eq!(image.text("lengths"), format!("{0} {0}", large.len()));
        let labels = image.config.config().as_ref().and_then(|config| config.labels().clone()).unwrap_or_default();
        assert_eq!(labels.get("large"), Some(&large));
        let of_index = registry.index(&built.repository, &built.digest).await.annotations().clone().unwrap_or_default();
        for annotations in [of_index, image.manifest.annotations().clone().unwrap_or_default()] {
            assert_eq!(annotations.get("org.example.Large"), Some(&large));
        }
        let layers =
            |build: &ImageBuild| image_of(build).platforms[0].content.clone().expect("its size is told").layers;
        assert!(layers(&first).len() > 60, "{:?}", layers(&first));

        // A copy of it has its layers too.
        tenant.edit("app", |build| build.spec.image.as_mut().unwrap().tags = vec!["v2".to_owned()]).await;
        let tagged = tenant.built_after("app", &run_of(&first)).await;
        assert!(tenant.run_of(&tagged).await.spec.copy_of.is_some());
        assert_eq!(layers(&tagged), layers(&first));

        // And so has the status of one that failed, with a long log.
        let failing = format!("FROM busybox\nRUN for i in $(seq 40); do echo {}; done; false\n", "y".repeat(400));
        tenant.edit("app", |build| build.spec.dockerfile_inline = Some(failing.clone())).await;
        let failed = tenant.not_ready("app", "StepFailed").await;
        assert_eq!(layers(&failed), layers(&first));
        let log = failed.status.unwrap().failure.expect("it tells why").log_tail;
        assert!(log.iter().map(String::len).sum::<usize>() > 4096, "{log:?}");
    })
    .await;
}

/// Names that Kubernetes allows, up to the longest that the schema does: what Kiln makes of them is within all limits.
async fn odd_names() {
    Tenant::fresh("names", async |tenant| {
        let longest = format!("{}.{}", "a".repeat(25), "b".repeat(26));
        for name in ["a.b-c.0", "0", longest.as_str()] {
            let build = Build::inline(tenant, name, &[("Dockerfile", "FROM busybox\n")]).amd64();
            let scope = serde_json::from_value(json!({"scope": "ImageBuild"})).unwrap();
            let finished = tenant.build(&build.with(|spec| spec.cache = Some(scope))).await;
            assert_eq!(run_of(&finished), format!("{name}-1"));
        }
        for pod in tenant.builders().await {
            assert!(pod.name_any().len() <= 63, "{} is a host name, too", pod.name_any());
        }
    })
    .await;
}
