//! Reads Python just far enough: logical lines of tokens, without running or fully parsing anything.
//!
//! Decision 0024 says why this is not a library.
//!
//! # Source
//! The Python Language Reference, chapter 2.

/// A token that matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Token {
    Name(String),
    Number(String),
    /// A string's value; `formatted` strings have holes.
    Text {
        value: String,
        formatted: bool,
    },
    Op(char),
}

/// One logical line.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    /// 1-based number of its first physical line.
    pub number: usize,
    /// Columns of white space before it.
    pub indent: usize,
    /// Its tokens, each with the number of its physical line.
    pub tokens: Vec<(usize, Token)>,
}

impl Line {
    /// The first token, if it is a name.
    pub(crate) fn first(&self) -> Option<&str> {
        self.name(0)
    }

    /// The name at a place.
    pub(crate) fn name(&self, at: usize) -> Option<&str> {
        match self.tokens.get(at) {
            Some((_, Token::Name(name))) => Some(name),
            _ => None,
        }
    }

    /// Whether the operator at a place is this one.
    pub(crate) fn is_op(&self, at: usize, op: char) -> bool {
        matches!(self.tokens.get(at), Some((_, Token::Op(found))) if *found == op)
    }

    /// Whether this name occurs.
    pub(crate) fn has_name(&self, wanted: &str) -> bool {
        self.tokens.iter().any(|(_, t)| matches!(t, Token::Name(name) if name == wanted))
    }
}

/// Splits a source text into logical lines. Never fails: what cannot be understood is passed over.
pub(crate) fn read(text: &str) -> Vec<Line> {
    Reader { chars: text.trim_start_matches('\u{feff}').chars().collect(), at: 0, line: 1 }.lines()
}

struct Reader {
    chars: Vec<char>,
    at: usize,
    line: usize,
}

impl Reader {
    fn peek(&self, ahead: usize) -> Option<char> {
        self.chars.get(self.at + ahead).copied()
    }

    fn next(&mut self) -> Option<char> {
        let c = self.peek(0)?;
        self.at += 1;
        if c == '\n' {
            self.line += 1;
        }
        Some(c)
    }

    fn lines(mut self) -> Vec<Line> {
        let mut lines = Vec::new();
        while self.peek(0).is_some() {
            let indent = self.indent();
            let number = self.line;
            let tokens = self.tokens();
            if !tokens.is_empty() {
                lines.push(Line { number: tokens.first().map_or(number, |(n, _)| *n), indent, tokens });
            }
        }
        lines
    }

    fn indent(&mut self) -> usize {
        let mut width = 0;
        while let Some(c) = self.peek(0) {
            match c {
                ' ' => width += 1,
                '\t' => width = (width / 8 + 1) * 8,
                '\u{c}' => width = 0,
                _ => break,
            }
            self.at += 1;
        }
        width
    }

    /// Tokens to the end of the logical line.
    fn tokens(&mut self) -> Vec<(usize, Token)> {
        let mut tokens = Vec::new();
        let mut depth = 0usize;
        while let Some(c) = self.peek(0) {
            let line = self.line;
            match c {
                '\n' => {
                    self.next();
                    if depth == 0 {
                        break;
                    }
                }
                ';' if depth == 0 => {
                    self.next();
                    break;
                }
                '#' => self.skip_comment(),
                '\\' => {
                    self.next();
                    if self.peek(0) == Some('\r') {
                        self.next();
                    }
                    if self.peek(0) == Some('\n') {
                        self.next();
                    }
                }
                '"' | '\'' => {
                    let value = self.string(false);
                    tokens.push((line, Token::Text { value, formatted: false }));
                }
                c if c.is_alphabetic() || c == '_' => {
                    let word = self.word();
                    if matches!(self.peek(0), Some('"' | '\'')) && is_prefix(&word) {
                        let lower = word.to_ascii_lowercase();
                        let value = self.string(lower.contains('r'));
                        tokens.push((line, Token::Text { value, formatted: lower.contains(['f', 't']) }));
                    } else {
                        tokens.push((line, Token::Name(word)));
                    }
                }
                c if c.is_ascii_digit() => tokens.push((line, Token::Number(self.word()))),
                c if c.is_whitespace() => {
                    self.next();
                }
                c => {
                    self.next();
                    match c {
                        '(' | '[' | '{' => depth += 1,
                        ')' | ']' | '}' => depth = depth.saturating_sub(1),
                        _ => {}
                    }
                    tokens.push((line, Token::Op(c)));
                }
            }
        }
        tokens
    }

    fn skip_comment(&mut self) {
        while self.peek(0).is_some_and(|c| c != '\n') {
            self.at += 1;
        }
    }

    fn word(&mut self) -> String {
        let mut word = String::new();
        while let Some(c) = self.peek(0).filter(|c| c.is_alphanumeric() || *c == '_') {
            word.push(c);
            self.at += 1;
        }
        word
    }

