//! Reading and completing argument vectors of Kubernetes programs.
//!
//! These programs (pflag) take `--name=value` and `--name value`, treat `_` in a name as `-`, and let the last of
//! several win unless the flag is a list. A boolean takes its value only after `=`.

/// The flags of one program, in order, without the program's name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Flags(pub Vec<String>);

/// The name of a flag token: `--etcd_servers=x` is `etcd-servers`; `None` for a positional argument.
fn name_of(token: &str) -> Option<String> {
    let name = token.strip_prefix("--").or_else(|| token.strip_prefix('-'))?;
    let name = name.split('=').next().unwrap_or(name);
    (!name.is_empty()).then(|| name.replace('_', "-"))
}

impl Flags {
    /// The value of the last flag of this name: what follows `=`, else the next token unless that is a flag itself.
    pub fn value(&self, name: &str) -> Option<&str> {
        self.values(name).last().copied()
    }

    /// The values of all flags of this name; an empty text for one without a value.
    pub fn values(&self, name: &str) -> Vec<&str> {
        let named = |token: &str| name_of(token).is_some_and(|n| n == name);
        let after = self.0.iter().skip(1).map(Some).chain(std::iter::once(None));
        self.0
            .iter()
            .zip(after)
            .filter(|(token, _)| named(token))
            .map(|(token, next)| match token.split_once('=') {
                Some((_, value)) => value,
                None => next.filter(|n| !n.starts_with('-')).map_or("", String::as_str),
            })
            .collect()
    }

    /// Whether a flag of this name is there.
    pub fn has(&self, name: &str) -> bool {
        self.0.iter().any(|token| name_of(token).is_some_and(|n| n == name))
    }

    /// Appends `--name=value` unless a flag of this name is there.
    pub fn add_missing(&mut self, name: &str, value: impl AsRef<str>) {
        if !self.has(name) {
            self.set(name, value);
        }
    }

    /// Appends `--name=value`.
    pub fn set(&mut self, name: &str, value: impl AsRef<str>) {
        self.0.push(format!("--{name}={}", value.as_ref()));
    }

    /// Appends what the values file gives in addition, less what is there word for word already: the charts of 0.19
    /// put `extraArgs` into the command that they pass, and the values file still has them.
    pub fn extend_by(&mut self, extra: &[String]) {
        if extra.is_empty() || self.0.ends_with(extra) {
            return;
        }
        let new: Vec<_> =
            extra.iter().filter(|token| !(token.contains('=') && self.0.contains(token))).cloned().collect();
        self.0.extend(new);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(line: &str) -> Flags {
        Flags(line.split_whitespace().map(str::to_owned).collect())
    }

    #[test]
    fn values_in_every_spelling() {
        for (line, name, want) in [
            ("--etcd-servers=https://a:1", "etcd-servers", Some("https://a:1")),
            ("--etcd-servers https://a:1 --v=2", "etcd-servers", Some("https://a:1")),
            ("--etcd_servers=x", "etcd-servers", Some("x")),
            ("-etcd-servers=x", "etcd-servers", Some("x")),
            ("--a=1 --a=2", "a", Some("2")),
            ("--a=b=c", "a", Some("b=c")),
            ("--flag --v=2", "flag", Some("")),
            ("--flag", "flag", Some("")),
            ("server --a=1", "server", None),
            ("--ab=1", "a", None),
            ("", "a", None),
            ("-- --=", "", None),
        ] {
            assert_eq!(flags(line).value(name), want, "{line}");
        }
        assert_eq!(flags("--x=1 --y --x 2").values("x"), ["1", "2"]);
    }

    #[test]
    fn nothing_is_doubled() {
        let mut f = flags("--a=1");
        f.add_missing("a", "2");
        f.add_missing("b", "2");
        f.extend_by(&["--b=2".into(), "--c=3".into()]);
        f.extend_by(&["--d".into(), "4".into()]);
        f.extend_by(&["--d".into(), "4".into()]);
        assert_eq!(f, flags("--a=1 --b=2 --c=3 --d 4"));
    }
}
