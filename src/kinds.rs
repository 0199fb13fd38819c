//! What the keys of a store are of: kinds of resource, counted.

use std::collections::HashMap;
use std::fmt;

use serde::Serialize;

/// So many kinds of resource are told apart at most, and so many shown.
const MAX_KINDS: usize = 4096;
const SHOWN_KINDS: usize = 10;

/// Keys that the API server did not write.
const OTHER: &str = "(other)";

/// A kind of resource.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Kind {
    /// `pods`, `deployments`, `example.com/widgets`: by the key's first parts.
    pub kind: String,
    /// Keys.
    pub keys: u64,
    /// Bytes of keys and values.
    pub bytes: u64,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} keys, {} MiB)", self.kind, self.keys, self.bytes.div_ceil(1 << 20))
    }
}

/// Counts keys and bytes by kind, in bounded memory.
#[derive(Clone, Debug, Default)]
pub struct Kinds(HashMap<String, (u64, u64)>);

impl Kinds {
    /// Counts a key with its value.
    pub fn count(&mut self, key: &[u8], bytes: u64) {
        let mut kind = kind_of(key);
        if self.0.len() >= MAX_KINDS && !self.0.contains_key(&kind) {
            kind = OTHER.to_owned();
        }
        let (keys, sum) = self.0.entry(kind).or_default();
        *keys += 1;
        *sum += bytes;
    }

    /// The biggest, biggest first.
    pub fn biggest(self) -> Vec<Kind> {
        let mut list: Vec<Kind> = self.0.into_iter().map(|(kind, (keys, bytes))| Kind { kind, keys, bytes }).collect();
        list.sort_by(|a, b| b.bytes.cmp(&a.bytes).then_with(|| a.kind.cmp(&b.kind)));
        list.truncate(SHOWN_KINDS);
        list
    }
}

/// The kind of resource by the key, as the API server lays it out: `/registry/<resource>/...` for most built-in groups,
/// `/registry/<group>/<resource>/...` for custom resources and some others, whose group has a dot.
fn kind_of(key: &[u8]) -> String {
    let Some(rest) = std::str::from_utf8(key).ok().and_then(|k| k.strip_prefix("/registry/")) else {
        return OTHER.to_owned();
    };
    let mut parts = rest.split('/');
    match (parts.next(), parts.next()) {
        (Some(group), Some(resource)) if group.contains('.') => format!("{group}/{resource}"),
        (Some("services"), Some(resource)) => format!("services/{resource}"),
        (Some(resource), Some(_)) => resource.to_owned(),
        _ => OTHER.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_told_by_the_key() {
        for (key, kind) in [
            ("/registry/pods/default/a", "pods"),
            ("/registry/deployments/default/a", "deployments"),
            ("/registry/services/specs/default/a", "services/specs"),
            ("/registry/services/endpoints/default/a", "services/endpoints"),
            ("/registry/example.com/widgets/default/a", "example.com/widgets"),
            ("/registry/apiregistration.k8s.io/apiservices/v1.", "apiregistration.k8s.io/apiservices"),
            ("/registry/health", OTHER),
            ("/bootstrap/abc", OTHER),
            ("\u{fffd}", OTHER),
        ] {
            assert_eq!(kind_of(key.as_bytes()), kind, "{key}");
        }
        assert_eq!(kind_of(b"/registry/\xff/a"), OTHER);
    }

    #[test]
    fn endless_kinds_do_not_fill_the_memory() {
        let mut kinds = Kinds::default();
        for i in 0..10_000 {
            kinds.count(format!("/registry/kind{i}/a").as_bytes(), 1);
        }
        assert!(kinds.0.len() <= MAX_KINDS + 1);
        let list = kinds.biggest();
        assert_eq!((list.len(), list[0].kind.as_str()), (SHOWN_KINDS, OTHER));
    }
}
