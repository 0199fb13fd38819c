//! Snapshots in a bucket of a real S3 server.

mod moved;

use std::process::{Command, Output, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use syncer::snapshot::name::SnapshotName;
use time::OffsetDateTime;

use crate::snapshot::own_of_2024;
use crate::support::etcd::{Etcd, EtcdSpec, output, program, run};
use crate::support::pod::TestPod;
use crate::support::versitygw::{ACCESS_KEY, SECRET_KEY, VersityGw};
use crate::support::{free_port, poll, shows, syncer, terminal};

const SOON: Duration = Duration::from_secs(60);

fn snapshot(server: &VersityGw, args: &[&str]) -> Command {
    let mut command = Command::new(syncer());
    command.arg("snapshot").args(args).env_clear().envs(server.env());
    command
}

/// Runs it; whatever it prints, the credentials are not in it.
fn ran(command: &mut Command) -> Output {
    let out = command.output().expect("syncer runs");
    for said in [&out.stdout, &out.stderr] {
        let said = String::from_utf8_lossy(said);
        assert!(!said.contains(SECRET_KEY) && !said.contains(ACCESS_KEY), "{said}");
    }
    out
}

fn error_of(out: &Output) -> String {
    String::from_utf8_lossy(&out.stderr).into_owned()
}

fn json(out: &Output) -> Value {
    assert!(out.status.success(), "{}", error_of(out));
    serde_json::from_slice(&out.stdout).expect("JSON")
}

/// The library that speaks S3 ends the process upon these.
#[test]
fn variables_that_cannot_be_used_are_named() {
    let server = VersityGw::start(false, &["backups"]);
    let home = tempfile::tempdir().unwrap();
    let token = home.path().join("token");
    std::fs::write(&token, "token\n").unwrap();
    for (name, value, said) in [
        ("AWS_ENDPOINT_URL", "localhost:9000", "AWS_ENDPOINT_URL is no URL"),
        ("AWS_ENDPOINT_URL", "http://localhost:9000\n", "AWS_ENDPOINT_URL begins or ends with"),
        ("AWS_ACCESS_KEY_ID", "key\n", "AWS_ACCESS_KEY_ID begins or ends with"),
        ("AWS_SESSION_TOKEN", "token\n", "AWS_SESSION_TOKEN begins or ends with"),
        ("AWS_REGION", "eu-1\n", "AWS_REGION begins or ends with"),
        ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", token.to_str().unwrap(), "the content of AWS_CONTAINER_"),
    ] {
        let out = ran(snapshot(&server, &["list", "--from", "s3://backups/vc"]).env(name, value));
        assert_eq!(out.status.code(), Some(2), "{name}={value:?}: {}", error_of(&out));
        assert!(error_of(&out).contains(said), "{name}={value:?}: {}", error_of(&out));
    }
    assert!(ran(&mut snapshot(&server, &["list", "--from", "s3://backups/vc"])).status.success());
}

/// An etcd whose snapshot has several parts, the last of them a short one.
pub fn etcd(home: &std::path::Path) -> Etcd {
    let etcd = EtcdSpec::new("3.6", "a", &home.join("etcd")).start();
    run(async {
        let mut client = etcd.client().await;
        for n in 0..24u32 {
            let value: Vec<u8> = (0..1_000_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> (n % 24)) as u8).collect();
            client.put(format!("/registry/configmaps/default/{n}"), value, None).await.expect("put");
        }
    });
    etcd
}

