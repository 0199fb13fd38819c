//! Log lines on standard error: JSON, one object a line, or text for people on a terminal.
//!
//! Every line carries the pod, the etcd member and the phase the pod is in, whoever writes it. Lines of the children
//! come in through [`relay`] and look like our own, with the child's name as `target`.

use std::fmt;
use std::io::IsTerminal;
use std::sync::OnceLock;
use std::sync::RwLock;

use serde_json::{Map, Value};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt;

use crate::ids::MemberId;
use crate::settings::flags::LogFormat;
use crate::supervise::spec::Role;

/// What the pod is doing, in the order in which a pod passes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Settings, facts, decision.
    Boot,
    /// A store is being moved.
    Migrate,
    /// etcd is starting.
    Etcd,
    /// The API server is starting.
    ApiServer,
    /// All runs.
    Run,
    /// Stopping.
    Stop,
}

impl Phase {
    /// The name in log lines.
    pub const fn name(self) -> &'static str {
        match self {
            Phase::Boot => "boot",
            Phase::Migrate => "migrate",
            Phase::Etcd => "etcd",
            Phase::ApiServer => "apiserver",
            Phase::Run => "run",
            Phase::Stop => "stop",
        }
    }
}

/// What stands in every line.
#[derive(Clone, Debug, Default)]
struct Context {
    pod: Option<String>,
    member: Option<MemberId>,
    phase: Option<Phase>,
}

static CONTEXT: RwLock<Context> = RwLock::new(Context { pod: None, member: None, phase: None });
type Filter = reload::Handle<Targets, tracing_subscriber::Registry>;
static FILTER: OnceLock<Filter> = OnceLock::new();

/// Starts logging. `format` of `None` is text on a terminal and JSON elsewhere; `level` has been checked by the
/// settings. A second call changes only the level.
pub fn init(format: Option<LogFormat>, level: &str) {
    let terminal = std::io::stderr().is_terminal();
    let format = format.unwrap_or(if terminal { LogFormat::Text } else { LogFormat::Json });
    let (filter, handle) = reload::Layer::new(filter(level));
    if FILTER.set(handle).is_err() {
        return set_level(level);
    }
    let layer =
        tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(terminal).event_format(Line(format));
    // Fails only if a test has installed a subscriber of its own; its lines then go there.
    let _ = tracing_subscriber::registry().with(filter).with(layer).try_init();
}

/// Changes what is logged from now on.
pub fn set_level(level: &str) {
    if let Some(handle) = FILTER.get() {
        // Fails only when the subscriber is gone, at exit.
        let _ = handle.reload(filter(level));
    }
}

/// What a level means: one for everything, and others by part (`info,etcd=warn`); `None`: nothing. Of parts that are not
/// named errors are logged all the same.
pub fn levels(text: &str) -> Option<Targets> {
    // An empty text and a number would be levels too.
    let level = |text: &str| {
        let text = text.trim();
        text.parse::<LevelFilter>().ok().filter(|_| text.starts_with(|c: char| c.is_ascii_alphabetic()))
    };
    let mut targets = Targets::new().with_default(LevelFilter::ERROR);
    for part in text.split(',') {
        targets = match part.split_once('=') {
            Some((name, its)) if !name.trim().is_empty() => targets.with_target(name.trim(), level(its)?),
            Some(_) => return None,
            None => targets.with_default(level(part)?),
        };
    }
    Some(targets)
}

fn filter(level: &str) -> Targets {
    levels(level).unwrap_or_else(|| Targets::new().with_default(LevelFilter::INFO))
}

fn change(set: impl FnOnce(&mut Context)) {
    // The lock is held for an assignment only, which cannot panic; a poisoned one is as good.
    set(&mut CONTEXT.write().unwrap_or_else(std::sync::PoisonError::into_inner));
}

/// Names the pod in every line from now on.
pub fn set_pod(pod: &str) {
    change(|context| context.pod = Some(pod.to_owned()));
}

/// Names the etcd member in every line from now on.
pub fn set_member(member: Option<MemberId>) {
    change(|context| context.member = member);
}

/// Names the phase in every line from now on.
pub fn set_phase(phase: Phase) {
    change(|context| context.phase = Some(phase));
}

