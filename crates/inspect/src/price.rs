//! What calls cost: a table of prices as data, and exact arithmetic over it.
//!
//! The table that ships is in `policies/prices.toml`; an operator's own goes over it with [`Prices::overlaid`]. A model
//! that no table knows has an unknown price, never one of zero.

use std::collections::BTreeSet;
use std::fmt;

use ringfence_model::{Explain, Fault};
use serde::Deserialize;

use crate::llm::Usage;

/// The table that ships, as text.
pub const SHIPPED: &str = include_str!("../../../policies/prices.toml");

/// The highest price that is believed, in dollars per million tokens.
const MOST_DOLLARS: f64 = 1_000_000.0;

/// Prices of models, in layers: what is in an upper one counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prices {
    /// The uppermost last.
    layers: Vec<Layer>,
}

/// One table, understood.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Layer {
    date: String,
    source: String,
    prices: Vec<Price>,
    /// Names in full, sorted, each with the place of its price.
    names: Vec<(String, usize)>,
    /// Beginnings of names, the longest first, each with the place of its price.
    beginnings: Vec<(String, usize)>,
}

/// What a model costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Price {
    rates: Rates,
    /// The rates of calls with more input than so many tokens.
    above: Option<(u64, Rates)>,
}

/// Prices in picodollars per token, which are dollars per million tokens times a million.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rates {
    input: u64,
    cached: u64,
    cache_write: u64,
    cache_write_long: u64,
    output: u64,
}

/// What a call costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cost {
    /// So much.
    Known(NanoDollars),
    /// No table knows the model. What is spent is not known, so a budget in money cannot be held.
    Unknown,
}

/// A sum of money in billionths of a US dollar.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NanoDollars(pub u64);

impl NanoDollars {
    /// The sum in millionths of a dollar, rounded up.
    #[must_use]
    pub const fn micro_dollars(self) -> u64 {
        self.0.div_ceil(1_000)
    }

    /// The sum of two; as much as can be said, if it is more.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl fmt::Display for NanoDollars {
    /// Millionths of a dollar at most, rounded up: `$0.001235`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let micro = self.micro_dollars();
        write!(f, "${}.{:06}", micro / 1_000_000, micro % 1_000_000)
    }
}

/// Why a table of prices is refused.
#[derive(Debug, thiserror::Error)]
pub enum PriceError {
    /// Another currency.
    #[error("prices in `{0}` cannot be counted, only in `USD`")]
    Currency(String),
    /// Something that is no day.
    #[error("`{0}` is not a date of the form `2026-01-31`")]
    Date(String),
    /// Something that is no name of a model.
    #[error("`{0}` is not a model's name, with at most one `*`, at its end")]
    Name(String),
    /// A price that is none.
    #[error("the price `{price}` of `{name}` is not one of 0 to 1000000 dollars with at most 6 decimals")]
    Rate {
        /// The first name of the model.
        name: String,
        /// What is written.
        price: f64,
    },
    /// No TOML of the form that is asked for.
    #[error("cannot read the table of prices: {0}")]
    Syntax(String),
    /// A name that has two prices.
    #[error("`{0}` has two prices")]
    Twice(String),
}

impl Explain for PriceError {
    fn code(&self) -> &'static str {
        match self {
            Self::Currency(_) => "prices.currency",
            Self::Date(_) => "prices.date",
            Self::Name(_) => "prices.name",
            Self::Rate { .. } => "prices.rate",
            Self::Syntax(_) => "prices.syntax",
            Self::Twice(_) => "prices.twice",
        }
    }

    fn fault(&self) -> Fault {
        Fault::Caller
    }
}

/// A table as it was written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    date: String,
    currency: String,
    #[serde(default)]
    source: String,
    #[serde(default, rename = "model")]
    models: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    names: Vec<String>,
    input: f64,
    cached: Option<f64>,
    cache_write: Option<f64>,
    cache_write_long: Option<f64>,
    output: f64,
    above: Option<Above>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Above {
    tokens: u64,
    input: f64,
    cached: Option<f64>,
    cache_write: Option<f64>,
    cache_write_long: Option<f64>,
    output: f64,
}

