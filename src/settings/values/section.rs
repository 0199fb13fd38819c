//! A mapping of the values file with its path, so that every error names both the key and its line.

use crate::settings::yaml::{Key, Node, Value};

/// A value and the line it is written on.
#[derive(Clone, Debug, PartialEq)]
pub struct Spot<T> {
    /// The value.
    pub value: T,
    /// Its line in the values file.
    pub line: u64,
}

impl<T> Spot<T> {
    /// The same line with another value.
    pub fn map<U>(self, f: impl FnOnce(T) -> U) -> Spot<U> {
        Spot { value: f(self.value), line: self.line }
    }
}

/// What is wrong at a line, and the remedy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The line, if there is one.
    pub line: Option<u64>,
    /// What is wrong.
    pub what: String,
    /// What to do.
    pub remedy: String,
}

impl Fault {
    /// A fault at a line.
    pub fn at(line: u64, what: impl Into<String>, remedy: impl Into<String>) -> Fault {
        Fault { line: Some(line), what: what.into(), remedy: remedy.into() }
    }
}

/// A mapping at a path. One that is not written, or is null, is an empty one, as in Helm.
#[derive(Clone, Debug)]
pub struct Section<'n> {
    path: String,
    entries: &'n [(Key, Node)],
}

impl<'n> Section<'n> {
    /// The whole file.
    pub fn root(node: &'n Node) -> Section<'n> {
        match &node.value {
            Value::Map(entries) => Section::of(entries),
            _ => Section::of(&[]),
        }
    }

    /// The whole file, as its keys and their values.
    pub fn of(entries: &'n [(Key, Node)]) -> Section<'n> {
        Section { path: String::new(), entries }
    }

    /// The full name of a key in this section.
    pub fn name(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    /// The mapping under `key`.
    pub fn section(&self, key: &str) -> Result<Section<'n>, Fault> {
        let path = self.name(key);
        match self.node(key).map(|n| (&n.value, n)) {
            None => Ok(Section { path, entries: &[] }),
            Some((Value::Map(entries), _)) => Ok(Section { path, entries }),
            Some((_, node)) => Err(Fault::at(
                node.line,
                format!("{path} must be a mapping, not {}", node.type_name()),
                format!("write its keys indented below `{key}:`"),
            )),
        }
    }

    /// The mapping at a path of several keys.
    pub fn descend(&self, path: &[&str]) -> Result<Section<'n>, Fault> {
        path.iter().try_fold(self.clone(), |section, key| section.section(key))
    }

    /// The node under `key`, unless it is null.
    pub fn node(&self, key: &str) -> Option<&'n Node> {
        let (_, node) = self.entries.iter().find(|(k, _)| k.name == key)?;
        (node.value != Value::Null).then_some(node)
    }

    /// Whether nothing is written here.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Refuses keys other than `known`. `hints` gives a remedy for keys that one might expect to work here.
    pub fn only(&self, known: &[&str], hints: &[(&str, &str)]) -> Result<(), Fault> {
        for (key, _) in self.entries {
            if known.contains(&key.name.as_str()) {
                continue;
            }
            // Behind a `=` may stand the value of a flag.
            let shown: String = key.name.split('=').next().unwrap_or_default().chars().take(60).collect();
            let remedy = match (hints.iter().find(|(k, _)| *k == key.name), nearest(&key.name, known)) {
                (Some((_, hint)), _) => (*hint).to_owned(),
                (None, Some(near)) => format!("did you mean {near:?}?"),
                (None, None) => format!("the keys known here are {}", known.join(", ")),
            };
            let place = if self.path.is_empty() { String::new() } else { format!(" in {}", self.path) };
            return Err(Fault::at(key.line, format!("unknown key {shown:?}{place}"), remedy));
        }
        Ok(())
    }

    /// Refuses keys that can only be a misspelt one of `known`, in a section where foreign keys are passed over: what
    /// stands below such a key would be passed over with it.
    pub fn no_near_miss(&self, known: &[&str]) -> Result<(), Fault> {
        for (key, _) in self.entries.iter().filter(|(key, _)| !known.contains(&key.name.as_str())) {
            let name: String = key.name.chars().take(60).collect();
            let like =
                |k: &&&str| strsim::damerau_levenshtein(&name.to_lowercase(), &k.to_lowercase()) <= 1 + k.len() / 10;
            if let Some(near) = known.iter().find(like) {
                let place = if self.path.is_empty() { "the values" } else { &self.path };
                return Err(Fault::at(
                    key.line,
                    format!("unknown key {name:?} in {place}"),
                    format!("did you mean {near:?}?"),
                ));
            }
        }
        Ok(())
    }

