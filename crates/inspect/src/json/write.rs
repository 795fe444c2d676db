//! The two forms in which a value is written.

use std::io::Write as _;

use ringfence_model::Digest;

use super::{Number, Value};

impl Value<'_> {
    /// Writes the value without white space, members in their order, numbers as they were written, and texts with no
    /// more escapes than JSON demands. Whoever reads these bytes reads this value.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.write(&mut out, Form::Plain);
        out
    }

    /// Writes the value in the one form of all values that mean the same: no white space, members sorted by their
    /// keys' UTF-16 code units, numbers in their shortest form.
    ///
    /// It is the form of RFC 8785 but for integers beyond 2^53, which are kept exactly. It is made for digests; a large
    /// float has the form of an integer that [`super::parse`] refuses.
    #[must_use]
    pub fn canonical(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.write(&mut out, Form::Canonical);
        out
    }

    /// The SHA-256 of [`Value::canonical`].
    #[must_use]
    pub fn digest(&self) -> Digest {
        Digest::of(&self.canonical())
    }

    fn write(&self, out: &mut Vec<u8>, form: Form) {
        match self {
            Self::Bool(true) => out.extend_from_slice(b"true"),
            Self::Bool(false) => out.extend_from_slice(b"false"),
            Self::Null => out.extend_from_slice(b"null"),
            Self::Text(text) => write_text(out, text),
            Self::Number(number) if form == Form::Canonical => write_canonical_number(out, number),
            Self::Number(number) => out.extend_from_slice(number.as_str().as_bytes()),
            Self::List(list) => {
                out.push(b'[');
                for (place, value) in list.iter().enumerate() {
                    if place > 0 {
                        out.push(b',');
                    }
                    value.write(out, form);
                }
                out.push(b']');
            }
            Self::Object(object) => {
                let mut members: Vec<(&str, &Value<'_>)> = object.iter().collect();
                if form == Form::Canonical {
                    members.sort_by(|(a, _), (b, _)| a.encode_utf16().cmp(b.encode_utf16()));
                }
                out.push(b'{');
                for (place, (key, value)) in members.into_iter().enumerate() {
                    if place > 0 {
                        out.push(b',');
                    }
                    write_text(out, key);
                    out.push(b':');
                    value.write(out, form);
                }
                out.push(b'}');
            }
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Canonical,
    Plain,
}

/// Writes a text in quotes, escaped as RFC 8785 §3.2.2.2 says.
fn write_text(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    let mut rest = text.as_bytes();
    while let Some(place) = rest.iter().position(|b| matches!(b, b'"' | b'\\' | 0..b' ')) {
        let (plain, special) = rest.split_at(place);
        out.extend_from_slice(plain);
        let Some((byte, behind)) = special.split_first() else { break };
        match byte {
            b'"' | b'\\' => out.extend_from_slice(&[b'\\', *byte]),
            0x8 => out.extend_from_slice(b"\\b"),
            0xc => out.extend_from_slice(b"\\f"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            control => out.extend_from_slice(format!("\\u{control:04x}").as_bytes()),
        }
        rest = behind;
    }
    out.extend_from_slice(rest);
    out.push(b'"');
}

fn write_canonical_number(out: &mut Vec<u8>, number: &Number<'_>) {
    if let Some(integer) = number.as_i64() {
        // Writing into a vector cannot fail.
        let _ = write!(out, "{integer}");
        return;
    }
    out.extend_from_slice(ecmascript(number.as_f64()).as_bytes());
}

/// The shortest digits that read back as `float`, laid out as ECMAScript does.
///
/// # Source
/// ECMA-262, `Number::toString`, which RFC 8785 §3.2.2.3 refers to: `digits` is *s*, `point` is *n*.
fn ecmascript(float: f64) -> String {
    let scientific = format!("{float:e}");
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let (sign, mantissa) = mantissa.strip_prefix('-').map_or(("", mantissa), |positive| ("-", positive));
    let digits: String = mantissa.chars().filter(|c| *c != '.').collect();
    let point = exponent.parse::<i32>().unwrap_or_default() + 1;
    let zeros = |count: usize| "0".repeat(count);
    let laid_out = match usize::try_from(point) {
        Ok(point) if point >= digits.len() && point <= 21 => format!("{digits}{}", zeros(point - digits.len())),
        Ok(point @ 1..=21) => {
            let (whole, fraction) = digits.split_at(point);
            format!("{whole}.{fraction}")
        }
        _ if (-5..=0).contains(&point) => format!("0.{}{digits}", zeros(point.unsigned_abs() as usize)),
        _ => {
            let (first, rest) = digits.split_at(1);
            let dot = if rest.is_empty() { "" } else { "." };
            format!("{first}{dot}{rest}e{:+}", point - 1)
        }
    };
    format!("{sign}{laid_out}")
}
