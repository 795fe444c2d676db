//! Frames of a WebSocket, read as they come and written anew. Hostile bytes: nothing is held but a head or a control frame
//! that is not whole yet.
//!
//! # Source
//! RFC 6455 §5.

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// The longest payload of a control frame.
const MAX_CONTROL_BYTES: u64 = 125;

/// The longest head: two bytes, a length of eight, a key of four.
const MAX_HEAD_BYTES: usize = 14;

/// Whose frames they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    /// A client's, which are masked.
    Client,
    /// A server's, which are not.
    Server,
}

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opcode {
    /// A message of bytes.
    Binary,
    /// The end.
    Close,
    /// More of a message.
    Continuation,
    /// A question whether somebody is there.
    Ping,
    /// The answer to it.
    Pong,
    /// A message of text.
    Text,
}

impl Opcode {
    const fn of(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::Continuation),
            1 => Some(Self::Text),
            2 => Some(Self::Binary),
            8 => Some(Self::Close),
            9 => Some(Self::Ping),
            10 => Some(Self::Pong),
            _ => None,
        }
    }

    const fn number(self) -> u8 {
        match self {
            Self::Continuation => 0,
            Self::Text => 1,
            Self::Binary => 2,
            Self::Close => 8,
            Self::Ping => 9,
            Self::Pong => 10,
        }
    }

    const fn is_control(self) -> bool {
        matches!(self, Self::Close | Self::Ping | Self::Pong)
    }
}

/// A piece of what is said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// A whole control frame.
    Control {
        /// Which.
        opcode: Opcode,
        /// Its payload.
        payload: Bytes,
    },
    /// A part of a message.
    Data {
        /// What the message is: text or binary.
        kind: Opcode,
        /// The part.
        payload: Bytes,
        /// Whether the message ends with it.
        last: bool,
    },
}

/// Reads the frames of one side.
pub struct Frames {
    from: From,
    /// The frame whose payload comes.
    open: Option<Open>,
    /// The message whose frames come.
    message: Option<Opcode>,
    closed: bool,
}

struct Open {
    fin: bool,
    opcode: Opcode,
    left: u64,
    key: Option<[u8; 4]>,
}

impl Frames {
    /// Reads the frames of this side.
    #[must_use]
    pub const fn new(from: From) -> Self {
        Self { from, open: None, message: None, closed: false }
    }

    /// Whether the last frame is whole.
    #[must_use]
    pub const fn is_between(&self) -> bool {
        self.open.is_none()
    }

    /// Takes the next piece out of `input`; `None` if more bytes are needed.
    ///
    /// # Errors
    /// Why these are no frames.
    pub fn next(&mut self, input: &mut BytesMut) -> Result<Option<Piece>, &'static str> {
        if self.open.is_none() {
            self.open = self.head(input)?;
        }
        let Some(open) = &mut self.open else { return Ok(None) };
        if open.opcode.is_control() {
            let Some(length) = usize::try_from(open.left).ok().filter(|length| *length <= input.len()) else {
                return Ok(None);
            };
            let payload = unmasked(input.split_to(length), &mut open.key);
            let opcode = open.opcode;
            self.open = None;
            if opcode == Opcode::Close {
                check_close(&payload)?;
                self.closed = true;
            }
            return Ok(Some(Piece::Control { opcode, payload }));
        }
        if input.is_empty() && open.left > 0 {
            return Ok(None);
        }
        let length = usize::try_from(open.left).unwrap_or(usize::MAX).min(input.len());
        let payload = unmasked(input.split_to(length), &mut open.key);
        open.left -= length as u64;
        let Some(kind) = self.message else { return Err("a part of no message") };
        let whole = open.left == 0;
        let last = whole && open.fin;
        if whole {
            self.open = None;
        }
        if last {
            self.message = None;
        }
        Ok(Some(Piece::Data { kind, payload, last }))
    }

    fn head(&mut self, input: &mut BytesMut) -> Result<Option<Open>, &'static str> {
        let [first, second, ..] = **input else { return Ok(None) };
        if self.closed {
            return Err("a frame after the end");
        }
        if first & 0x70 != 0 {
            return Err("reserved bits are set, and no extension was agreed on");
        }
        let Some(opcode) = Opcode::of(first & 0x0f) else { return Err("the opcode is unknown") };
        let (fin, masked) = (first & 0x80 != 0, second & 0x80 != 0);
        match (self.from, masked) {
            (From::Client, false) => return Err("a client's frame is not masked"),
            (From::Server, true) => return Err("a server's frame is masked"),
            _ => {}
        }
        let mut rest = input.get(2..).unwrap_or_default();
        let short = u64::from(second & 0x7f);
        let (left, least) = match short {
            126 if rest.len() >= 2 => (u64::from(rest.get_u16()), 126),
            127 if rest.len() >= 8 => (rest.get_u64(), 1 << 16),
            126 | 127 => return Ok(None),
            _ => (short, 0),
        };
        if left < least {
            return Err("the length is not in its shortest form");
        }
        if left >> 63 != 0 {
            return Err("the length is too large");
        }
        let key = match (masked, rest.first_chunk::<4>()) {
            (false, _) => None,
            (true, None) => return Ok(None),
            (true, Some(key)) => {
                let key = *key;
                rest.advance(4);
                Some(key)
            }
        };
        if opcode.is_control() {
            if !fin || left > MAX_CONTROL_BYTES {
                return Err("a control frame is in parts, or too long");
            }
        } else {
            match (opcode, self.message) {
                (Opcode::Continuation, None) => return Err("a part of no message"),
                (Opcode::Continuation, Some(_)) => {}
                (_, Some(_)) => return Err("a message begins in another"),
                (kind, None) => self.message = Some(kind),
            }
        }
        let head = input.len() - rest.len();
        input.advance(head);
        Ok(Some(Open { fin, opcode, left, key }))
    }
}

