//! The machine that a program was compiled for, from its ELF header.

/// Field `e_machine` of the ELF header (<https://refspecs.linuxfoundation.org/elf/gabi4+/ch4.eheader.html>), as the
/// name of an OCI architecture.
///
/// # Panics
/// Where the bytes are no ELF file.
#[must_use]
pub fn architecture(program: &[u8]) -> &'static str {
    assert_eq!(program.get(..4), Some(b"\x7fELF".as_slice()), "not an ELF file");
    let bytes = [program[18], program[19]];
    // EI_DATA: 1 little, 2 big endian.
    let machine = if program[5] == 2 { u16::from_be_bytes(bytes) } else { u16::from_le_bytes(bytes) };
    match machine {
        3 => "386",
        21 if program[5] == 1 => "ppc64le",
        22 => "s390x",
        40 => "arm",
        62 => "amd64",
        183 => "arm64",
        // EI_CLASS: 64 bits.
        243 if program[4] == 2 => "riscv64",
        other => panic!("an ELF file for machine {other}, which these tests do not build for"),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn this_test_is_of_this_machine() {
        let program = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let expected = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => panic!("{other}"),
        };
        assert_eq!(super::architecture(&program), expected);
    }
}
