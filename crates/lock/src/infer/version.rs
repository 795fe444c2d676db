//! Which Python an agent wants, of those that can be had.

use ringfence_image::debian::pythons;
use ringfence_image::host_pythons;

use super::source::{Source, Sources};
use crate::declared::{Requirement, Seen};

/// The Python version chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Python {
    /// Such as `3.11`.
    pub version: String,
    /// What asked for it.
    pub seen: Vec<Seen>,
    /// What could not be met, for people.
    pub note: Option<String>,
}

const PREFERRED: &str = "3.11";

/// Chooses; `None` when nothing asks for anything but the default.
pub(crate) fn choose(bounds: &[Requirement], sources: &Sources) -> Option<Python> {
    choose_of(bounds, sources, &host_pythons())
}

/// `of_host`: what this host has, oldest first; taken only where no suite has what fits.
fn choose_of(bounds: &[Requirement], sources: &Sources, of_host: &[String]) -> Option<Python> {
    let least = syntax(sources);
    let mut order: Vec<&str> = vec![PREFERRED];
    order.extend(pythons().iter().rev().map(|(_, p)| *p).filter(|p| *p != PREFERRED));
    order.extend(of_host.iter().rev().map(String::as_str));
    let fits_syntax = |version: &str| least.as_ref().is_none_or(|(minor, _)| minor_of(version) >= *minor);
    let fits = |version: &str| bounds.iter().all(|b| meets(&b.text, version)) && fits_syntax(version);
    let mut seen: Vec<Seen> = bounds.iter().map(|b| b.seen.clone()).collect();
    seen.extend(least.iter().map(|(_, seen)| seen.clone()));
    if seen.is_empty() {
        return None;
    }
    if let Some(version) = order.iter().find(|v| fits(v)) {
        return Some(Python { version: (*version).to_owned(), seen, note: None });
    }
    // Nothing fits to the letter: the next newer one that the syntax allows is what most likely runs.
    let wanted = bounds.iter().filter_map(|b| first_minor(&b.text)).max().unwrap_or(11);
    let mut newer: Vec<&str> = pythons().iter().map(|(_, p)| *p).filter(|p| fits_syntax(p)).collect();
    newer.sort_by_key(|p| minor_of(p));
    let version = newer.iter().find(|p| minor_of(p) >= wanted).or(newer.last())?;
    let texts: Vec<String> = bounds.iter().map(|b| format!("`{}` ({})", b.text, b.seen)).collect();
    let note =
        format!("asked for {}, which neither Debian nor this host has; this is the nearest", texts.join(" and "));
    Some(Python { version: (*version).to_owned(), seen, note: Some(note) })
}

fn minor_of(version: &str) -> u64 {
    version.split('.').nth(1).and_then(|m| m.parse().ok()).unwrap_or(0)
}

fn first_minor(bound: &str) -> Option<u64> {
    let digits = bound.trim_start_matches(|c: char| !c.is_ascii_digit());
    digits.split('.').nth(1).map(|m| m.chars().take_while(char::is_ascii_digit).collect::<String>())?.parse().ok()
}

/// Whether `3.N` can meet a bound such as `>=3.10,<3.13`; patch levels are left to the image.
pub(crate) fn meets(bound: &str, version: &str) -> bool {
    let have = minor_of(version);
    bound.split(',').map(str::trim).filter(|b| !b.is_empty()).all(|part| {
        let at = part.find(|c: char| c.is_ascii_digit()).unwrap_or(part.len());
        let (op, text) = part.split_at(at);
        let mut numbers = text.split('.');
        let major: u64 = numbers.next().and_then(|n| n.parse().ok()).unwrap_or(3);
        let minor: Option<u64> = numbers.next().and_then(|n| n.parse().ok());
        let patch = numbers.next().and_then(|n| n.parse::<u64>().ok());
        let ours = (3u64, have);
        let theirs = (major, minor.unwrap_or(0));
        match op.trim() {
            ">=" => ours >= theirs,
            ">" => ours > theirs || (ours == theirs && patch.is_some()),
            "<" => ours < theirs || (ours == theirs && patch.is_some_and(|p| p > 0)),
            "<=" => ours <= theirs,
            "==" | "===" | "" => major == 3 && minor.is_none_or(|m| m == have),
            "~=" => {
                if patch.is_some() {
                    ours == theirs
                } else {
                    major == 3 && have >= theirs.1
                }
            }
            "^" => ours >= theirs && major == 3,
            "!=" => patch.is_some() || ours != theirs,
            _ => true,
        }
    })
}

/// The least minor version that the syntax needs, where it is more than anybody lacks.
fn syntax(sources: &Sources) -> Option<(u64, Seen)> {
    let needs = |s: &Source| s.syntax.least.map(|(minor, line)| (u64::from(minor), Seen::new(&s.path, line)));
    sources.files.iter().filter_map(needs).max_by_key(|(minor, _)| *minor)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn chosen(bounds: &[&str], text: &str) -> Option<(String, bool)> {
        chosen_with(bounds, text, &[])
    }

    fn chosen_with(bounds: &[&str], text: &str, of_host: &[&str]) -> Option<(String, bool)> {
        let of_host: Vec<String> = of_host.iter().map(|p| (*p).to_owned()).collect();
        let bounds: Vec<Requirement> =
            bounds.iter().map(|b| Requirement { text: (*b).into(), seen: Seen::new("x", 1) }).collect();
        let files = super::super::source::of(vec![("a.py".into(), text.into())]);
        let sources = Sources { files, local: BTreeSet::new() };
        choose_of(&bounds, &sources, &of_host).map(|p| (p.version, p.note.is_some()))
    }

    #[test]
    fn bounds_and_syntax_choose() {
        for (bounds, text, want) in [
            (&[][..], "x = 1", None),
            (&[">=3.9"], "", Some(("3.11", false))),
            (&[">=3.12"], "", Some(("3.13", false))),
            (&["<3.10"], "", Some(("3.9", false))),
            (&["==3.9.*"], "", Some(("3.9", false))),
            (&["==3.12.*"], "", Some(("3.13", true))),
            (&[">=3.10,<3.13"], "", Some(("3.11", false))),
            (&["~=3.9"], "", Some(("3.11", false))),
            (&[], "type X = int", Some(("3.13", false))),
            (&[], "match = 3\nmatch.group(1)", None),
            (&[], "match x:\n  case 1: pass", Some(("3.11", false))),
            (&[], "def f[T](x: T): pass", Some(("3.13", false))),
        ] {
            assert_eq!(chosen(bounds, text), want.map(|(v, n)| (v.to_owned(), n)), "{bounds:?} {text}");
        }
    }

    #[test]
    fn what_the_host_has_is_taken_where_no_suite_fits() {
        let of_host = ["3.8", "3.10", "3.12", "3.13"];
        for (bounds, want) in [
            (&["==3.12.*"][..], ("3.12", false)),
            (&[">=3.12"], ("3.13", false)),
            (&["==3.10.*"], ("3.10", false)),
            (&[">3.9", "<3.11"], ("3.10", false)),
            (&["<3.9"], ("3.8", false)),
            (&[">=3.10,<3.13"], ("3.11", false)),
            (&["==3.14.*"], ("3.13", true)),
        ] {
            let (version, noted) = chosen_with(bounds, "", &of_host).unwrap();
            assert_eq!((version.as_str(), noted), want, "{bounds:?}");
        }
    }
}