/// # Source
/// RFC 6455 §5.5.1 and §7.4; the IANA registry of close codes.
fn check_close(payload: &[u8]) -> Result<(), &'static str> {
    match payload {
        [] => Ok(()),
        [high, low, reason @ ..] => {
            let code = u16::from_be_bytes([*high, *low]);
            if !matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999) {
                return Err("a close code that must not be sent");
            }
            std::str::from_utf8(reason).map(drop).map_err(|_| "the reason of a close is not UTF-8")
        }
        [_] => Err("half a close code"),
    }
}

/// Takes the mask away, and turns the key to where the next byte stands.
fn unmasked(mut bytes: BytesMut, key: &mut Option<[u8; 4]>) -> Bytes {
    if let Some(key) = key {
        mask(&mut bytes, *key);
        key.rotate_left(bytes.len() % 4);
    }
    bytes.freeze()
}

fn mask(bytes: &mut [u8], key: [u8; 4]) {
    let (fours, rest) = bytes.as_chunks_mut::<4>();
    let word = u32::from_ne_bytes(key);
    for four in fours {
        *four = (u32::from_ne_bytes(*four) ^ word).to_ne_bytes();
    }
    for (byte, key) in rest.iter_mut().zip(key) {
        *byte ^= key;
    }
}

/// Writes a frame; with a key it is masked.
#[must_use]
pub fn write(fin: bool, opcode: Opcode, payload: &[u8], key: Option<[u8; 4]>) -> BytesMut {
    let mut out = BytesMut::with_capacity(MAX_HEAD_BYTES + payload.len());
    out.put_u8(u8::from(fin) << 7 | opcode.number());
    let masked = u8::from(key.is_some()) << 7;
    match (u8::try_from(payload.len()), u16::try_from(payload.len())) {
        (Ok(length), _) if length <= 125 => out.put_u8(masked | length),
        (_, Ok(length)) => {
            out.put_u8(masked | 126);
            out.put_u16(length);
        }
        _ => {
            out.put_u8(masked | 127);
            out.put_u64(payload.len() as u64);
        }
    }
    if let Some(key) = key {
        out.extend_from_slice(&key);
    }
    let head = out.len();
    out.extend_from_slice(payload);
    if let (Some(key), Some(payload)) = (key, out.get_mut(head..)) {
        mask(payload, key);
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEY: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

    /// All that is said, with messages put together, and why it ended.
    fn read(from: From, chunks: &[&[u8]]) -> (Vec<(Opcode, Vec<u8>)>, Option<&'static str>) {
        let (mut frames, mut input) = (Frames::new(from), BytesMut::new());
        let (mut said, mut message) = (Vec::new(), Vec::new());
        for chunk in chunks {
            input.extend_from_slice(chunk);
            loop {
                match frames.next(&mut input) {
                    Ok(None) => break,
                    Ok(Some(Piece::Control { opcode, payload })) => said.push((opcode, payload.to_vec())),
                    Ok(Some(Piece::Data { kind, payload, last })) => {
                        message.extend_from_slice(&payload);
                        if last {
                            said.push((kind, std::mem::take(&mut message)));
                        }
                    }
                    Err(why) => return (said, Some(why)),
                }
            }
            assert!(input.len() <= MAX_HEAD_BYTES + 125, "no more is held than a head or a control frame");
        }
        (said, None)
    }

    #[test]
    fn the_examples_of_the_standard() {
        let hello = |opcode| (opcode, b"Hello".to_vec());
        for (from, bytes, want) in [
            (From::Server, &b"\x81\x05Hello"[..], hello(Opcode::Text)),
            (From::Client, b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58", hello(Opcode::Text)),
            (From::Server, b"\x01\x03Hel\x80\x02lo", hello(Opcode::Text)),
            (From::Server, b"\x89\x05Hello", hello(Opcode::Ping)),
            (From::Client, b"\x8a\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58", hello(Opcode::Pong)),
        ] {
            assert_eq!(read(from, &[bytes]), (vec![want], None));
        }
        assert_eq!(write(true, Opcode::Text, b"Hello", None), &b"\x81\x05Hello"[..]);
        assert_eq!(
            write(true, Opcode::Text, b"Hello", Some(KEY)),
            &b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58"[..]
        );
        for (length, head) in [(256, &b"\x82\x7e\x01\x00"[..]), (65_536, b"\x82\x7f\0\0\0\0\0\x01\0\0")] {
            let bytes = vec![7; length];
            let frame = write(true, Opcode::Binary, &bytes, None);
            assert!(frame.starts_with(head));
            assert_eq!(read(From::Server, &[&frame]), (vec![(Opcode::Binary, bytes)], None));
        }
    }

    #[test]
    fn what_is_no_frame_is_an_error() {
        for (from, bytes) in [
            (From::Server, &b"\xc1\x01a"[..]),
            (From::Server, b"\xa1\x01a"),
            (From::Server, b"\x83\x01a"),
            (From::Server, b"\x8b\x00"),
            (From::Server, b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58"),
            (From::Client, b"\x81\x05Hello"),
            (From::Server, b"\x80\x01a"),
            (From::Server, b"\x01\x01a\x81\x01b"),
            (From::Server, b"\x81\x7e\x00\x7dxxx"),
            (From::Server, b"\x81\x7f\0\0\0\0\0\0\xff\xff"),
            (From::Server, b"\x81\x7f\xff\0\0\0\0\0\0\0"),
            (From::Server, b"\x09\x00"),
            (From::Server, b"\x89\x7e\x00\x7e"),
            (From::Server, b"\x88\x01\x03"),
            (From::Server, b"\x88\x02\x03\xed"),
            (From::Server, b"\x88\x02\x00\x00"),
            (From::Server, b"\x88\x03\x03\xe8\xff"),
            (From::Server, b"\x88\x00\x89\x00"),
            (From::Server, b"HTTP/1.1 200 OK\r\n"),
            (From::Client, b"GET / HTTP/1.1\r\n"),
            (From::Client, b"\x16\x03\x01\x02\x00"),
            (From::Client, b"SSH-2.0-x\r\n"),
        ] {
            assert!(read(from, &[bytes]).1.is_some(), "{bytes:?}");
        }
        assert_eq!(read(From::Server, &[b"\x88\x04\x03\xe8ok"]).1, None);
    }

    fn frame() -> impl Strategy<Value = (bool, Opcode, Vec<u8>)> {
        const OPCODES: [Opcode; 7] = [
            Opcode::Binary,
            Opcode::Continuation,
            Opcode::Continuation,
            Opcode::Ping,
            Opcode::Pong,
            Opcode::Text,
            Opcode::Close,
        ];
        let payload = prop_oneof![prop::collection::vec(any::<u8>(), 0..200), Just(vec![3; 70_000])];
        (any::<bool>(), prop::sample::select(&OPCODES[..]), payload)
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            read(From::Client, &[&bytes]);
            read(From::Server, &[&bytes]);
        }

        #[test]
        fn any_cut_gives_the_same(
            frames in prop::collection::vec(frame(), 0..6),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
            key in any::<[u8; 4]>(),
        ) {
            let bytes: Vec<u8> =
                frames.iter().flat_map(|(fin, opcode, payload)| write(*fin, *opcode, payload, Some(key))).collect();
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let chunks: Vec<&[u8]> = cuts.windows(2).map(|w| &bytes[w[0]..w[1]]).collect();
            prop_assert_eq!(read(From::Client, &chunks), read(From::Client, &[&bytes]));
        }

        #[test]
        fn what_is_written_is_read(payload in prop::collection::vec(any::<u8>(), 0..70_000), key in any::<Option<[u8; 4]>>()) {
            let from = if key.is_some() { From::Client } else { From::Server };
            let bytes = write(true, Opcode::Binary, &payload, key);
            prop_assert_eq!(read(from, &[&bytes]), (vec![(Opcode::Binary, payload)], None));
        }
    }
}
