//! What a push is to change, read before the server sees it; no I/O.
//!
//! # Source
//! gitprotocol-pack(5), "Reference Update Request"; gitprotocol-common(5), pkt-lines.

use ringfence_model::manifest::{MAX_GIT_NAME, RefChange};

/// Refs that one push may change.
pub const MAX_REFS: usize = 256;

/// The longest list of commands.
pub const MAX_LIST: usize = 256 * 1024;

/// Capabilities by which a push may do more than change refs.
const REFUSED: [(&str, &str); 2] = [
    ("push-cert", "a signed push names its refs where the gate does not look"),
    ("push-options", "push options have servers do more than change refs"),
];

/// One ref and what becomes of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// The ref.
    pub name: String,
    /// What becomes of it.
    pub change: RefChange,
}

/// A list of commands as it comes.
#[derive(Default)]
pub struct Reader {
    held: Vec<u8>,
    /// How much of it was looked at.
    read: usize,
    commands: Vec<Command>,
    /// Whether a line was seen that names capabilities.
    opened: bool,
}

/// What the bytes so far say.
#[derive(Debug, PartialEq, Eq)]
pub enum Said {
    /// The list goes on.
    More,
    /// The list is whole: its commands, and the bytes that were held, which may begin with what follows it.
    All(Vec<Command>, Vec<u8>),
}

impl Reader {
    /// Takes further bytes.
    ///
    /// # Errors
    /// Why the list cannot be granted, whatever is in it.
    pub fn take(&mut self, bytes: &[u8]) -> Result<Said, &'static str> {
        self.held.extend_from_slice(bytes);
        loop {
            let rest = self.held.get(self.read..).unwrap_or_default();
            let Some((head, rest)) = rest.split_first_chunk::<4>() else { break };
            let length = std::str::from_utf8(head).ok().filter(|text| text.bytes().all(|b| b.is_ascii_hexdigit()));
            let length = length.and_then(|text| usize::from_str_radix(text, 16).ok());
            match length.ok_or("a line of the push has no length")? {
                0 => return Ok(Said::All(std::mem::take(&mut self.commands), std::mem::take(&mut self.held))),
                length => {
                    let length = length.checked_sub(4).filter(|length| *length > 0);
                    let length = length.ok_or("a line of the push has no content")?;
                    if self.read + 4 + length > MAX_LIST {
                        return Err("the push has too long a list of refs");
                    }
                    let Some(line) = rest.get(..length) else { break };
                    let command = line_of(line, &mut self.opened)?;
                    self.read += 4 + length;
                    self.commands.extend(command);
                    if self.commands.len() > MAX_REFS {
                        return Err("the push changes too many refs at once");
                    }
                }
            }
        }
        // A line is at most 64 KiB, and a list that is whole was taken above.
        if self.held.len() > MAX_LIST { Err("the push has too long a list of refs") } else { Ok(Said::More) }
    }
}

/// One line: a command, or where the client's history ends.
fn line_of(line: &[u8], opened: &mut bool) -> Result<Option<Command>, &'static str> {
    let strange = "the push has a line that the gate does not understand";
    let line = std::str::from_utf8(line).map_err(|_| "the push names a ref that is no text")?;
    let line = line.strip_suffix('\n').unwrap_or(line);
    if let Some(id) = line.strip_prefix("shallow ") {
        return if is_id(id) { Ok(None) } else { Err(strange) };
    }
    if line.starts_with("push-cert") {
        return Err("a signed push names its refs where the gate does not look");
    }
    let line = match (line.split_once('\0'), *opened) {
        (None, true) => line,
        (Some((line, capabilities)), false) => {
            *opened = true;
            // As git does, which parts them at any space.
            let asked = capabilities
                .split(|c: char| c.is_whitespace() || c.is_control())
                .map(|one| one.split('=').next().unwrap_or_default());
            match asked.filter_map(|one| REFUSED.iter().find(|(name, _)| *name == one)).next() {
                Some((_, why)) => return Err(why),
                None => line,
            }
        }
        (None, false) => {
            *opened = true;
            line
        }
        (Some(_), true) => return Err(strange),
    };
    let mut words = line.splitn(3, ' ');
    let (Some(old), Some(new), Some(name)) = (words.next(), words.next(), words.next()) else { return Err(strange) };
    if !is_id(old) || !is_id(new) || old.len() != new.len() || !is_ref(name) {
        return Err(strange);
    }
    let change = match (is_zero(old), is_zero(new)) {
        (true, false) => RefChange::Create,
        (false, true) => RefChange::Delete,
        (false, false) => RefChange::Update,
        (true, true) => return Err(strange),
    };
    Ok(Some(Command { name: name.to_owned(), change }))
}

