//! Kiln's operator.

fn main() -> std::process::ExitCode {
    kiln_operator::operator::main()
}
