//! etcd of each line on our PKI: mutual TLS, peers, and renewal under an open watch.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use syncer::pki::PkiPaths;
use syncer::pki::plan::Input;
use syncer::settings::Distro;
use time::OffsetDateTime;

use super::{Running, ensure, input, long_ago, serial_of, serial_served};
use crate::support::etcd::{LINES, PATIENCE, program, tail};
use crate::support::{free_port, poll};

/// An etcd member with mutual TLS on both ports.
pub struct TlsEtcd {
    pub running: Running,
    pub client_port: u16,
    pub peer_port: u16,
    line: &'static str,
    pki: PkiPaths,
}

impl TlsEtcd {
    /// Starts a member, as the first of a cluster or into the given one.
    pub fn start(line: &'static str, name: &str, dir: &Path, pki: &Path, ports: (u16, u16), others: &str) -> TlsEtcd {
        let (client_port, peer_port) = ports;
        let (tls, pki) = (PkiPaths::new(pki).etcd_tls(), PkiPaths::new(pki));
        let (client, peer) = (format!("https://localhost:{client_port}"), format!("https://localhost:{peer_port}"));
        let mut command = Command::new(program("etcd", line));
        command.args(["--name", name, "--data-dir"]).arg(dir.join(name));
        command.args(["--listen-client-urls", &format!("https://127.0.0.1:{client_port}")]);
        command.args(["--listen-peer-urls", &format!("https://127.0.0.1:{peer_port}")]);
        command.args(["--advertise-client-urls", &client, "--initial-advertise-peer-urls", &peer]);
        command.args(["--initial-cluster", &format!("{others}{name}={peer}")]);
        command.args(["--initial-cluster-state", if others.is_empty() { "new" } else { "existing" }]);
        command.args(["--client-cert-auth", "--peer-client-cert-auth"]);
        for (flag, file) in [
            ("--trusted-ca-file", &tls.ca),
            ("--cert-file", &tls.server_cert),
            ("--key-file", &tls.server_key),
            ("--peer-trusted-ca-file", &tls.peer_ca),
            ("--peer-cert-file", &tls.peer_cert),
            ("--peer-key-file", &tls.peer_key),
        ] {
            command.arg(flag).arg(file);
        }
        let running = Running::start(&mut command, &dir.join(format!("{name}.log")));
        TlsEtcd { running, client_port, peer_port, line, pki }
    }

    pub fn wait_until_serving(&self) {
        poll(&format!("etcd serves; see {}", self.running.log.display()), PATIENCE, || {
            self.ctl(&["get", "probe"]).status.success().then_some(())
        });
    }

    /// An etcdctl of the same line with the health check client's certificate.
    pub fn ctl_command(&self) -> Command {
        let tls = self.pki.etcd_tls();
        let mut command = self.ctl_without_certificate();
        command.arg("--cert").arg(&tls.client_cert).arg("--key").arg(&tls.client_key);
        command
    }

    fn ctl_without_certificate(&self) -> Command {
        let mut command = Command::new(program("etcdctl", self.line));
        command.args(["--endpoints", &format!("https://127.0.0.1:{}", self.client_port), "--dial-timeout=2s"]);
        command.args(["--command-timeout=5s", "--cacert"]).arg(self.pki.etcd_tls().ca);
        command
    }

    fn ctl(&self, args: &[&str]) -> Output {
        self.ctl_command().args(args).output().unwrap()
    }

    fn ok(&self, args: &[&str]) -> String {
        let patient = ["--dial-timeout=30s", "--command-timeout=30s"];
        let output = self.ctl_command().args(patient).args(args).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "etcdctl {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        text
    }
}

fn ports() -> (u16, u16) {
    (free_port(), free_port())
}

