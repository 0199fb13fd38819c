//! YAML as a tree in which every key and value knows its line.
//!
//! The values file belongs to the whole chart, so it cannot be described by one type: most of it is foreign. It is
//! read into this tree within bounds, and [`super::values`] takes from the tree what concerns this program. Input is
//! untrusted: size, depth, node count and alias expansion are limited (an alias bomb of a few hundred bytes would
//! otherwise expand to gigabytes).

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_yaml::Spanned;

/// Nesting deeper than any chart's.
const MAX_DEPTH: usize = 48;
/// Scalars, lists and mappings in one file. The largest chart's own values have about 1500.
const MAX_NODES: usize = 100_000;
/// Events that aliases may add by repeating what they point to.
const MAX_ALIAS_EVENTS: usize = 50_000;

/// A value with the line (from 1) where it is written; for an alias, where the alias stands.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Line in the file.
    pub line: u64,
    /// What is written there.
    pub value: Value,
    /// Line and column where the value itself begins: not where an alias for it stands.
    begins: (u64, u64),
}

/// What a YAML node may be.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Nothing, `~` or `null`.
    Null,
    /// `true`, `false` and the other spellings of YAML 1.1, which Helm accepts too.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// Any other number, as it is written.
    Float(String),
    /// Text.
    Text(String),
    /// A list.
    List(Vec<Node>),
    /// A mapping in the order of the file; keys are unique.
    Map(Vec<(Key, Node)>),
}

/// A key of a mapping.
#[derive(Clone, Debug, PartialEq)]
pub struct Key {
    /// Its text; a key that is not text is written as YAML would write it.
    pub name: String,
    /// Line in the file.
    pub line: u64,
}

/// Why a text is not usable YAML.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct YamlError {
    /// Line, if it is known.
    pub line: Option<u64>,
    /// What is wrong, in one line.
    pub what: String,
}

/// Parses one document within bounds.
pub fn parse(text: &str) -> Result<Node, YamlError> {
    let options = serde_yaml::options! {
        budget: serde_yaml::budget! {
            max_depth: MAX_DEPTH,
            flow_nesting_limit: MAX_DEPTH,
            max_nodes: MAX_NODES,
            max_events: 3 * MAX_NODES,
            max_aliases: 2_000,
            max_anchors: 2_000,
            max_recorded_anchor_events: MAX_ALIAS_EVENTS,
            max_recorded_anchor_bytes: 8 * 1024 * 1024,
            max_total_scalar_bytes: 8 * 1024 * 1024,
            max_merge_keys: 1_000,
            max_buffered_comment_events: 100_000,
            max_documents: 4,
        },
        alias_limits: serde_yaml::alias_limits! {
            max_total_replayed_events: MAX_ALIAS_EVENTS,
            max_replay_stack_depth: 16,
            max_alias_expansions_per_anchor: 1_000,
        },
        emit_comments: false,
        with_snippet: false,
    };
    let mut root = serde_yaml::from_str_with_options::<Node>(text, options).map_err(|error| explain(&error))?;
    let lines: Vec<&str> = text.trim_start_matches('\u{feff}').lines().collect();
    root.as_written(&lines);
    Ok(root)
}

fn explain(error: &serde_yaml::Error) -> YamlError {
    use serde_yaml::Error;
    let line = error.location().map(|l| l.line()).filter(|line| *line > 0);
    let mut error = error.without_snippet();
    // What went wrong behind an alias is told by the error within.
    while let Error::AliasError { error: inner, .. } = error {
        error = inner.without_snippet();
    }
    let what = match error {
        Error::DuplicateMappingKey { key: Some(key), .. } => format!("the key {key:?} is written twice"),
        Error::DuplicateMappingKey { .. } => "a key is written twice".to_owned(),
        Error::MultipleDocuments { .. } => "there is more than one YAML document".to_owned(),
        Error::Budget { .. }
        | Error::AliasReplayStackDepthExceeded { .. }
        | Error::AliasReplayCounterOverflow { .. }
        | Error::AliasReplayLimitExceeded { .. }
        | Error::AliasExpansionLimitExceeded { .. } => {
            "it is too large, too deep, or its aliases expand to too much".to_owned()
        }
        other => {
            let text = other.to_string();
            // The location is given apart; what the library appends to its text would repeat it.
            let text = text.lines().next().unwrap_or_default();
            let text = text.split(" at line ").next().unwrap_or_default();
            format!("it is not valid YAML: {}", text.chars().take(200).collect::<String>())
        }
    };
    YamlError { line, what }
}

impl Node {
    /// What it is, for messages; with its value, so not for what may be a secret.
    pub fn kind(&self) -> String {
        match &self.value {
            Value::Bool(b) => format!("{b}"),
            Value::Int(n) => format!("{n}"),
            Value::Float(written) => written.clone(),
            Value::Text(t) if t.chars().count() <= 40 => format!("the text {t:?}"),
            Value::Text(_) => "a long text".to_owned(),
            Value::Null | Value::List(_) | Value::Map(_) => self.type_name().to_owned(),
        }
    }

