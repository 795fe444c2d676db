//! Counts what an answer used while it goes by, holding nothing of it back.

use super::Request;
use super::scan::{Path, Scan, Sink};
use super::usage::{Reported, Suspicion, Usage};
use super::weigh::Tally;
use crate::base64;
use crate::eventstream::EventStream;
use crate::json::{self, Limits, Value};
use crate::sse::Sse;

/// The largest event that is held until it is whole. Larger ones are counted as they come.
const MAX_EVENT_BYTES: usize = 64 * 1024;

/// The largest message of an AWS event stream.
const MAX_MESSAGE_BYTES: usize = 1 << 20;

/// The bytes of a model's name that are kept.
const MAX_MODEL_BYTES: usize = 200;

/// How an answer comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Framing {
    /// An AWS event stream.
    EventStream,
    /// One JSON text, or several one after the other: whole answers, lines of JSON, Google's streams without `alt=sse`.
    Json,
    /// Messages of a WebSocket, given whole to [`Meter::push`].
    Messages,
    /// Anything else: sound, files.
    Opaque,
    /// Server-Sent Events.
    Sse,
}

impl Framing {
    /// How an answer of this content type comes.
    #[must_use]
    pub fn of(content_type: &str) -> Self {
        let kind = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        match kind.as_str() {
            "text/event-stream" => Self::Sse,
            "application/vnd.amazon.eventstream" => Self::EventStream,
            json if json.contains("json") => Self::Json,
            _ => Self::Opaque,
        }
    }
}

/// Counts an answer as it comes. Its bytes must not be compressed.
///
/// Takes time in proportion to the bytes. Holds one event of an event stream, and of JSON nothing but where it stands.
#[derive(Debug)]
pub struct Meter {
    frames: Frames,
    scan: Scan,
    count: Count,
    input_estimate: u64,
    /// What earlier messages of a WebSocket reported.
    before: Option<Usage>,
    broken: bool,
}

#[derive(Debug)]
enum Frames {
    EventStream(EventStream),
    Json,
    Messages,
    Opaque,
    Sse(Sse),
}

/// What an answer used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metered {
    /// What the upstream reports, or the estimate where it reports nothing.
    pub usage: Usage,
    /// What was estimated here.
    pub estimate: Usage,
    /// The model that answered, as the answer names it.
    pub model: Option<String>,
    /// The number of the last event, where events are numbered: the responses API does so.
    pub sequence: Option<u64>,
    /// Whether the framing was broken, so that not all was counted.
    pub broken: bool,
}

impl Metered {
    /// How what was reported differs from the estimate.
    #[must_use]
    pub const fn suspicion(&self) -> Option<Suspicion> {
        self.usage.suspicious(&self.estimate)
    }

    /// What to hold against a budget: what was reported, but nothing less than the estimate if it is too low to be
    /// true. So a stream that is broken off before it reports anything is not free.
    #[must_use]
    pub const fn charge(&self) -> Usage {
        let mut usage = self.usage;
        if matches!(self.suspicion(), Some(Suspicion::TooLow)) {
            if usage.input < self.estimate.input {
                usage.input = self.estimate.input;
            }
            if usage.output < self.estimate.output {
                usage.output = self.estimate.output;
            }
        }
        usage
    }
}

impl Meter {
    /// Begins to count the answer to a call.
    #[must_use]
    pub fn new(request: &Request, framing: Framing) -> Self {
        let framing = if request.shape.is_websocket() { Framing::Messages } else { framing };
        Self {
            frames: match framing {
                Framing::EventStream => Frames::EventStream(EventStream::new(MAX_MESSAGE_BYTES)),
                Framing::Json => Frames::Json,
                Framing::Messages => Frames::Messages,
                Framing::Opaque => Frames::Opaque,
                Framing::Sse => Frames::Sse(Sse::new(MAX_EVENT_BYTES)),
            },
            scan: Scan::default(),
            count: Count::default(),
            input_estimate: request.input_tokens,
            before: None,
            broken: false,
        }
    }

    /// Takes a header of the answer: Bedrock counts there.
    pub fn header(&mut self, name: &str, value: &str) {
        self.count.reported.header(name, value);
    }

    /// Adds tokens that went in after the call began: what the agent said over a WebSocket.
    pub const fn input(&mut self, tokens: u64) {
        self.input_estimate = self.input_estimate.saturating_add(tokens);
    }