#[test]
fn only_clients_of_the_ca_are_served() {
    for line in LINES {
        let dir = tempfile::tempdir().unwrap();
        let (pki, other) = (dir.path().join("pki"), dir.path().join("other"));
        ensure(&input(&pki, Distro::None), OffsetDateTime::now_utc());
        ensure(&input(&other, Distro::None), OffsetDateTime::now_utc());
        let etcd = TlsEtcd::start(line, "my-0", dir.path(), &pki, ports(), "");
        etcd.wait_until_serving();
        etcd.ok(&["put", "k", "v"]);
        assert_eq!(etcd.ok(&["get", "k", "--print-value-only"]), "v\n", "{line}");

        let without = etcd.ctl_without_certificate().args(["get", "k"]).output().unwrap();
        assert!(!without.status.success() && without.stdout.is_empty(), "{line}: served without a certificate");
        let foreign = PkiPaths::new(&other).etcd_tls();
        let mut command = etcd.ctl_without_certificate();
        command.arg("--cert").arg(&foreign.client_cert).arg("--key").arg(&foreign.client_key);
        let with_foreign = command.args(["get", "k"]).output().unwrap();
        assert!(!with_foreign.status.success() && with_foreign.stdout.is_empty(), "{line}: served another CA's client");

        // The gateway dials its own client port with the server's certificate, which must be a client's too.
        let tls = PkiPaths::new(&pki).etcd_tls();
        let mut curl = Command::new("curl");
        curl.args(["-sS", "-m", "10", "--cacert"]).arg(&tls.ca).arg("--cert").arg(&tls.client_cert);
        curl.arg("--key").arg(&tls.client_key).args(["-d", r#"{"key":"aw=="}"#]);
        let answer = curl.arg(format!("https://localhost:{}/v3/kv/range", etcd.client_port)).output().unwrap();
        let text = String::from_utf8_lossy(&answer.stdout).into_owned();
        assert!(text.contains(r#""value":"dg==""#), "{line}: {text} {}", String::from_utf8_lossy(&answer.stderr));
    }
}

#[test]
fn two_members_talk_by_peer_certificates() {
    for line in LINES {
        let dir = tempfile::tempdir().unwrap();
        let pki = dir.path().join("pki");
        let made = ensure(&Input { desired: 2, ..input(&pki, Distro::None) }, OffsetDateTime::now_utc());
        assert!(!made.peer_skip_san);
        let first = TlsEtcd::start(line, "my-0", dir.path(), &pki, ports(), "");
        first.wait_until_serving();
        let second_ports = ports();
        let peer = format!("--peer-urls=https://localhost:{}", second_ports.1);
        first.ok(&["member", "add", "my-1", &peer]);
        let others = format!("my-0=https://localhost:{},", first.peer_port);
        let second = TlsEtcd::start(line, "my-1", dir.path(), &pki, second_ports, &others);
        second.wait_until_serving();
        first.ok(&["put", "k", line]);
        assert_eq!(second.ok(&["get", "k", "--print-value-only"]), format!("{line}\n"));
        for log in [&first.running, &second.running] {
            let text = log.text();
            assert!(!text.contains("does not match any of DNSNames"), "{line}: {}", tail(&log.log));
        }

        let tls = PkiPaths::new(&pki).etcd_tls();
        let members = |cert: Option<(&PathBuf, &PathBuf)>| {
            let mut curl = Command::new("curl");
            // Over HTTP/2, which 3.5 offers there, its answer is cut off.
            curl.args(["--http1.1", "-sS", "-m", "10", "--cacert"]).arg(&tls.peer_ca);
            if let Some((cert, key)) = cert {
                curl.arg("--cert").arg(cert).arg("--key").arg(key);
            }
            curl.arg(format!("https://localhost:{}/members", first.peer_port)).output().unwrap()
        };
        assert!(!members(None).status.success(), "{line}: the peer port answers without a certificate");
        let answer = members(Some((&tls.peer_cert, &tls.peer_key)));
        assert!(String::from_utf8_lossy(&answer.stdout).contains("my-1"), "{line}: {answer:?}");
    }
}

/// Local ports of a process's connections to `port`.
fn connections(pid: u32, port: u16) -> BTreeSet<u16> {
    let inodes: BTreeSet<String> = std::fs::read_dir(format!("/proc/{pid}/fd"))
        .into_iter()
        .flatten()
        .filter_map(|fd| std::fs::read_link(fd.ok()?.path()).ok())
        .filter_map(|link| Some(link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned()))
        .collect();
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let port_of = |address: &str| u16::from_str_radix(address.rsplit(':').next()?, 16).ok();
    table
        .lines()
        .skip(1)
        .filter_map(|line| {
            // Fields: number, local address, remote address, state (01: established), ..., inode at the tenth place.
            let fields: Vec<_> = line.split_whitespace().collect();
            let ours = *fields.get(3)? == "01" && inodes.contains(*fields.get(9)?);
            (ours && port_of(fields.get(2)?)? == port).then(|| port_of(fields.get(1)?)).flatten()
        })
        .collect()
}

#[test]
fn a_renewal_keeps_an_open_watch_and_serves_the_new_certificate() {
    for line in LINES {
        let dir = tempfile::tempdir().unwrap();
        let pki = dir.path().join("pki");
        let input = input(&pki, Distro::None);
        ensure(&input, long_ago());
        let tls = PkiPaths::new(&pki).etcd_tls();
        let old = serial_of(&tls.server_cert);
        let etcd = TlsEtcd::start(line, "my-0", dir.path(), &pki, ports(), "");
        etcd.wait_until_serving();
        let served = || serial_served(etcd.client_port, &tls.client_cert, &tls.client_key);
        assert_eq!(served().as_ref(), Some(&old), "{line}");

        let watch = Running::start(etcd.ctl_command().args(["watch", "k"]), &dir.path().join("watch.log"));
        let mut puts = 0;
        poll(&format!("{line}: the watch begins; see {}", watch.log.display()), PATIENCE, || {
            puts += 1;
            etcd.ok(&["put", "k", &format!("before-{puts}")]);
            watch.text().contains("before-").then_some(())
        });
        let open = connections(watch.child.id(), etcd.client_port);
        assert_eq!(open.len(), 1, "{line}: {open:?}");

        let renewed = ensure(&input, OffsetDateTime::now_utc());
        assert_eq!(renewed.renewed(), ["etcd/server.crt", "etcd/peer.crt", "etcd/healthcheck-client.crt"]);
        assert_eq!(renewed.restart(), []);
        let new = serial_of(&tls.server_cert);
        assert_ne!(new, old);
        assert_eq!(served(), Some(new), "{line}: the next handshake has the new certificate");
        etcd.ok(&["put", "k", "after"]);
        poll(&format!("{line}: the watch goes on; see {}", watch.log.display()), PATIENCE, || {
            watch.text().contains("after").then_some(())
        });
        assert_eq!(connections(watch.child.id(), etcd.client_port), open, "{line}: the connection was lost");
    }
}

/// What `syncer::pki::throwaway` makes is enough for an etcd and its client.
#[test]
fn throwaway_files_serve_an_etcd() {
    let dir = tempfile::tempdir().unwrap();
    let files = syncer::pki::throwaway(&dir.path().join("tls")).unwrap();
    let (client, peer) = ports();
    let mut command = Command::new(program("etcd", "3.6"));
    command.arg("--data-dir").arg(dir.path().join("data")).args(["--client-cert-auth", "--peer-client-cert-auth"]);
    command.args(["--listen-client-urls", &format!("https://127.0.0.1:{client}")]);
    command.args(["--advertise-client-urls", &format!("https://127.0.0.1:{client}")]);
    command.args(["--listen-peer-urls", &format!("https://127.0.0.1:{peer}")]);
    command.arg("--trusted-ca-file").arg(&files.ca).arg("--cert-file").arg(&files.server_cert);
    command.arg("--key-file").arg(&files.server_key).arg("--peer-trusted-ca-file").arg(&files.peer_ca);
    command.arg("--peer-cert-file").arg(&files.peer_cert).arg("--peer-key-file").arg(&files.peer_key);
    let etcd = Running::start(&mut command, &dir.path().join("etcd.log"));
    poll(&format!("etcd serves; see {}", etcd.log.display()), PATIENCE, || {
        let mut ctl = Command::new(program("etcdctl", "3.6"));
        ctl.args(["--endpoints", &format!("https://localhost:{client}"), "--cacert"]).arg(&files.ca);
        ctl.arg("--cert").arg(&files.client_cert).arg("--key").arg(&files.client_key);
        ctl.args(["get", "k"]).output().unwrap().status.success().then_some(())
    });
}
