//! The start script of buildkitd's container, with stand-ins for rootlesskit and the kernel's files: what it tells the agent,
//! which ends it counts against the cache, and which ids it asks for.
#![allow(clippy::unwrap_used, reason = "this code runs in tests only")]

use std::{
    fs,
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use kiln_agent::{
    buildkit::Buildkit,
    oom::{Oom, Shortage},
    sandbox::Sandbox,
    trust::Trust,
};

/// Runs what stands in `STAND_IN` in the place of buildkitd.
const ROOTLESSKIT: &str = "#!/bin/sh\ncase $1 in --net=*) ;; *) exec \"$@\" ;; esac\neval \"$STAND_IN\"\n";

struct Container {
    root: tempfile::TempDir,
    script: Option<Child>,
}

impl Container {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        for directory in ["bin", "state", "run", "config", "cgroup/memory", "maps", "tmp"] {
            fs::create_dir_all(root.path().join(directory)).unwrap();
        }
        let container = Self { root, script: None };
        for (program, text) in [("bin/rootlesskit", ROOTLESSKIT), ("bin/id", "#!/bin/sh\necho 1000\n")] {
            fs::write(container.path(program), text).unwrap();
            fs::set_permissions(container.path(program), fs::Permissions::from_mode(0o755)).unwrap();
        }
        container.kills(0);
        for map in ["maps/uid_map", "maps/gid_map"] {
            fs::write(container.path(map), "0 7 65536\n").unwrap();
        }
        container
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root.path().join(path)
    }

    /// So many processes the kernel has killed, it says.
    fn kills(&self, kills: u64) {
        fs::write(self.path("cgroup/memory.events"), format!("oom {kills}\noom_kill {kills}\noom_group_kill 0\n"))
            .unwrap();
    }

    /// Starts it; `stand_in` is what becomes of buildkitd.
    fn start(&mut self, stand_in: &str) {
        let path = format!("{}:{}", self.path("bin").display(), std::env::var("PATH").unwrap());
        let mut command = Command::new("sh");
        command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../kiln-buildkitd")).stderr(Stdio::null()).process_group(0);
        command.env("PATH", path).env("STAND_IN", stand_in).env("KILN_SECURITY_PROFILE", "UserNamespace");
        for (variable, directory) in [
            ("KILN_BUILDKIT_STATE", "state"),
            ("KILN_BUILDKIT_CONFIG", "config"),
            ("KILN_BUILDKIT_RUN", "run"),
            ("KILN_BUILDKIT_TMP", "tmp"),
            ("KILN_CGROUP", "cgroup"),
            ("KILN_ID_MAPS", "maps"),
            ("ROOT", ""),
        ] {
            command.env(variable, self.path(directory));
        }
        self.script = Some(command.spawn().unwrap());
    }

    /// Waits for its end.
    fn end(&mut self) -> Option<i32> {
        self.script.as_mut().unwrap().wait().unwrap().code()
    }

    /// Ends all of its processes at once, as the kernel does with a whole cgroup.
    fn kill(&mut self) {
        let Some(mut script) = self.script.take() else { return };
        let group = format!("-{}", script.id());
        // One that has ended may have left others.
        let _ = Command::new("kill").args(["-KILL", "--", &group]).stderr(Stdio::null()).status();
        let _ = script.wait();
    }

    fn wait_for(&self, path: &str) {
        let begun = Instant::now();
        while !self.path(path).exists() {
            assert!(begun.elapsed() < Duration::from_secs(20), "{path} is there");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn oom(&self) -> Oom {
        Oom::beside(Some(&self.path("run/buildkitd.sock")))
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        self.kill();
    }
}

#[tokio::test]
async fn the_agent_is_told_of_kills() {
    let mut container = Container::new();
    container.start(": >$ROOT/up; while [ ! -e $ROOT/down ]; do sleep 0.01; done; exit 255");
    container.wait_for("up");
    let oom = container.oom();
    let watch = oom.watch().await;
    let told = |killed| Shortage { killed, alone: true, first: true };
    for (kills, killed) in [(0, false), (1, true), (2, true)] {
        container.kills(kills);
        assert_eq!(watch.look().await, told(Some(killed)), "{kills}");
    }
    // Of a start that has ended itself its last word stays.
    container.kills(3);
    fs::write(container.path("down"), "").unwrap();
    assert_eq!(container.end(), Some(255));
    assert_eq!(watch.look().await, told(Some(true)));
    drop(watch);

    // Of one that was killed with all that there was, nothing is known, nor does the next start know.
    fs::remove_file(container.path("up")).unwrap();
    fs::remove_file(container.path("down")).unwrap();
    container.kills(0);
    container.start(": >$ROOT/up; exec sleep 600");
    container.wait_for("up");
    let watch = oom.watch().await;
    container.kill();
    assert_eq!(watch.look().await, told(None));
    fs::remove_file(container.path("up")).unwrap();
    container.start(": >$ROOT/up; exec sleep 600");
    container.wait_for("up");
    container.kills(1);
    assert_eq!(watch.look().await, told(None));
}

#[test]
fn a_buildkitd_that_hangs_is_ended() {
    let mut container = Container::new();
    container.start("trap '' TERM; : >$ROOT/up; kill -STOP $$; exec sleep 600");
    container.wait_for("up");
    // Made before buildkitd is started.
    container.oom().end_buildkitd().unwrap();
    assert_eq!(container.end(), Some(137));
    let counted = fs::read_to_string(container.path("state/quick-failures")).unwrap();
    assert_eq!(counted, "0\n", "the cache is not to blame");
}

#[test]
fn want_of_memory_never_costs_the_cache() {
    /// As much as `kills` of [`Container`].
    const KILL: &str = "echo oom_kill 1 >$ROOT/cgroup/memory.events";
    for (what, stand_in, killed_with_all, count) in [
        ("a cache that buildkitd fails on", "exit 1".to_owned(), false, "2\n"),
        ("buildkitd is killed", "exit 255".to_owned(), false, "1\n"),
        ("rootlesskit is killed", "kill -KILL $$".to_owned(), false, "1\n"),
        ("a helper of theirs is killed", format!("{KILL}; exit 1"), false, "1\n"),
        ("the whole container is killed", ": >$ROOT/up; exec sleep 600".to_owned(), true, "1\n"),
    ] {
        let mut container = Container::new();
        // Once it has failed already: one more, and the cache is put aside.
        fs::write(container.path("state/quick-failures"), "1\n").unwrap();
        container.start(&stand_in);
        if killed_with_all {
            container.wait_for("up");
            container.kill();
        } else {
            container.end();
        }
        let counted = fs::read_to_string(container.path("state/quick-failures")).unwrap();
        assert_eq!(counted, count, "{what}");
    }
}

#[test]
fn a_build_has_the_ids_that_its_pod_has() {
    for (uids, gids, expected_uids, expected_gids, largest) in [
        ("         0 2741305344      65536\n", "0 7 65536\n", "1 999, 1001 64535", "1 999, 1001 64535", 65_534),
        ("0 2741305344 131072\n", "0 7 65536\n", "1 999, 1001 130071", "1 999, 1001 64535", 65_534),
        ("0 7 131072\n", "0 7 131072\n", "1 999, 1001 130071", "1 999, 1001 130071", 131_070),
        ("0 100 1\n1 7 999\n1000 9 64536\n", "5 7 100\n1000 9 1\n", "1 999, 1001 64535", "5 100", 100),
    ] {
        let mut container = Container::new();
        fs::write(container.path("maps/uid_map"), uids).unwrap();
        fs::write(container.path("maps/gid_map"), gids).unwrap();
        container.start("$GETSUBIDS user >$ROOT/uids; $GETSUBIDS -g user >$ROOT/gids; : >$ROOT/up; exec sleep 600");
        container.wait_for("up");
        // As getsubids writes them, such as `0: user 1 999`.
        let said = |file: &str| {
            let said = fs::read_to_string(container.path(file)).unwrap();
            said.lines().map(|line| line.strip_prefix("0: user ").unwrap().to_owned()).collect::<Vec<_>>().join(", ")
        };
        assert_eq!((said("uids").as_str(), said("gids").as_str()), (expected_uids, expected_gids), "{uids} {gids}");
        let address = format!("unix://{}", container.path("run/buildkitd.sock").display());
        let buildkit = Buildkit::new(&address, Trust::default(), Sandbox::absent("a test"));
        assert_eq!(buildkit.largest_id(), Some(largest), "{uids} {gids}");
    }
}
