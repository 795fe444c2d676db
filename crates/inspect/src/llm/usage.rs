//! What a call used, as the upstream says and as it was counted here.

use super::scan::Path;

/// Numbers beyond this are no counts of tokens.
const MOST: u64 = 1_000_000_000_000;

/// What a call used, in tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// All that went in, [`Usage::cached`] and [`Usage::cache_written`] included.
    pub input: u64,
    /// Of these, what the provider had kept ready.
    pub cached: u64,
    /// Of these, what the provider now keeps ready, where that costs more.
    pub cache_written: u64,
    /// Of these, what it keeps for an hour, which costs more again.
    pub cache_written_long: u64,
    /// All that came out, [`Usage::reasoning`] included.
    pub output: u64,
    /// Of these, what the model thought without saying it.
    pub reasoning: u64,
    /// Who says so.
    pub source: Source,
}

/// Who counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    /// Estimated here from what went through.
    Estimated,
    /// Reported by the upstream.
    Reported,
}

/// How what an upstream reports differs from what went through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Suspicion {
    /// It reports far more. Tools that run at the provider may be why, and thought that is not counted apart.
    TooHigh,
    /// It reports far less than went through.
    TooLow,
}

impl Usage {
    /// An estimate.
    #[must_use]
    pub const fn estimated(input: u64, output: u64) -> Self {
        Self {
            input,
            cached: 0,
            cache_written: 0,
            cache_written_long: 0,
            output,
            reasoning: 0,
            source: Source::Estimated,
        }
    }

    /// All tokens, in and out.
    #[must_use]
    pub const fn total(&self) -> u64 {
        self.input.saturating_add(self.output)
    }

    /// Whether what is reported cannot well be what went through.
    ///
    /// The estimate is rough, so only much counts: less than a quarter of what came out by estimate (and 32 tokens), less
    /// than an eighth of what went in (and 256), or more than sixteen times either (and 16,384).
    #[must_use]
    pub const fn suspicious(&self, estimate: &Self) -> Option<Suspicion> {
        if self.output.saturating_mul(4).saturating_add(32) < estimate.output
            || self.input.saturating_mul(8).saturating_add(256) < estimate.input
        {
            return Some(Suspicion::TooLow);
        }
        let said = self.output.saturating_sub(self.reasoning);
        if said > estimate.output.saturating_mul(16).saturating_add(16_384)
            || self.input > estimate.input.saturating_mul(16).saturating_add(16_384)
        {
            return Some(Suspicion::TooHigh);
        }
        None
    }

    /// The sum of two.
    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        Self {
            input: self.input.saturating_add(other.input),
            cached: self.cached.saturating_add(other.cached),
            cache_written: self.cache_written.saturating_add(other.cache_written),
            cache_written_long: self.cache_written_long.saturating_add(other.cache_written_long),
            output: self.output.saturating_add(other.output),
            reasoning: self.reasoning.saturating_add(other.reasoning),
            source: self.source.min(other.source),
        }
    }
}

/// What an upstream reports, field by field. Streams report more than once, each time all so far, so the largest counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Reported {
    input: Option<u64>,
    /// Whether `input` leaves out what is cached, as Anthropic and Bedrock count.
    beside_cache: bool,
    input_of_tools: u64,
    output: Option<u64>,
    total: u64,
    cached_within: u64,
    cached_beside: u64,
    written_within: u64,
    written_beside: u64,
    written_long: u64,
    reasoning_within: u64,
    reasoning_beside: u64,
}

