//! The test program: which tests there are, which of them run alone, the longest first, and what each cost.
//!
//! The tests themselves know nothing of this; [`tests!`](crate::tests) lists those of a file. libtest-mimic reads the arguments, which
//! are those of any Rust test program, and prints the results.

use std::any::Any;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::pin::Pin;
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Failed, Trial};

use crate::cluster::cache_directory;
use crate::costs::{self, Took};
use crate::{Tenant, leftovers};

type Run = fn() -> Pin<Box<dyn Future<Output = ()>>>;

/// The stack of a test's thread: without optimisation its futures are deep.
const STACK: usize = 32 << 20;

/// A test.
pub struct Test {
    name: &'static str,
    run: Run,
    alone: bool,
    ignored: bool,
}

impl Test {
    /// A test of this name, the file's path included.
    #[must_use]
    pub const fn new(name: &'static str, run: Run) -> Self {
        Self { name, run, alone: false, ignored: false }
    }

    /// One that runs when no other does.
    #[must_use]
    pub const fn alone(self) -> Self {
        Self { alone: true, ..self }
    }

    /// One that runs only when it is asked for, with `--ignored`.
    #[must_use]
    pub const fn ignored(self) -> Self {
        Self { ignored: true, ..self }
    }

    /// The name without that of the program.
    fn name(&self) -> &'static str {
        self.name.split_once("::").map_or(self.name, |(_, name)| name)
    }
}

/// Lists the tests of a file, each an `async fn` without arguments, as `fn tests()`.
///
/// Before a name may stand `alone` (no other test runs meanwhile), `ignored` (only with `--ignored`) or `plain` (a `fn`
/// that waits for nothing). Behind `in` come modules whose tests are added. A test that is not listed is dead code, which
/// the compiler tells.
#[macro_export]
macro_rules! tests {
    (@one alone ignored $name:ident) => { $crate::tests!(@one $name).alone().ignored() };
    (@one alone $name:ident) => { $crate::tests!(@one $name).alone() };
    (@one ignored $name:ident) => { $crate::tests!(@one $name).ignored() };
    (@one plain $name:ident) => {
        $crate::suite::Test::new(concat!(module_path!(), "::", stringify!($name)), || Box::pin(async { $name() }))
    };
    (@one $name:ident) => {
        $crate::suite::Test::new(concat!(module_path!(), "::", stringify!($name)), || Box::pin($name()))
    };
    (in $($module:ident),+ $(,)?) => { $crate::tests![; in $($module),+]; };
    ($($($word:ident)+),* $(,)? $(; in $($module:ident),+ $(,)?)?) => {
        /// The tests of this file and its modules.
        pub fn tests() -> Vec<$crate::suite::Test> {
            #[allow(unused_mut, reason = "not every file has modules with tests")]
            let mut all = vec![$($crate::tests!(@one $($word)+)),*];
            $($(all.extend($module::tests());)+)?
            all
        }
    };
}

/// Held for writing by a test that runs alone, for reading by the others.
static CLUSTER: RwLock<()> = RwLock::new(());

thread_local! {
    /// Where the test of this thread panicked.
    static PANIC: RefCell<String> = const { RefCell::new(String::new()) };
    /// The namespaces that the test of this thread has, and what their builders had used before.
    static NAMESPACES: RefCell<Vec<(String, Duration)>> = const { RefCell::new(Vec::new()) };
}

/// Tells that the test of this thread has a namespace, whose builders are on its account.
pub(crate) fn has_namespace(name: &str) {
    NAMESPACES.with_borrow_mut(|names| names.push((name.to_owned(), costs::used(name))));
}

static TOOK: Mutex<BTreeMap<&str, Took>> = Mutex::new(BTreeMap::new());