/// Writes a child's line as one of ours. `fields` are what the child's line says besides its message.
pub fn relay(role: Role, level: Level, message: &str, fields: &Map<String, Value>) {
    // The target and the level of an event are fixed where it stands in the code.
    macro_rules! at {
        ($target:literal) => {{
            let fields = if fields.is_empty() { None } else { serde_json::to_string(fields).ok() };
            match level {
                Level::ERROR => tracing::error!(target: $target, fields = fields.as_deref(), "{message}"),
                Level::WARN => tracing::warn!(target: $target, fields = fields.as_deref(), "{message}"),
                Level::INFO => tracing::info!(target: $target, fields = fields.as_deref(), "{message}"),
                Level::DEBUG => tracing::debug!(target: $target, fields = fields.as_deref(), "{message}"),
                Level::TRACE => tracing::trace!(target: $target, fields = fields.as_deref(), "{message}"),
            }
        }};
    }
    match role {
        Role::Etcd => at!("etcd"),
        Role::Kine => at!("kine"),
        Role::ApiServer => at!("apiserver"),
        Role::ControllerManager => at!("controller-manager"),
        Role::Scheduler => at!("scheduler"),
    }
}

/// Writes one event as one line.
struct Line(LogFormat);

impl<S, N> FormatEvent<S, N> for Line
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let context = CONTEXT.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        let now = OffsetDateTime::now_utc();
        let time = now.format(&Rfc3339).unwrap_or_default();
        let meta = event.metadata();
        match self.0 {
            LogFormat::Json => writeln!(writer, "{}", json(&time, meta.level(), meta.target(), &context, fields)),
            LogFormat::Text => {
                let (on, off) = if writer.has_ansi_escapes() { (colour(meta.level()), "\x1b[0m") } else { ("", "") };
                let clock = time.get(11..19).unwrap_or(&time);
                writeln!(writer, "{clock} {on}{:>5}{off} {}", meta.level(), text(meta.target(), &context, fields))
            }
        }
    }
}

fn colour(level: &Level) -> &'static str {
    match *level {
        Level::ERROR => "\x1b[31m",
        Level::WARN => "\x1b[33m",
        Level::INFO => "\x1b[32m",
        _ => "\x1b[2m",
    }
}

fn json(time: &str, level: &Level, target: &str, context: &Context, fields: Fields) -> String {
    let mut line = Map::new();
    line.insert("time".into(), time.into());
    line.insert("level".into(), level.as_str().to_lowercase().into());
    line.insert("target".into(), target.into());
    if let Some(pod) = &context.pod {
        line.insert("pod".into(), pod.as_str().into());
    }
    if let Some(member) = context.member {
        line.insert("member".into(), member.to_string().into());
    }
    if let Some(phase) = context.phase {
        line.insert("phase".into(), phase.name().into());
    }
    line.insert("message".into(), fields.message.into());
    for (name, value) in fields.rest {
        // What every line carries is not overwritten by a line's own field.
        line.entry(name).or_insert(value);
    }
    Value::Object(line).to_string()
}

