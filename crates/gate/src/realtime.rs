//! Language models that are spoken to over a WebSocket: OpenAI's Realtime API and socket of responses, Google's Live API.
//! Each message of the agent is understood and decided as the body of a call would be; each of the upstream is counted.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use ringfence_audit::LlmUsed;
use ringfence_inspect::json::{self, Limits};
use ringfence_inspect::llm::{Framing, Reason, Refusal, Request, Route};
use ringfence_model::manifest::Scheme;
use ringfence_model::{CallId, HostName};
use ringfence_policy::{Denial, HttpRequest, LlmCall};

use crate::budget::Amounts;
use crate::llm::{self, Asked, Tap};
use crate::record::Subject;
use crate::websocket::{End, MAX_MESSAGE_BYTES};
use crate::{Gate, decide};

/// A session with a language model.
pub struct Realtime {
    /// The API, and what the handshake says of the call.
    pub route: Route,
    /// The handshake, as the policy was asked about it.
    pub subject: Subject,
    /// Where it goes.
    pub host: HostName,
    /// The port.
    pub port: u16,
    /// The scheme.
    pub scheme: Scheme,
    /// The grant that allowed the handshake.
    pub grant: Option<usize>,
    /// The most tokens that may go in and out, where they are counted.
    pub most_tokens: Option<u64>,
    /// What counts the upstream's messages.
    pub tap: Mutex<Tap>,
}

/// What the agent has said so far.
#[derive(Default)]
pub(crate) struct Agent {
    /// The model that it named last.
    model: Option<String>,
    /// What was allowed last, and by which policy; most messages ask for nothing else.
    allowed: Option<(Arc<Gate>, LlmCall)>,
    input_tokens: u64,
}

impl Realtime {
    /// Whether what is not understood must not go on.
    pub(crate) fn is_strict(&self, gate: &Gate) -> bool {
        self.is_counted() || self.is_asked_about(gate)
    }

    /// Whether a grant or a guard-rail asks what messages say.
    fn is_asked_about(&self, gate: &Gate) -> bool {
        gate.policy.needs_content(&self.question(None, None))
    }

    /// Whether somebody counts what it uses.
    pub(crate) const fn is_counted(&self) -> bool {
        self.most_tokens.is_some()
    }

    /// Counts a message of the upstream.
    pub(crate) fn heard(&self, message: &Bytes, call: &str) -> Result<(), End> {
        let (words, cut) = self.tap().push(message.clone(), call);
        if !cut {
            return Ok(());
        }
        let spent = Denial::new("budget_exhausted", "the session used what was set aside for it");
        let end = End { last_words: Some(words.to_vec()), ..End::of_denial(&spent) };
        Err(End { finding: Some("stream_cut_at_budget"), ..end })
    }

    /// What was used.
    pub(crate) fn used(&self) -> (LlmUsed, Amounts) {
        self.tap().used()
    }

    /// What the agent is told of a message that was denied.
    pub(crate) fn refusal(&self, model: Option<&str>, id: &CallId) -> Vec<u8> {
        let reason = model.map_or(Reason::NotGranted, |model| Reason::ModelNotGranted { model });
        Refusal { reason, call: id.as_str() }.ending(self.route.shape, Framing::Messages, None)
    }

    fn tap(&self) -> std::sync::MutexGuard<'_, Tap> {
        self.tap.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn question<'a>(&'a self, model: Option<&'a str>, llm: Option<&'a LlmCall>) -> HttpRequest<'a> {
        HttpRequest {
            host: &self.host,
            port: self.port,
            scheme: self.scheme,
            method: "GET",
            path: self.subject.path.as_deref().unwrap_or_default(),
            websocket: true,
            model,
            llm,
        }
    }

    /// Decides about a message, by the policy of `latest`.
    fn decide(&self, gate: &Arc<Gate>, latest: &Arc<Gate>, facts: &LlmCall) -> Result<(), Denial> {
        let model = facts.models.first().map(String::as_str);
        let permit = decide::http(&latest.policy, self.question(model, Some(facts)))?;
        // Under a newer policy grants have other numbers.
        if Arc::ptr_eq(gate, latest) && permit.grant() != self.grant {
            return Err(Denial::new("no_grant", "another grant than that of the handshake covers the message"));
        }
        Ok(())
    }
}

impl Agent {
    /// Takes a message of the agent, and gives what may go on.
    pub(crate) fn said(&mut self, realtime: &Realtime, gate: &Arc<Gate>, message: Bytes) -> Result<Bytes, End> {
        let latest = gate.latest();
        let by_policy = realtime.is_asked_about(&latest);
        let strict = by_policy || realtime.is_counted();
        let denied = |asked: Option<&Asked>, denial: Denial| {
            let mut subject = realtime.subject.clone();
            if let Some(asked) = asked {
                subject.model = asked.facts.models.first().cloned();
                subject.llm = Some(asked.entry());
            }
            let end = End::of_denial(&denial);
            Err(End { denied: Some(Box::new((subject, denial))), ..end })
        };
        let limits = Limits { bytes: MAX_MESSAGE_BYTES, ..Limits::default() };
        let read = json::parse(&message, &limits).map_err(|error| error.to_string());
        let read = read.and_then(|value| match Request::of(&realtime.route, &value) {
            Ok(request) => Ok((value, request)),
            Err(error) => Err(error.to_string()),
        });
        let (value, request) = match read {
            Ok(read) => read,
            Err(error) if strict => {
                let why = format!("a message to the model cannot be understood: {error}");
                return denied(None, Denial::new("message_unreadable", why));
            }
            Err(_) => return Ok(message),
        };
        let mut asked = Asked { facts: llm::facts(&request), request, anew: false };
        if let Some(model) = asked.request.models().next() {
            self.model = Some(model.to_owned());
        } else if let Some(model) = &self.model {
            // What was said before holds on.
            asked.facts.models.push(model.clone());
        }
        let known = self.allowed.as_ref().is_some_and(|(by, facts)| Arc::ptr_eq(by, &latest) && *facts == asked.facts);
        if by_policy && !known {
            if let Err(denial) = realtime.decide(gate, &latest, &asked.facts) {
                return denied(Some(&asked), denial);
            }
            self.allowed = Some((latest, asked.facts.clone()));
        }
        self.input_tokens = self.input_tokens.saturating_add(asked.request.input_tokens);
        if realtime.most_tokens.is_some_and(|most| self.input_tokens > most) {
            return denied(Some(&asked), Denial::new("budget_exhausted", "no tokens are left for what the agent says"));
        }
        realtime.tap().input(asked.request.input_tokens);
        // What one reader read is what the next one gets.
        Ok(if strict { value.to_bytes().into() } else { message })
    }
}
