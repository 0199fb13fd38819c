//! Where each setting comes from, and how `syncer config` shows it.

use std::fmt;

use serde::Serialize;
use serde_json::Value;

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The program's default, with the reason where there are several.
    Default(&'static str),
    /// The values file.
    Values {
        /// The file.
        file: String,
        /// The line.
        line: u64,
    },
    /// A variable.
    Env(String),
    /// A flag, with its dashes.
    Flag(String),
    /// Another file.
    File(String),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Default("") => f.write_str("default"),
            Source::Default(why) => write!(f, "default: {why}"),
            Source::Values { file, line } => write!(f, "{file}:{line}"),
            Source::Env(name) => write!(f, "env {name}"),
            Source::Flag(flag) => write!(f, "flag {flag}"),
            Source::File(path) => write!(f, "file {path}"),
        }
    }
}

/// One setting with its value as shown.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Entry {
    /// Its name, a path such as `etcd.replicas`.
    pub setting: &'static str,
    /// Its value; secrets are replaced by [`REDACTED`].
    pub value: Value,
    /// Where it comes from.
    #[serde(serialize_with = "as_text")]
    pub source: Source,
}

fn as_text<S: serde::Serializer>(source: &Source, s: S) -> Result<S::Ok, S::Error> {
    s.collect_str(source)
}

/// Shown in place of a secret.
pub const REDACTED: &str = "(set, not shown)";

/// Arguments without what could be a secret: the values of flags for tokens and passwords, given in either way, and
/// URLs with a user in them (a k3s `--datastore-endpoint` of MySQL or PostgreSQL).
pub fn redacted(args: &[String]) -> Vec<String> {
    let secret = |flag: &str| flag.starts_with('-') && (flag.contains("token") || flag.contains("password"));
    let mut hide_next = false;
    let mut shown = Vec::with_capacity(args.len());
    for arg in args {
        let (flag, value) = arg.split_once('=').map_or((arg.as_str(), None), |(f, v)| (f, Some(v)));
        shown.push(match value {
            _ if hide_next && !arg.starts_with('-') => REDACTED.to_owned(),
            Some(value) if secret(flag) || value.contains('@') => format!("{flag}={REDACTED}"),
            None if arg.contains('@') => REDACTED.to_owned(),
            _ => arg.clone(),
        });
        hide_next = value.is_none() && secret(flag);
    }
    shown
}

/// A URL, or what was given for one, without the user and password in it.
pub fn without_user(url: &str) -> String {
    let Some((before, host)) = url.rsplit_once('@') else { return url.to_owned() };
    let scheme = before.split_once("://").map_or(String::new(), |(scheme, _)| format!("{scheme}://"));
    format!("{scheme}{REDACTED}@{host}")
}

/// All settings in the order in which they are shown.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Provenance {
    /// The settings.
    pub settings: Vec<Entry>,
    /// Things worth a warning.
    pub warnings: Vec<String>,
}

impl Provenance {
    /// Notes a setting.
    pub fn note(&mut self, setting: &'static str, value: impl Serialize, source: Source) {
        // A value that cannot be JSON (there is none among the settings) is shown as such rather than lost.
        let value = serde_json::to_value(value).unwrap_or_else(|e| Value::String(format!("({e})")));
        self.settings.push(Entry { setting, value, source });
    }

    /// Where a setting comes from.
    pub fn source(&self, setting: &str) -> Option<&Source> {
        self.settings.iter().find(|e| e.setting == setting).map(|e| &e.source)
    }

    /// As JSON.
    pub fn json(&self) -> String {
        // Strings, numbers and lists only: this cannot fail.
        serde_json::to_string_pretty(self).unwrap_or_default()
    }

