//! The forms of texts that `format` may ask for.
//!
//! # Source
//! JSON Schema Validation 2020-12, §7.3; RFC 3339 for dates, RFC 1123 for host names, RFC 3986 for URIs, RFC 9562 for
//! UUIDs. An e-mail address is taken without quotes and without comments.

use std::net::{Ipv4Addr, Ipv6Addr};

use ringfence_model::HostName;

/// What tells whether a text has the form of this name; `None` for a name that is not known.
pub(super) fn named(name: &str) -> Option<fn(&str) -> bool> {
    Some(match name {
        "date" => is_date,
        "date-time" => is_date_time,
        "email" => is_email,
        "hostname" => is_host,
        "ipv4" => |text| text.parse::<Ipv4Addr>().is_ok(),
        "ipv6" => |text| text.parse::<Ipv6Addr>().is_ok(),
        "time" => is_time,
        "uri" => is_uri,
        "uuid" => is_uuid,
        _ => return None,
    })
}

/// A number of exactly so many digits.
fn number(text: &str, digits: usize) -> Option<u32> {
    (text.len() == digits && text.bytes().all(|byte| byte.is_ascii_digit())).then(|| text.parse().ok())?
}

fn is_date(text: &str) -> bool {
    let mut parts = text.splitn(3, '-');
    let mut next = |digits| parts.next().and_then(|part| number(part, digits));
    let (Some(year), Some(month), Some(day)) = (next(4), next(2), next(2)) else { return false };
    let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let days = match month {
        2 if leap => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => return false,
    };
    (1..=days).contains(&day)
}

fn is_time(text: &str) -> bool {
    let clock = |text: &str| {
        let (hour, minute) = text.split_once(':')?;
        Some((number(hour, 2)?, number(minute, 2)?)).filter(|(hour, minute)| *hour < 24 && *minute < 60)
    };
    let (local, zone) = match text.strip_suffix(['Z', 'z']) {
        Some(local) => (local, None),
        None => match text.len().checked_sub(6).and_then(|at| text.split_at_checked(at)) {
            Some((local, zone)) => (local, Some(zone)),
            None => return false,
        },
    };
    let offset = match zone.map(|zone| (zone.strip_prefix(['+', '-']).and_then(clock), zone.starts_with('-'))) {
        None => 0,
        Some((Some((hours, minutes)), west)) => {
            let offset = hours * 60 + minutes;
            if west { (1440 - offset) % 1440 } else { offset }
        }
        Some((None, _)) => return false,
    };
    let Some((minutes, seconds)) = local.rsplit_once(':') else { return false };
    let (whole, part) = seconds.split_once('.').unwrap_or((seconds, "0"));
    let (Some((hour, minute)), Some(second)) = (clock(minutes), number(whole, 2)) else { return false };
    // A leap second is the last of a day in UTC.
    let leaps = (hour * 60 + minute + 1440 - offset) % 1440 == 1439;
    let in_minute = second < 60 || second == 60 && leaps;
    in_minute && !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit())
}

fn is_date_time(text: &str) -> bool {
    text.split_once(['T', 't']).is_some_and(|(date, time)| is_date(date) && is_time(time))
}

fn is_host(text: &str) -> bool {
    text.is_ascii() && text.parse::<HostName>().is_ok_and(|host| host.name().is_some())
}

fn is_email(text: &str) -> bool {
    let Some((local, host)) = text.rsplit_once('@') else { return false };
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-/=?^_`{|}~".contains(&byte);
    local.len() <= 64 && local.split('.').all(|atom| !atom.is_empty() && atom.bytes().all(plain)) && is_host(host)
}

fn is_uri(text: &str) -> bool {
    let Some((scheme, rest)) = text.split_once(':') else { return false };
    let named = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte));
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~:/?#[]@!$&'()*+,;=%".contains(&byte);
    let mut escapes = rest.split('%').skip(1);
    named
        && rest.bytes().all(plain)
        && rest.matches('#').count() <= 1
        && escapes.all(|after| after.get(..2).is_some_and(|hex| hex.bytes().all(|byte| byte.is_ascii_hexdigit())))
}

fn is_uuid(text: &str) -> bool {
    let mut groups = text.split('-');
    [8, 4, 4, 4, 12].iter().all(|length| {
        groups.next().is_some_and(|group| group.len() == *length && group.bytes().all(|byte| byte.is_ascii_hexdigit()))
    }) && groups.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_form_is_told_from_what_looks_alike() {
        for (format, good, bad) in [
            (
                "date",
                &["2024-02-29", "2026-12-31"][..],
                &["2023-02-29", "1900-02-29", "2026-13-01", "2026-1-01", "x"][..],
            ),
            (
                "date-time",
                &["1985-04-12T23:20:50.52Z", "1990-12-31t23:59:60z"],
                &["1985-04-12", "1985-04-12 23:20:50Z"],
            ),
            (
                "email",
                &["joe.bloggs@example.com", "te~st@example.com"],
                &["@example.com", "a..b@example.com", "a b@x.y", "a@"],
            ),
            ("hostname", &["www.example.com", "a-b"], &["-a.example", "a_b c", "1.2.3.4", "exämple.com", ""]),
            ("ipv4", &["192.168.0.1"], &["127.1", "0x7f.0.0.1", "01.2.3.4", "256.1.1.1", "1.2.3.4/8"]),
            ("ipv6", &["::1", "::ffff:1.2.3.4"], &["::1%eth0", "12345::", "1.2.3.4", "[::1]"]),
            (
                "time",
                &["08:30:06Z", "15:59:60-08:00", "23:59:60Z", "08:30:06.28+01:30"],
                &["08:30:06", "24:00:00Z", "22:59:60Z", "08:30:06.Z", "08:30Z", "08:30:06+24:00", "é8:30:06+0"],
            ),
            (
                "uri",
                &["https://example.org/a?b=%20#c", "urn:isbn:1", "mailto:a@b.c"],
                &[
                    "/relative",
                    "//host/x",
                    "http://a b",
                    "http://a/%2",
                    "http://a/\\",
                    "1http://a",
                    "http://a/#b#c",
                    "",
                ],
            ),
            (
                "uuid",
                &["2eb8aa08-AA98-11ea-b4aa-73b441d16380"],
                &["2eb8aa08aa9811eab4aa73b441d16380", "2eb8aa08-aa98-11ea-b4aa-73b441d1638g"],
            ),
        ] {
            let is = named(format).unwrap();
            good.iter().for_each(|text| assert!(is(text), "{format} {text}"));
            bad.iter().for_each(|text| assert!(!is(text), "{format} {text}"));
        }
        assert!(named("binary").is_none());
    }
}
