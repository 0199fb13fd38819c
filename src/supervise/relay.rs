//! A child's output lines as lines of ours; the last ones worth it are kept to tell why it ended.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Map, Value};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::Receiver;
use tokio::task::JoinHandle;
use tracing::Level;

use super::child::Output;
use super::lines::LineSplitter;
use super::spec::{LogFormat, Role};
use crate::telemetry;

/// How long what a child wrote before its end may take to come through. Its pipes stay open longer only if something
/// that it started, and that left its group, holds them.
const DRAIN: Duration = Duration::from_millis(500);

/// Lines kept of those that warn, the latest.
const KEPT: usize = 16;
/// Lines kept of those that are not of the child's format, the first: usage and panics begin with what counts.
const KEPT_FOREIGN: usize = 8;
/// Bytes kept of a line.
const KEPT_BYTES: usize = 512;

/// A child's output on its way to the log.
pub struct Relay {
    words: Arc<Mutex<Words>>,
    tasks: [JoinHandle<()>; 2],
}

#[derive(Default)]
struct Words {
    foreign: Vec<String>,
    last: VecDeque<String>,
}

/// Relays everything a child writes until it closes its output.
pub fn follow(role: Role, format: LogFormat, output: Output) -> Relay {
    let words = Arc::new(Mutex::new(Words::default()));
    let tasks = [output.stdout, output.stderr].map(|pipe| {
        let words = Arc::clone(&words);
        tokio::spawn(async move {
            if let Err(error) = copy(role, format, pipe, &words).await {
                tracing::warn!(child = role.name(), "its output cannot be read any more: {error}");
            }
        })
    });
    Relay { words, tasks }
}

impl Relay {
    /// Waits until all is through that the child wrote before it ended (at most a second), and gives its last words:
    /// first those that are not of its format, then the latest that are. What comes later is still relayed.
    pub async fn last_words(self) -> Vec<String> {
        for task in self.tasks {
            let _ = tokio::time::timeout(DRAIN, task).await;
        }
        let words = std::mem::take(&mut *self.words.lock().unwrap_or_else(PoisonError::into_inner));
        words.foreign.into_iter().chain(words.last).collect()
    }
}

impl Words {
    fn note(&mut self, format: LogFormat, parsed: &Parsed) {
        let mut text = match parsed.fields.get("error") {
            Some(Value::String(error)) => format!("{}: {error}", parsed.message),
            _ => parsed.message.clone(),
        };
        text.truncate(text.floor_char_boundary(KEPT_BYTES));
        let foreign = !parsed.of_format && format != LogFormat::Plain;
        if foreign && self.foreign.len() < KEPT_FOREIGN {
            self.foreign.push(text);
        } else if parsed.level <= Level::WARN || format == LogFormat::Plain {
            if self.last.len() == KEPT {
                self.last.pop_front();
            }
            self.last.push_back(text);
        }
    }
}

async fn copy(role: Role, format: LogFormat, pipe: OwnedFd, words: &Mutex<Words>) -> std::io::Result<()> {
    let mut pipe = Receiver::from_owned_fd(pipe)?;
    let mut lines = LineSplitter::default();
    let mut buffer = vec![0; 8192];
    let line = |line: &str| {
        let parsed = parse(format, line);
        telemetry::relay(role, parsed.level, &parsed.message, &parsed.fields);
        words.lock().unwrap_or_else(PoisonError::into_inner).note(format, &parsed);
    };
    loop {
        match pipe.read(&mut buffer).await? {
            0 => break,
            n => lines.push(buffer.get(..n).unwrap_or_default(), line),
        }
    }
    lines.finish(line);
    Ok(())
}

/// A line, understood.
struct Parsed {
    level: Level,
    message: String,
    fields: Map<String, Value>,
    /// Whether it was of the child's format.
    of_format: bool,
}

impl Parsed {
    fn of_format(level: Level, message: String, fields: Map<String, Value>) -> Parsed {
        Parsed { level, message, fields, of_format: true }
    }

    fn as_it_is(line: &str) -> Parsed {
        // How Go's runtime and cobra say that a program ends.
        let grave = ["panic: ", "fatal error: ", "Error: ", "error: "].iter().any(|start| line.starts_with(start));
        let level = if grave { Level::ERROR } else { Level::INFO };
        Parsed { level, message: line.to_owned(), fields: Map::new(), of_format: false }
    }
}