    /// The value of the string that begins here with its quote.
    fn string(&mut self, raw: bool) -> String {
        let Some(quote) = self.next() else { return String::new() };
        let triple = self.peek(0) == Some(quote) && self.peek(1) == Some(quote);
        if triple {
            self.at += 2;
        }
        let mut value = String::new();
        while let Some(c) = self.peek(0) {
            if c == '\\' {
                self.next();
                let escaped = self.next();
                match escaped {
                    _ if raw => value.extend(['\\'].into_iter().chain(escaped)),
                    Some('n') => value.push('\n'),
                    Some('t') => value.push('\t'),
                    Some('\n') | None => {}
                    Some(c @ ('\\' | '\'' | '"')) => value.push(c),
                    Some(c) => value.extend(['\\', c]),
                }
            } else if c == quote && (!triple || (self.peek(1) == Some(quote) && self.peek(2) == Some(quote))) {
                self.at += if triple { 3 } else { 1 };
                break;
            } else if c == '\n' && !triple {
                // Not closed: the line ends it, so that one mistake costs one line.
                break;
            } else {
                self.next();
                value.push(c);
            }
        }
        value
    }
}

fn is_prefix(word: &str) -> bool {
    matches!(word.to_ascii_lowercase().as_str(), "r" | "u" | "b" | "f" | "t" | "br" | "rb" | "fr" | "rf" | "tr" | "rt")
}

/// What a pattern caught, in its order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Caught {
    /// Line of the first token.
    pub line: usize,
    /// Texts of `$n`, `$s`, `$i`.
    pub texts: Vec<String>,
    /// Place after the last token.
    pub end: usize,
}

/// Finds a pattern such as `os . environ [ $s` in a line: `$n` a name, `$s` a plain string, `$i` a number.
pub(crate) fn find(line: &Line, pattern: &str) -> Vec<Caught> {
    let wanted: Vec<&str> = pattern.split(' ').collect();
    (0..line.tokens.len()).filter_map(|start| catch(line, start, &wanted)).collect()
}

/// Matches a pattern at the beginning of a line.
pub(crate) fn begins(line: &Line, pattern: &str) -> Option<Caught> {
    catch(line, 0, &pattern.split(' ').collect::<Vec<_>>())
}

fn catch(line: &Line, start: usize, wanted: &[&str]) -> Option<Caught> {
    let mut texts = Vec::new();
    for (offset, want) in wanted.iter().enumerate() {
        let (_, token) = line.tokens.get(start + offset)?;
        match (*want, token) {
            ("$n", Token::Name(text)) | ("$i", Token::Number(text)) => texts.push(text.clone()),
            ("$s", Token::Text { value, formatted: false }) => texts.push(value.clone()),
            (want, Token::Name(name)) if name == want => {}
            (want, Token::Op(op)) if want.len() == op.len_utf8() && want.starts_with(*op) => {}
            _ => return None,
        }
    }
    let line = line.tokens.get(start).map_or(line.number, |(n, _)| *n);
    Some(Caught { line, texts, end: start + wanted.len() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> Vec<String> {
        read(text)
            .iter()
            .map(|l| {
                let tokens: Vec<String> = l
                    .tokens
                    .iter()
                    .map(|(_, t)| match t {
                        Token::Name(n) | Token::Number(n) => n.clone(),
                        Token::Text { value, formatted } => format!("{}{value:?}", if *formatted { "f" } else { "" }),
                        Token::Op(c) => c.to_string(),
                    })
                    .collect();
                format!("{}:{} {}", l.number, l.indent, tokens.join(" "))
            })
            .collect()
    }

    #[test]
    fn comments_strings_and_brackets_do_not_mislead() {
        let text =
            "# import evil\nx = '# no' # import evil\n\"\"\"\nimport evil\n\"\"\"\nf(a,\n  b)\nif x: y = 1; z = 2\n";
        assert_eq!(
            shown(text),
            ["2:0 x = \"# no\"", "3:0 \"\\nimport evil\\n\"", "6:0 f ( a , b )", "8:0 if x : y = 1", "8:1 z = 2"]
        );
    }

    #[test]
    fn prefixes_escapes_and_continuations() {
        assert_eq!(shown("a = rb'\\d' + f\"{x}\" \\\n  + 'it\\'s'"), ["1:0 a = \"\\\\d\" + f\"{x}\" + \"it's\""]);
        assert_eq!(shown("x = 'open\nimport os\n"), ["1:0 x = \"open\"", "2:0 import os"]);
        assert_eq!(shown("def f():\n\treturn 1\n"), ["1:0 def f ( ) :", "2:8 return 1"]);
    }

    #[test]
    fn patterns_catch() {
        let lines = read("k = os.environ['A'] or os.environ[\"B\"]\napp = FastAPI()\nrun(port=80)");
        let caught = find(&lines[0], "os . environ [ $s ]");
        assert_eq!(caught.iter().map(|c| c.texts[0].as_str()).collect::<Vec<_>>(), ["A", "B"]);
        assert_eq!(begins(&lines[1], "$n = FastAPI (").unwrap().texts, ["app"]);
        assert_eq!(find(&lines[2], "port = $i")[0].texts, ["80"]);
        assert!(find(&lines[2], "port = $s").is_empty());
    }

    #[test]
    fn junk_ends() {
        for junk in ["\"\"\"", "'", "\\", "(((", ")))\nx", "\u{0}\u{1}", "f'{'", "\\\r\n"] {
            let _ = read(junk);
        }
    }
}
