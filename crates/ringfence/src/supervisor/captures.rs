//! Captured bodies: found by their call, held against the log, and removed.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ringfence_audit::capture::{self, Way};
use ringfence_audit::{CallOutcome, CapturedBody, Event, Outcome};
use ringfence_fleet::Sink;
use ringfence_fleet::api::{BodyEvent, BodyRequest};
use ringfence_model::{AgentName, CallId, Digest, Fault, Report};

use super::read::portion;
use crate::paths::CAPTURES;

/// How many entries are read in one go.
const PORTION: u64 = 1024;

/// How much is sent at once.
const PART_BYTES: usize = 48 << 10;

/// The largest file: 16 MiB of a body, and what encrypting adds.
const MAX_BYTES: u64 = 17 << 20;

/// The body that was captured of a call, as the age file that the log tells of.
///
/// # Errors
/// A report that says why there is none.
pub(super) fn body(
    folder: &Path,
    size: u64,
    request: &BodyRequest,
    home_of: &dyn Fn(&AgentName) -> PathBuf,
) -> Result<(CapturedBody, Vec<u8>), Report> {
    let (agent, outcome) = find(folder, size, &request.call)?;
    let told = told(&outcome, request.way)?;
    let what = format!("the {} of call `{}`", request.way.word(), request.call);
    let gone = || {
        let report = Report::new("capture.gone", Fault::Caller, format!("{what} is not kept any more"));
        report
            .hint(format!("it was captured for agent `{agent}`; captures go with `ringfence down` and `audit forget`"))
    };
    if told.bytes > MAX_BYTES {
        return Err(changed(&what));
    }
    let file = File::open(home_of(&agent).join(CAPTURES)).map_err(|_| gone())?;
    let bytes = capture::read(&file, &request.call, request.way, told.bytes).map_err(|_| changed(&what))?;
    if bytes.is_empty() {
        return Err(gone());
    }
    if bytes.len() as u64 != told.bytes || Digest::of(&bytes) != told.digest {
        return Err(changed(&what));
    }
    Ok((told, bytes))
}

fn changed(what: &str) -> Report {
    Report::new("capture.changed", Fault::Host, format!("what is kept as {what} is not what the log says"))
        .cause("parts of it were changed or removed after it was captured")
        .hint("run `ringfence audit verify`: if the log is whole, the file of captures was touched")
}

/// What the log says was captured.
fn told(outcome: &CallOutcome, way: Way) -> Result<CapturedBody, Report> {
    let none = |code: &str, why: &str, hint: &str| {
        let what = format!("the {} of call `{}` was not captured", way.word(), outcome.call);
        Err(Report::new(code, Fault::Caller, what).cause(why).hint(hint))
    };
    let captured = outcome.captured.as_deref();
    let went = match way {
        Way::Request => outcome.bytes_up,
        Way::Response => outcome.bytes_down,
    };
    match (captured.and_then(|captured| captured.of(way)), captured.and_then(|captured| captured.missed.as_deref())) {
        (Some(told), _) => Ok(*told),
        (None, Some("capture_full")) => none(
            "capture.full",
            "there was no room left for it",
            "raise `captures` in `[limits]`, or make room with `ringfence audit forget AGENT`",
        ),
        (None, Some(_)) => {
            none("capture.failed", "it could not be written", "look at `gate.log` of the sandbox, and at the disk")
        }
        (None, None) if captured.is_some() || went == 0 => none(
            "capture.none",
            "no body went that way, or the grant does not ask for it",
            "see `capture` in the manifest",
        ),
        (None, None) => {
            none("capture.none", "no grant asked for it", "write `capture = { to = [\"age1…\"] }` in the grant")
        }
    }
}

/// How a call ended, and whose it was.
fn find(folder: &Path, size: u64, call: &CallId) -> Result<(AgentName, CallOutcome), Report> {
    let mut end = size;
    while end > 0 {
        let from = end.saturating_sub(PORTION);
        for line in portion(folder, size, from, end)?.into_iter().rev() {
            match (line.entry.event, line.entry.agent) {
                (Event::CallOutcome(outcome), Some(agent)) if outcome.call == *call => return Ok((agent, outcome)),
                (Event::CallIntent(intent), _) if intent.call == *call => {
                    let (why, hint) = match intent.decision {
                        Outcome::Allow => ("it has not ended", "wait until it has; a call whose gate died never ends"),
                        Outcome::Deny => ("it was denied, and no body of it went anywhere", "see `ringfence explain`"),
                    };
                    let what = format!("there is no capture of call `{call}`");
                    return Err(Report::new("capture.none", Fault::Caller, what).cause(why).hint(hint));
                }
                _ => {}
            }
        }
        end = from;
    }
    let report = Report::new("audit.no_call", Fault::Caller, format!("the audit log has no call `{call}`"));
    Err(report.hint("`ringfence audit --json` shows the ids of calls"))
}

/// Sends a file in parts.
pub(super) async fn send(told: CapturedBody, file: &[u8], sink: &Sink<BodyEvent>) {
    if !sink.send(&BodyEvent::Found(told)).await {
        return;
    }
    for part in file.chunks(PART_BYTES) {
        if !sink.send(&BodyEvent::Part(STANDARD.encode(part))).await {
            return;
        }
    }
}

/// Empties the file of an agent, into which its gate may be writing; says how much there was.
pub(super) fn forget(home: &Path) -> Result<u64, Report> {
    let failed =
        |e: std::io::Error| Report::new("capture.forget", Fault::Host, "cannot remove what was captured").because(&e);
    let file = match File::options().write(true).open(home.join(CAPTURES)) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(0),
        Err(e) => return Err(failed(e)),
    };
    let bytes = file.metadata().map_err(failed)?.len();
    file.set_len(0).map_err(failed)?;
    Ok(bytes)
}

/// Removes the file of an agent that is no more.
pub(super) fn remove(home: &Path) -> Result<(), Report> {
    match fs::remove_file(home.join(CAPTURES)) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(Report::new("capture.forget", Fault::Host, "cannot remove what was captured").because(&e))
        }
        _ => Ok(()),
    }
}