impl Prices {
    /// Understands a table.
    ///
    /// # Errors
    /// [`PriceError`] for anything that is not understood in full.
    pub fn parse(text: &str) -> Result<Self, PriceError> {
        let file: File = toml::from_str(text).map_err(|error| PriceError::Syntax(error.message().to_owned()))?;
        if file.currency != "USD" {
            return Err(PriceError::Currency(file.currency));
        }
        if !is_date(&file.date) {
            return Err(PriceError::Date(file.date));
        }
        let mut layer = Layer {
            date: file.date,
            source: file.source.trim().to_owned(),
            prices: Vec::new(),
            names: Vec::new(),
            beginnings: Vec::new(),
        };
        let mut seen = BTreeSet::new();
        for entry in &file.models {
            for name in &entry.names {
                let plain = plain(name);
                let bare = plain.strip_suffix('*');
                if plain.is_empty() || bare.unwrap_or(&plain).contains('*') || plain.contains(char::is_whitespace) {
                    return Err(PriceError::Name(name.clone()));
                }
                let place = layer.prices.len();
                match bare {
                    Some(beginning) => layer.beginnings.push((beginning.to_owned(), place)),
                    None => layer.names.push((plain.clone(), place)),
                }
                if !seen.insert(plain) {
                    return Err(PriceError::Twice(name.clone()));
                }
            }
            layer.prices.push(entry.price()?);
        }
        layer.names.sort();
        layer.beginnings.sort_by(|(a, _), (b, _)| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
        Ok(Self { layers: vec![layer] })
    }

    /// The table that ships.
    ///
    /// # Errors
    /// None, unless the program was built wrongly.
    pub fn shipped() -> Result<Self, PriceError> {
        Self::parse(SHIPPED)
    }

    /// These prices, with `upper` over them: whatever `upper` has a name for costs what it says.
    #[must_use]
    pub fn overlaid(mut self, upper: Self) -> Self {
        self.layers.extend(upper.layers);
        self
    }

    /// Where the prices are from and of which day, the uppermost table first.
    pub fn sources(&self) -> impl Iterator<Item = (&str, &str)> {
        self.layers.iter().rev().map(|layer| (layer.date.as_str(), layer.source.as_str()))
    }

    /// What a model costs, if a table knows it.
    #[must_use]
    pub fn price(&self, model: &str) -> Option<&Price> {
        let plain = plain(model);
        let forms = forms(&plain);
        self.layers.iter().rev().find_map(|layer| forms.iter().find_map(|form| layer.price(form)))
    }

    /// What a call of `model` costs that used this much, rounded up.
    #[must_use]
    pub fn cost(&self, model: &str, usage: &Usage) -> Cost {
        self.price(model).map_or(Cost::Unknown, |price| Cost::Known(price.cost(usage)))
    }
}

impl Layer {
    fn price(&self, name: &str) -> Option<&Price> {
        let whole = self.names.binary_search_by(|(known, _)| known.as_str().cmp(name)).ok();
        let place = match whole.and_then(|at| self.names.get(at)) {
            Some((_, place)) => *place,
            None => self.beginnings.iter().find(|(beginning, _)| name.starts_with(beginning.as_str()))?.1,
        };
        self.prices.get(place)
    }
}

impl Price {
    /// What a call costs that used this much, rounded up.
    #[must_use]
    pub fn cost(&self, usage: &Usage) -> NanoDollars {
        let rates = match &self.above {
            Some((tokens, rates)) if usage.input > *tokens => rates,
            _ => &self.rates,
        };
        let long = usage.cache_written_long.min(usage.cache_written);
        let written = usage.cache_written - long;
        let plain = usage.input.saturating_sub(usage.cached).saturating_sub(usage.cache_written);
        let pico: u128 = [
            (plain, rates.input),
            (usage.cached, rates.cached),
            (written, rates.cache_write),
            (long, rates.cache_write_long),
            (usage.output, rates.output),
        ]
        .iter()
        .map(|(tokens, rate)| u128::from(*tokens) * u128::from(*rate))
        .fold(0, u128::saturating_add);
        NanoDollars(u64::try_from(pico.div_ceil(1_000)).unwrap_or(u64::MAX))
    }
}

impl Entry {
    fn price(&self) -> Result<Price, PriceError> {
        let name = self.names.first().ok_or_else(|| PriceError::Name(String::new()))?;
        let own = [Some(self.input), self.cached, self.cache_write, self.cache_write_long, Some(self.output)];
        let above = self.above.as_ref().map(|above| {
            let all = [Some(above.input), above.cached, above.cache_write, above.cache_write_long, Some(above.output)];
            rates(name, all).map(|rates| (above.tokens, rates))
        });
        Ok(Price { rates: rates(name, own)?, above: above.transpose()? })
    }
}

/// The rates of a model; each of the cache is the one before it where it is not given.
fn rates(name: &str, dollars: [Option<f64>; 5]) -> Result<Rates, PriceError> {
    let rate = |dollars: Option<f64>, otherwise: u64| match dollars {
        None => Ok(otherwise),
        Some(price) => pico(price).ok_or_else(|| PriceError::Rate { name: name.to_owned(), price }),
    };
    let [input, cached, cache_write, cache_write_long, output] = dollars;
    let input = rate(input, 0)?;
    let cache_write = rate(cache_write, input)?;
    Ok(Rates {
        input,
        cached: rate(cached, input)?,
        cache_write,
        cache_write_long: rate(cache_write_long, cache_write)?,
        output: rate(output, 0)?,
    })
}

/// Dollars per million tokens in picodollars per token.
fn pico(dollars: f64) -> Option<u64> {
    let exact = dollars * 1_000_000.0;
    let whole = exact.round();
    // What cannot be said in picodollars was not meant.
    let meant = (exact - whole).abs() < 1e-3;
    if !(0.0..=MOST_DOLLARS).contains(&dollars) || !meant {
        return None;
    }
    // WHY not `as`: the text of a whole float is the integer's.
    format!("{whole:.0}").parse().ok()
}

/// The names under which a model is looked up, the most exact first; some may be there more than once.
fn forms(whole: &str) -> [&str; 5] {
    let last = whole.rsplit('/').next().unwrap_or_default();
    // What goes to any region has a price of its own, which no name of the maker's with a region's surcharge may hide.
    if let Some(anywhere) = last.strip_prefix("global.") {
        return [whole, last, last, bare(anywhere), anywhere];
    }
    let regional =
        ["us.", "eu.", "apac.", "ap.", "au.", "jp.", "ca.", "us-gov."].iter().find_map(|r| last.strip_prefix(r));
    let of_maker = regional.unwrap_or(last);
    [whole, last, of_maker, bare(of_maker), bare(of_maker)]
}

/// A name without the maker that Bedrock puts before it.
fn bare(name: &str) -> &str {
    const MAKERS: [&str; 8] =
        ["amazon.", "anthropic.", "cohere.", "deepseek.", "google.", "meta.", "mistral.", "openai."];
    MAKERS.iter().find_map(|maker| name.strip_prefix(maker)).unwrap_or(name)
}

fn plain(name: &str) -> String {
    name.trim().to_ascii_lowercase().replace('@', "-")
}

fn is_date(text: &str) -> bool {
    let mut parts = text.split('-');
    let mut number = |digits: usize| {
        let part = parts.next().filter(|part| part.len() == digits && part.bytes().all(|b| b.is_ascii_digit()))?;
        part.parse::<u32>().ok()
    };
    let (year, month, day) = (number(4), number(2), number(2));
    year.is_some()
        && month.is_some_and(|m| (1..=12).contains(&m))
        && day.is_some_and(|d| (1..=31).contains(&d))
        && parts.next().is_none()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::llm::Source;

    fn table(models: &str) -> Result<Prices, &'static str> {
        Prices::parse(&format!("date = \"2026-01-31\"\ncurrency = \"USD\"\n{models}")).map_err(|error| error.code())
    }