fn text(target: &str, context: &Context, fields: Fields) -> String {
    let phase = context.phase.map(Phase::name).unwrap_or("start");
    let target = target.split("::").last().unwrap_or(target);
    let mut line = format!("{phase} {target}: {}", fields.message);
    for (name, value) in fields.rest {
        match value {
            Value::String(text) => line.push_str(&format!(" {name}={text}")),
            value => line.push_str(&format!(" {name}={value}")),
        }
    }
    // One event stays one line whatever a child or a file puts into it; control characters do not reach a terminal.
    line.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// The fields of one event.
#[derive(Default)]
struct Fields {
    message: String,
    rest: Vec<(String, Value)>,
}

impl Fields {
    fn put(&mut self, field: &Field, value: Value) {
        match (field.name(), value) {
            ("message", Value::String(text)) => self.message = text,
            // A child's fields are JSON already.
            ("fields", Value::String(text)) => {
                let value = serde_json::from_str(&text).unwrap_or(Value::String(text));
                self.rest.push(("fields".to_owned(), value));
            }
            (name, value) => self.rest.push((name.to_owned(), value)),
        }
    }
}

impl Visit for Fields {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value.into());
    }
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value.into());
    }
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value.into());
    }
    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value.into());
    }
    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value.into());
    }
    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        let mut text = value.to_string();
        let mut source = value.source();
        while let Some(inner) = source {
            text.push_str(&format!(": {inner}"));
            source = inner.source();
        }
        self.put(field, text.into());
    }
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, format!("{value:?}").into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    #[test]
    fn levels_are_one_for_everything_and_others_by_part() {
        let shown = |text: &str, part: &str, level: Level| levels(text).unwrap().would_enable(part, &level);
        for text in ["info,etcd=debug", " info , etcd = debug ", "etcd=DEBUG,INFO"] {
            assert!(shown(text, "etcd", Level::DEBUG) && shown(text, "syncer::start", Level::INFO), "{text}");
            assert!(!shown(text, "syncer::start", Level::DEBUG), "{text}");
        }
        assert!(shown("etcd=warn", "syncer::start", Level::ERROR) && !shown("etcd=warn", "syncer::start", Level::WARN));
        assert!(shown(" debug ", "kube_client", Level::DEBUG) && !shown("off", "syncer", Level::ERROR));
    }

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// What `log` writes, line by line.
    fn lines(format: LogFormat, log: impl FnOnce()) -> Vec<String> {
        let out = Lines::default();
        let writer = out.clone();
        let layer = tracing_subscriber::fmt::layer()
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .event_format(Line(format));
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), log);
        let bytes = out.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap().lines().map(str::to_owned).collect()
    }

    /// The context is the process's: one test changes it.
    #[test]
    fn every_line_carries_pod_member_and_phase() {
        set_pod("vc-0");
        set_member(Some(MemberId(0xabc)));
        set_phase(Phase::Migrate);
        let fields = serde_json::from_str(r#"{"size": 5, "nested": {"a": "b\nc"}}"#).unwrap();
        let log = || {
            tracing::warn!(keys = 7, path = %"/data", pod = "not this one", "two\nlines \x1b[31m");
            relay(Role::Etcd, Level::INFO, "ready to serve {}", &fields);
            relay(Role::ControllerManager, Level::ERROR, "gone", &Map::new());
        };
        let json: Vec<Value> = lines(LogFormat::Json, log).iter().map(|l| serde_json::from_str(l).unwrap()).collect();
        let [own, etcd, manager] = json.as_slice() else { panic!("{json:?}") };
        for line in [own, etcd, manager] {
            assert_eq!(
                (&line["pod"], &line["member"], &line["phase"]),
                (&"vc-0".into(), &"abc".into(), &"migrate".into())
            );
            assert!(line["time"].as_str().unwrap().ends_with('Z'), "{line}");
        }
        assert_eq!((own["level"].as_str(), own["message"].as_str()), (Some("warn"), Some("two\nlines \u{1b}[31m")));
        assert_eq!((&own["keys"], &own["path"]), (&7.into(), &"/data".into()));
        assert_eq!((etcd["target"].as_str(), etcd["message"].as_str()), (Some("etcd"), Some("ready to serve {}")));
        assert_eq!((&etcd["fields"]["size"], &etcd["fields"]["nested"]["a"]), (&5.into(), &"b\nc".into()));
        assert_eq!(
            (manager["target"].as_str(), manager["level"].as_str()),
            (Some("controller-manager"), Some("error"))
        );
        assert!(manager.get("fields").is_none(), "{manager}");

        let text = lines(LogFormat::Text, log);
        assert_eq!(text.len(), 3, "an event is one line: {text:?}");
        assert!(text[0].contains(" WARN migrate tests: two lines  [31m keys=7 path=/data"), "{}", text[0]);
        assert!(text[1].contains(r#"migrate etcd: ready to serve {} fields={"#), "{}", text[1]);
    }

    #[test]
    fn levels_of_all_roles_reach_the_log() {
        let log = || {
            for role in [Role::Etcd, Role::Kine, Role::ApiServer, Role::ControllerManager, Role::Scheduler] {
                for level in [Level::ERROR, Level::WARN, Level::INFO, Level::DEBUG, Level::TRACE] {
                    relay(role, level, role.name(), &Map::new());
                }
            }
        };
        let got = lines(LogFormat::Json, log);
        assert_eq!(got.len(), 25);
        for line in got {
            let line: Value = serde_json::from_str(&line).unwrap();
            assert_eq!(line["target"], line["message"], "the target is the child's name");
        }
    }
}
