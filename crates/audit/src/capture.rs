//! The file of captured bodies that an agent has: parts of age files, each with the call that it belongs to.
//!
//! Parts of several calls lie between one another, those of one body in order. What a part says of itself proves nothing:
//! the log has the digest of the whole, in [`CallOutcome::captured`](crate::CallOutcome::captured).

use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};

use ringfence_model::CallId;
use serde::{Deserialize, Serialize};

const MAGIC: [u8; 4] = *b"rfb1";
const CALL_BYTES: usize = 29;

/// What stands before each part.
pub const HEAD_BYTES: usize = MAGIC.len() + 1 + CALL_BYTES + 4;

/// Which body of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Way {
    /// What the agent sent.
    Request,
    /// What it got.
    Response,
}

impl Way {
    const fn letter(self) -> u8 {
        match self {
            Self::Request => b'>',
            Self::Response => b'<',
        }
    }

    /// The word for it.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Request => "request",
            Self::Response => "response",
        }
    }
}

/// Writes a part by one write, behind whatever is there.
///
/// # Errors
/// Whatever writing gives; some of it may be there then.
pub fn write(to: &mut impl Write, call: &CallId, way: Way, part: &[u8]) -> io::Result<()> {
    let (id, length) = (call.as_str().as_bytes(), u32::try_from(part.len()).map_err(io::Error::other)?);
    if id.len() != CALL_BYTES {
        return Err(io::Error::other("the call's id has another length"));
    }
    to.write_all(&[&MAGIC, &[way.letter()][..], id, &length.to_le_bytes(), part].concat())
}

struct Head {
    way: u8,
    call: [u8; CALL_BYTES],
    length: u32,
}

/// The next head; `None` at the end, and where no part begins.
fn head(from: &mut impl Read) -> io::Result<Option<Head>> {
    let mut bytes = Vec::with_capacity(HEAD_BYTES);
    from.take(HEAD_BYTES as u64).read_to_end(&mut bytes)?;
    let head = (|| {
        let rest = bytes.strip_prefix(&MAGIC)?;
        let (way, rest) = rest.split_first()?;
        let (call, length) = rest.split_first_chunk::<CALL_BYTES>()?;
        Some(Head { way: *way, call: *call, length: u32::from_le_bytes(length.try_into().ok()?) })
    })();
    Ok(head)
}

/// Up to where whole parts lie; what a crash tore lies behind.
///
/// # Errors
/// Whatever reading gives.
pub fn whole_until(file: impl Read + Seek) -> io::Result<u64> {
    let mut file = BufReader::with_capacity(CHUNK, file);
    let end = file.seek(SeekFrom::End(0))?;
    let mut at = file.seek(SeekFrom::Start(0))?;
    while let Some(head) = head(&mut file)? {
        let next = at + HEAD_BYTES as u64 + u64::from(head.length);
        if next > end {
            break;
        }
        file.seek_relative(i64::from(head.length))?;
        at = next;
    }
    Ok(at)
}

const CHUNK: usize = 64 << 10;

/// All that is there of one body, of at most `most` bytes.
///
/// # Errors
/// Whatever reading gives.
pub fn read(file: impl Read + Seek, call: &CallId, way: Way, most: u64) -> io::Result<Vec<u8>> {
    let mut file = BufReader::with_capacity(CHUNK, file);
    file.seek(SeekFrom::Start(0))?;
    let mut all = Vec::new();
    while let Some(head) = head(&mut file)? {
        if head.way == way.letter() && head.call[..] == *call.as_str().as_bytes() {
            let part = u64::from(head.length);
            if all.len() as u64 + part > most {
                return Err(io::Error::other("it is longer than the log says"));
            }
            file.by_ref().take(part).read_to_end(&mut all)?;
        } else {
            file.seek_relative(i64::from(head.length))?;
        }
        if file.fill_buf()?.is_empty() {
            break;
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    #[test]
    fn each_body_is_found_between_the_others_and_what_was_torn_is_not() {
        let (one, two) = (CallId::from_parts(1, [1; 8]), CallId::from_parts(1, [2; 8]));
        let mut file = Vec::new();
        for (call, way, part) in [
            (&one, Way::Request, "a"),
            (&two, Way::Request, "b"),
            (&one, Way::Response, "c"),
            (&one, Way::Request, ""),
            (&one, Way::Request, "d"),
        ] {
            write(&mut file, call, way, part.as_bytes()).unwrap();
        }
        let found = |file: &[u8], call, way| String::from_utf8(read(Cursor::new(file), call, way, 9).unwrap()).unwrap();
        assert_eq!(found(&file, &one, Way::Request), "ad");
        assert_eq!(found(&file, &one, Way::Response), "c");
        assert_eq!(found(&file, &two, Way::Request), "b");
        assert_eq!(found(&file, &two, Way::Response), "");
        assert!(read(Cursor::new(&file), &one, Way::Request, 1).is_err(), "longer than it may be");
        let whole = file.len() as u64;
        assert_eq!(whole_until(Cursor::new(&file)).unwrap(), whole);
        let last = whole - HEAD_BYTES as u64 - 1;
        for torn in 1..=HEAD_BYTES {
            assert_eq!(whole_until(Cursor::new(&file[..file.len() - torn])).unwrap(), last, "{torn}");
        }
        file.extend([0; 100]);
        assert_eq!(whole_until(Cursor::new(&file)).unwrap(), whole);
        assert_eq!(found(&file, &one, Way::Request), "ad");
    }
}