impl Reported {
    /// Takes a number, if its path is that of a count.
    pub(super) fn number(&mut self, path: Path<'_>, number: u64) {
        if number > MOST {
            return;
        }
        let Some((field, detail)) = field(path) else { return };
        let largest = |place: &mut u64| *place = number.max(*place);
        let largest_of = |place: &mut Option<u64>| *place = (*place).max(Some(number));
        match (field, detail.unwrap_or_default()) {
            (
                "prompt_tokens"
                | "promptTokenCount"
                | "prompt_eval_count"
                | "tokens_evaluated"
                | "inputTextTokenCount"
                | "prompt_token_count"
                | "total_input_tokens",
                "",
            ) => largest_of(&mut self.input),
            ("input_tokens" | "inputTokens" | "inputTokenCount", "") => {
                self.beside_cache = true;
                largest_of(&mut self.input);
            }
            ("tokens" | "billed_units", "input_tokens") => largest_of(&mut self.input),
            (
                "completion_tokens"
                | "output_tokens"
                | "outputTokens"
                | "candidatesTokenCount"
                | "responseTokenCount"
                | "outputTokenCount"
                | "eval_count"
                | "tokens_predicted"
                | "tokenCount"
                | "generation_token_count"
                | "total_output_tokens",
                "",
            )
            | ("tokens" | "billed_units", "output_tokens") => largest_of(&mut self.output),
            ("total_tokens" | "totalTokens" | "totalTokenCount", "") => largest(&mut self.total),
            ("cachedContentTokenCount" | "prompt_cache_hit_tokens" | "cached_tokens" | "total_cached_tokens", "")
            | ("prompt_tokens_details" | "input_tokens_details" | "input_token_details", "cached_tokens") => {
                largest(&mut self.cached_within);
            }
            ("cache_read_input_tokens" | "cacheReadInputTokens" | "cacheReadInputTokenCount", "") => {
                largest(&mut self.cached_beside);
            }
            ("prompt_tokens_details" | "input_tokens_details", "cache_write_tokens") => {
                largest(&mut self.written_within);
            }
            ("cache_creation_input_tokens" | "cacheWriteInputTokens" | "cacheWriteInputTokenCount", "") => {
                largest(&mut self.written_beside);
            }
            ("cache_creation", "ephemeral_1h_input_tokens") => largest(&mut self.written_long),
            (
                "completion_tokens_details" | "output_tokens_details" | "output_token_details",
                "reasoning_tokens" | "thinking_tokens",
            )
            | ("reasoning_tokens" | "total_thought_tokens", "") => largest(&mut self.reasoning_within),
            ("thoughtsTokenCount", "") => largest(&mut self.reasoning_beside),
            ("toolUsePromptTokenCount", "") => largest(&mut self.input_of_tools),
            _ => {}
        }
    }

    /// Takes what response headers of Bedrock say.
    pub(super) fn header(&mut self, name: &str, value: &str) {
        let Some(number) = value.trim().parse().ok().filter(|number| *number <= MOST) else { return };
        match name.to_ascii_lowercase().as_str() {
            "x-amzn-bedrock-input-token-count" => self.input = self.input.max(Some(number)),
            "x-amzn-bedrock-output-token-count" => self.output = self.output.max(Some(number)),
            "x-amzn-bedrock-cache-read-input-token-count" => {
                self.beside_cache = true;
                self.cached_beside = self.cached_beside.max(number);
            }
            "x-amzn-bedrock-cache-write-input-token-count" => {
                self.beside_cache = true;
                self.written_beside = self.written_beside.max(number);
            }
            _ => {}
        }
    }

    /// What was used; `None` if nothing was reported.
    pub(super) fn usage(&self) -> Option<Usage> {
        if self.input.is_none() && self.output.is_none() && self.total == 0 {
            return None;
        }
        let (beside, written) = if self.beside_cache { (self.cached_beside, self.written_beside) } else { (0, 0) };
        let input = self.input.unwrap_or(0).saturating_add(self.input_of_tools);
        let input = input.saturating_add(beside).saturating_add(written);
        let output = self.output.unwrap_or(0).saturating_add(self.reasoning_beside);
        // Where more was used in all than is said apart, it came out: some leave thought out of what came out. Where
        // nothing is said apart, it went in: embeddings.
        let rest = self.total.saturating_sub(input.saturating_add(output));
        let (input, output) = match self.input {
            Some(_) => (input, output.saturating_add(rest)),
            None => (input.saturating_add(rest), output),
        };
        let cached = self.cached_within.max(self.cached_beside).min(input);
        let cache_written = self.written_within.max(self.written_beside).min(input - cached);
        Some(Usage {
            input,
            cached,
            cache_written,
            cache_written_long: self.written_long.min(cache_written),
            output,
            reasoning: self.reasoning_within.max(self.reasoning_beside).min(output),
            source: Source::Reported,
        })
    }
}

/// The field of a usage that a path leads to, and the detail within it.
///
/// Only places where an API puts its usage count. What a model says may hold such keys too, in a tool's input.
fn field<'a>(path: Path<'a>) -> Option<(&'a str, Option<&'a str>)> {
    const WITHIN: [&str; 6] = ["choices", "interaction", "message", "response", "x_groq", "meta"];
    let skip = usize::from(path.len() > 2 && WITHIN.iter().any(|within| path.begins(&[within])));
    let behind = path.len() - skip;
    let key = move |place: usize| path.key(skip + place);
    match (key(0)?, behind) {
        ("usage" | "usageMetadata" | "usage_metadata" | "amazon-bedrock-invocationMetrics" | "tokens", 2 | 3) => {
            Some((key(1)?, if behind == 3 { Some(key(2)?) } else { None }))
        }
        (
            field @ ("prompt_eval_count"
            | "eval_count"
            | "tokens_evaluated"
            | "tokens_predicted"
            | "inputTextTokenCount"
            | "prompt_token_count"
            | "generation_token_count"),
            1,
        ) => Some((field, None)),
        ("results", 2) if path.is(&["results", "tokenCount"]) => Some(("tokenCount", None)),
        _ => None,
    }
}