/// Runs the tests that the program's arguments select.
#[must_use]
pub fn main(mut tests: Vec<Test>) -> ExitCode {
    let arguments = Arguments::from_args();
    if arguments.list {
        return libtest_mimic::run(&arguments, trials(tests)).exit_code();
    }
    let _alone = leftovers::only_program();
    leftovers::remove();
    costs::watch();
    std::panic::set_hook(Box::new(|panic| {
        // Threads of runtimes have no test to tell it.
        if std::thread::current().name() != Some("test") {
            eprintln!("{panic}");
        }
        PANIC.set(panic.to_string());
    }));
    let former = times();
    // What nobody has measured may be long.
    let length = |test: &Test| former.get(test.name()).copied().unwrap_or(f64::INFINITY);
    tests.sort_by(|one, other| one.alone.cmp(&other.alone).then(length(other).total_cmp(&length(one))));
    let conclusion = libtest_mimic::run(&arguments, trials(tests));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime can be made");
    runtime.block_on(Tenant::remove_warm());
    let took = TOOK.lock().unwrap_or_else(PoisonError::into_inner);
    remember(former, &took);
    costs::tell(&took);
    conclusion.exit_code()
}

fn trials(tests: Vec<Test>) -> Vec<Trial> {
    tests
        .into_iter()
        .map(|test| {
            let ignored = test.ignored;
            Trial::test(test.name(), move || run(&test)).with_ignored_flag(ignored)
        })
        .collect()
}

/// Runs one test in a thread with room for it.
fn run(test: &Test) -> Result<(), Failed> {
    let (name, future) = (test.name(), test.run);
    let thread = std::thread::Builder::new().name("test".to_owned()).stack_size(STACK);
    let (_alone, _shared) = if test.alone {
        (Some(CLUSTER.write().unwrap_or_else(PoisonError::into_inner)), None)
    } else {
        (None, Some(CLUSTER.read().unwrap_or_else(PoisonError::into_inner)))
    };
    let outcome = thread.spawn(move || {
        let begin = Instant::now();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_stack_size(STACK)
            .enable_all()
            .build()
            .expect("a runtime can be made");
        let outcome = catch_unwind(AssertUnwindSafe(|| runtime.block_on(future())));
        runtime.shutdown_background();
        let builders =
            NAMESPACES.take().iter().map(|(namespace, before)| costs::used(namespace).saturating_sub(*before)).sum();
        let took = Took { wall: begin.elapsed(), builders };
        TOOK.lock().unwrap_or_else(PoisonError::into_inner).insert(name, took);
        outcome.map_err(|panic| told(&*panic))
    });
    outcome.expect("a thread can be started").join().unwrap_or_else(|panic| Err(told(&*panic)))
}

/// What a panic says, and where it was.
fn told(panic: &(dyn Any + Send)) -> Failed {
    let told = PANIC.take();
    if !told.is_empty() {
        return told.into();
    }
    let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
    text.unwrap_or("the test panicked").into()
}

/// The file with the seconds that each test took last.
fn times_file() -> Option<PathBuf> {
    Some(cache_directory()?.join("test-times"))
}

fn times() -> BTreeMap<String, f64> {
    let text = times_file().and_then(|file| std::fs::read_to_string(file).ok()).unwrap_or_default();
    text.lines()
        .filter_map(|line| line.split_once(' '))
        .filter_map(|(name, seconds)| Some((name.to_owned(), seconds.parse().ok()?)))
        .collect()
}

fn remember(mut times: BTreeMap<String, f64>, took: &BTreeMap<&str, Took>) {
    times.extend(took.iter().map(|(name, took)| ((*name).to_owned(), took.wall.as_secs_f64())));
    let lines = times.iter().map(|(name, seconds)| format!("{name} {seconds:.1}")).collect::<Vec<_>>().join("\n");
    if let Some(file) = times_file()
        && let Err(error) =
            std::fs::create_dir_all(file.parent().expect("it has one")).and_then(|()| std::fs::write(&file, lines))
    {
        eprintln!("the next run will not know which tests are long: {}: {error}", file.display());
    }
}