    fn usage(input: u64, cached: u64, output: u64) -> Usage {
        Usage { cached, ..Usage::estimated(input, output) }
    }

    fn nano(prices: &Prices, model: &str, usage: &Usage) -> u64 {
        match prices.cost(model, usage) {
            Cost::Known(sum) => sum.0,
            Cost::Unknown => panic!("{model} has no price"),
        }
    }

    #[test]
    fn the_shipped_table_is_understood() {
        let prices = Prices::shipped().unwrap();
        let (date, source) = prices.sources().next().unwrap();
        assert!(is_date(date) && !source.is_empty());
        let million = usage(1_000_000, 0, 1_000_000);
        for (model, dollars) in [
            ("gpt-4o-mini", 0.75),
            ("gpt-4o-mini-2024-07-18", 0.75),
            ("gpt-4o", 12.5),
            ("gpt-4o-2024-05-13", 20.0),
            ("openai/gpt-4o", 12.5),
            ("claude-sonnet-4-20250514", 18.0),
            ("claude-sonnet-4@20250514", 18.0),
            ("anthropic.claude-3-haiku-20240307-v1:0", 1.5),
            ("us.anthropic.claude-haiku-4-5-20251001-v1:0", 6.6),
            ("global.anthropic.claude-haiku-4-5-20251001-v1:0", 6.0),
            ("arn:aws:bedrock:us-east-1:1:inference-profile/us.anthropic.claude-opus-4-5-20251101-v1:0", 33.0),
            ("models/gemini-2.5-flash", 2.8),
            ("projects/p/locations/l/publishers/google/models/gemini-2.5-flash", 2.8),
            ("us.amazon.nova-pro-v1:0", 4.0),
            ("text-embedding-3-small", 0.02),
        ] {
            let nano = nano(&prices, model, &million);
            assert_eq!(NanoDollars(nano).to_string(), format!("${dollars:.6}"), "{model}");
        }
        for unknown in
            ["", "gpt-4o-audio-preview", "gpt-4o-mini-tts", "gpt-4.5-preview", "my-deployment", "gpt-4o:free", "o3-x"]
        {
            assert_eq!(prices.cost(unknown, &million), Cost::Unknown, "{unknown}");
        }
    }

