//! The agent of a builder pod: reads its configuration, then serves jobs until it is told to stop.

fn main() -> std::process::ExitCode {
    kiln_agent::main()
}
