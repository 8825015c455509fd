//! The line of a failed step's output that tells what went wrong, as far as the usual tools mark it; pure. It is quoted, and
//! decides nothing.

/// What a traceback's last block begins with. Its first line that is not indented is the error.
const TRACEBACK: &str = "Traceback (most recent call last):";
/// What the line above an error says.
const ANNOUNCED: [&str; 2] = ["* What went wrong:", "error during build:"];
/// What stands at the beginning of an error, whatever tool writes it: npm and yarn, apt, pip, git, compilers, Go, the JVM.
const MARKS: [&str; 18] = [
    "npm error ",
    "npm ERR! ",
    "E: ",
    "ERROR: ",
    "ERROR ",
    "[ERROR] ",
    "error: ",
    "error[",
    "error TS",
    "error CS",
    "fatal: ",
    "FATAL: ",
    "panic: ",
    "Fatal error: ",
    "fatal error: ",
    "Exception in thread ",
    "Unhandled exception",
    "Could not resolve ",
];
/// What stands within one, behind the place: `main.c:3:5: error: `.
const INNER_MARKS: [&str; 6] = [": error: ", ": fatal error: ", " error TS", " error CS", ": undefined: ", "Error: "];
/// What tells nothing by itself: where to read more, and what only repeats that something failed.
const NOISE: [&str; 29] = [
    "npm error code ",
    "npm error errno ",
    "npm error syscall ",
    "npm error path ",
    "npm error dest ",
    "npm error command ",
    "npm error signal ",
    "npm error Fix the upstream dependency conflict",
    "npm error A complete log of this run",
    "npm error For a full report",
    "npm error /",
    "npm ERR! code ",
    "npm ERR! errno ",
    "npm ERR! A complete log of this run",
    "npm help",
    "ERROR: Service ",
    "[ERROR] Re-run Maven",
    "[ERROR] To see the full stack trace",
    "[ERROR] For more information",
    "[ERROR] -> [Help",
    "error: could not compile ",
    "error: aborting due to ",
    "error: failed to run custom build command",
    "error: build failed",
    "error: subprocess-exited-with-error",
    "For more information",
    "Try ",
    "See ",
    "make: *** ",
];

/// That line. `None`: no line is better than another.
pub fn line<'a>(output: &'a [String]) -> Option<&'a str> {
    let lines: Vec<&'a str> = output.iter().map(|line| line.trim_end()).collect();
    traceback(&lines)
        .or_else(|| cause(&lines))
        .or_else(|| announced(&lines))
        .or_else(|| lines.iter().find(|line| is_marked(line)).copied())
        .or_else(|| lines.iter().rev().find(|line| !line.trim().is_empty()).copied().filter(|line| !is_noise(line)))
        .map(str::trim)
        .filter(|line| !line.is_empty())
}

/// The error below the last traceback of Python.
fn traceback<'a>(lines: &[&'a str]) -> Option<&'a str> {
    let begin = lines.iter().rposition(|line| line.trim_start().starts_with(TRACEBACK))?;
    let indent = |line: &str| line.len() - line.trim_start().len();
    let level = indent(lines[begin]);
    lines[begin + 1..].iter().find(|line| !line.trim().is_empty() && indent(line) <= level).copied()
}

/// The last cause of an exception of the JVM: what is above it only passed it on.
fn cause<'a>(lines: &[&'a str]) -> Option<&'a str> {
    lines.iter().rev().find_map(|line| line.trim_start().strip_prefix("Caused by: "))
}

/// The line below one that announces it.
fn announced<'a>(lines: &[&'a str]) -> Option<&'a str> {
    let at = lines.iter().position(|line| ANNOUNCED.contains(&line.trim()))?;
    lines[at + 1..].iter().find(|line| !line.trim().is_empty()).copied()
}

fn is_noise(line: &str) -> bool {
    let line = line.trim_start();
    NOISE.iter().any(|noise| line.starts_with(noise))
}