#[test]
fn one_in_a_bucket_is_what_etcd_has_sent() {
    for tls in [false, true] {
        let server = VersityGw::start(tls, &["backups"]);
        let home = tempfile::tempdir().unwrap();
        let etcd = etcd(home.path());
        let url = etcd.spec.client_url();
        let place = "s3://backups/vc";
        for foreign in ["vc/notes.txt", "vc/deeper/vc-20200101T000000Z.db", "vc-20200101T000000Z.db"] {
            let file = server.object("backups", foreign);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(file, "x").unwrap();
        }
        let save = ["save", "--to", place, "--endpoint", &url, "--name", "vc", "--keep", "2", "-o", "json"];
        let told = json(&ran(snapshot(&server, &save).arg("--dry-run")));
        assert!(told["target"].as_str().is_some_and(|at| at.starts_with("s3://backups/vc/default.vc-")), "{told}");
        assert_eq!(
            (server.objects("backups", "vc").len(), server.uploads("backups")),
            (1, 0),
            "a dry run writes nothing"
        );
        let names: Vec<_> = (0..3)
            .map(|_| json(&ran(&mut snapshot(&server, &save)))["snapshot"]["name"].as_str().expect("a name").to_owned())
            .collect();
        let listed = json(&ran(&mut snapshot(&server, &["list", "--from", place, "-o", "json"])));
        let listed: Vec<_> = listed["snapshots"].as_array().unwrap().iter().map(|kept| kept["name"].clone()).collect();
        assert_eq!(listed, names[1..], "the oldest went, and the others' are let be");
        assert_eq!(server.objects("backups", "vc").len(), 3);
        assert!(server.object("backups", "vc-20200101T000000Z.db").exists());

        let object = server.object("backups", &format!("vc/{}", names[2]));
        assert!(object.metadata().unwrap().len() > 3 * (8 << 20), "it has several parts");
        let mut status = Command::new(program("etcdutl", "3.6"));
        let status = output(status.args(["snapshot", "status", "-w", "json"]).arg(&object));
        let status: Value = serde_json::from_str(&status).unwrap();
        let at = format!("{place}/{}", names[2]);
        let scratch = home.path().join("scratch");
        std::fs::create_dir(&scratch).unwrap();
        let verified = ran(snapshot(&server, &["verify", &at, "-o", "json"]).env("TMPDIR", &scratch));
        let hash = format!("{:x}", status["hash"].as_u64().expect("a hash"));
        assert_eq!(json(&verified)["hash"], hash);
        assert_eq!(std::fs::read_dir(&scratch).unwrap().count(), 0, "the copy is gone");

        // A server that is halted for so long keeps it waiting.
        let (mut screen, for_bar) = terminal();
        kill(server.pid(), Signal::SIGSTOP).expect("halt the server");
        let mut verify = snapshot(&server, &["verify", &at, "-o", "json"]);
        verify.env("TMPDIR", &scratch).env("TERM", "xterm").stdout(Stdio::piped()).stderr(for_bar);
        let verify = verify.spawn().expect("syncer starts");
        shows(&mut screen, "   fetch ");
        kill(server.pid(), Signal::SIGCONT).expect("let it go on");
        assert_eq!(json(&verify.wait_with_output().expect("it ends"))["hash"], hash);

        // What a killed one leaves is removed by the next.
        let killed = ran(snapshot(&server, &["verify", &at])
            .env("TMPDIR", &scratch)
            .env("SYNCER_CRASH_AT", "source-half-fetched"));
        assert!(killed.status.code().is_none() && std::fs::read_dir(&scratch).unwrap().count() == 1);
        json(&ran(snapshot(&server, &["verify", &at, "-o", "json"]).env("TMPDIR", &scratch)));
        assert_eq!(std::fs::read_dir(&scratch).unwrap().count(), 0, "a killed one's copy is left");

        // Damage in the bucket, and what is not there.
        let mut bytes = std::fs::read(&object).unwrap();
        bytes[5_000_000] ^= 1;
        std::fs::write(&object, bytes).unwrap();
        for (of, code, want) in [
            (at.as_str(), 4, "damaged"),
            ("s3://backups/vc/vc-20990101T000000Z.db", 4, "there is no vc-20990101T000000Z.db in s3://backups/vc"),
            ("s3://backups", 2, "name a snapshot"),
        ] {
            let out = ran(&mut snapshot(&server, &["verify", of]));
            assert_eq!(out.status.code(), Some(code), "{of}: {}", error_of(&out));
            assert!(error_of(&out).contains(want), "{of}: {}", error_of(&out));
        }
    }
}

#[test]
fn a_save_that_fails_leaves_nothing_that_looks_whole() {
    let server = VersityGw::start(false, &["backups"]);
    let home = tempfile::tempdir().unwrap();
    let etcd = etcd(home.path());
    let url = etcd.spec.client_url();
    let save = ["save", "--to", "s3://backups", "--endpoint", &url, "--name", "vc", "-o", "json"];
    for point in ["snapshot-half-written", "snapshot-before-commit"] {
        let out = ran(snapshot(&server, &save).env("SYNCER_CRASH_AT", point));
        assert_eq!(out.status.code(), None, "{point}: {}", error_of(&out));
        let listed = json(&ran(&mut snapshot(&server, &["list", "--from", "s3://backups", "-o", "json"])));
        assert_eq!((listed["snapshots"].as_array().map(Vec::len), server.objects("backups", "").len()), (Some(0), 0));
    }
    let out = ran(snapshot(&server, &save).env("SYNCER_CRASH_AT", "snapshot-committed"));
    assert_eq!(out.status.code(), None, "{}", error_of(&out));
    let name = server.objects("backups", "").remove(0);
    json(&ran(&mut snapshot(&server, &["verify", &format!("s3://backups/{name}"), "-o", "json"])));

    // What a killed one has sent is left to the bucket's lifecycle; one that fails takes it back.
    let left = server.uploads("backups");
    assert!(left > 0, "uploads that were begun are not found");
    let refused: [fn(&str) -> bool; 3] = [
        |line| line.contains("partNumber=3&"),
        |line| line.contains("partNumber=4&"),
        |line| line.starts_with("POST ") && line.contains("uploadId="),
    ];
    for (n, refused) in refused.into_iter().enumerate() {
        let out = ran(snapshot(&server, &save).env("AWS_ENDPOINT_URL", server.refusing(refused)));
        assert_eq!(out.status.code(), Some(1), "{n}: {}", error_of(&out));
        assert!(error_of(&out).contains("s3://backups fails"), "{n}: {}", error_of(&out));
        assert_eq!((server.uploads("backups"), server.objects("backups", "").len()), (left, 1), "{n}");
    }

    let nobody = format!("http://127.0.0.1:{}", free_port());
    for (name, value, place, code, want) in [
        ("AWS_SECRET_ACCESS_KEY", "another", "s3://backups", 2, "403 Forbidden"),
        ("AWS_ACCESS_KEY_ID", "another", "s3://backups", 2, "credentials"),
        ("AWS_REGION", "us-east-1", "s3://no-such-bucket", 2, "s3://no-such-bucket"),
        ("AWS_ENDPOINT_URL", nobody.as_str(), "s3://backups", 1, "s3://backups"),
    ] {
        for args in [
            &["save", "--to", place, "--endpoint", &url][..],
            &["save", "--to", place, "--endpoint", &url, "--dry-run"],
            &["list", "--from", place],
        ] {
            let out = ran(snapshot(&server, args).env(name, value));
            assert_eq!(out.status.code(), Some(code), "{name} {args:?}: {}", error_of(&out));
            assert!(error_of(&out).contains(want), "{name} {args:?}: {}", error_of(&out));
        }
    }
    assert_eq!(server.objects("backups", "").len(), 1);
}