/// An id of SHA-1 or SHA-256.
fn is_id(text: &str) -> bool {
    [40, 64].contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

fn is_zero(id: &str) -> bool {
    id.bytes().all(|b| b == b'0')
}

/// Whether it is a name that git takes for a ref.
///
/// # Source
/// git-check-ref-format(1).
fn is_ref(name: &str) -> bool {
    let part = |part: &str| !part.is_empty() && !part.starts_with('.') && !part.ends_with(".lock");
    let plain = |c: char| !c.is_control() && !" ~^:?*[\\".contains(c);
    name.starts_with("refs/")
        && name.len() <= MAX_GIT_NAME
        && name.chars().all(plain)
        && name.split('/').all(part)
        && !name.ends_with('.')
        && !name.contains("..")
        && !name.contains("@{")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ZERO: &str = "0000000000000000000000000000000000000000";
    const ONE: &str = "1111111111111111111111111111111111111111";
    const TWO: &str = "2222222222222222222222222222222222222222";

    fn line(text: &str) -> Vec<u8> {
        format!("{:04x}{text}", text.len() + 4).into_bytes()
    }

    fn list(lines: &[&str]) -> Vec<u8> {
        lines.iter().flat_map(|text| line(text)).chain(*b"0000").collect()
    }

    fn read(bytes: &[u8]) -> Result<Said, &'static str> {
        Reader::default().take(bytes)
    }

    #[test]
    fn a_list_says_what_becomes_of_each_ref() {
        let bytes = list(&[
            &format!("shallow {TWO}"),
            &format!("{ZERO} {ONE} refs/heads/a\0report-status-v2 side-band-64k object-format=sha1 agent=git/2"),
            &format!("{ONE} {TWO} refs/heads/b"),
            &format!("{ONE} {ZERO} refs/tags/c\n"),
        ]);
        let wanted = [
            ("refs/heads/a", RefChange::Create),
            ("refs/heads/b", RefChange::Update),
            ("refs/tags/c", RefChange::Delete),
        ];
        let wanted: Vec<Command> = wanted.map(|(name, change)| Command { name: name.into(), change }).into();
        let with_pack = [&bytes[..], b"PACK...."].concat();
        assert_eq!(read(&with_pack), Ok(Said::All(wanted.clone(), with_pack.clone())));
        let mut reader = Reader::default();
        for byte in &bytes[..bytes.len() - 1] {
            assert_eq!(reader.take(&[*byte]), Ok(Said::More));
        }
        assert_eq!(reader.take(b"0"), Ok(Said::All(wanted, bytes)));
        assert_eq!(read(b"0000"), Ok(Said::All(Vec::new(), b"0000".to_vec())));
    }

    #[test]
    fn what_could_change_more_than_is_seen_is_refused() {
        let good = format!("{ONE} {TWO} refs/heads/a");
        for lines in [
            vec![format!("{good}\0report-status push-options")],
            vec![format!("{good}\0push-cert=x")],
            vec![format!("{good}\0a\tpush-options\tb")],
            vec!["push-cert\0report-status".to_owned()],
            vec![good.clone(), format!("{good}\0report-status")],
            vec![format!("{ZERO} {ZERO} refs/heads/a")],
            vec![format!("{ONE} {TWO} HEAD")],
            vec![format!("{ONE} {TWO} refs/heads/../a")],
            vec![format!("{ONE} {TWO} refs/heads/a b")],
            vec![format!("{ONE} {TWO} refs/heads/a\nrefs/heads/main")],
            vec![format!("{ONE} {TWO} refs/heads//a")],
            vec![format!("{ONE} {TWO} refs/heads/a.lock")],
            vec![format!("{ONE} {TWO}")],
            vec![format!("{} {TWO} refs/heads/a", ONE.replace('1', "A"))],
            vec!["shallow x".to_owned()],
            vec!["version 2".to_owned()],
        ] {
            let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
            assert!(read(&list(&lines)).is_err(), "{lines:?}");
        }
        for bytes in [&b"0001"[..], b"0004", b"000g", b"+00a", b"PACK"] {
            assert!(read(bytes).is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn a_list_has_its_bounds() {
        let many: Vec<String> = (0..=MAX_REFS).map(|n| format!("{ZERO} {ONE} refs/heads/{n}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert!(read(&list(&many)).is_err());
        assert!(read(&list(&many[1..])).is_ok());
        let shallow = line(&format!("shallow {ONE}"));
        let mut reader = Reader::default();
        let refused = (0..MAX_LIST).find(|_| reader.take(&shallow).is_err());
        assert!(refused.is_some_and(|count| count * shallow.len() <= MAX_LIST));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..6)) {
            let mut reader = Reader::default();
            for part in &parts {
                if reader.take(part).is_err() {
                    break;
                }
            }
        }

        #[test]
        fn however_it_is_cut_it_says_the_same(cuts in prop::collection::vec(1_usize..60, 1..12)) {
            let bytes = list(&[&format!("{ZERO} {ONE} refs/heads/a\0x"), &format!("{ONE} {TWO} refs/heads/b")]);
            let whole = read(&bytes).unwrap();
            let (mut reader, mut rest) = (Reader::default(), &bytes[..]);
            let mut said = Said::More;
            for cut in cuts.iter().cycle() {
                let (now, later) = rest.split_at((*cut).min(rest.len()));
                said = reader.take(now).unwrap();
                rest = later;
                if rest.is_empty() {
                    break;
                }
            }
            prop_assert_eq!(said, whole);
        }
    }
}