    /// What it is, without its value.
    pub fn type_name(&self) -> &'static str {
        match &self.value {
            Value::Null => "nothing",
            Value::Bool(_) => "a truth value",
            Value::Int(_) | Value::Float(_) => "a number",
            Value::Text(_) => "a text",
            Value::List(_) => "a list",
            Value::Map(_) => "a mapping",
        }
    }

    /// Puts numbers that are not whole, to this reader, as the file has them: `010` is 10 to it, and 8 to Helm.
    fn as_written(&mut self, lines: &[&str]) {
        match &mut self.value {
            Value::Float(number) => {
                let (line, column) = self.begins;
                let before = |n: u64| usize::try_from(n).unwrap_or(usize::MAX).saturating_sub(1);
                let line = lines.get(before(line)).copied().unwrap_or_default();
                let token: String = line
                    .chars()
                    .skip(before(column))
                    .take_while(|c| c.is_ascii_alphanumeric() || "+-._".contains(*c))
                    .take(40)
                    .collect();
                if token.contains(|c: char| c.is_ascii_digit()) {
                    *number = token;
                }
            }
            Value::List(nodes) => nodes.iter_mut().for_each(|node| node.as_written(lines)),
            Value::Map(entries) => entries.iter_mut().for_each(|(_, node)| node.as_written(lines)),
            Value::Null | Value::Bool(_) | Value::Int(_) | Value::Text(_) => {}
        }
    }

    /// The value under `key`, if this is a mapping that has it.
    pub fn get(&self, key: &str) -> Option<(&Key, &Node)> {
        match &self.value {
            Value::Map(entries) => entries.iter().find(|(k, _)| k.name == key).map(|(k, n)| (k, n)),
            _ => None,
        }
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Raw>::deserialize(deserializer)?;
        let begins = (spanned.defined.line(), spanned.defined.column());
        Ok(Node { line: spanned.referenced.line(), value: spanned.value.0, begins })
    }
}

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Raw>::deserialize(deserializer)?;
        let name = match spanned.value.0 {
            Value::Text(text) => text,
            Value::Null => "null".to_owned(),
            Value::Bool(b) => b.to_string(),
            Value::Int(n) => n.to_string(),
            Value::Float(f) => f,
            Value::List(_) | Value::Map(_) => {
                return Err(serde::de::Error::custom("a key must be a single word or text"));
            }
        };
        Ok(Key { name, line: spanned.referenced.line() })
    }
}

