//! Every example does what its comment promises, as it stands there: only the hosts of registries and servers are the
//! local cluster's, and what its comment says a user has to make is there.

mod content;
mod example;
mod form;
mod places;
mod platforms;
mod pools;
mod sources;
mod steps;

use std::collections::BTreeSet;
use std::path::Path;

use self::example::{EXAMPLES, Example};
use kiln_e2e::Tenant;

macro_rules! examples {
    ($($folder:literal $test:ident $promise:path;)+) => {
        /// The folders that a test here runs.
        const HERE: &[&str] = &[$($folder,)+];

        $(async fn $test() {
            Tenant::run(concat!("ex-", $folder), async |tenant| {
                let mut example = Example::read(tenant, $folder).await;
                $promise(&mut example).await;
            })
            .await;
        })+

        kiln_e2e::tests![$($test,)+ plain every_example_is_run];
    };
}

examples! {
    "args" args content::args;
    "targets" targets content::targets;
    "no-cache" no_cache content::no_cache;
    "labels" labels content::labels;
    "instructions" instructions content::instructions;
    "warnings" warnings content::warnings;
    "check" check content::check;
    "cache-age" cache_age content::cache_age;
    "inline" inline platforms::inline;
    "secrets" secrets steps::secrets;
    "ssh-mount" ssh_mount steps::ssh_mount;
    "mounts" mounts steps::mounts;
    "limits" limits steps::limits;
    "add" add sources::add;
    "contexts" contexts sources::contexts;
    "git-ssh" git_ssh sources::git_ssh;
    "submodules" submodules sources::submodules;
    "git-lfs" git_lfs sources::git_lfs;
    "git-history" git_history sources::git_history;
    "private-git" private_git sources::private_git;
    "dockerfile" dockerfile sources::dockerfile;
    "http" http sources::http;
    "image-source" image_source sources::image_source;
    "platforms" platforms platforms::platforms;
    "emulation" emulation platforms::emulation;
    "cross" cross platforms::cross;
    "windows" windows platforms::windows;
    "index" index platforms::index;
    "tags" tags places::tags;
    "cache" cache places::cache;
    "gitops" gitops places::gitops;
    "pull-secrets" pull_secrets places::pull_secrets;
    "image-form" image_form form::image_form;
    "reproducible" reproducible form::reproducible;
    "syntax" syntax pools::syntax;
    "pool" pool pools::pool;
    "archive" archive pools::archive;
}

/// The folders that others run: `make demo` the first, `samples` the second.
const ELSEWHERE: &[&str] = &["hello", "apps"];

fn every_example_is_run() {
    let there: BTreeSet<_> = std::fs::read_dir(Path::new(EXAMPLES))
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.path().is_dir())
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect();
    let run: BTreeSet<_> = HERE.iter().chain(ELSEWHERE).map(|folder| (*folder).to_owned()).collect();
    assert_eq!(there, run, "each folder of examples/ has a test, and each test its folder");
}
