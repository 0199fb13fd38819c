//! How a command is told of another etcd: a URL, and the files with which it is asked.

use std::path::PathBuf;

use super::client::{ClientTls, EtcdEndpoint};
use crate::exit::{Exit, refuse};
use crate::settings::provenance::without_user;

/// The files for an etcd whose URL begins with `https://`.
#[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args)]
pub struct TlsFlags {
    /// The CA of the running etcd's certificate.
    #[arg(long, value_name = "FILE")]
    pub cacert: Option<PathBuf>,
    /// A client certificate for the running etcd.
    #[arg(long, value_name = "FILE", requires_all = ["cacert", "key"])]
    pub cert: Option<PathBuf>,
    /// The key of that certificate.
    #[arg(long, value_name = "FILE", requires_all = ["cacert", "cert"])]
    pub key: Option<PathBuf>,
}

impl TlsFlags {
    /// Whether any of them is given.
    pub fn given(&self) -> bool {
        self.cacert.is_some() || self.cert.is_some() || self.key.is_some()
    }

    /// Where the etcd at `url` is asked, and with what.
    ///
    /// # Errors
    /// [`Exit::Usage`] if the URL and the files do not go together.
    pub fn endpoint(&self, url: &str) -> anyhow::Result<EtcdEndpoint> {
        let usage = |what: String, remedy: &str| Err(refuse(Exit::Usage, what, remedy));
        let shown = without_user(url);
        if shown != url {
            return usage(
                format!("etcd's URL has a user in it, {shown}, and none is asked for here"),
                "leave it out: --cert and --key say who asks",
            );
        }
        let encrypted = url.starts_with("https://");
        if !encrypted && !url.starts_with("http://") {
            return usage(
                format!("etcd's URL must begin with http:// or https://, not {shown}"),
                "https://HOST:2379, say",
            );
        }
        let tls = match (encrypted, &self.cacert) {
            (true, None) => {
                return usage(format!("{shown} needs the CA of the server's certificate"), "give --cacert FILE");
            }
            (true, Some(ca)) => Some(ClientTls { ca: ca.clone(), identity: self.cert.clone().zip(self.key.clone()) }),
            (false, _) if self.given() => {
                return usage(
                    format!("{shown} is asked without certificates"),
                    "leave out --cacert, --cert and --key, or give an https:// URL",
                );
            }
            (false, _) => None,
        };
        Ok(EtcdEndpoint { url: url.to_owned(), tls, server_name: None })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::exit_of;

    #[test]
    fn the_url_and_the_files_go_together() {
        let files = |ca: bool, pair: bool| TlsFlags {
            cacert: ca.then(|| "ca".into()),
            cert: pair.then(|| "cert".into()),
            key: pair.then(|| "key".into()),
        };
        let identity = Some(("cert".into(), "key".into()));
        let tls = |identity| Some(ClientTls { ca: "ca".into(), identity });
        for (url, flags, want) in [
            ("http://a:1", files(false, false), Ok(None)),
            ("https://a:1", files(true, false), Ok(tls(None))),
            ("https://a:1", files(true, true), Ok(tls(identity))),
            ("https://a:1", files(false, false), Err("needs the CA")),
            ("http://a:1", files(true, false), Err("without certificates")),
            ("http://a:1", files(false, true), Err("without certificates")),
            ("a:1", files(false, false), Err("must begin with")),
            ("u:p@a:1", files(false, false), Err("a user in it, (set, not shown)@a:1")),
            ("https://u:p@a:1", files(true, false), Err("a user in it, https://(set, not shown)@a:1")),
        ] {
            match (flags.endpoint(url), want) {
                (Ok(found), Ok(tls)) => assert_eq!(found, EtcdEndpoint { url: url.into(), tls, server_name: None }),
                (Err(error), Err(words)) => {
                    assert_eq!(exit_of(&error), Exit::Usage);
                    assert!(error.to_string().contains(words), "{error}");
                }
                (found, want) => panic!("{url}: {found:?}, not {want:?}"),
            }
        }
    }
}
