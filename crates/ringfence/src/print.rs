//! What a person sees: colours, tables, progress, errors. Silent extras when nobody looks.

use std::collections::HashMap;
use std::io::{IsTerminal, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use ringfence_model::Report;
use ringfence_model::work::Step;

use crate::env;

/// A colour, where colours are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ink {
    /// Bold.
    Bold,
    /// Dim.
    Dim,
    /// Green.
    Good,
    /// Red.
    Bad,
    /// Yellow.
    Warn,
}

/// Whether standard output shows colours.
pub fn colours() -> bool {
    std::io::stdout().is_terminal() && env::read(env::NO_COLOR).is_none()
}

/// Paints a text, where colours are shown.
pub fn paint(ink: Ink, text: &str) -> String {
    paint_if(colours(), ink, text)
}

fn paint_if(yes: bool, ink: Ink, text: &str) -> String {
    if !yes {
        return text.to_owned();
    }
    let code = match ink {
        Ink::Bold => 1,
        Ink::Dim => 2,
        Ink::Good => 32,
        Ink::Bad => 31,
        Ink::Warn => 33,
    };
    format!("\u{1b}[{code}m{text}\u{1b}[0m")
}

/// Prints a line to standard output; a closed pipe ends the program quietly, as `| head` expects.
pub fn line(text: &str) {
    if writeln!(std::io::stdout(), "{text}").is_err() {
        std::process::exit(0);
    }
}

/// Prints a value as JSON, on several lines for a person, on one for a pipe.
pub fn json(value: &impl serde::Serialize) {
    let text = if std::io::stdout().is_terminal() {
        serde_json::to_string_pretty(value)
    } else {
        serde_json::to_string(value)
    };
    line(&text.unwrap_or_default());
}

/// Prints a value as one line of JSON.
pub fn json_line(value: &impl serde::Serialize) {
    line(&serde_json::to_string(value).unwrap_or_default());
}

/// Prints a report to standard error.
pub fn report(report: &Report) {
    let colour = std::io::stderr().is_terminal() && env::read(env::NO_COLOR).is_none();
    let text = report.to_string();
    let (head, rest) = text.split_once('\n').map_or((text.as_str(), None), |(h, r)| (h, Some(r)));
    let (code, message) = head.split_once(": ").unwrap_or((head, ""));
    let mut text = format!("{}: {message}\n", paint_if(colour, Ink::Bad, code));
    for line in rest.into_iter().flat_map(str::lines) {
        let (word, tail) = line.trim_start().split_once(": ").unwrap_or(("", line));
        text.push_str(&format!("  {}: {tail}\n", paint_if(colour, Ink::Dim, word)));
    }
    // WHY: not `eprintln`, which panics where standard error is a file on a full disk.
    let _ = std::io::stderr().write_all(text.as_bytes());
}

/// A text for a terminal: control characters shown, not obeyed, since agents wrote some of it.
pub fn safe(text: &str) -> String {
    text.chars()
        .flat_map(|c| if c.is_control() && c != '\t' { c.escape_default().collect() } else { vec![c] })
        .collect()
}

/// A text without the colours that its writer gave it. Other control sequences stay, for [`safe`] to show.
pub fn uncoloured(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("\u{1b}[") {
        out.push_str(before);
        let tail = after.trim_start_matches(|c: char| c.is_ascii_digit() || c == ';' || c == ':');
        rest = tail.strip_prefix('m').unwrap_or_else(|| {
            out.push_str("\u{1b}[");
            after
        });
    }
    out.push_str(rest);
    out
}

/// A table whose columns are as wide as they must be.
#[derive(Default)]
pub struct Table {
    rows: Vec<Vec<(String, Option<Ink>)>>,
}

impl Table {
    /// A table with a header.
    pub fn new(header: &[&str]) -> Self {
        Self { rows: vec![header.iter().map(|h| ((*h).to_owned(), Some(Ink::Dim))).collect()] }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: Vec<(String, Option<Ink>)>) {
        self.rows.push(cells);
    }

    /// Prints it.
    pub fn print(&self) {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            self.rows.iter().filter_map(|r| r.get(column)).map(|(t, _)| t.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        for row in &self.rows {
            let mut text = String::new();
            for (at, (cell, ink)) in row.iter().enumerate() {
                let pad = widths.get(at).copied().unwrap_or(0).saturating_sub(cell.chars().count());
                text.push_str(&ink.map_or_else(|| cell.clone(), |ink| paint(ink, cell)));
                if at + 1 < row.len() {
                    text.push_str(&" ".repeat(pad + 2));
                }
            }
            line(text.trim_end());
        }
    }
}

/// Shows steps as they go on: a bar with figures in a terminal, nothing elsewhere.
pub struct Steps {
    shown: bool,
    bars: HashMap<String, ProgressBar>,
    last: Option<String>,
}

impl Steps {
    /// Shows steps if standard error is a terminal.
    pub fn new() -> Self {
        Self { shown: std::io::stderr().is_terminal(), bars: HashMap::new(), last: None }
    }

    /// Takes in how far a step is.
    pub fn take(&mut self, step: &Step) {
        if !self.shown {
            return;
        }
        if self.last.as_ref() != Some(&step.name) {
            self.finish_last();
            self.last = Some(step.name.clone());
        }
        let bar = self.bars.entry(step.name.clone()).or_insert_with(|| {
            let bar = ProgressBar::new_spinner();
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        match step.total {
            Some(total) if total > 0 => {
                bar.set_length(total);
                bar.set_position(step.done.min(total));
                bar.set_style(style(if total > 100_000 {
                    "  {spinner} {prefix:<13} {bar:24} {bytes}/{total_bytes}  {wide_msg}"
                } else {
                    "  {spinner} {prefix:<13} {bar:24} {pos}/{len}  {wide_msg}"
                }));
            }
            _ => bar.set_style(style("  {spinner} {prefix:<13} {elapsed:>4}  {wide_msg}")),
        }
        bar.set_prefix(step.name.clone());
        bar.set_message(step.doing.clone());
    }

    fn finish_last(&mut self) {
        if let Some(bar) = self.last.take().and_then(|name| self.bars.remove(&name)) {
            bar.set_style(style("  \u{2713} {prefix:<13} {elapsed}"));
            bar.finish();
        }
    }

    /// Ends the display after success.
    pub fn done(mut self) {
        self.finish_last();
    }

    /// Ends the display after a failure.
    pub fn failed(mut self) {
        for (_, bar) in self.bars.drain() {
            bar.set_style(style("  \u{2717} {prefix:<13} {elapsed}"));
            bar.abandon();
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_spinner())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_cannot_write_to_the_terminal() {
        assert_eq!(safe("a\u{1b}[2Jb\n"), "a\\u{1b}[2Jb\\n");
        assert_eq!(safe("plain\ttext ü"), "plain\ttext ü");
    }

    #[test]
    fn colours_go_and_nothing_else_does() {
        assert_eq!(uncoloured("\u{1b}[31m\u{1b}[1;4mred\u{1b}[0m, plain\u{1b}[m"), "red, plain");
        assert_eq!(uncoloured("\u{1b}[2J \u{1b}[31"), "\u{1b}[2J \u{1b}[31");
        // What is left over may form a colour again, but never something that is obeyed.
        assert_eq!(safe(&uncoloured("\u{1b}\u{1b}[0m[31mx")), "\\u{1b}[31mx");
    }
}
