//! The k3s token, with which k3s encrypts its bootstrap data in the datastore: a lost or changed one makes the datastore
//! useless to it. So each volume keeps it, and all pods share it: by the values, or with a host API by Secret
//! `vc-k3s-<name>`, key `token`, where vCluster has it too (`pkg/k3s/token.go`).

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rand::Rng;
use rand::distr::Alphanumeric;

use crate::disk::Disk;
use crate::exit::{Exit, refuse};
use crate::host::secret::SecretData;
use crate::host::share::{Fact, Local, Naming, Print, Sharing, There};
use crate::settings::{Distro, Settings};

/// As long as vCluster's own.
const TOKEN_CHARS: usize = 64;

/// A token file holds one line; k3s' own form is about 100 bytes.
const TOKEN_BYTES_MAX: u64 = 4096;

/// The Secret's key.
const KEY: &str = "token";

/// The token of these settings, or of this volume: what the values say; what an earlier start of ours kept; what k3s
/// itself wrote (vCluster reads the same file for virtual clusters from before it managed tokens).
pub fn known(settings: &Settings) -> Result<Option<String>> {
    if let Some(token) = given(settings) {
        return Ok(Some(token.to_owned()));
    }
    for file in [&kept(settings), &settings.data_dir.join("server/token")] {
        if let Some(token) = read(file)? {
            return Ok(Some(token));
        }
    }
    Ok(None)
}

/// A new one.
pub fn new() -> String {
    rand::rng().sample_iter(Alphanumeric).take(TOKEN_CHARS).map(char::from).collect()
}

/// Keeps it on the volume, durably.
pub fn keep(settings: &Settings, token: &str, disk: &dyn Disk) -> Result<()> {
    disk.create_dir(&settings.data_dir)?;
    disk.write_durable(&kept(settings), token.as_bytes(), 0o600).context("keep the k3s token")
}

fn given(settings: &Settings) -> Option<&str> {
    settings.k3s_token.as_deref().map(str::trim).filter(|token| !token.is_empty())
}

fn kept(settings: &Settings) -> PathBuf {
    settings.data_dir.join("k3s-token")
}

fn read(file: &Path) -> Result<Option<String>> {
    let opened = match fs::File::open(file) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.with_context(|| format!("open {}", file.display()))?,
    };
    let mut bytes = Vec::new();
    opened.take(TOKEN_BYTES_MAX + 1).read_to_end(&mut bytes).with_context(|| format!("read {}", file.display()))?;
    let token = parse(&bytes).ok_or_else(|| {
        refuse(
            Exit::Fault,
            format!("{} does not hold a k3s token", file.display()),
            "restore it, or set k3sToken in the values; without the right token k3s cannot read its datastore",
        )
    })?;
    Ok(Some(token))
}

fn parse(bytes: &[u8]) -> Option<String> {
    let token = std::str::from_utf8(bytes).ok()?.trim();
    let good = !token.is_empty() && bytes.len() as u64 <= TOKEN_BYTES_MAX && !token.contains(char::is_whitespace);
    good.then(|| token.to_owned())
}

/// Which it is: k3s' own form, `K10<hash of its CA>::server:<password>`, is that of the password alone.
fn print(token: &str) -> Print {
    let password = match token.strip_prefix("K10").and_then(|rest| rest.split_once("::")) {
        Some((_, credentials)) => credentials.split_once(':').map_or(credentials, |(_, password)| password),
        None => token,
    };
    Print::of(password.as_bytes())
}

/// The token, as the pods share it.
pub struct SharedToken<'a>(pub &'a Settings);

impl SharedToken<'_> {
    /// Whether this pod runs k3s and gives it a token.
    pub fn is_shared(&self) -> bool {
        self.0.distro == Distro::K3s && self.0.wrapped.is_none()
    }
}

/// The only thing that is shared in its Secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token;

impl std::fmt::Display for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("k3s token")
    }
}

impl Sharing for SharedToken<'_> {
    type Item = Token;

    fn facts(&self, secret: Option<&SecretData>) -> Result<Vec<Fact<Token>>> {
        let local = match (given(self.0), known(self.0)?) {
            (Some(_), _) => Local::Given,
            (None, Some(token)) => Local::Held { print: print(&token), whole: true },
            (None, None) => Local::Absent,
        };
        let there = match secret.and_then(|data| data.0.get(KEY)) {
            None => There::Absent,
            Some(bytes) => match parse(bytes) {
                Some(token) => There::Whole(print(&token)),
                None => There::Bad("it is no token".to_owned()),
            },
        };
        Ok(vec![Fact { item: Token, local, there }])
    }

    fn content(&self, _held: &[Token], made: &[Token], _there: Option<&SecretData>) -> Result<SecretData> {
        let token = match made {
            [] => known(self.0)?.context("the k3s token is gone")?,
            _ => new(),
        };
        Ok(SecretData([(KEY.to_owned(), token.into_bytes())].into()))
    }

    fn adopt(&self, _items: &[Token], secret: &SecretData, disk: &dyn Disk) -> Result<()> {
        let token = secret.0.get(KEY).and_then(|bytes| parse(bytes)).context("the k3s token is gone")?;
        keep(self.0, &token, disk)
    }
}

impl Naming<Token> for SharedToken<'_> {
    fn here(&self, _: Token) -> String {
        let kept = kept(self.0);
        let file = if kept.exists() { kept } else { self.0.data_dir.join("server/token") };
        file.display().to_string()
    }

    fn there(&self, _: Token) -> String {
        KEY.to_owned()
    }

    fn given(&self) -> &'static str {
        "set k3sToken (0.20 and later: controlPlane.distro.k3s.token) to the same text for every pod, which wins"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn k3s_own_form_is_the_same_token() {
        assert_eq!(print("K10ab12::server:secret"), print("secret"));
        assert_ne!(print("K10ab12::server:secret"), print("other"));
        assert_eq!(print("K10secret"), Print::of(b"K10secret"));
        for bad in [&b""[..], b" \n", b"a b", b"\xff", &[b'a'; 5000]] {
            assert_eq!(parse(bad), None);
        }
        assert_eq!(parse(b"secret\n").as_deref(), Some("secret"));
    }
}