/// A [`Value`] about to get its line.
struct Raw(Value);

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = Raw;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("YAML")
    }

    fn visit_unit<E>(self) -> Result<Raw, E> {
        Ok(Raw(Value::Null))
    }

    fn visit_none<E>(self) -> Result<Raw, E> {
        Ok(Raw(Value::Null))
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Raw, D::Error> {
        Raw::deserialize(deserializer)
    }

    fn visit_bool<E>(self, b: bool) -> Result<Raw, E> {
        Ok(Raw(Value::Bool(b)))
    }

    fn visit_i64<E>(self, n: i64) -> Result<Raw, E> {
        Ok(Raw(Value::Int(n)))
    }

    fn visit_u64<E>(self, n: u64) -> Result<Raw, E> {
        Ok(Raw(i64::try_from(n).map_or_else(|_| Value::Float(n.to_string()), Value::Int)))
    }

    fn visit_i128<E>(self, n: i128) -> Result<Raw, E> {
        Ok(Raw(i64::try_from(n).map_or_else(|_| Value::Float(n.to_string()), Value::Int)))
    }

    fn visit_u128<E>(self, n: u128) -> Result<Raw, E> {
        Ok(Raw(i64::try_from(n).map_or_else(|_| Value::Float(n.to_string()), Value::Int)))
    }

    fn visit_f64<E>(self, f: f64) -> Result<Raw, E> {
        Ok(Raw(Value::Float(f.to_string())))
    }

    fn visit_str<E>(self, text: &str) -> Result<Raw, E> {
        Ok(Raw(Value::Text(text.to_owned())))
    }

    fn visit_string<E>(self, text: String) -> Result<Raw, E> {
        Ok(Raw(Value::Text(text)))
    }

    fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Raw, E> {
        Ok(Raw(Value::Text(String::from_utf8_lossy(bytes).into_owned())))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Raw, A::Error> {
        let mut list = Vec::new();
        while let Some(node) = seq.next_element()? {
            list.push(node);
        }
        Ok(Raw(Value::List(list)))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Raw, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(Raw(Value::Map(entries)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value<'n>(node: &'n Node, path: &str) -> &'n Node {
        path.split('.').fold(node, |n, key| n.get(key).unwrap_or_else(|| panic!("no {key} of {path} in {n:?}")).1)
    }

    #[test]
    fn every_value_knows_its_line() {
        let node = parse(
            "# c\na: 1\nb:\n  c: [x, 2]\n  d: yes\ne: &q {f: ~}\ng: *q\nh: 1.5\ni: \"7\"\nj:\n  <<: *q\n  k: 1\n",
        )
        .unwrap();
        for (path, line, want) in [
            ("a", 2, Value::Int(1)),
            ("b.d", 5, Value::Bool(true)),
            ("e.f", 6, Value::Null),
            ("g.f", 7, Value::Null),
            ("h", 8, Value::Float("1.5".into())),
            ("i", 9, Value::Text("7".into())),
            ("j.k", 12, Value::Int(1)),
        ] {
            let got = value(&node, path);
            assert_eq!((&got.value, got.line), (&want, line), "{path}");
        }
        assert_eq!(value(&node, "g").line, 7);
        assert_eq!(value(&node, "j.f").value, Value::Null, "merge keys are merged");
        let Value::List(list) = &value(&node, "b.c").value else { panic!("{node:?}") };
        assert_eq!((list[1].line, &list[1].value), (4, &Value::Int(2)));
        assert_eq!(node.get("b").unwrap().0.line, 3);
    }

    #[test]
    fn a_number_is_shown_as_it_is_written() {
        let node = parse(
            "\u{feff}a: 010\nb: {c: 1.50, \u{e9}: &n 1e3}\nd: [ 007 , 3]\ne: *n\nf: 123456789012345678901234567890\n",
        );
        let node = node.unwrap();
        for (path, want) in
            [("a", "010"), ("b.c", "1.50"), ("b.\u{e9}", "1e3"), ("e", "1e3"), ("f", "123456789012345678901234567890")]
        {
            assert_eq!(value(&node, path).kind(), want, "{path}");
        }
        let Value::List(list) = &value(&node, "d").value else { panic!("{node:?}") };
        assert_eq!((list[0].kind(), list[1].kind()), ("007".into(), "3".into()));
    }

    #[test]
    fn a_broken_file_is_refused_without_its_values() {
        for value in [
            "\"s3cret",
            "'s3cret",
            "*s3cret",
            "&s3cret",
            "!s3cret x",
            "!!int s3cret",
            "!!binary s3cret%",
            "@s3cret",
            "%s3cret",
            "`s3cret",
            "s3cret: s3cret: x",
            "{s3cret",
            "[s3cret",
            "s3cret]: x]",
            "\"\\s3cret\"",
            "\"a\\qs3cret\"",
            "s3cret\n s3cret: x\ns3cret",
            "|9s3cret",
            "\u{7}s3cret",
            "s3cret\n---\ns3cret",
            "!!float s3cret",
            "!!bool s3cret",
            "<<: s3cret",
        ] {
            let text = format!("vcluster:\n  k3sToken: {value}\n");
            if let Err(error) = parse(&text) {
                assert!(!error.what.contains("s3cret"), "{value}: {error:?}");
            }
        }
    }

    #[test]
    fn odd_keys_do_not_stop_the_file() {
        let node = parse("1: a\ntrue: b\n1.5: c\n'': d\n~: e\n").unwrap();
        for key in ["1", "true", "1.5", "", "null"] {
            assert!(node.get(key).is_some(), "{key:?} in {node:?}");
        }
    }

    #[test]
    fn what_is_not_usable_yaml_is_refused_with_its_line() {
        let bomb = {
            let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
            for i in 1..12 {
                let aliases = vec![format!("*a{}", i - 1); 10].join(", ");
                text.push_str(&format!("a{i}: &a{i} [{aliases}]\n"));
            }
            text
        };
        let deep = "[".repeat(5_000);
        let many = "- a\n".repeat(200_000);
        for (name, text, line) in [
            ("duplicate key", "a: 1\nb: 2\na: 3\n", Some(3)),
            ("nested duplicate key", "x:\n  a: 1\n  a: 3\n", Some(3)),
            ("several documents", "a: 1\n---\nb: 2\n", None),
            ("tab", "a:\n\tb: 1\n", Some(2)),
            ("unclosed", "a: [1, 2\nb: 3\n", None),
            ("unknown alias", "a: 1\nb: *nope\n", Some(2)),
            ("alias bomb", &bomb, None),
            ("deep", &deep, None),
            ("many", &many, None),
            ("key that is a list", "? [a, b]\n: 1\n", Some(1)),
        ] {
            let error = parse(text).expect_err(name);
            assert!(
                !error.what.is_empty() && !error.what.contains('\n') && error.what.len() < 300,
                "{name}: {error:?}"
            );
            if line.is_some() {
                assert_eq!(error.line, line, "{name}: {error:?}");
            }
        }
    }
}
