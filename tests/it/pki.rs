//! The PKI against those who use it: etcd of each line, etcdctl, kube-apiserver and its companions, openssl.

mod etcd;
mod kubernetes;

use std::fs::{File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use syncer::disk::{Disk, RealDisk};
use syncer::pki::plan::Input;
use syncer::pki::{Mode, Pki, ensure_input};
use syncer::settings::Distro;
use time::{Duration, OffsetDateTime};

use crate::support::etcd::output;

/// What a laptop's settings give: peers at `localhost`.
fn input(dir: &Path, distro: Distro) -> Input {
    Input {
        pki_dir: dir.to_owned(),
        lasting_dir: None,
        distro,
        etcd: true,
        name: "my".to_owned(),
        namespace: "team".to_owned(),
        cluster_domain: "cluster.local".to_owned(),
        pod: "my-0".to_owned(),
        pod_ip: None,
        in_pod: false,
        desired: 1,
        tls_sans: Vec::new(),
        service_cidr: "10.96.0.0/12".to_owned(),
        apiserver_port: 6443,
    }
}

fn ensure(input: &Input, now: OffsetDateTime) -> Pki {
    let (pki, refusals) = ensure_input(input, &RealDisk, now, Mode::Ensure).unwrap();
    assert_eq!(refusals, []);
    pki
}

/// A time at which certificates are issued that are valid now and due for renewal now.
fn long_ago() -> OffsetDateTime {
    OffsetDateTime::now_utc() - Duration::days(300)
}

/// A started program, killed on drop and with this thread. Its output is in `log`.
struct Running {
    child: Child,
    log: PathBuf,
}

impl Running {
    fn start(command: &mut Command, log: &Path) -> Running {
        let file = File::create(log).unwrap();
        command.stdin(Stdio::null()).stdout(file.try_clone().unwrap()).stderr(file);
        // SAFETY: prctl is async-signal-safe and takes no pointers.
        unsafe {
            command.pre_exec(|| {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                Ok(())
            });
        }
        let child = command.spawn().unwrap_or_else(|e| panic!("start {command:?}: {e}"));
        Running { child, log: log.to_owned() }
    }

    fn text(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The serial number of the certificate in a file.
fn serial_of(cert: &Path) -> String {
    output(Command::new("openssl").args(["x509", "-noout", "-serial", "-in"]).arg(cert))
}

/// The serial number of the certificate that a server presents now, to a client with this certificate.
fn serial_served(port: u16, cert: &Path, key: &Path) -> Option<String> {
    let client = Command::new("openssl")
        .args(["s_client", "-connect", &format!("127.0.0.1:{port}"), "-cert"])
        .arg(cert)
        .arg("-key")
        .arg(key)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&client.stdout);
    let begin = text.find("-----BEGIN CERTIFICATE-----")?;
    let end = text.find("-----END CERTIFICATE-----")? + "-----END CERTIFICATE-----".len();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("served.crt");
    std::fs::write(&file, &text[begin..end]).unwrap();
    Some(serial_of(&file))
}

/// openssl agrees with what we say of our own files: chains, purposes and names.
#[test]
fn openssl_verifies_every_certificate() {
    let dir = tempfile::tempdir().unwrap();
    ensure(&input(dir.path(), Distro::K8s), OffsetDateTime::now_utc());
    let verify = |ca: &str, cert: &str, extra: &[&str]| {
        let mut command = Command::new("openssl");
        command.args(["verify", "-x509_strict", "-CAfile"]).arg(dir.path().join(ca)).args(extra);
        let text = output(command.arg(dir.path().join(cert)));
        assert!(text.trim_end().ends_with(": OK"), "{cert}: {text}");
    };
    for cert in ["etcd/server.crt", "etcd/peer.crt"] {
        for name in ["localhost", "my-0.my-headless.team", "my-4.my-headless.team.svc.cluster.local", "my"] {
            verify("etcd/ca.crt", cert, &["-purpose", "sslserver", "-verify_hostname", name]);
        }
        verify("etcd/ca.crt", cert, &["-purpose", "sslclient"]);
        verify("etcd/ca.crt", cert, &["-purpose", "sslserver", "-verify_ip", "127.0.0.1"]);
    }
    for cert in ["etcd/healthcheck-client.crt", "apiserver-etcd-client.crt"] {
        verify("etcd/ca.crt", cert, &["-purpose", "sslclient"]);
    }
    verify("ca.crt", "apiserver.crt", &["-purpose", "sslserver", "-verify_ip", "10.96.0.1"]);
    verify("ca.crt", "apiserver.crt", &["-purpose", "sslserver", "-verify_hostname", "kubernetes.default.svc"]);
    verify("ca.crt", "apiserver-kubelet-client.crt", &["-purpose", "sslclient"]);
    verify("front-proxy-ca.crt", "front-proxy-client.crt", &["-purpose", "sslclient"]);
    let public = output(Command::new("openssl").args(["pkey", "-pubout", "-in"]).arg(dir.path().join("sa.key")));
    assert_eq!(public, std::fs::read_to_string(dir.path().join("sa.pub")).unwrap());
}

/// Keys and certificates as kubeadm and vCluster make them (RSA, "RSA PRIVATE KEY") are used, and sign what is missing.
#[test]
fn a_ca_made_by_openssl_with_an_rsa_key_signs_what_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("etcd")).unwrap();
    let (key, cert) = (dir.path().join("etcd/ca.key"), dir.path().join("etcd/ca.crt"));
    output(Command::new("openssl").args(["genrsa", "-traditional", "-out"]).arg(&key).arg("2048"));
    let mut command = Command::new("openssl");
    command.args(["req", "-x509", "-new", "-days", "3650", "-subj", "/O=Some Org/CN=their-etcd-ca", "-key"]).arg(&key);
    output(command.args(["-addext", "keyUsage=critical,keyCertSign,digitalSignature", "-out"]).arg(&cert));
    let before = (std::fs::read(&key).unwrap(), std::fs::read(&cert).unwrap());
    ensure(&input(dir.path(), Distro::K3s), OffsetDateTime::now_utc());
    assert!(before == (std::fs::read(&key).unwrap(), std::fs::read(&cert).unwrap()), "the CA was changed");
    for leaf in ["etcd/server.crt", "etcd/peer.crt", "apiserver-etcd-client.crt"] {
        let mut command = Command::new("openssl");
        output(command.args(["verify", "-CAfile"]).arg(&cert).arg(dir.path().join(leaf)));
    }
}

