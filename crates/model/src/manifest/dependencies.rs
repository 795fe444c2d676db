//! What the lock is resolved from: `[dependencies]`.

use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};

use super::check::{ManifestError, value};
use super::{Dependencies, DependenciesFile};

const MAX_REQUIREMENT: usize = 1024;

pub(super) fn understand(file: DependenciesFile) -> Result<Dependencies, ManifestError> {
    let DependenciesFile { files, add, constraints, overrides, exclude, as_of, cure } = file;
    for (key, list) in [("add", &add), ("constraints", &constraints), ("overrides", &overrides)] {
        if let Some(text) = list.iter().find(|text| !is_requirement(text)) {
            let hint = "write a name and what bounds it, as in `requirements.txt`: `openai>=1.40,<2`";
            return Err(value(format!("[dependencies] {key} `{}`", shown(text)), "it is no requirement", hint));
        }
    }
    if let Some(text) = exclude.iter().find(|text| !is_name(text)) {
        let place = format!("[dependencies] exclude `{}`", shown(text));
        return Err(value(place, "it is no name of a distribution", "write the name alone, such as `asyncio`"));
    }
    let as_of = as_of.map(|text| {
        moment(&text).ok_or_else(|| {
            let place = format!("[dependencies] as_of `{}`", shown(&text));
            value(place, "it is no moment", "write a date such as `2024-08-14`, or `2024-08-14T12:00:00Z`")
        })
    });
    Ok(Dependencies {
        files,
        add,
        constraints,
        overrides,
        exclude,
        as_of: as_of.transpose()?,
        cure: cure.unwrap_or(true),
    })
}

/// A moment as people write it. A date alone is its end, in UTC.
#[must_use]
pub fn moment(text: &str) -> Option<Timestamp> {
    if let Ok(moment) = text.parse::<Timestamp>() {
        return Some(moment);
    }
    // Whatever else begins with a date has an hour as well, and that must not be lost.
    let date = Some(text).filter(|text| text.len() == 10)?.parse::<Date>().ok()?;
    let next = date.checked_add(1.day()).ok()?;
    Some(next.to_zoned(TimeZone::UTC).ok()?.timestamp())
}

fn is_requirement(text: &str) -> bool {
    let begins = text.trim_start().starts_with(|c: char| c.is_ascii_alphanumeric());
    begins && text.len() <= MAX_REQUIREMENT && !text.contains(char::is_control)
}

fn is_name(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    let ends =
        text.starts_with(|c: char| c.is_ascii_alphanumeric()) && text.ends_with(|c: char| c.is_ascii_alphanumeric());
    ends && text.len() <= 128 && text.bytes().all(inner)
}

fn shown(text: &str) -> String {
    crate::report::one_line(&text.chars().take(80).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_dates_or_timestamps() {
        for (text, moment_of) in [
            ("2024-08-14", Some("2024-08-15T00:00:00Z")),
            ("2024-02-29", Some("2024-03-01T00:00:00Z")),
            ("2024-08-14T12:00:00Z", Some("2024-08-14T12:00:00Z")),
            ("2024-08-14T12:00:00+02:00", Some("2024-08-14T10:00:00Z")),
            ("2024-08-14T12:00", None),
            ("2023-02-29", None),
            ("yesterday", None),
            ("", None),
        ] {
            assert_eq!(moment(text).map(|m| m.to_string()).as_deref(), moment_of, "{text}");
        }
    }

    #[test]
    fn what_is_no_requirement_is_refused() {
        let with = |key: &str, text: &str| {
            let mut file = DependenciesFile::default();
            match key {
                "add" => file.add.push(text.into()),
                "constraints" => file.constraints.push(text.into()),
                "overrides" => file.overrides.push(text.into()),
                "exclude" => file.exclude.push(text.into()),
                _ => file.as_of = Some(text.into()),
            }
            understand(file)
        };
        for (key, good, bad) in [
            ("add", "openai>=1,<2; python_version < '3.13'", "-r other.txt"),
            ("constraints", "numpy<2", "numpy<2\n--index-url x"),
            ("overrides", "httpx==0.27", ""),
            ("exclude", "asyncio", "asyncio>1"),
            ("as_of", "2024-08-14", "14.8.2024"),
        ] {
            assert!(with(key, good).is_ok(), "{key} {good}");
            let error = with(key, bad).unwrap_err().to_string();
            assert!(error.contains(&format!("[dependencies] {key}")), "{error}");
        }
    }
}
