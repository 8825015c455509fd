//! Notices that the agent itself has come to a standstill: all threads of its runtime wait for something that a build or a
//! repository made. Then the agent ends, and the kubelet starts it anew. (A probe of the kubelet would end honest builds on
//! a node that has no time for its answer.)

use std::{
    fmt::Write as _,
    fs, io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

/// For how long no timer may have run.
pub const LIMIT: Duration = Duration::from_mins(1);
/// How often a timer runs, and how often that is looked at.
const TICK: Duration = Duration::from_secs(1);

/// Calls `stuck` once no timer of this runtime has run for `limit`, `tick` apart, from a thread of its own.
pub fn start(limit: Duration, tick: Duration, stuck: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let ticks = Arc::new(AtomicU64::new(0));
    let ticking = Arc::clone(&ticks);
    tokio::spawn(async move {
        let mut timer = tokio::time::interval(tick);
        loop {
            timer.tick().await;
            ticking.fetch_add(1, Ordering::Relaxed);
        }
    });
    thread::Builder::new().name("watchdog".to_owned()).spawn(move || {
        let mut silence = Silence { limit, tick, ticks: 0, lasted: Duration::ZERO };
        loop {
            let began = Instant::now();
            thread::sleep(tick);
            if silence.is_over(ticks.load(Ordering::Relaxed), began.elapsed()) {
                return stuck();
            }
        }
    })?;
    Ok(())
}

/// Ends the agent where it has come to a standstill; what its threads wait for is in its log.
pub fn guard() -> io::Result<()> {
    start(LIMIT, TICK, || {
        tracing::error!(threads = threads(), "no timer has run for {} s: the agent ends", LIMIT.as_secs());
        std::process::abort();
    })
}

/// How long no timer has run.
struct Silence {
    limit: Duration,
    tick: Duration,
    /// How many had run when one was last seen.
    ticks: u64,
    lasted: Duration,
}

impl Silence {
    /// Whether it has lasted too long; `ticks` timers have run until now, and the thread that looks has slept for `slept`.
    fn is_over(&mut self, ticks: u64, slept: Duration) -> bool {
        if ticks != self.ticks {
            (self.ticks, self.lasted) = (ticks, Duration::ZERO);
            return false;
        }
        // One who sleeps for longer than he wanted was given no time, and neither were the others.
        self.lasted += slept.min(self.tick * 2);
        self.lasted >= self.limit
    }
}

/// Each thread's name, what it does, and where in the kernel it waits: what a process that cannot be dumped may read of its own.
fn threads() -> String {
    let mut text = String::new();
    for task in fs::read_dir("/proc/self/task").into_iter().flatten().flatten() {
        let read = |file: &str| fs::read_to_string(task.path().join(file)).unwrap_or_default();
        let (name, place, stat) = (read("comm"), read("wchan"), read("stat"));
        // Behind the name, which may hold anything.
        let state = stat.rsplit(") ").next().and_then(|rest| rest.split(' ').next()).unwrap_or_default();
        let _ = write!(text, "{} ({state}) in {place}; ", name.trim());
    }
    text
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn silence() -> Silence {
        Silence { limit: LIMIT, tick: SECOND, ticks: 0, lasted: Duration::ZERO }
    }

    #[test]
    fn a_minute_without_a_timer() {
        let mut silence = silence();
        assert!((0..59).all(|_| !silence.is_over(0, SECOND)));
        assert!(!silence.is_over(1, SECOND), "one has run");
        assert!((0..59).all(|_| !silence.is_over(1, SECOND)));
        assert!(silence.is_over(1, SECOND));
    }

    #[test]
    fn a_node_without_time_is_no_standstill() {
        // Two minutes in which neither the timers nor the thread that looks at them got any time.
        assert!(!silence().is_over(0, SECOND * 120));
        let mut silence = silence();
        assert!((0..4).all(|_| !silence.is_over(0, SECOND * 30)));
    }

    /// Set for the process that [`a_process_without_time_is_not_ended`] stops.
    const STOPPED: &str = "KILN_TEST_STOPPED";

    #[test]
    fn a_process_without_time_is_not_ended() {
        use std::io::{BufRead as _, BufReader};
        use std::process::{Command, Stdio};

        use rustix::process::{Pid, Signal, kill_process};

        let (limit, tick) = (SECOND / 2, SECOND / 50);
        if std::env::var_os(STOPPED).is_some() {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
            runtime.block_on(async { start(limit, tick, || std::process::exit(3)).unwrap() });
            println!("begun");
            std::io::stdin().lines().for_each(drop);
            // Time enough for it to end, if it would.
            thread::sleep(limit / 2);
            std::process::exit(0);
        }
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "watchdog::tests::a_process_without_time_is_not_ended", "--nocapture"])
            .env(STOPPED, "")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        assert!(lines.any(|line| line.ends_with("begun")));
        let pid = Pid::from_child(&child);
        kill_process(pid, Signal::STOP).unwrap();
        thread::sleep(limit * 4);
        kill_process(pid, Signal::CONT).unwrap();
        drop(child.stdin.take());
        assert_eq!(child.wait().unwrap().code(), Some(0));
    }

    #[test]
    fn every_worker_is_blocked() {
        let (blocked, stuck) = (mpsc::channel::<()>(), mpsc::channel());
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let tick = Duration::from_millis(10);
        runtime.block_on(async { start(tick * 20, tick, move || stuck.0.send(threads()).unwrap()).unwrap() });
        let receiver = Arc::new(std::sync::Mutex::new(blocked.1));
        for _ in 0..2 {
            let receiver = Arc::clone(&receiver);
            runtime.spawn(async move {
                let _ = receiver.lock().unwrap().recv();
            });
        }
        let threads = stuck.1.recv().unwrap();
        // Before anything else: the runtime waits for them.
        drop(blocked.0);
        assert!(threads.contains("watchdog (R) in "), "{threads}");
    }
}