/// `syncer certs` as a user has it: a table, JSON, exit code 6, and a directory that cannot be written.
#[test]
fn the_command_issues_checks_and_refuses() {
    let dir = tempfile::tempdir().unwrap();
    let pki = dir.path().join("pki");
    let certs = |extra: &[&str]| {
        let mut command = Command::new(crate::support::syncer());
        command
            .args(["certs", "--name", "my", "--namespace", "team", "--distro", "k8s", "--dir"])
            .arg(&pki)
            .args(extra);
        command.env_clear().output().unwrap()
    };
    assert_eq!(certs(&["--check"]).status.code(), Some(6), "nothing is there yet");
    assert!(!pki.exists(), "a check makes nothing");
    let made = certs(&[]);
    assert_eq!(made.status.code(), Some(0), "{}", String::from_utf8_lossy(&made.stderr));
    let json = certs(&["--check", "-o", "json"]);
    assert_eq!(json.status.code(), Some(0), "{}", String::from_utf8_lossy(&json.stderr));
    let document: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(document["files"].as_array().unwrap().len(), 14);
    assert_eq!(document["files"][1]["state"], "good");
    assert_eq!(document["files"][1]["issued_by_syncer"], true);
    assert!(document["files"][1]["sans"].as_array().unwrap().len() > 20);

    let secret = certs(&["-o", "secret"]);
    let secret: serde_json::Value = serde_yaml::from_slice(&secret.stdout).unwrap();
    assert_eq!(secret["kind"], "Secret");
    assert_eq!(secret["metadata"], serde_json::json!({"name": "my-certs", "namespace": "team"}));
    let shared = secret["data"].as_object().unwrap();
    // Three CAs and the key pair of service account tokens, under vCluster's keys, with the record of what was issued.
    let keys: Vec<_> = shared.keys().map(String::as_str).collect();
    let cas = ["ca.crt", "ca.key", "etcd-ca.crt", "etcd-ca.key", "front-proxy-ca.crt", "front-proxy-ca.key"];
    assert_eq!(keys, [&cas[..], &["sa.key", "sa.pub", "syncer-issued.json"]].concat());
    let ca = std::fs::read(pki.join("etcd/ca.key")).unwrap();
    assert_eq!(shared["etcd-ca.key"], STANDARD.encode(ca));

    // A CA whose key is kept elsewhere serves this directory, and no pod that is to issue by it.
    RealDisk.rename(&pki.join("ca.key"), &dir.path().join("ca.key")).unwrap();
    let part = certs(&["-o", "secret"]);
    let text = String::from_utf8_lossy(&part.stderr).into_owned();
    assert_eq!((part.status.code(), part.stdout.as_slice()), (Some(6), &b""[..]), "{text}");
    assert!(text.contains("CA of the virtual cluster") && text.contains("put the key there"), "{text}");
    RealDisk.rename(&dir.path().join("ca.key"), &pki.join("ca.key")).unwrap();

    std::fs::remove_file(pki.join("etcd/server.key")).unwrap();
    assert_eq!(certs(&["-o", "secret"]).stdout, b"", "a part of it would be taken for the whole");
    let refused = certs(&[]);
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(6), "{text}");
    assert!(text.contains("etcd/server.key is missing") && text.contains("restore"), "{text}");
    assert_eq!(text.lines().count(), 1, "one error, told once: {text}");
    for secret in ["PRIVATE KEY", "BEGIN"] {
        assert!(!text.contains(secret) && !String::from_utf8_lossy(&refused.stdout).contains(secret), "{text}");
    }
}

