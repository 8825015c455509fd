//! Kiln's operator.

use mimalloc::MiMalloc;

/// That of the C library keeps what a burst took: three times as much as is in use, at ten thousand ImageBuilds.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> std::process::ExitCode {
    kiln_operator::program::main()
}
