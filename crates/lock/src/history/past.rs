//! When something went out of a distribution, or came into it.

use std::collections::BTreeMap;

use jiff::Timestamp;
use pep440_rs::Version;
use ringfence_image::fetch::Fetcher;
use ringfence_model::work::Progress;

use super::HistoryError;
use super::release::{self, Release};
use super::wheel::{Contents, Has};
use crate::index::{Index, Indexes};

/// How many wheels are looked into for one answer.
const LOOKS: usize = 24;

/// What is looked for.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// A module or a name in one.
    pub name: &'a str,
    /// The minor version of Python 3 that must have it.
    pub minor: u8,
    /// Releases after it do not count.
    pub as_of: Option<Timestamp>,
}

/// Which releases have something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// The newest release that has it.
    pub last: Release,
    /// The one after that, which does not; `None`: the newest of all has it.
    pub gone: Option<Release>,
}

/// The past of distributions, as it becomes known.
pub struct Past<'a> {
    indexes: Indexes,
    progress: &'a dyn Progress,
    fetcher: Fetcher,
    releases: BTreeMap<String, Vec<Release>>,
    seen: BTreeMap<(String, Version, String), Has>,
}

impl<'a> Past<'a> {
    /// As an index at this address tells it; `None` if it is none.
    pub fn of(index: &str, progress: &'a dyn Progress) -> Option<Self> {
        let indexes = Indexes { default: Some(Index::new(index)?), ..Indexes::default() };
        Some(Self::new(indexes, progress))
    }

    pub(crate) fn new(indexes: Indexes, progress: &'a dyn Progress) -> Self {
        Self { indexes, progress, fetcher: Fetcher::new(), releases: BTreeMap::new(), seen: BTreeMap::new() }
    }

    /// The releases of a distribution, oldest version first.
    ///
    /// # Errors
    /// [`HistoryError`].
    pub fn releases(&mut self, distribution: &str) -> Result<&[Release], HistoryError> {
        if !self.releases.contains_key(distribution) {
            let found = release::ask(&self.indexes, distribution, self.progress)?;
            self.releases.insert(distribution.to_owned(), found);
        }
        Ok(self.releases.get(distribution).map(Vec::as_slice).unwrap_or_default())
    }

    /// The newest releases that have something; `None` if none of those looked into has it for sure.
    ///
    /// # Errors
    /// [`HistoryError`] of the index. A wheel that cannot be read has nothing for sure.
    pub fn span(&mut self, distribution: &str, wanted: Wanted<'_>) -> Result<Option<Span>, HistoryError> {
        let counts = |release: &&Release| {
            let known = wanted.as_of.is_none_or(|moment| release.time.is_none_or(|time| time <= moment));
            release.is_usual() && release.wheel.is_some() && known && release.takes(wanted.minor)
        };
        let releases: Vec<Release> = self.releases(distribution)?.iter().filter(counts).cloned().collect();
        let found = newest(releases.len(), LOOKS, &mut |at| {
            let has = releases.get(at).map_or(Has::Unknown, |release| self.has(distribution, release, wanted.name));
            has == Has::Yes
        });
        if self.progress.is_cancelled() {
            return Err(HistoryError::Cancelled);
        }
        Ok(found.and_then(|at| Some(Span { last: releases.get(at)?.clone(), gone: releases.get(at + 1).cloned() })))
    }

    /// Whether one release has something.
    pub fn has(&mut self, distribution: &str, release: &Release, name: &str) -> Has {
        let key = (distribution.to_owned(), release.version.clone(), name.to_owned());
        if let Some(has) = self.seen.get(&key) {
            return *has;
        }
        let contents = release.wheel.as_ref().and_then(|file| Contents::open(&self.fetcher, file, self.progress).ok());
        let has = contents.map_or(Has::Unknown, |mut contents| contents.has(name));
        self.seen.insert(key, has);
        has
    }
}

/// The greatest place that has something, of places of which those that have it are thought to be one run. At most `looks`
/// places are looked at: backwards in ever longer steps until one has it, and then between that one and the last that has not.
fn newest(count: usize, looks: usize, has: &mut dyn FnMut(usize) -> bool) -> Option<usize> {
    let mut left = looks;
    let mut look = |at: usize| {
        left = left.checked_sub(1)?;
        Some(has(at))
    };
    let (mut step, mut absent) = (1, count);
    let mut present = loop {
        let at = absent.checked_sub(step).or_else(|| (absent > 0).then_some(0))?;
        if look(at)? {
            break at;
        }
        absent = at;
        step = (step * 2).min(count / 8 + 1);
    };
    while absent - present > 1 {
        let middle = present + (absent - present) / 2;
        match look(middle) {
            Some(true) => present = middle,
            Some(false) => absent = middle,
            None => break,
        }
    }
    Some(present)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_that_has_it_is_found_in_few_looks() {
        for count in [0_usize, 1, 2, 3, 10, 100, 450] {
            for (from, to) in
                [(0, count), (0, count / 2), (count / 3, count / 2 + 1), (count / 2, count), (0, 1), (0, 0)]
            {
                let mut looks = 0;
                let found = newest(count, LOOKS, &mut |at| {
                    looks += 1;
                    from <= at && at < to.min(count)
                });
                assert!(looks <= LOOKS, "{count} {from} {to}: {looks}");
                let want = to.min(count).checked_sub(1).filter(|last| from <= *last);
                // A run that is shorter than a step may be missed, and nothing is made up.
                assert!(
                    found == want || (found.is_none() && to - from < count / 8 + 1),
                    "{count} {from} {to}: {found:?}"
                );
            }
        }
    }
}
