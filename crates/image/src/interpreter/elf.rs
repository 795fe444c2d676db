//! What an ELF file wants of the system: libraries by name, and versions of their symbols.

use std::collections::BTreeSet;

use object::read::elf::{Dyn, ElfFile64};
use object::{Endianness, elf};

/// The most sections' worth of names that any part of CPython has, many times over.
const NAMES: usize = 4096;

/// What one file wants.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Wants {
    /// Names of libraries, such as `libssl.so.3`.
    pub libraries: BTreeSet<String>,
    /// Newest glibc whose symbols it uses, such as `(2, 34)`.
    pub glibc: (u32, u32),
}

/// Reads the dynamic section and the version needs of a 64-bit file of this machine.
pub(crate) fn read(bytes: &[u8]) -> Result<Wants, String> {
    let broken = |e: object::Error| format!("it is no ELF file that can be read: {e}");
    let file = ElfFile64::<Endianness>::parse(bytes).map_err(broken)?;
    let (endian, sections) = (file.endian(), file.elf_section_table());
    let machine = file.elf_header().e_machine.get(endian);
    if machine != own_machine() {
        return Err("it is of another architecture".into());
    }
    let mut wants = Wants::default();
    let Some((dynamic, link)) = sections.dynamic(endian, bytes).map_err(broken)? else {
        return Err("it has no dynamic section".into());
    };
    let strings = sections.strings(endian, bytes, link).map_err(broken)?;
    for entry in dynamic.iter().filter(|d| d.tag(endian) == elf::DT_NEEDED).take(NAMES) {
        let name = entry.string(endian, strings).map_err(broken)?;
        wants.libraries.insert(text(name)?);
    }
    if let Some((mut needs, link)) = sections.gnu_verneed(endian, bytes).map_err(broken)? {
        let strings = sections.strings(endian, bytes, link).map_err(broken)?;
        let mut left = NAMES;
        while let Some((_, mut versions)) = needs.next().map_err(broken)? {
            while let Some(version) = versions.next().map_err(broken)? {
                left = left.checked_sub(1).ok_or("it wants too many versions of symbols")?;
                let name = text(version.name(endian, strings).map_err(broken)?)?;
                if let Some(glibc) = name.strip_prefix("GLIBC_").and_then(numbers) {
                    wants.glibc = wants.glibc.max(glibc);
                }
            }
        }
    }
    Ok(wants)
}

fn text(name: &[u8]) -> Result<String, String> {
    match std::str::from_utf8(name) {
        Ok(name) if !name.is_empty() && name.len() < 256 && name.bytes().all(|b| b.is_ascii_graphic()) => {
            Ok(name.to_owned())
        }
        _ => Err("it has a name that cannot be read".into()),
    }
}

/// `(2, 36)` of `2.36-9+deb12u10` or `2.36`.
pub(crate) fn numbers(version: &str) -> Option<(u32, u32)> {
    let (major, rest) = version.split_once('.')?;
    let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    Some((major.parse().ok()?, rest.get(..end)?.parse().ok()?))
}

fn own_machine() -> u16 {
    match std::env::consts::ARCH {
        "x86_64" => elf::EM_X86_64,
        "aarch64" => elf::EM_AARCH64,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_says_what_it_wants() {
        let own = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let wants = read(&own).unwrap();
        assert!(wants.libraries.contains("libc.so.6"), "{wants:?}");
        assert!(wants.glibc > (2, 1) && wants.glibc < (3, 0), "{wants:?}");
    }

    #[test]
    fn hostile_files_are_refused_in_words() {
        let own = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        for bad in [&b""[..], b"\x7fELF", b"#!/bin/sh\n", &own[..200], &own[..own.len() / 2]] {
            assert!(read(bad).is_err());
        }
        let mut other = own.clone();
        other[18] ^= 0xff;
        assert!(read(&other).unwrap_err().contains("architecture"));
        // Whatever one byte of the head says, there is an answer.
        for at in 0..64 {
            let mut bent = own.clone();
            bent[at] = 0xff;
            let _ = read(&bent);
        }
    }

    #[test]
    fn versions_are_numbers() {
        assert_eq!(numbers("2.36-9+deb12u10"), Some((2, 36)));
        assert_eq!(numbers("2.4"), Some((2, 4)));
        assert_eq!(numbers("PRIVATE"), None);
        assert_eq!(numbers("ABI_DT_RELR"), None);
    }
}