    #[test]
    fn every_kind_of_token_has_its_price() {
        let prices = table(
            "[[model]]\nnames=['m']\ninput=10\ncached=1\ncache_write=12.5\ncache_write_long=20\noutput=50\n\
            above={tokens=1000,input=20,output=100}\n[[model]]\nnames=['plain']\ninput=0.000001\noutput=0",
        )
        .unwrap();
        let all = Usage {
            input: 100,
            cached: 40,
            cache_written: 30,
            cache_written_long: 10,
            output: 7,
            reasoning: 5,
            source: Source::Reported,
        };
        // 30 × 10 + 40 × 1 + 20 × 12.5 + 10 × 20 + 7 × 50 micro-dollars.
        assert_eq!(nano(&prices, "m", &all), 1_140_000);
        assert_eq!(nano(&prices, "m", &usage(1000, 0, 0)), 10_000_000);
        // Above, what is not given for the cache is the price of input.
        assert_eq!(nano(&prices, "m", &usage(1001, 500, 0)), 20_020_000);
        // A picodollar is rounded up to a nanodollar.
        assert_eq!(nano(&prices, "plain", &usage(1, 0, 0)), 1);
        assert_eq!(nano(&prices, "plain", &usage(0, 0, 9)), 0);
        assert_eq!(NanoDollars(1).micro_dollars(), 1);
        assert_eq!(NanoDollars(1_234_000_001).to_string(), "$1.234001");
    }

