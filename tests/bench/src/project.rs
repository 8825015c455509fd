//! The project that is built: a small realistic one, of some 200 files.

use std::fmt::Write as _;

/// How many files its tree has.
const FILES: u32 = 200;
/// The file that changes.
pub const CHANGED: &str = "tree/d3/f13.txt";

/// A build of two stages: a layer of all files, steps that read them, and the result copied out.
const DOCKERFILE: &str = "ARG BASE=busybox
FROM $BASE AS build
WORKDIR /app
COPY tree tree
RUN find tree -type f | sort | xargs cat | sha256sum > sum
RUN mkdir out && cp -r tree sum out/
FROM $BASE
COPY --from=build /app/out /app
CMD [\"cat\", \"/app/sum\"]
";

/// Its files: paths and contents, the same each time.
#[must_use]
pub fn files() -> Vec<(String, String)> {
    let mut random = Random::new(1);
    let tree = (0..FILES).map(|number| {
        let content = (0..32).fold(String::new(), |mut text, _| {
            let _ = writeln!(text, "{:016x}{:016x}", random.next(), random.next());
            text
        });
        (format!("tree/d{}/f{number}.txt", number % 10), content)
    });
    [("Dockerfile".to_owned(), DOCKERFILE.to_owned())].into_iter().chain(tree).collect()
}

/// Numbers that no compression makes smaller (xorshift64, Marsaglia 2003); the same for a seed.
pub struct Random(u64);

impl Random {
    /// From a seed that is not 0.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// The next number.
    pub const fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_that_changes_is_there() {
        assert!(files().iter().any(|(path, _)| path == CHANGED));
        assert_eq!(files().len(), 201);
    }
}
