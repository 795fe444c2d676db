//! An agent's output, as JSON lines in a file that does not grow without bound.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// A file is put aside at this size; one older is kept.
const ROTATE_BYTES: u64 = 10 << 20;

/// A longer line is broken.
const LINE_BYTES: usize = 16 << 10;

/// One line of an agent's output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// When it was read.
    pub time: Timestamp,
    /// `out` or `err`.
    pub stream: String,
    /// The text; bytes that are not UTF-8 are replaced.
    pub text: String,
}

/// The log that a shim writes.
pub struct Log {
    path: PathBuf,
    file: File,
    bytes: u64,
    taken: u64,
    pending: [Vec<u8>; 2],
}

impl Log {
    /// Opens or goes on with the log at `path`.
    ///
    /// # Errors
    /// Whatever opening says.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::options().create(true).append(true).open(path)?;
        let bytes = file.metadata()?.len();
        Ok(Self { path: path.to_path_buf(), file, bytes, taken: 0, pending: [Vec::new(), Vec::new()] })
    }

    /// Takes bytes of stream 0 (out) or 1 (err) and writes the lines that are whole.
    pub fn take(&mut self, stream: usize, bytes: &[u8]) {
        self.taken += bytes.len() as u64;
        for byte in bytes {
            let Some(pending) = self.pending.get_mut(stream) else { return };
            if *byte != b'\n' {
                pending.push(*byte);
            }
            if *byte == b'\n' || pending.len() >= LINE_BYTES {
                let line = std::mem::take(pending);
                self.write(stream, &line);
            }
        }
    }

    /// Writes what is left without a newline.
    pub fn flush(&mut self) {
        for stream in 0..2 {
            let rest = self.pending.get_mut(stream).map(std::mem::take).unwrap_or_default();
            if !rest.is_empty() {
                self.write(stream, &rest);
            }
        }
    }

    /// How many bytes came in so far.
    #[must_use]
    pub const fn bytes_taken(&self) -> u64 {
        self.taken
    }

    fn write(&mut self, stream: usize, line: &[u8]) {
        let line = Line {
            time: Timestamp::now(),
            stream: if stream == 0 { "out" } else { "err" }.into(),
            text: String::from_utf8_lossy(line).into_owned(),
        };
        let Ok(mut text) = serde_json::to_vec(&line) else { return };
        text.push(b'\n');
        if self.bytes + text.len() as u64 > ROTATE_BYTES {
            let _ = fs::rename(&self.path, self.path.with_extension("log.1"));
            if let Ok(file) = File::options().create(true).append(true).open(&self.path) {
                self.file = file;
                self.bytes = 0;
            }
        }
        // A full disk loses output of the agent, never the agent.
        if self.file.write_all(&text).is_ok() {
            self.bytes += text.len() as u64;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_whole_broken_when_long_and_rotated() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.log");
        let mut log = Log::open(&path).unwrap();
        log.take(0, b"one\ntw");
        log.take(1, b"err\n");
        log.take(0, b"o\nrest");
        log.flush();
        let lines: Vec<Line> =
            fs::read_to_string(&path).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        let seen: Vec<(&str, &str)> = lines.iter().map(|l| (l.stream.as_str(), l.text.as_str())).collect();
        assert_eq!(seen, [("out", "one"), ("err", "err"), ("out", "two"), ("out", "rest")]);
        for _ in 0..1500 {
            log.take(0, &[b'x'; LINE_BYTES]);
        }
        assert!(path.with_extension("log.1").exists());
        assert!(fs::metadata(&path).unwrap().len() <= ROTATE_BYTES);
    }
}
