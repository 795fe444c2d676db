//! As much of HTTP/1.1 as a load generator needs.

use tokio::io::{AsyncRead, AsyncReadExt};

use crate::Failure;

/// What is read and written at once.
pub const CHUNK: usize = 256 * 1024;

/// The head of a message.
pub struct Head {
    text: String,
    /// Its `content-length`.
    pub length: Option<u64>,
}

impl Head {
    /// Reads a head; `None` at the end of the stream. What was read beyond it is left in `kept`.
    pub async fn read<S: AsyncRead + Unpin>(
        stream: &mut S,
        kept: &mut Vec<u8>,
        buffer: &mut [u8],
    ) -> Result<Option<Self>, Failure> {
        loop {
            if let Some(end) = kept.windows(4).position(|w| w == b"\r\n\r\n") {
                let text = std::str::from_utf8(&kept[..end])?.to_owned();
                kept.drain(..end + 4);
                let length = text.split("\r\n").skip(1).find_map(|line| {
                    let (name, value) = line.split_once(':')?;
                    name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().ok())?
                });
                return Ok(Some(Self { text, length }));
            }
            let count = stream.read(buffer).await?;
            if count == 0 {
                return if kept.is_empty() { Ok(None) } else { Err("the stream broke off in a head".into()) };
            }
            kept.extend_from_slice(&buffer[..count]);
        }
    }

    /// The second word of the first line: a request's target, an answer's status.
    pub fn target(&self) -> &str {
        self.text.split(' ').nth(1).unwrap_or_default()
    }

    /// Whether the sender closes after this message.
    pub fn closes(&self) -> bool {
        self.text.split("\r\n").skip(1).any(|line| line.to_ascii_lowercase().starts_with("connection: close"))
    }
}