/// A directory that this user cannot write, as a mounted Secret is: used if it is complete, refused if not.
#[test]
fn a_directory_that_cannot_be_written_is_used_if_complete() {
    let dir = tempfile::tempdir().unwrap();
    let pki = dir.path().join("pki");
    ensure(&input(&pki, Distro::None), OffsetDateTime::now_utc());
    std::fs::remove_file(pki.join("syncer-issued.json")).unwrap();
    let program = dir.path().join("syncer");
    // By another process: what a child that was just forked has open for writing cannot be run.
    let copied = Command::new("cp").arg(crate::support::syncer()).arg(&program).status().unwrap();
    assert!(copied.success());
    let set = |path: &Path, mode: u32| std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    let lock = || {
        set(dir.path(), 0o755);
        set(&program, 0o755);
        for entry in std::fs::read_dir(pki.join("etcd")).unwrap() {
            set(&entry.unwrap().path(), 0o444);
        }
        set(&pki.join("etcd"), 0o555);
        set(&pki, 0o555);
    };
    let certs = || {
        lock();
        // Root may write anything, so the program runs as somebody else.
        let mut command = Command::new(if nix::unistd::geteuid().is_root() { Path::new("setpriv") } else { &program });
        if nix::unistd::geteuid().is_root() {
            command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&program);
        }
        command.args(["certs", "--name", "my", "--namespace", "team", "--distro", "none", "--dir"]).arg(&pki);
        let output = command.current_dir("/").output().unwrap();
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stdout).into_owned(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    };
    let (code, text, errors) = certs();
    assert_eq!(code, Some(0), "{errors}");
    assert!(text.contains("defaultMode 0400"), "readable keys are told of: {text}");

    set(&pki.join("etcd"), 0o755);
    for file in ["etcd/server.crt", "etcd/server.key"] {
        std::fs::remove_file(pki.join(file)).unwrap();
    }
    let (code, _, errors) = certs();
    assert_eq!(code, Some(6), "{errors}");
    assert!(errors.contains("etcd/server.crt") && errors.contains("mount a directory that is complete"), "{errors}");
    assert_eq!(errors.lines().count(), 1, "{errors}");
    set(&pki.join("etcd"), 0o755);
    set(&pki, 0o755);
}
