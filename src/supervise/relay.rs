//! A child's output lines as lines of ours.

use std::os::fd::OwnedFd;

use serde_json::{Map, Value};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::Receiver;
use tracing::Level;

use super::child::Output;
use super::lines::LineSplitter;
use super::spec::{LogFormat, Role};
use crate::telemetry;

/// Relays everything a child writes until it closes its output.
pub fn follow(role: Role, format: LogFormat, output: Output) {
    for pipe in [output.stdout, output.stderr] {
        tokio::spawn(async move {
            if let Err(error) = copy(role, format, pipe).await {
                tracing::warn!(child = role.name(), "its output cannot be read any more: {error}");
            }
        });
    }
}

async fn copy(role: Role, format: LogFormat, pipe: OwnedFd) -> std::io::Result<()> {
    let mut pipe = Receiver::from_owned_fd(pipe)?;
    let mut lines = LineSplitter::default();
    let mut buffer = vec![0; 8192];
    loop {
        match pipe.read(&mut buffer).await? {
            0 => break,
            n => lines.push(buffer.get(..n).unwrap_or_default(), |line| relay(role, format, line)),
        }
    }
    lines.finish(|line| relay(role, format, line));
    Ok(())
}

fn relay(role: Role, format: LogFormat, line: &str) {
    if line.trim().is_empty() {
        return;
    }
    let (level, message, fields) = parse(format, line);
    telemetry::relay(role, level, &message, &fields);
}

/// Level, message and fields of a line; what is not of the format is passed on as it is.
fn parse(format: LogFormat, line: &str) -> (Level, String, Map<String, Value>) {
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
                (level, message, fields)
            }
            Err(_) => (Level::INFO, line.to_owned(), Map::new()),
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
                Some((_, message)) if dated => (level, message.to_owned(), Map::new()),
                _ => (Level::INFO, line.to_owned(), Map::new()),
            }
        }
        LogFormat::Plain => (Level::INFO, line.to_owned(), Map::new()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_keep_their_level_and_message() {
        let etcd = r#"{"level":"warn","ts":"2026-01-01T00:00:00Z","caller":"a.go:1","msg":"slow","took":"1s"}"#;
        let (level, message, fields) = parse(LogFormat::EtcdJson, etcd);
        assert_eq!((level, message.as_str(), fields.len()), (Level::WARN, "slow", 1));
        let (level, message, _) = parse(LogFormat::EtcdJson, "panic: {");
        assert_eq!((level, message.as_str()), (Level::INFO, "panic: {"));
        let (level, message, _) = parse(LogFormat::Klog, "E1122 10:00:00.000000    1234 file.go:12] broken");
        assert_eq!((level, message.as_str()), (Level::ERROR, "broken"));
        let (level, message, _) = parse(LogFormat::Klog, "Error: [x] y");
        assert_eq!((level, message.as_str()), (Level::INFO, "Error: [x] y"));
    }
}
