//! Debian package versions and their order.
//!
//! # Source
//! Debian Policy §5.6.12; `deb-version(7)`.

use std::cmp::Ordering;

/// Compares two versions by the rules of `dpkg --compare-versions`.
#[must_use]
pub fn compare(a: &str, b: &str) -> Ordering {
    let (a_epoch, a_upstream, a_revision) = split(a);
    let (b_epoch, b_upstream, b_revision) = split(b);
    a_epoch
        .cmp(&b_epoch)
        .then_with(|| compare_part(a_upstream, b_upstream))
        .then_with(|| compare_part(a_revision, b_revision))
}

/// Epoch, upstream version, revision.
fn split(version: &str) -> (u64, &str, &str) {
    let (epoch, rest) = match version.split_once(':') {
        Some((epoch, rest)) => (epoch.parse().unwrap_or(0), rest),
        None => (0, version),
    };
    let (upstream, revision) = rest.rsplit_once('-').unwrap_or((rest, ""));
    (epoch, upstream, revision)
}

/// How a character sorts outside digits: `~` before the end, the end before letters, letters before the rest.
fn order(byte: Option<u8>) -> i32 {
    match byte {
        Some(b'~') => -1,
        None | Some(b'0'..=b'9') => 0,
        Some(b) if b.is_ascii_alphabetic() => i32::from(b),
        Some(b) => i32::from(b) + 256,
    }
}

fn compare_part(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a.as_bytes(), b.as_bytes());
    while !a.is_empty() || !b.is_empty() {
        loop {
            let (x, y) = (a.first().copied(), b.first().copied());
            if x.is_none_or(|c| c.is_ascii_digit()) && y.is_none_or(|c| c.is_ascii_digit()) {
                break;
            }
            match order(x).cmp(&order(y)) {
                Ordering::Equal => {
                    a = a.get(1..).unwrap_or_default();
                    b = b.get(1..).unwrap_or_default();
                }
                unequal => return unequal,
            }
        }
        let (x, a_rest) = digits(a);
        let (y, b_rest) = digits(b);
        // Numbers of any length: without leading zeros the longer is the greater.
        match x.len().cmp(&y.len()).then_with(|| x.cmp(y)) {
            Ordering::Equal => (a, b) = (a_rest, b_rest),
            unequal => return unequal,
        }
    }
    Ordering::Equal
}

fn digits(text: &[u8]) -> (&[u8], &[u8]) {
    let end = text.iter().position(|b| !b.is_ascii_digit()).unwrap_or(text.len());
    let (number, rest) = text.split_at(end);
    let zeros = number.iter().position(|b| *b != b'0').unwrap_or(number.len());
    (number.get(zeros..).unwrap_or_default(), rest)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Vectors: dpkg's own `lib/dpkg/t/t-version.c` and `deb-version(7)`.
    #[test]
    fn orders_as_dpkg_does() {
        for (a, want, b) in [
            ("1.0", Ordering::Equal, "1.0"),
            ("0:1.0", Ordering::Equal, "1.0"),
            ("1:1.0", Ordering::Greater, "2.0"),
            ("1.0", Ordering::Less, "1.0-1"),
            ("1.0-0", Ordering::Equal, "1.0"),
            ("1.0~rc1", Ordering::Less, "1.0"),
            ("1.0~~", Ordering::Less, "1.0~~a"),
            ("1.0~~a", Ordering::Less, "1.0~"),
            ("1.0~", Ordering::Less, "1.0"),
            ("1.0", Ordering::Less, "1.0a"),
            ("1.0a", Ordering::Less, "1.0+"),
            ("1.2", Ordering::Less, "1.10"),
            ("1.02", Ordering::Equal, "1.2"),
            ("7.6p2-4", Ordering::Greater, "7.6-0"),
            ("1.0.3-3", Ordering::Greater, "1.0-1"),
            ("1.3", Ordering::Greater, "1.2.2-2"),
            ("1.3", Ordering::Greater, "1.2.2"),
            ("0-pre", Ordering::Equal, "0-pre"),
            ("0-pre", Ordering::Less, "0-pree"),
            ("1.1.6r2-2", Ordering::Greater, "1.1.6r-1"),
            ("2.6b2-1", Ordering::Greater, "2.6b-2"),
            ("98.1p5-1", Ordering::Less, "98.1-pre2-b6-2"),
            ("0.4a6-2", Ordering::Greater, "0.4-1"),
            ("1:3.0.5-2", Ordering::Less, "1:3.0.5.1"),
            ("3.11.2-6+deb12u5", Ordering::Greater, "3.11.2-6"),
            ("99999999999999999999999", Ordering::Greater, "9999999999999999999999"),
        ] {
            assert_eq!(compare(a, b), want, "{a} {b}");
            assert_eq!(compare(b, a), want.reverse(), "{b} {a}");
        }
    }

    proptest! {
        #[test]
        fn is_an_order(a in "[0-9a-z~+.-]{0,8}", b in "[0-9a-z~+.-]{0,8}", c in "[0-9a-z~+.-]{0,8}") {
            prop_assert_eq!(compare(&a, &b), compare(&b, &a).reverse());
            prop_assert_eq!(compare(&a, &a), Ordering::Equal);
            if compare(&a, &b) == Ordering::Less && compare(&b, &c) == Ordering::Less {
                prop_assert_eq!(compare(&a, &c), Ordering::Less);
            }
        }
    }
}