/// Of two saves of one second neither takes the other's place, whichever is the first to be whole.
#[test]
fn a_name_that_another_save_has_taken_meanwhile_is_left_to_it() {
    let server = VersityGw::start(false, &["backups"]);
    let home = tempfile::tempdir().unwrap();
    let etcd = etcd(home.path());
    let url = etcd.spec.client_url();
    let save = ["save", "--to", "s3://backups", "--endpoint", &url, "--name", "vc", "-o", "json"];
    let name = |saved: &Value| saved["snapshot"]["name"].as_str().expect("a name").parse::<SnapshotName>().unwrap();
    let mut others = vec![name(&json(&ran(&mut snapshot(&server, &save))))];
    let mut halted = snapshot(&server, &save);
    halted.env("SYNCER_HALT_AT", "snapshot-before-commit").stdout(Stdio::piped()).stderr(Stdio::piped());
    let halted = halted.spawn().expect("syncer starts");
    let stat = format!("/proc/{}/stat", halted.id());
    poll("it halts", SOON, || {
        let stat = std::fs::read_to_string(&stat).ok()?;
        stat.rsplit_once(") ")?.1.starts_with('T').then_some(())
    });
    // Whichever second it was.
    let now = OffsetDateTime::now_utc();
    while others.last().is_some_and(|last| last.taken() <= now) {
        let next = others.last().expect("a name").later();
        server.put("backups", &next.to_string(), "another's");
        others.push(next);
    }
    let pid = Pid::from_raw(i32::try_from(halted.id()).expect("a pid fits"));
    let going = std::thread::spawn(move || halted.wait_with_output().expect("it ends"));
    // It halts again when it is taken again.
    poll("it ends", SOON, || {
        let _ = kill(pid, Signal::SIGCONT);
        going.is_finished().then_some(())
    });
    let out = going.join().expect("it ends");
    assert!(error_of(&out).contains("it is taken again"), "{}", error_of(&out));
    let saved = name(&json(&out));
    assert!(!others.contains(&saved), "{saved} took another's place");
    for other in &others[1..] {
        assert_eq!(std::fs::read(server.object("backups", &other.to_string())).unwrap(), b"another's", "{other}");
    }
    assert_eq!((server.objects("backups", "").len(), server.uploads("backups")), (others.len() + 1, 0));
    json(&ran(&mut snapshot(&server, &["verify", &format!("s3://backups/{saved}"), "-o", "json"])));
}

#[test]
fn a_pod_keeps_snapshots_in_a_bucket() {
    let server = VersityGw::start(false, &["backups"]);
    let mut pod = TestPod::new();
    pod.values("embeddedEtcd:\n  enabled: true\n");
    let mut command = pod.command("none", &["--log-level=trace"]);
    command.envs(server.env());
    pod.spawn(command);
    pod.wait_serving();
    let old = server.object("backups", &own_of_2024(&pod));
    std::fs::write(&old, "x").unwrap();
    pod.values(
        "embeddedEtcd:\n  enabled: true\n  snapshots:\n    schedule: '@yearly'\n    keep: 1\n    target: s3://backups\n",
    );
    let name = poll("a snapshot is kept, and the old one is gone", SOON, || {
        let mut kept = server.objects("backups", "");
        (kept.len() == 1 && !old.exists()).then(|| kept.remove(0))
    });
    json(&ran(&mut snapshot(&server, &["verify", &format!("s3://backups/{name}"), "-o", "json"])));
    assert!(pod.stop().success());
    assert!(!pod.log().contains(SECRET_KEY) && !pod.log().contains(ACCESS_KEY), "{}", pod.log());
}
