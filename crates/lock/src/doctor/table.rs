//! What is known of which distribution brings a module. What is not known is not guessed.
//!
//! The tables are data (`data/modules.tsv`, `data/optional.tsv`, `data/impostors.txt`); their heads say where from.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::OnceLock;

const MODULES: &str = include_str!("../../data/modules.tsv");
const OPTIONAL: &str = include_str!("../../data/optional.tsv");
const IMPOSTORS: &str = include_str!("../../data/impostors.txt");
const STDLIB: &str = include_str!("../../data/stdlib.txt");

/// Marks of rows that are no answer by themselves.
const UNSURE: [&str; 3] = ["ambiguous", "assumed", "unrelated"];

/// Which distribution brings a module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// This one.
    Sure(&'static str),
    /// One of these, the most used first: a person decides.
    Ask(Vec<&'static str>),
    /// Nobody knows.
    Unknown,
}

struct Row {
    distribution: &'static str,
    rank: u32,
    sure: bool,
}

fn lines(text: &'static str) -> impl Iterator<Item = &'static str> {
    text.lines().filter(|line| !line.starts_with('#') && !line.is_empty())
}

fn modules() -> &'static BTreeMap<&'static str, Vec<Row>> {
    static TABLE: OnceLock<BTreeMap<&'static str, Vec<Row>>> = OnceLock::new();
    TABLE.get_or_init(|| {
        let mut table: BTreeMap<&str, Vec<Row>> = BTreeMap::new();
        for line in lines(MODULES) {
            let mut parts = line.split('\t');
            let (Some(module), Some(distribution)) = (parts.next(), parts.next()) else { continue };
            let rank = parts.next().and_then(|rank| rank.parse().ok()).unwrap_or(u32::MAX);
            let sure = !parts.next().unwrap_or_default().split(',').any(|flag| UNSURE.contains(&flag));
            table.entry(module).or_default().push(Row { distribution, rank, sure });
        }
        table.values_mut().for_each(|rows| rows.sort_by_key(|row| row.rank));
        table
    })
}

fn impostors() -> &'static BTreeMap<&'static str, &'static str> {
    static TABLE: OnceLock<BTreeMap<&'static str, &'static str>> = OnceLock::new();
    TABLE.get_or_init(|| lines(IMPOSTORS).filter_map(|line| line.split_once('\t')).collect())
}

/// The distribution that brings a module, by the longest part of its dotted name that is known.
#[must_use]
pub fn brings(module: &str) -> Answer {
    let mut prefix = module;
    loop {
        if let Some(rows) = modules().get(prefix) {
            return match rows.as_slice() {
                [row] if row.sure && impostor(row.distribution).is_none() => Answer::Sure(row.distribution),
                rows => Answer::Ask(rows.iter().map(|row| row.distribution).collect()),
            };
        }
        match prefix.rsplit_once('.') {
            Some((shorter, _)) => prefix = shorter,
            None => return Answer::Unknown,
        }
    }
}

/// The modules that a distribution is known to bring.
pub(crate) fn modules_of(distribution: &str) -> Vec<&'static str> {
    let of = |rows: &Vec<Row>| rows.iter().any(|row| row.distribution == distribution);
    modules().iter().filter(|(_, rows)| of(rows)).map(|(module, _)| *module).collect()
}

/// Whether a distribution is known to bring modules, so that a text that names it names something real.
#[must_use]
pub fn is_known(distribution: &str) -> bool {
    static NAMES: OnceLock<BTreeSet<&'static str>> = OnceLock::new();
    let names = NAMES.get_or_init(|| modules().values().flatten().map(|row| row.distribution).collect());
    names.contains(distribution) && impostor(distribution).is_none()
}

/// What a library imports lazily is brought by: the requirement that cures it.
#[must_use]
pub fn optional(library: &str, module: &str) -> Option<&'static str> {
    let row = |line: &'static str| {
        let mut parts = line.split('\t');
        let (of, import, cure) = (parts.next()?, parts.next()?, parts.next()?);
        let below = module.strip_prefix(import).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
        (of == library && below).then_some((import.len(), cure))
    };
    lines(OPTIONAL).filter_map(row).max_by_key(|(length, _)| *length).map(|(_, cure)| cure)
}

/// Why a distribution is never to be installed for what its name says.
#[must_use]
pub fn impostor(distribution: &str) -> Option<&'static str> {
    impostors().get(distribution).copied()
}

/// Whether Python brings a module itself.
#[must_use]
pub fn is_standard(module: &str) -> bool {
    let first = module.split('.').next().unwrap_or(module);
    lines(STDLIB).any(|name| name == first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_have_one_answer_or_none_that_is_taken_unasked() {
        for (module, distribution) in [
            ("bs4", "beautifulsoup4"),
            ("cv2", "opencv-python-headless"),
            ("docx", "python-docx"),
            ("dotenv.main", "python-dotenv"),
            ("fitz", "pymupdf"),
            ("google.cloud.storage", "google-cloud-storage"),
            ("google.generativeai", "google-generativeai"),
            ("jwt", "pyjwt"),
            ("langchain_community.vectorstores", "langchain-community"),
            ("pkg_resources", "setuptools"),
            ("PIL.Image", "pillow"),
            ("sklearn.svm", "scikit-learn"),
            ("streamlit", "streamlit"),
            ("yaml", "pyyaml"),
        ] {
            assert_eq!(brings(module), Answer::Sure(distribution), "{module}");
        }
        assert!(matches!(brings("autogen"), Answer::Ask(names) if names.len() > 1));
        assert_eq!(brings("surely_nobody_s_module"), Answer::Unknown);
    }

    #[test]
    fn no_answer_is_an_impostor_and_every_row_is_whole() {
        let normal = |name: &str| name == crate::declared::normalise(name);
        for rows in modules().values() {
            for row in rows {
                assert!(normal(row.distribution), "{}", row.distribution);
                assert!(!row.sure || impostor(row.distribution).is_none(), "{}", row.distribution);
            }
        }
        assert!(modules().len() > 10_000 && impostors().len() > 20);
        for module in modules().keys() {
            assert!(!is_standard(module) || module.contains('.'), "{module}");
        }
        for line in lines(OPTIONAL) {
            let parts: Vec<&str> = line.split('\t').collect();
            assert!(parts.len() >= 4 && crate::declared::name_of(parts[2]).is_some(), "{line}");
        }
    }

    #[test]
    fn libraries_say_what_they_import_lazily() {
        assert_eq!(optional("ag2", "google.genai.types"), Some("ag2[gemini]"));
        assert_eq!(optional("ag2", "googles"), None);
        assert!(is_known("requests") && !is_known("surely-nobody-s"));
    }
}