    /// A truth value.
    pub fn flag(&self, key: &str) -> Result<Option<Spot<bool>>, Fault> {
        let Some(node) = self.node(key) else { return Ok(None) };
        match node.value {
            Value::Bool(value) => Ok(Some(Spot { value, line: node.line })),
            _ => Err(self.wrong(
                key,
                node,
                "true or false",
                format!("write `{key}: true` or `{key}: false` without quotes"),
            )),
        }
    }

    /// A whole number.
    pub fn whole(&self, key: &str, what: &str) -> Result<Option<Spot<i64>>, Fault> {
        let Some(node) = self.node(key) else { return Ok(None) };
        match node.value {
            Value::Int(value) => Ok(Some(Spot { value, line: node.line })),
            _ => Err(self.wrong(key, node, what, "write a whole number without quotes".to_owned())),
        }
    }

    /// A text that is not empty; an empty one is as if it were not written, as in the charts.
    pub fn text(&self, key: &str) -> Result<Option<Spot<String>>, Fault> {
        let Some(node) = self.node(key) else { return Ok(None) };
        match &node.value {
            Value::Text(text) if text.is_empty() => Ok(None),
            Value::Text(text) => Ok(Some(Spot { value: text.clone(), line: node.line })),
            _ => Err(self.wrong(key, node, "text", "put the value in quotes".to_owned())),
        }
    }

    /// As [`Section::text`], of a value that is in no message.
    pub fn secret(&self, key: &str) -> Result<Option<Spot<String>>, Fault> {
        match self.node(key).map(|node| (&node.value, node)) {
            None | Some((Value::Text(_), _)) => self.text(key),
            Some((_, node)) => {
                let what = format!("{} must be text, not {}", self.name(key), node.type_name());
                Err(Fault::at(node.line, what, "put the value in quotes"))
            }
        }
    }

    /// A list of texts that is not empty. Messages leave out what is written: arguments may hold secrets. Numbers and truth values count as text, as the charts quote them.
    pub fn texts(&self, key: &str) -> Result<Option<Spot<Vec<String>>>, Fault> {
        Ok(self
            .text_nodes(key)?
            .map(|(line, nodes)| Spot { value: nodes.into_iter().map(|n| n.value).collect(), line }))
    }

    /// As [`Section::texts`], with the line of each.
    #[allow(clippy::type_complexity, reason = "used once")]
    pub fn text_nodes(&self, key: &str) -> Result<Option<(u64, Vec<Spot<String>>)>, Fault> {
        let Some(node) = self.node(key) else { return Ok(None) };
        let Value::List(list) = &node.value else {
            let what = format!("{} must be a list, not {}", self.name(key), node.type_name());
            return Err(Fault::at(node.line, what, "write one `- item` a line"));
        };
        let texts = list.iter().map(|item| {
            let value = match &item.value {
                Value::Text(text) => text.clone(),
                Value::Int(n) => n.to_string(),
                Value::Bool(b) => b.to_string(),
                _ => {
                    let what = format!("{} must be a list of texts, but holds {}", self.name(key), item.type_name());
                    return Err(Fault::at(item.line, what, "put the item in quotes"));
                }
            };
            Ok(Spot { value, line: item.line })
        });
        let texts = texts.collect::<Result<Vec<_>, _>>()?;
        Ok((!texts.is_empty()).then_some((node.line, texts)))
    }

    /// A number within bounds.
    pub fn within(&self, key: &str, low: i64, high: i64, unit: &str) -> Result<Option<Spot<i64>>, Fault> {
        let Some(spot) = self.whole(key, unit)? else { return Ok(None) };
        if (low..=high).contains(&spot.value) {
            return Ok(Some(spot));
        }
        let what = format!("{} is {}, but must be {unit} from {low} to {high}", self.name(key), spot.value);
        Err(Fault::at(spot.line, what, "correct the number"))
    }

    fn wrong(&self, key: &str, node: &Node, want: &str, remedy: String) -> Fault {
        Fault::at(node.line, format!("{} must be {want}, not {}", self.name(key), node.kind()), remedy)
    }
}

/// The known word that is most like `word`, if one is like it at all.
pub fn nearest<'k>(word: &str, known: &[&'k str]) -> Option<&'k str> {
    let lower: String = word.chars().take(60).collect::<String>().to_lowercase();
    known
        .iter()
        .map(|k| (strsim::jaro_winkler(&lower, &k.to_lowercase()), *k))
        .filter(|(likeness, _)| *likeness > 0.75)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, k)| k)
}