fn is_marked(line: &str) -> bool {
    let begin = line.trim_start();
    let marked = MARKS.iter().any(|mark| begin.starts_with(mark)) || INNER_MARKS.iter().any(|mark| line.contains(mark));
    // Such as a bare `npm error`, which is there for its distance.
    marked && !is_noise(line) && begin.trim_end().len() > "npm error ".len()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the tools write it, the line that tells between bars.
    const OUTPUTS: [(&str, &str); 18] = [
        (
            "npm",
            "npm error code ERESOLVE\n|npm error ERESOLVE could not resolve|\nnpm error\nnpm error While resolving: a@1.0.0\nnpm error A complete log of this run can be found in: /root/.npm/_logs/x.log",
        ),
        (
            "npm script",
            "> app@1.0.0 build\n> tsc\n\n|src/a.ts(3,7): error TS2322: Type 'string' is not assignable to type 'number'.|\nnpm error code 2\nnpm error path /app",
        ),
        ("apt", "Reading package lists...\n|E: Unable to locate package libfoo-dev|"),
        (
            "pip",
            "Collecting nope\n|ERROR: Could not find a version that satisfies the requirement nope (from versions: none)|\nERROR: No matching distribution found for nope",
        ),
        (
            "python",
            "Traceback (most recent call last):\n  File \"a.py\", line 1, in <module>\n    import b\n|ModuleNotFoundError: No module named 'b'|",
        ),
        (
            "python, twice",
            "Traceback (most recent call last):\n  File \"a.py\", line 1\nKeyError: 'x'\n\nDuring handling of the above exception, another exception occurred:\n\nTraceback (most recent call last):\n  File \"a.py\", line 3\n|ValueError: no x|\n\nsee the manual",
        ),
        (
            "cc",
            "cc -c a.c\n|a.c:1:10: fatal error: b.h: No such file or directory|\n    1 | #include <b.h>\n      |          ^~~~~\ncompilation terminated.\nmake: *** [Makefile:2: a.o] Error 1",
        ),
        (
            "rust",
            "   Compiling a v0.1.0\n|error[E0425]: cannot find value `x` in this scope|\n --> src/main.rs:2:5\n\nerror: could not compile `a` (bin \"a\") due to 1 previous error",
        ),
        ("go", "# example.com/a\n|./main.go:4:2: undefined: x|"),
        (
            "go panic",
            "|panic: runtime error: index out of range [1] with length 1|\n\ngoroutine 1 [running]:\nmain.main()\n\t/src/main.go:5 +0x1d\nexit status 2",
        ),
        (
            "gradle",
            "FAILURE: Build failed with an exception.\n\n* What went wrong:\n|Execution failed for task ':compileJava'.|\n> Could not resolve all files for configuration ':compileClasspath'.\n\n* Try:\n> Run with --stacktrace option to get the stack trace.\n\nBUILD FAILED in 3s",
        ),
        (
            "maven",
            "[INFO] BUILD FAILURE\n|[ERROR] Failed to execute goal on project a: Could not resolve dependencies|\n[ERROR] -> [Help 1]\n[ERROR] To see the full stack trace of the errors, re-run Maven with the -e switch.",
        ),
        (
            "java",
            "Exception in thread \"main\" java.lang.RuntimeException: it failed\n\tat A.main(A.java:3)\nCaused by: |java.io.FileNotFoundException: x|\n\t... 1 more",
        ),
        (
            "vite",
            "x Build failed in 412ms\nerror during build:\n|Could not resolve \"./Bascket\" from \"src/main.js\"|\n    at file:///app/node_modules/rollup/dist/es/shared/node-entry.js:2110:41",
        ),
        ("git", "Cloning into 'x'...\n|fatal: repository 'https://h/x/' not found|"),
        (
            "dotnet",
            "  Determining projects to restore...\n|/src/A.cs(3,5): error CS0103: The name 'x' does not exist in the current context|\n\nBuild FAILED.\n    0 Warning(s)\n    1 Error(s)",
        ),
        ("anything else", "one\n|two|\n "),
        ("only noise", "one\nmake: *** [Makefile:2: all] Error 1"),
    ];

    #[test]
    fn the_line_that_tells() {
        for (tool, output) in OUTPUTS {
            let expected = output.split('|').nth(1);
            // What is drawn with bars in a compiler's excerpt stands behind the line that tells.
            let plain = output.replacen('|', "", 2);
            let lines: Vec<String> = plain.lines().map(str::to_owned).collect();
            assert_eq!(line(&lines), expected, "{tool}");
        }
        assert_eq!(line(&[]), None);
        assert_eq!(line(&[TRACEBACK.to_owned()]), Some(TRACEBACK), "its end is missing");
    }
}