    /// Takes a chunk of the answer, or one message of a WebSocket.
    pub fn push(&mut self, chunk: &[u8]) {
        let Self { frames, scan, count, .. } = self;
        let mut rest = chunk;
        match frames {
            Frames::Opaque => {}
            Frames::Json => scan.push(chunk, count),
            Frames::Messages => {
                scan.reset();
                scan.push(chunk, count);
                scan.finish(count);
                if let Some(usage) = std::mem::take(&mut count.reported).usage() {
                    self.before = Some(self.before.map_or(usage, |before| before.plus(&usage)));
                }
            }
            Frames::Sse(sse) => {
                while let Some(piece) = sse.next(&mut rest) {
                    match (piece.event, piece.oversized) {
                        (Some(event), _) => {
                            scan.reset();
                            scan.push(&event.data, count);
                        }
                        // A part of what is too large. Field names and line ends are no tokens of JSON that matter.
                        (None, true) => scan.push(piece.raw, count),
                        (None, false) => {}
                    }
                    if piece.raw.ends_with(b"\n\n") || piece.raw.ends_with(b"\r\n\r\n") {
                        scan.reset();
                    }
                }
            }
            Frames::EventStream(stream) => loop {
                match stream.next(&mut rest) {
                    Ok(Some(message)) => {
                        scan.reset();
                        match chunk_of(message.payload) {
                            Some(bytes) => scan.push(&bytes, count),
                            None => scan.push(message.payload, count),
                        }
                    }
                    Ok(None) => break,
                    Err(_) => {
                        self.broken = true;
                        break;
                    }
                }
            },
        }
    }

    /// How many bytes are held because what they are of is not whole.
    #[must_use]
    pub const fn held(&self) -> usize {
        match &self.frames {
            Frames::EventStream(stream) => stream.held(),
            Frames::Json | Frames::Messages | Frames::Opaque => 0,
            Frames::Sse(sse) => sse.held(),
        }
    }

    /// What has been counted so far; all of it once the answer has ended.
    #[must_use]
    pub fn metered(&self) -> Metered {
        let mut count = self.count.clone();
        self.scan.clone().finish(&mut count);
        let estimate = Usage::estimated(self.input_estimate, count.said.total());
        let reported = match (self.before, count.reported.usage()) {
            (Some(before), Some(last)) => Some(before.plus(&last)),
            (before, last) => before.or(last),
        };
        let model = String::from_utf8_lossy(&count.model).into_owned();
        Metered {
            usage: reported.unwrap_or(estimate),
            estimate,
            model: Some(model).filter(|model| !model.is_empty()),
            sequence: count.sequence,
            broken: self.broken,
        }
    }
}

/// The answer of a model that a message of Bedrock's holds in base64.
fn chunk_of(payload: &[u8]) -> Option<Vec<u8>> {
    let payload = json::parse(payload, &Limits { bytes: MAX_MESSAGE_BYTES, depth: 4, values: 16 }).ok()?;
    base64::decode(payload.get("bytes").and_then(Value::as_str)?)
}

/// What the scan of an answer finds.
#[derive(Clone, Debug, Default)]
struct Count {
    reported: Reported,
    said: Tally,
    model: Vec<u8>,
    sequence: Option<u64>,
}

impl Sink for Count {
    fn number(&mut self, path: Path<'_>, number: u64) {
        if path.is(&["sequence_number"]) {
            self.sequence = self.sequence.max(Some(number));
        }
        self.reported.number(path, number);
    }

    fn word(&mut self, _: Path<'_>, _: &[u8]) {}

    fn text_begins(&mut self, path: Path<'_>) {
        self.said.begin();
        if is_model(path) {
            self.model.clear();
        }
    }

    fn text(&mut self, path: Path<'_>, part: &[u8]) {
        if is_model(path) {
            let room = MAX_MODEL_BYTES.saturating_sub(self.model.len()).min(part.len());
            self.model.extend_from_slice(part.get(..room).unwrap_or_default());
        } else if is_said(path) {
            self.said.bytes(part);
        }
    }
}

fn is_model(path: Path<'_>) -> bool {
    const PLACES: [&[&str]; 4] = [&["model"], &["modelVersion"], &["message", "model"], &["response", "model"]];
    PLACES.iter().any(|place| path.is(place))
}

/// Whether a text is something that a model said, in the answer or stream of any of the APIs.
///
/// Streams of the responses API say everything again in their last events; there it is below other keys.
fn is_said(path: Path<'_>) -> bool {
    let (Some(first), Some(last)) = (path.key(0), path.last()) else { return false };
    let of_answer = match first {
        "choices" | "delta" | "output" | "content" | "content_block" | "completion" | "candidates" | "generation"
        | "results" | "outputs" | "steps" | "text" | "transcript" | "serverContent" | "toolCall" => true,
        "message" => {
            path.begins(&["message", "content"])
                || path.begins(&["message", "thinking"])
                || path.begins(&["message", "tool_calls"])
        }
        "response" => path.len() == 1,
        _ => false,
    };
    let about = matches!(
        last,
        "id" | "type"
            | "role"
            | "finish_reason"
            | "finishReason"
            | "stop_reason"
            | "stopReason"
            | "status"
            | "object"
            | "signature"
            | "thoughtSignature"
            | "encrypted_content"
            | "b64_json"
            | "partial_image_b64"
            | "data"
            | "result"
            | "call_id"
            | "item_id"
            | "toolUseId"
            | "event_type"
            | "mimeType"
            | "token"
    );
    of_answer && !about
}

#[cfg(test)]
mod tests;