    #[test]
    fn the_longest_name_counts_and_an_upper_table_before_all() {
        let prices = table(
            "[[model]]\nnames=['a*']\ninput=1\noutput=0\n[[model]]\nnames=['ab*']\ninput=2\noutput=0\n\
            [[model]]\nnames=['abc']\ninput=3\noutput=0\n",
        )
        .unwrap();
        let one = usage(1, 0, 0);
        for (model, micro) in [("a", 1), ("ax", 1), ("ab", 2), ("abx", 2), ("abc", 3), ("ABC", 3), ("abcd", 2)] {
            assert_eq!(nano(&prices, model, &one), micro * 1_000, "{model}");
        }
        let upper = table("[[model]]\nnames=['a*', 'x/abc']\ninput=9\noutput=0").unwrap();
        let both = prices.clone().overlaid(upper);
        assert_eq!(nano(&both, "abc", &one), 9_000);
        assert_eq!(both.sources().count(), 2);
        assert_eq!(prices.cost("zzz", &one), Cost::Unknown);
        let all = table("[[model]]\nnames=['*']\ninput=9\noutput=0").unwrap();
        assert_eq!(nano(&prices.overlaid(all), "zzz", &one), 9_000);
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for (text, code) in [
            ("[[model]]\nnames=['m']\ninput=1", "prices.syntax"),
            ("[[model]]\nnames=['m']\ninput=1\noutput=1\nprice=2", "prices.syntax"),
            ("[[model]]\nnames=['m']\ninput='1'\noutput=1", "prices.syntax"),
            ("[[model]]\nnames=['m']\ninput=-1\noutput=1", "prices.rate"),
            ("[[model]]\nnames=['m']\ninput=nan\noutput=1", "prices.rate"),
            ("[[model]]\nnames=['m']\ninput=inf\noutput=1", "prices.rate"),
            ("[[model]]\nnames=['m']\ninput=0.0000001\noutput=1", "prices.rate"),
            ("[[model]]\nnames=['m']\ninput=1\noutput=1000001", "prices.rate"),
            ("[[model]]\nnames=['m','M']\ninput=1\noutput=1", "prices.twice"),
            ("[[model]]\nnames=['']\ninput=1\noutput=1", "prices.name"),
            ("[[model]]\nnames=[]\ninput=1\noutput=1", "prices.name"),
            ("[[model]]\nnames=['a*b']\ninput=1\noutput=1", "prices.name"),
            ("[[model]]\nnames=['a b']\ninput=1\noutput=1", "prices.name"),
        ] {
            assert_eq!(table(text), Err(code), "{text}");
        }
        let of = |text: &str| Prices::parse(text).map_err(|error| error.code());
        assert_eq!(of("date='2026-01-31'\ncurrency='EUR'"), Err("prices.currency"));
        for date in ["", "2026-1-31", "2026-13-01", "2026-01-32", "2026-01-31-1", "+026-01-01"] {
            assert_eq!(of(&format!("date='{date}'\ncurrency='USD'")), Err("prices.date"), "{date}");
        }
        assert!(of("date='2026-01-31'\ncurrency='USD'").is_ok());
    }

    proptest! {
        #[test]
        fn more_use_never_costs_less(a in any::<u64>(), b in any::<u64>(), c in any::<u64>(), d in any::<u64>()) {
            let prices = table("[[model]]\nnames=['m']\ninput=1000000\noutput=0.5\ncached=0.1").unwrap();
            let less = usage(a, 0, c);
            let more = usage(a.saturating_add(b), 0, c.saturating_add(d));
            prop_assert!(nano(&prices, "m", &more) >= nano(&prices, "m", &less));
            // What is cached never costs more, and no split of the input overflows.
            prop_assert!(nano(&prices, "m", &usage(a, b.min(a), c)) <= nano(&prices, "m", &less));
            let odd = Usage { cached: b, cache_written: c, cache_written_long: d, ..usage(a, 0, 0) };
            let _ = nano(&prices, "m", &odd);
        }

        #[test]
        fn no_name_makes_it_panic(model in "\\PC{0,30}") {
            let _ = Prices::shipped().unwrap().cost(&model, &usage(1, 0, 1));
        }

        #[test]
        fn no_table_makes_it_panic(text in "[\\[\\]a-z='0-9\n*.-]{0,80}") {
            let _ = table(&text);
        }
    }
}
