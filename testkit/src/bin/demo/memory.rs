//! Looks into the memory of processes from the host, as root: for what should be there, and for what should not.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;

use memchr::memmem::Finder;

const CHUNK: usize = 1 << 20;

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scan {
    /// Processes that were read.
    pub processes: u64,
    /// Bytes that were read.
    pub bytes: u64,
    /// How often the needle was there.
    pub needle: u64,
    /// How often the control was there: proof that the scan can find something.
    pub control: u64,
}

/// A process and all that came of it.
pub fn family(root: i32) -> Vec<i32> {
    let mut parents: HashMap<i32, Vec<i32>> = HashMap::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else { continue };
        // The program's name is in brackets and may hold anything.
        let after = stat.rsplit_once(')').map(|(_, after)| after).unwrap_or_default();
        if let Some(parent) = after.split_whitespace().nth(1).and_then(|parent| parent.parse().ok()) {
            parents.entry(parent).or_default().push(pid);
        }
    }
    let mut all = vec![root];
    let mut at = 0;
    while let Some(pid) = all.get(at).copied() {
        all.extend(parents.remove(&pid).unwrap_or_default());
        at += 1;
    }
    all
}

/// A variable in a process's environment, if that may be read and holds it.
pub fn environment(pid: i32, name: &str) -> Option<String> {
    let pairs = std::fs::read(format!("/proc/{pid}/environ")).ok()?;
    let value =
        pairs.split(|byte| *byte == 0).find_map(|pair| pair.strip_prefix(name.as_bytes())?.strip_prefix(b"="))?;
    Some(String::from_utf8_lossy(value).into_owned())
}

/// Reads all readable memory of some processes. One that ends meanwhile is left out.
pub fn scan(pids: &[i32], needle: &[u8], control: &[u8]) -> std::io::Result<Scan> {
    let mut found = Scan::default();
    for pid in pids {
        match scan_one(*pid, &Finder::new(needle), &Finder::new(control), &mut found) {
            Ok(()) => found.processes += 1,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

fn scan_one(pid: i32, needle: &Finder<'_>, control: &Finder<'_>, found: &mut Scan) -> std::io::Result<()> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let memory = File::open(format!("/proc/{pid}/mem"))?;
    let overlap = needle.needle().len().max(control.needle().len()).saturating_sub(1);
    let mut buffer = vec![0; CHUNK + overlap];
    for (start, end) in maps.lines().filter_map(readable) {
        let (mut at, mut kept) = (start, 0);
        while at < end {
            let want = usize::try_from(end - at).unwrap_or(CHUNK).min(CHUNK);
            let Some(space) = buffer.get_mut(kept..kept + want) else { break };
            // A mapping may go away, or be of a device; the rest of it is then left out.
            let Ok(got @ 1..) = memory.read_at(space, at) else { break };
            let filled = kept + got;
            let Some(data) = buffer.get(..filled) else { break };
            found.needle += fresh(needle, data, kept);
            found.control += fresh(control, data, kept);
            at += got as u64;
            found.bytes += got as u64;
            kept = overlap.min(filled);
            buffer.copy_within(filled - kept..filled, 0);
        }
    }
    Ok(())
}

/// Occurrences that end in what is new, that is after the first `kept` bytes.
fn fresh(finder: &Finder<'_>, data: &[u8], kept: usize) -> u64 {
    let length = finder.needle().len();
    if length == 0 {
        return 0;
    }
    finder.find_iter(data).filter(|at| at + length > kept).count() as u64
}

/// The span of a line of `maps`, if it can be read.
fn readable(line: &str) -> Option<(u64, u64)> {
    let mut words = line.split_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let rights = words.next()?;
    if !rights.starts_with('r') || line.contains("[v") {
        return None;
    }
    Some((u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_memory_is_found() {
        let secret = format!("needle-{}-in-memory", std::process::id());
        let me = i32::try_from(std::process::id()).unwrap();
        let found = scan(&[me], secret.as_bytes(), b"").unwrap();
        assert!(found.needle >= 1 && found.processes == 1 && found.bytes > 1 << 20, "{found:?}");
        assert_eq!(found.control, 0);
        assert_eq!(family(me).first(), Some(&me));
        assert_eq!(environment(me, "PATH"), std::env::var("PATH").ok());
    }

    #[test]
    fn an_occurrence_over_a_border_counts_once() {
        let finder = Finder::new(b"abc");
        assert_eq!(fresh(&finder, b"abcabc", 0), 2);
        assert_eq!(fresh(&finder, b"abcabc", 3), 1);
        assert_eq!(fresh(&finder, b"ab", 0), 0);
    }
}
