//! Checks of single settings, wherever they came from. Each refusal has exit code 2 and names the origin.

use std::net::IpAddr;

use super::Listen;
use super::provenance::without_user;
use crate::exit::{Exit, refuse};
use crate::telemetry;

/// A name as Kubernetes takes it for a Service or namespace (RFC 1123 label).
pub fn label(what: &str, name: &str, origin: &str) -> anyhow::Result<()> {
    if is_label(name) {
        return Ok(());
    }
    let name: String = name.chars().take(80).collect();
    let what = format!("{what} is {name:?} ({origin}), which Kubernetes does not take as a name");
    Err(refuse(
        Exit::Usage,
        what,
        "use lower-case letters, digits and '-', at most 63, beginning and ending with a letter or digit",
    ))
}

/// Labels joined by dots.
pub fn dns_name(what: &str, name: &str, origin: &str) -> anyhow::Result<()> {
    if name.len() <= 253 && name.split('.').all(is_label) {
        return Ok(());
    }
    let name: String = name.chars().take(80).collect();
    Err(refuse(
        Exit::Usage,
        format!("{what} is {name:?} ({origin}), which is not a DNS name"),
        "use lower-case letters, digits, '-' and '.'",
    ))
}

fn is_label(name: &str) -> bool {
    let alphanumeric = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    (1..=63).contains(&name.len())
        && name.bytes().all(|b| alphanumeric(&b) || b == b'-')
        && name.as_bytes().first().is_some_and(alphanumeric)
        && name.as_bytes().last().is_some_and(alphanumeric)
}

/// An address or name for a certificate; a name may begin with a wildcard.
pub fn san(san: &str, origin: &str) -> anyhow::Result<()> {
    let name = san.strip_prefix("*.").unwrap_or(san);
    let host = name.len() <= 253 && name.split('.').all(|part| is_label(&part.to_ascii_lowercase()));
    if san.parse::<IpAddr>().is_ok() || host {
        return Ok(());
    }
    let san: String = san.chars().take(80).collect();
    Err(refuse(
        Exit::Usage,
        format!("{san:?} ({origin}) is neither a host name nor an address"),
        "correct the additional name",
    ))
}

/// One range of addresses, or two for a dual-stack cluster.
pub fn cidrs(text: &str, origin: &str) -> anyhow::Result<()> {
    let one = |cidr: &str| {
        let (ip, bits) = cidr.split_once('/')?;
        let (ip, bits) = (ip.parse::<IpAddr>().ok()?, bits.parse::<u8>().ok()?);
        (bits <= if ip.is_ipv4() { 32 } else { 128 }).then_some(())
    };
    let parts: Vec<_> = text.split(',').collect();
    if parts.len() <= 2 && parts.iter().all(|cidr| one(cidr).is_some()) {
        return Ok(());
    }
    let text: String = text.chars().take(80).collect();
    let what = format!("the range of Service addresses is {text:?} ({origin})");
    Err(refuse(Exit::Usage, what, "write it as 10.96.0.0/12, or two of them with a comma"))
}

/// The URL of an etcd to move from.
pub fn etcd_url(url: &str, origin: &str) -> anyhow::Result<()> {
    let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
    if rest.and_then(host_and_port).is_some() {
        return Ok(());
    }
    let url: String = without_user(url).chars().take(80).collect();
    Err(refuse(
        Exit::Usage,
        format!("{url:?} ({origin}) is not an etcd's URL"),
        "write it as https://my-vcluster-etcd:2379",
    ))
}