    /// As YAML: nested by the settings' paths, with the source of each as a comment.
    pub fn yaml(&self) -> String {
        let mut lines: Vec<(String, Option<&Source>)> = Vec::new();
        let mut open: Vec<&str> = Vec::new();
        for entry in &self.settings {
            let mut path: Vec<&str> = entry.setting.split('.').collect();
            let Some(leaf) = path.pop() else { continue };
            let common = open.iter().zip(&path).take_while(|(a, b)| a == b).count();
            for (depth, part) in path.iter().enumerate().skip(common) {
                lines.push((format!("{}{part}:", "  ".repeat(depth)), None));
            }
            // JSON scalars and flow lists are YAML too.
            let value = match &entry.value {
                Value::String(text) if is_plain(text) => text.clone(),
                value => value.to_string(),
            };
            lines.push((format!("{}{leaf}: {value}", "  ".repeat(path.len())), Some(&entry.source)));
            open = path;
        }
        // Long values do not push the comments of all others to the right.
        let width = lines.iter().map(|(l, _)| l.chars().count()).filter(|n| *n <= 60).max().unwrap_or(0);
        let mut out: String = self.warnings.iter().map(|w| format!("# warning: {w}\n")).collect();
        for (line, source) in lines {
            match source {
                Some(source) => out.push_str(&format!("{line:width$}  # {source}\n")),
                None => out.push_str(&format!("{line}\n")),
            }
        }
        out
    }
}

/// Whether YAML reads the text as text without quotes.
fn is_plain(text: &str) -> bool {
    let first = text.bytes().next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'/');
    let rest = text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_./:@".contains(&b));
    let word = matches!(
        text.to_ascii_lowercase().as_str(),
        "true" | "false" | "yes" | "no" | "on" | "off" | "null" | "y" | "n" | "none" | "nan" | "inf"
    );
    first && rest && !word && !text.ends_with(':')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_in_arguments_are_hidden() {
        let args = "server --token a --agent-token=b --v 2 --token-ttl --x --datastore-endpoint=mysql://u:p@tcp(h)/d pg://u:p@h";
        let shown = redacted(&args.split(' ').map(str::to_owned).collect::<Vec<_>>()).join(" ");
        let want = "server --token X --agent-token=X --v 2 --token-ttl --x --datastore-endpoint=X X";
        assert_eq!(shown, want.replace('X', REDACTED));
    }

    #[test]
    fn a_url_is_shown_without_its_user() {
        for (url, want) in [
            ("https://u:p@a:1/x", format!("https://{REDACTED}@a:1/x")),
            ("u:p@q@a:1", format!("{REDACTED}@a:1")),
            ("https://a:1", "https://a:1".to_owned()),
        ] {
            assert_eq!(without_user(url), want);
        }
    }

    #[test]
    fn yaml_shows_each_source_and_is_yaml() {
        let mut provenance = Provenance { warnings: vec!["even".into()], ..Provenance::default() };
        provenance.note("name", "a-b", Source::Env("VCLUSTER_NAME".into()));
        provenance.note("etcd.enabled", true, Source::Values { file: "v.yaml".into(), line: 3 });
        provenance.note("etcd.timing.heartbeat", "100ms", Source::Default(""));
        provenance.note("tlsSans", ["a", "#b"], Source::Flag("--tls-san".into()));
        provenance.note("odd", "no: # x\n", Source::Default("because"));
        let yaml = provenance.yaml();
        assert_eq!(
            yaml,
            "# warning: even\n\
             name: a-b               # env VCLUSTER_NAME\n\
             etcd:\n\
             \x20 enabled: true         # v.yaml:3\n\
             \x20 timing:\n\
             \x20   heartbeat: \"100ms\"  # default\n\
             tlsSans: [\"a\",\"#b\"]     # flag --tls-san\n\
             odd: \"no: # x\\n\"        # default: because\n"
        );
        let tree = crate::settings::yaml::parse(&yaml).unwrap();
        assert_eq!(tree.get("odd").unwrap().1.value, crate::settings::yaml::Value::Text("no: # x\n".into()));
        let json: Value = serde_json::from_str(&provenance.json()).unwrap();
        assert_eq!(json["settings"][1]["source"], "v.yaml:3");
    }
}