/// Level, message and fields of a line; what is not of the format is passed on as it is.
fn parse(format: LogFormat, line: &str) -> Parsed {
    match format {
        LogFormat::EtcdJson => match serde_json::from_str::<Map<String, Value>>(line) {
            Ok(mut fields) => {
                let mut text = |key| match fields.remove(key) {
                    Some(Value::String(text)) => text,
                    _ => String::new(),
                };
                let (level, message) = (text("level"), text("msg"));
                for repeated in ["ts", "caller", "stacktrace"] {
                    fields.remove(repeated);
                }
                let level = match level.as_str() {
                    "debug" => Level::DEBUG,
                    "info" => Level::INFO,
                    "warn" => Level::WARN,
                    _ => Level::ERROR,
                };
                Parsed::of_format(level, message, fields)
            }
            Err(_) => Parsed::as_it_is(line),
        },
        LogFormat::Klog => {
            // I1122 10:00:00.000000    1234 file.go:12] message
            let level = match line.as_bytes().first() {
                Some(b'E' | b'F') => Level::ERROR,
                Some(b'W') => Level::WARN,
                _ => Level::INFO,
            };
            let dated = line.as_bytes().get(1..5).is_some_and(|date| date.iter().all(u8::is_ascii_digit));
            match line.split_once("] ") {
                Some((_, message)) if dated => Parsed::of_format(level, message.to_owned(), Map::new()),
                _ => Parsed::as_it_is(line),
            }
        }
        LogFormat::Plain => Parsed::as_it_is(line),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_keep_their_level_and_message() {
        let etcd = r#"{"level":"warn","ts":"2026-01-01T00:00:00Z","caller":"a.go:1","msg":"slow","took":"1s"}"#;
        let klog = "E1122 10:00:00.000000    1234 file.go:12] broken";
        for (format, line, level, message, fields) in [
            (LogFormat::EtcdJson, etcd, Level::WARN, "slow", 1),
            (LogFormat::EtcdJson, r#"{"level":"panic","msg":"x"}"#, Level::ERROR, "x", 0),
            (LogFormat::EtcdJson, "panic: {", Level::ERROR, "panic: {", 0),
            (LogFormat::EtcdJson, "[1]", Level::INFO, "[1]", 0),
            (LogFormat::EtcdJson, "goroutine 1 [running]:", Level::INFO, "goroutine 1 [running]:", 0),
            (LogFormat::Klog, klog, Level::ERROR, "broken", 0),
            (LogFormat::Klog, "Error: [x] y", Level::ERROR, "Error: [x] y", 0),
            (LogFormat::Plain, klog, Level::INFO, klog, 0),
        ] {
            let parsed = parse(format, line);
            assert_eq!((parsed.level, &*parsed.message, parsed.fields.len()), (level, message, fields), "{line}");
        }
    }

    #[test]
    fn what_counts_is_kept_and_no_more() {
        let mut words = Words::default();
        let mut note = |line: &str| words.note(LogFormat::EtcdJson, &parse(LogFormat::EtcdJson, line));
        note(r#"{"level":"fatal","msg":"discovery failed","error":"listen: in use"}"#);
        note(r#"{"level":"info","msg":"of no use"}"#);
        note("panic: first");
        for number in 0..12 {
            note(&format!("frame {number} {}", "\u{e9}".repeat(4000)));
        }
        for number in 0..15 {
            note(&format!(r#"{{"level":"warn","msg":"warning {number}"}}"#));
        }
        assert_eq!((words.foreign.len(), words.last.len()), (KEPT_FOREIGN, KEPT));
        assert_eq!(words.foreign[0], "panic: first");
        assert!(words.foreign.iter().all(|text| text.len() <= KEPT_BYTES));
        assert_eq!(words.last[0], "discovery failed: listen: in use");
        note_more(&mut words);
        assert_eq!((words.last.len(), &*words.last[KEPT - 1]), (KEPT, "one more"));
    }

    fn note_more(words: &mut Words) {
        words.note(LogFormat::EtcdJson, &parse(LogFormat::EtcdJson, r#"{"level":"error","msg":"one more"}"#));
    }
}
