//! HTTP/2 by hand: frames that no library would send.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PUSH_PROMISE: u8 = 5;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

pub const END_STREAM: u8 = 1;
pub const ACK: u8 = 1;
pub const END_HEADERS: u8 = 4;
pub const PADDED: u8 = 8;
pub const PRIORITISED: u8 = 0x20;

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Error codes.
///
/// # Source
/// RFC 9113 §7.
pub mod code {
    pub const NO_ERROR: u32 = 0;
    pub const PROTOCOL_ERROR: u32 = 1;
    pub const FLOW_CONTROL_ERROR: u32 = 3;
    pub const STREAM_CLOSED: u32 = 5;
    pub const FRAME_SIZE_ERROR: u32 = 6;
    pub const REFUSED_STREAM: u32 = 7;
    pub const COMPRESSION_ERROR: u32 = 9;
    pub const ENHANCE_YOUR_CALM: u32 = 11;
}

pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    sized(payload.len(), kind, flags, stream, payload)
}

/// A frame that says another length than it has.
pub fn sized(length: usize, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(length).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A header block: every field literal, without indexing and without Huffman.
pub fn block(fields: &[(&[u8], &[u8])]) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, value) in fields {
        out.push(0);
        for text in [name, value] {
            integer(&mut out, 0, 7, text.len());
            out.extend_from_slice(text);
        }
    }
    out
}

/// # Source
/// RFC 7541 §5.1.
pub fn integer(out: &mut Vec<u8>, first: u8, bits: u8, mut value: usize) {
    let most = (1_usize << bits) - 1;
    if value < most {
        return out.push(first | u8::try_from(value).unwrap());
    }
    out.push(first | u8::try_from(most).unwrap());
    value -= most;
    while value >= 128 {
        out.push(u8::try_from(value % 128).unwrap() | 128);
        value /= 128;
    }
    out.push(u8::try_from(value).unwrap());
}

/// The header block of an ordinary request and more.
pub fn request(method: &str, path: &str, more: &[(&[u8], &[u8])]) -> Vec<u8> {
    let mut fields: Vec<(&[u8], &[u8])> = vec![
        (b":method", method.as_bytes()),
        (b":scheme", b"https"),
        (b":authority", super::HOST.as_bytes()),
        (b":path", path.as_bytes()),
    ];
    fields.extend_from_slice(more);
    block(&fields)
}

/// What a connection heard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heard {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

impl Heard {
    fn number(&self, at: usize) -> u32 {
        u32::from_be_bytes(self.payload[at..at + 4].try_into().unwrap())
    }
}

/// What came of what was said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The connection ended with this code.
    Away(u32),
    /// The connection ended without a word.
    Closed,
    /// A stream ended with this code.
    Reset(u32),
    /// A stream was answered with this status.
    Status(u16),
}

/// One side of a connection of HTTP/2.
pub struct Wire<S> {
    pub stream: S,
    held: Vec<u8>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    /// A client's side, after its preface.
    pub async fn client(stream: S) -> Self {
        let mut wire = Self { stream, held: Vec::new() };
        wire.say(&[PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()).await;
        wire
    }

    /// A server's side, after the client's preface.
    pub async fn server(mut stream: S) -> Self {
        let mut preface = vec![0; PREFACE.len()];
        stream.read_exact(&mut preface).await.unwrap();
        let mut wire = Self { stream, held: Vec::new() };
        wire.say(&frame(SETTINGS, 0, 0, &[])).await;
        wire
    }

    /// Says bytes. The other side may be gone already, which is then heard.
    pub async fn say(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).await.is_ok() && self.stream.flush().await.is_ok()
    }
}

impl<S: AsyncRead + Unpin> Wire<S> {
    pub fn raw(stream: S) -> Self {
        Self { stream, held: Vec::new() }
    }

    /// The next frame; `None` at the end.
    pub async fn hear(&mut self) -> Option<Heard> {
        let heard = tokio::time::timeout(Duration::from_secs(20), self.listen()).await;
        heard.expect("the other side says something or closes")
    }

    /// The next frame, whenever it comes.
    pub async fn listen(&mut self) -> Option<Heard> {
        loop {
            if let Some(head) = self.held.get(..9) {
                let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
                if self.held.len() >= 9 + length {
                    let bytes: Vec<u8> = self.held.drain(..9 + length).collect();
                    let stream = u32::from_be_bytes(bytes[5..9].try_into().unwrap());
                    return Some(Heard { kind: bytes[3], flags: bytes[4], stream, payload: bytes[9..].to_vec() });
                }
            }
            let mut buffer = [0; 16 * 1024];
            match self.stream.read(&mut buffer).await {
                Ok(count) if count > 0 => self.held.extend_from_slice(&buffer[..count]),
                _ => return None,
            }
        }
    }

    /// What becomes of the first thing that has an outcome.
    pub async fn outcome(&mut self) -> Outcome {
        loop {
            match self.hear().await {
                None => return Outcome::Closed,
                Some(heard) => match heard.kind {
                    GOAWAY => return Outcome::Away(heard.number(4)),
                    RST_STREAM => return Outcome::Reset(heard.number(0)),
                    HEADERS => return Outcome::Status(status(&heard.payload)),
                    _ => {}
                },
            }
        }
    }
}

/// The status that a header block begins with.
///
/// # Source
/// RFC 7541, appendices A and B.
pub fn status(block: &[u8]) -> u16 {
    const INDEXED: [u16; 7] = [200, 204, 206, 304, 400, 404, 500];
    // The size of the table may be set first.
    let block = &block[block.iter().position(|b| b & 0xe0 != 0x20).unwrap()..];
    if let 0x88..=0x8e = block[0] {
        return INDEXED[usize::from(block[0] - 0x88)];
    }
    assert!(matches!(block[0], 0x48 | 0x08), "not a status: {block:x?}");
    if block[1] & 0x80 == 0 {
        return String::from_utf8_lossy(&block[2..5]).parse().unwrap();
    }
    let bits = block[2..].iter().take(3).fold(0_u32, |all, byte| all << 8 | u32::from(*byte));
    let (mut at, mut number) = (24, 0);
    for _ in 0..3 {
        let five = bits >> (at - 5) & 0x1f;
        if five < 3 {
            (number, at) = (number * 10 + five, at - 5);
        } else {
            (number, at) = (number * 10 + (bits >> (at - 6) & 0x3f) - 0x19 + 3, at - 6);
        }
    }
    u16::try_from(number).unwrap()
}