/// Whether an endpoint (`127.0.0.1:2379`, with or without a scheme) is this pod's own.
pub fn is_loopback(endpoint: &str) -> bool {
    let rest = endpoint.split_once("://").map_or(endpoint, |(_, rest)| rest);
    let Some((host, _)) = host_and_port(rest) else { return false };
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// `host:port` or `[v6]:port`, with nothing after it.
fn host_and_port(text: &str) -> Option<(&str, u16)> {
    let (host, port) = text.strip_suffix('/').unwrap_or(text).rsplit_once(':')?;
    let port = port.parse().ok().filter(|port| *port > 0)?;
    let bracketed = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
    match bracketed {
        Some(v6) => v6.parse::<IpAddr>().ok().map(|_| (v6, port)),
        None => host.split('.').all(|part| is_label(&part.to_ascii_lowercase())).then_some((host, port)),
    }
}

/// A level, or levels by part.
pub fn log_level(text: &str, origin: &str) -> anyhow::Result<()> {
    if telemetry::levels(text).is_some() {
        return Ok(());
    }
    let text: String = text.chars().take(80).collect();
    let what = format!("the log level is {text:?} ({origin})");
    Err(refuse(Exit::Usage, what, "use error, warn, info, debug or trace, or by part: info,etcd=warn"))
}

/// Two listeners on one port cannot be. `origin` tells where a setting comes from.
pub fn distinct_ports(listen: &Listen, origin: impl Fn(&str) -> String) -> anyhow::Result<()> {
    let ports = [
        ("--client-port", "listen.clientPort", listen.client_port),
        ("--peer-port", "listen.peerPort", listen.peer_port),
        ("--metrics-port", "listen.metricsPort", listen.metrics_port),
        ("--state-port", "listen.statePort", listen.state_port),
        ("--port", "listen.port", listen.front_port),
        ("--apiserver-port", "listen.apiserverPort", listen.apiserver_port),
    ];
    for (i, (flag, setting, port)) in ports.iter().enumerate() {
        if let Some((other, its, _)) = ports.iter().take(i).find(|(_, _, p)| p == port) {
            let (its, origin) = (origin(its), origin(setting));
            let what = format!("{other} ({its}) and {flag} ({origin}) are both {port}");
            return Err(refuse(Exit::Usage, what, "give each its own port"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn agree(check: impl Fn(&str) -> anyhow::Result<()>, good: &[&str], bad: &[&str]) {
        for text in good {
            check(text).unwrap_or_else(|e| panic!("{text:?}: {e}"));
        }
        for text in bad {
            let error = check(text).expect_err(text);
            assert_eq!(crate::exit::exit_of(&error), Exit::Usage, "{text:?}");
            assert!(error.to_string().contains("here"), "{error} does not name the origin");
        }
    }

    #[test]
    fn names() {
        agree(
            |t| label("x", t, "here"),
            &["a", "my-vcluster", "0a"],
            &["", "A", "-a", "a-", "a.b", "a_b", &"a".repeat(64)],
        );
        agree(|t| dns_name("x", t, "here"), &["cluster.local", "a"], &["", "a..b", ".a", "a/b"]);
        agree(
            |t| san(t, "here"),
            &["Example.com", "*.example.com", "10.0.0.1", "::1"],
            &["", "*", "a b", "a/b", "*.*.a"],
        );
    }

    #[test]
    fn addresses() {
        agree(
            |t| cidrs(t, "here"),
            &["10.96.0.0/12", "fd00::/108", "10.0.0.0/8,fd00::/108"],
            &["", "10.0.0.0", "10.0.0.0/33", "x/8", "a,b,c", "10.0.0.0/8,"],
        );
        agree(
            |t| etcd_url(t, "here"),
            &["https://a-etcd:2379", "http://127.0.0.1:2379", "https://[::1]:2379/", "https://a.b.svc:1"],
            &["", "a:2379", "https://a", "https://a:0", "https://u:p@a:1", "https://a:1/x", "ftp://a:1", "https://:1"],
        );
        for (endpoint, want) in [
            ("127.0.0.1:2379", true),
            ("https://127.0.0.1:2379", true),
            ("https://localhost:2379", true),
            ("[::1]:2379", true),
            ("etcd:2379", false),
            ("127.0.0.1.example.com:2379", false),
            ("https://localhost.evil:2379", false),
            ("", false),
            ("127.0.0.1", false),
        ] {
            assert_eq!(is_loopback(endpoint), want, "{endpoint}");
        }
    }

    #[test]
    fn levels() {
        agree(
            |t| log_level(t, "here"),
            &["info", "DEBUG", "info,etcd=warn", "syncer::boot=trace", "off", " info , etcd = warn"],
            &["inof", "info,etcd=wran", "9x", "3", "", "=", "=info", "info,", "etcd="],
        );
    }

    #[test]
    fn ports() {
        let mut listen = Listen {
            address: [127, 0, 0, 1].into(),
            client_port: 1,
            peer_port: 2,
            metrics_port: 3,
            state_port: 6,
            front_port: 4,
            apiserver_port: 5,
        };
        let origin =
            |setting: &str| if setting == "listen.port" { "v.yaml:3".to_owned() } else { "default".to_owned() };
        distinct_ports(&listen, origin).unwrap();
        listen.front_port = 2;
        let error = distinct_ports(&listen, origin).unwrap_err().to_string();
        assert!(error.contains("--peer-port (default) and --port (v.yaml:3) are both 2"), "{error}");
    }
}
