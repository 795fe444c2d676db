//! What the demonstration prints: sections, facts and aligned tables, in colour only where a person looks.

use std::io::{IsTerminal, Write};

/// How to print.
pub struct Show {
    colour: bool,
}

impl Show {
    /// Colours if standard output is a terminal and `NO_COLOR` is not set.
    ///
    /// # Source
    /// <https://no-color.org>
    pub fn new() -> Self {
        let refused = std::env::var_os("NO_COLOR").is_some_and(|text| !text.is_empty());
        Self { colour: !refused && std::io::stdout().is_terminal() }
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// Text for what is as it should be.
    pub fn good(&self, text: &str) -> String {
        self.paint("32", text)
    }

    /// Text for what is not.
    pub fn bad(&self, text: &str) -> String {
        self.paint("31", text)
    }

    /// Text that matters less.
    pub fn faint(&self, text: &str) -> String {
        self.paint("2", text)
    }

    /// Begins a section.
    pub fn section(&self, title: &str) {
        print(&format!("\n{}", self.paint("1", title)));
    }

    /// Prints lines of text, set in.
    pub fn text(&self, text: &str) {
        if text.is_empty() {
            print("");
        }
        for line in text.lines() {
            print(format!("  {line}").trim_end());
        }
    }

    /// Prints rows in columns. Each cell is a text and how it is painted.
    pub fn table(&self, rows: &[Vec<Cell>]) {
        let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            let cells = rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.text.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        for row in rows {
            let mut line = String::from(" ");
            for (at, (cell, width)) in row.iter().zip(&widths).enumerate() {
                let gap = if at == 0 { " " } else { "  " };
                let fill = " ".repeat(width.saturating_sub(cell.text.chars().count()));
                let text = cell.code.map_or_else(|| cell.text.clone(), |code| self.paint(code, &cell.text));
                line.push_str(gap);
                line.push_str(&text);
                if at + 1 < row.len() {
                    line.push_str(&fill);
                }
            }
            print(line.trim_end());
        }
    }
}

/// One cell of a table.
pub struct Cell {
    text: String,
    code: Option<&'static str>,
}

impl Cell {
    /// A plain cell.
    pub fn plain(text: impl Into<String>) -> Self {
        Self { text: text.into(), code: None }
    }

    /// A cell that stands back.
    pub fn faint(text: impl Into<String>) -> Self {
        Self { text: text.into(), code: Some("2") }
    }

    /// A cell that is green if `good`, else red.
    pub fn judged(text: impl Into<String>, good: bool) -> Self {
        Self { text: text.into(), code: Some(if good { "32" } else { "31" }) }
    }
}

/// Prints a line on standard output. A reader who went away is no reason to fail.
pub fn print(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// Prints a line on standard error.
pub fn complain(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// A text of at most `most` characters.
pub fn short(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some(_) => text.chars().take(most.saturating_sub(1)).chain(['…']).collect(),
        None => text.to_owned(),
    }
}

/// A number with its noun.
pub fn many(count: u64, one: &str, more: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { more })
}

/// A number of bytes, for people.
pub fn bytes(count: u64) -> String {
    let (mut size, mut unit) = (count as f64, "B");
    for next in ["kB", "MB", "GB"] {
        if size < 1000.0 {
            break;
        }
        (size, unit) = (size / 1000.0, next);
    }
    if unit == "B" { format!("{count} B") } else { format!("{size:.1} {unit}") }
}
