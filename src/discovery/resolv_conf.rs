//! `resolv.conf`: which servers to ask, and how a relative name is completed. Pure, apart from [`ResolvConf::read`].
//!
//! Format: resolv.conf(5). Lines that cannot be read are passed over, as the C library does.

use std::io::{self, Read};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use hickory_proto::rr::Name;

/// No more servers than the C library asks (its MAXNS).
const MAX_SERVERS: usize = 3;
/// No more search domains than the kubelet writes (its MaxDNSSearchPaths).
const MAX_SEARCH: usize = 32;
/// No more dots are counted (the C library's RES_MAXNDOTS).
const MAX_NDOTS: usize = 15;
/// No such file is larger.
const MAX_BYTES: u64 = 64 << 10;

/// The content of a `resolv.conf`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvConf {
    /// `nameserver` lines, in order.
    pub servers: Vec<SocketAddr>,
    /// The last `search` or `domain` line; all full names.
    pub search: Vec<Name>,
    /// A name with at least so many dots is tried as it is first.
    pub ndots: usize,
}

impl Default for ResolvConf {
    fn default() -> ResolvConf {
        ResolvConf { servers: Vec::new(), search: Vec::new(), ndots: 1 }
    }
}

impl ResolvConf {
    /// Reads a file; one that does not exist is empty.
    pub fn read(path: &Path) -> io::Result<ResolvConf> {
        let mut bytes = Vec::new();
        match std::fs::File::open(path).and_then(|file| file.take(MAX_BYTES).read_to_end(&mut bytes)) {
            Ok(_) => Ok(ResolvConf::parse(&String::from_utf8_lossy(&bytes))),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(ResolvConf::default()),
            Err(e) => Err(e),
        }
    }

    /// Parses the text.
    pub fn parse(text: &str) -> ResolvConf {
        let mut conf = ResolvConf::default();
        for line in text.lines() {
            let mut words = line.split_ascii_whitespace();
            match words.next() {
                Some("nameserver") if conf.servers.len() < MAX_SERVERS => {
                    let ip = words.next().and_then(|w| w.parse::<IpAddr>().ok());
                    conf.servers.extend(ip.filter(|ip| !ip.is_unspecified()).map(|ip| SocketAddr::new(ip, 53)));
                }
                Some("search" | "domain") => conf.search = words.filter_map(full_name).take(MAX_SEARCH).collect(),
                Some("options") => {
                    for ndots in words.filter_map(|w| w.strip_prefix("ndots:")?.parse::<usize>().ok()) {
                        conf.ndots = ndots.min(MAX_NDOTS);
                    }
                }
                _ => {}
            }
        }
        conf
    }

    /// The full names that a name may stand for, in the order in which they are tried.
    pub fn candidates(&self, name: &Name) -> Vec<Name> {
        let mut absolute = name.clone();
        absolute.set_fqdn(true);
        if name.is_fqdn() {
            return vec![absolute];
        }
        // One too long to be a name is none.
        let mut names: Vec<Name> =
            self.search.iter().filter_map(|domain| name.clone().append_domain(domain).ok()).collect();
        let dots = usize::from(name.num_labels()).saturating_sub(1);
        names.insert(if dots >= self.ndots { 0 } else { names.len() }, absolute);
        names
    }
}

fn full_name(text: &str) -> Option<Name> {
    let mut name = Name::from_ascii(text).ok()?;
    name.set_fqdn(true);
    // The root adds nothing.
    Some(name).filter(|n| !n.is_root())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidates(conf: &str, name: &str) -> Vec<String> {
        let name = Name::from_ascii(name).unwrap();
        ResolvConf::parse(conf).candidates(&name).iter().map(Name::to_ascii).collect()
    }

    #[test]
    fn what_the_kubelet_writes() {
        let conf = ResolvConf::parse(
            "search team-a.svc.cluster.local svc.cluster.local cluster.local\nnameserver 10.96.0.10\noptions ndots:5\n",
        );
        assert_eq!(conf.servers, ["10.96.0.10:53".parse().unwrap()]);
        assert_eq!((conf.search.len(), conf.ndots), (3, 5));
    }

    #[test]
    fn what_cannot_be_read_is_passed_over() {
        let conf = ResolvConf::parse(
            "# a\n; b\nnameserver\nnameserver x\nnameserver ::1\nnameserver 0.0.0.0\nsearch a..b ok. .\n\
             options rotate ndots:x ndots:99 edns0\nsortlist 1\n\u{1}\n",
        );
        assert_eq!(conf.servers, ["[::1]:53".parse().unwrap()]);
        assert_eq!(conf.search, [Name::from_ascii("ok.").unwrap()]);
        assert_eq!(conf.ndots, MAX_NDOTS);
        let many = "nameserver 10.0.0.1\n".repeat(9) + "search " + &"a.b ".repeat(99);
        let conf = ResolvConf::parse(&many);
        assert_eq!((conf.servers.len(), conf.search.len()), (MAX_SERVERS, MAX_SEARCH));
    }

    #[test]
    fn the_last_search_list_counts() {
        assert_eq!(ResolvConf::parse("domain a\nsearch b c").search.len(), 2);
        assert_eq!(ResolvConf::parse("search b c\ndomain a").search.len(), 1);
    }

    #[test]
    fn a_name_is_completed_as_its_dots_say() {
        assert_eq!(candidates("search x y\noptions ndots:5", "a.b.c"), ["a.b.c.x.", "a.b.c.y.", "a.b.c."]);
        assert_eq!(candidates("search x y\noptions ndots:2", "a.b.c"), ["a.b.c.", "a.b.c.x.", "a.b.c.y."]);
        assert_eq!(candidates("search x y\noptions ndots:5", "a.b.c."), ["a.b.c."]);
        assert_eq!(candidates("", "a"), ["a."]);
        let long = format!("search {0}.{0}.{0} y\noptions ndots:5", "l".repeat(60));
        let name = format!("{0}.{0}", "n".repeat(60));
        assert_eq!(candidates(&long, &name).len(), 2, "the one that is too long is left out");
    }

    #[test]
    fn a_missing_file_is_empty_and_an_unreadable_one_an_error() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(ResolvConf::read(&dir.path().join("none")).unwrap(), ResolvConf::default());
        assert!(ResolvConf::read(dir.path()).is_err());
    }
}
