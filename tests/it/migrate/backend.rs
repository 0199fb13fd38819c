//! etcd's own stores as a source: what real etcds of each line wrote, read as they serve it.

use std::collections::BTreeMap;

use etcd_client::{Client, Compare, CompareOp, LeaseGrantOptions, PutOptions, Txn, TxnOp};
use rand::{Rng, SeedableRng, rngs::StdRng};
use syncer::datadir::wal::read_wal;
use syncer::exit::{Exit, exit_of};
use syncer::migrate::convert::{KeyLease, LiveKey};
use syncer::migrate::pipeline::copy;
use syncer::migrate::sink::Sink;

use super::back::report;
use super::*;
use crate::support::etcd::{Etcd, LINES, ServedKey, all_keys, killed_once};

/// Every key as the source sends it, with the place within its transaction, and the leases.
#[derive(Debug, Default, PartialEq)]
struct Read {
    keys: Vec<ServedKey>,
    subs: Vec<i64>,
    granted: BTreeMap<i64, i64>,
    revision: i64,
}

impl Sink for Read {
    fn put(&mut self, key: &LiveKey<'_>) -> anyhow::Result<()> {
        let (lease, ttl) = match key.lease {
            KeyLease::Held(lease) => (lease.id, lease.ttl),
            KeyLease::None => (0, 0),
            KeyLease::Ttl(_) => panic!("a time to live without a lease"),
        };
        let (create, modified) = (key.create_revision.0, key.mod_revision.0);
        if let Some((_, _, _, last, ..)) = self.keys.last() {
            let sub = self.subs.last().copied().unwrap_or_default();
            assert!((*last, sub) < (modified, key.sub), "not ascending");
        }
        self.keys.push((key.key.to_vec(), key.value.to_vec(), create, modified, key.version, lease));
        self.subs.push(key.sub);
        assert!(lease == 0 || ttl > 0);
        Ok(())
    }
}

fn read(origin: &Origin, line: &str, home: &Path) -> anyhow::Result<Read> {
    // 3.4 replays nothing here; the line after it takes its stores.
    let replays = program("etcd", if line == "3.4" { "3.5" } else { line });
    let mut source = open(origin, &replays, &home.join("copy"))?;
    let mut read = Read::default();
    let before = source.files()?;
    let copied = copy(&mut *source, &mut read, &Meter::default())?;
    assert_eq!(source.files()?, before);
    assert_eq!((copied.keys, source.live_bytes()?), (source.extent().keys_at_most, copied.bytes));
    read.revision = source.extent().revision.0;
    read.granted = source.leases().iter().map(|lease| (lease.id, lease.ttl)).collect();
    read.keys.sort();
    drop(source);
    assert!(!home.join("copy").exists(), "the copy is left");
    Ok(read)
}

/// What etcd serves: keys, leases with the times to live that were granted, revision.
async fn served_by(client: &mut Client) -> Read {
    let keys = all_keys(client).await;
    let mut granted = BTreeMap::new();
    for lease in client.leases().await.expect("list leases").leases() {
        let ttl = client.lease_time_to_live(lease.id(), None).await.expect("a lease").granted_ttl();
        granted.insert(lease.id(), ttl);
    }
    let revision = client.get("/", None).await.expect("read").header().expect("a header").revision();
    Read { keys, subs: Vec::new(), granted, revision }
}

#[track_caller]
fn assert_same(read: Read, served: &Read) {
    assert_eq!(read.revision, served.revision);
    assert_eq!(read.keys, served.keys);
    assert_eq!(read.granted, served.granted);
}

/// Transactions of several keys, deletes, leases and compactions, in an order that `random` chooses.
pub async fn live(client: &mut Client, random: &mut StdRng, steps: usize) {
    let mut leases = Vec::new();
    let name = |random: &mut StdRng| match random.random_range(0..20) {
        0 => b"/\0\xff\xfe".to_vec(),
        1 => b"no-slash".to_vec(),
        _ => format!("/registry/{}/{}", random.random_range(0..5), random.random_range(0..40)).into_bytes(),
    };
    let mut compacted = 0;
    for _ in 0..steps {
        let always = Compare::version("/never", CompareOp::Equal, 0);
        match random.random_range(0..20) {
            0..2 => {
                let ttl = random.random_range(1000..90_000);
                let id = random.random_range(0..3_i64);
                let options =
                    LeaseGrantOptions::new().with_id(if id == 0 { random.random_range(1..i64::MAX) } else { 0 });
                leases.push(client.lease_grant(ttl, Some(options)).await.expect("grant").id());
            }
            2 if leases.len() > 2 => {
                let lease = leases.swap_remove(random.random_range(0..leases.len()));
                client.lease_revoke(lease).await.expect("revoke");
            }
            3 => {
                let at = client.get("/", None).await.expect("read").header().expect("a header").revision();
                let to = random.random_range(1..=at);
                if to > compacted {
                    client.compact(to, None).await.expect("compact");
                    compacted = to;
                }
            }
            4..8 => {
                client.delete(name(random), None).await.expect("delete");
            }
            _ => {
                let mut puts = BTreeMap::new();
                for _ in 0..random.random_range(1..6) {
                    let size = [0, 1, 100, 9000][random.random_range(0..4)];
                    let lease = leases.get(random.random_range(0..10)).copied();
                    puts.insert(name(random), (vec![random.random::<u8>(); size], lease));
                }
                let mut puts: Vec<_> = puts.into_iter().collect();
                if random.random_bool(0.3) {
                    puts.reverse();
                }
                let puts: Vec<_> = puts
                    .into_iter()
                    .map(|(key, (value, lease))| match lease {
                        _ if random_delete(&value) => TxnOp::delete(key, None),
                        None => TxnOp::put(key, value, None),
                        Some(id) => TxnOp::put(key, value, Some(PutOptions::new().with_lease(id))),
                    })
                    .collect();
                client.txn(Txn::new().when([always]).and_then(puts)).await.expect("a transaction");
            }
        }
    }
}

/// Some of the operations of a transaction delete.
fn random_delete(value: &[u8]) -> bool {
    value.first().is_some_and(|first| first % 7 == 0)
}

fn etcd_with_history(line: &'static str, home: &Path, seed: u64, steps: usize) -> (Etcd, Read) {
    let etcd = EtcdSpec::new(line, "seed", &home.join("etcd")).start();
    let served = run(async {
        let mut client = etcd.client().await;
        live(&mut client, &mut StdRng::seed_from_u64(seed), steps).await;
        served_by(&mut client).await
    });
    (etcd, served)
}

/// `etcdctl snapshot save`.
pub fn save(etcd: &Etcd, file: &Path) {
    etcd.ctl(&["snapshot", "save", file.to_str().expect("a path")]);
}

fn check_line(line: &'static str) {
    let seed = rand::random();
    println!("seed {seed}");
    let home = tempfile::tempdir().expect("make a directory");
    let (mut etcd, served) = etcd_with_history(line, home.path(), seed, 400);
    let dir = etcd.spec.data_dir.clone();
    let datadir = Origin::datadir(dir.clone());

    // While it runs, its snapshot is what can be read.
    let file = home.path().join("snapshot.db");
    save(&etcd, &file);
    assert_same(read(&Origin::snapshot(file.clone(), false), line, home.path()).expect("read the snapshot"), &served);
    let error = read(&datadir, line, home.path()).expect_err("a data dir in use was read");
    assert!(format!("{error:#}").contains("an etcd has it open"), "{error:#}");

    // Killed: what was acknowledged last is in the log alone.
    let last = run(async {
        let mut client = etcd.client().await;
        client.put("/last", "acknowledged", None).await.expect("put");
        served_by(&mut client).await
    });
    etcd.kill();
    let before = content(&dir);
    assert_same(read(&datadir, line, home.path()).expect("read the killed one's data dir"), &last);
    assert!(content(&dir) == before, "the source changed");
    check_wrong_lengths(&datadir, line, home.path(), &dir);
    assert!(content(&dir) == before, "the log is not as it was");

    // Stopped: its backend has everything, and no etcd is needed. 3.4 leaves the last entries to the log.
    etcd.spec.start().stop();
    let none = Path::new("/nonexistent");
    let replays = if line == "3.4" { program("etcd", "3.5") } else { none.to_owned() };
    let mut source = open(&datadir, &replays, &home.path().join("copy")).expect("open the data dir");
    let mut found = Read::default();
    copy(&mut *source, &mut found, &Meter::default()).expect("read the data dir");
    assert!(found.subs.iter().any(|sub| *sub > 0), "no transaction had several keys");
    found.keys.sort();
    assert_eq!(found.keys, last.keys);
    drop(source);

    // Without its checksum, and with a wrong one.
    let mut bytes = std::fs::read(&file).expect("read the file");
    let length = bytes.len();
    std::fs::write(&file, &bytes[..length - 32]).expect("write the file");
    let mut bare = open(&Origin::snapshot(file.clone(), true), none, none).expect("open");
    let copied = copy(&mut *bare, &mut Read::default(), &Meter::default()).expect("read it without a checksum");
    assert_eq!(copied.warnings.no_checksums.count, 1);
    bytes[length - 1] ^= 1;
    std::fs::write(&file, &bytes).expect("write the file");
    let error = read(&Origin::snapshot(file, true), line, home.path()).expect_err("a wrong checksum was taken");
    assert!(format!("{error:#}").contains("checksum"), "{error:#}");
}

/// One bit of a record's length is wrong, near the log's end: behind it are acknowledged writes that the backend may lack.
fn check_wrong_lengths(datadir: &Origin, line: &str, home: &Path, dir: &Path) {
    let log = read_wal(&dir.join("member/wal")).expect("read the log");
    let whole = std::fs::read(&log.tail.path).expect("read the last segment");
    let (mut places, mut at) = (Vec::new(), 0);
    while at < log.tail.offset as usize {
        places.push(at);
        let frame = u64::from_le_bytes(whole[at..at + 8].try_into().expect("eight bytes"));
        let padding = if frame >> 63 == 1 { frame >> 56 & 7 } else { 0 };
        at += 8 + (frame << 8 >> 8) as usize + padding as usize;
    }
    let place = places[places.len() - 4];
    // Beyond the segment, and within the space that etcd has allocated.
    for bit in [40, 20] {
        let mut damaged = whole.clone();
        damaged[place + bit / 8] ^= 1 << (bit % 8);
        std::fs::write(&log.tail.path, &damaged).expect("write the last segment");
        let Err(error) = read(datadir, line, home) else {
            panic!("etcd {line}: what stands behind a wrong length (bit {bit}) was taken for nothing");
        };
        let told = format!("{error:#}");
        assert!(told.contains(&format!("is damaged at byte {place}")), "etcd {line}, bit {bit}: {told}");
        assert_eq!(exit_of(&error), Exit::RefusedSource, "{told}");
    }
    std::fs::write(&log.tail.path, &whole).expect("write the last segment");
}

/// Every file below a directory, with its content.
pub(super) fn content(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(dir).expect("read a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(content(&path));
        } else {
            found.insert(path.clone(), std::fs::read(&path).expect("read a file"));
        }
    }
    found
}

#[test]
fn stores_of_etcd_3_4_are_read_as_it_serves_them() {
    check_line("3.4");
}

#[test]
fn stores_of_etcd_3_5_are_read_as_it_serves_them() {
    check_line("3.5");
}

#[test]
fn stores_of_etcd_3_6_are_read_as_it_serves_them() {
    check_line("3.6");
}

#[test]
fn stores_of_etcd_3_7_are_read_as_it_serves_them() {
    check_line("3.7");
}

#[test]
fn an_etcd_that_was_killed_by_the_signal_to_stop_replays_the_log_again() {
    let home = tempfile::tempdir().expect("make a directory");
    let (mut etcd, served) = etcd_with_history("3.6", home.path(), rand::random(), 50);
    etcd.kill();
    let program = killed_once("3.6", home.path());
    let mut source = open(&Origin::datadir(etcd.spec.data_dir.clone()), &program, &home.path().join("copy"))
        .expect("open the killed one's data dir");
    let starts = std::fs::read_to_string(home.path().join("starts")).expect("its starts");
    assert!(starts.lines().count() >= 2, "it was not run again: {starts:?}");
    let mut found = Read::default();
    copy(&mut *source, &mut found, &Meter::default()).expect("read it");
    found.keys.sort();
    assert_eq!(found.keys, served.keys);
}

#[test]
fn a_data_dir_or_snapshot_becomes_a_data_dir_of_any_line() {
    for (n, from) in LINES.into_iter().enumerate() {
        let to = LINES[(n + 1) % LINES.len()];
        let home = tempfile::tempdir().expect("make a directory");
        let (mut etcd, want) = etcd_with_history(from, home.path(), rand::random(), 200);
        let file = home.path().join("snapshot.db");
        save(&etcd, &file);
        etcd.kill();
        for (n, place) in
            [format!("datadir:{}", home.path().join("etcd").display()), format!("snapshot:{}", file.display())]
                .into_iter()
                .enumerate()
        {
            let target = home.path().join(format!("new-{n}"));
            let mut command = Command::new(syncer());
            command.args(["migrate", "--verify", "full", "-o", "json", "--from", &place, "--to"]);
            command.arg(format!("datadir:{}", target.display()));
            // What replays the log is of the source's line, what goes on with the result may be any.
            command.arg("--etcd").arg(program("etcd", from));
            let mut dry = Command::new(syncer());
            let dry = report(dry.args(command.get_args()).arg("--dry-run"));
            let report = report(&mut command);
            foretold(&dry, &report);
            assert_eq!(report["revision"], want.revision);
            assert_eq!(report["leases"], want.granted.len());
            let line = if n == 0 { from } else { to };
            if (from, line) != ("3.7", "3.5") {
                let etcd = EtcdSpec::new(line, "seed", &target).start();
                run(async { assert_same(served_by(&mut etcd.client().await).await, &want) });
            }
            // Again: it is not done twice.
            let again = output(&mut command);
            assert!(again.status.success(), "{place}, given again: {}", String::from_utf8_lossy(&again.stderr));
            let report: serde_json::Value = serde_json::from_slice(&again.stdout).expect("a report");
            assert_eq!(report["movedBefore"], true, "{place}, given again, is moved once more: {report}");
        }
    }
}

/// Whoever was asked for a user by the source is not by what was made of it.
#[test]
fn users_and_roles_are_left_behind_and_the_report_tells() {
    let home = tempfile::tempdir().expect("make a directory");
    let etcd = EtcdSpec::new("3.6", "seed", &home.path().join("etcd")).start();
    let file = home.path().join("snapshot.db");
    let path = file.to_str().expect("a path");
    for args in [
        &["put", "/kept", "x"][..],
        &["user", "add", "root:secret"],
        &["user", "grant-role", "root", "root"],
        &["role", "add", "readers"],
        &["auth", "enable"],
        &["--user=root:secret", "snapshot", "save", path],
    ] {
        etcd.ctl(args);
    }
    let asked = run(async { etcd.client().await.put("/new", "y", None).await });
    assert!(asked.is_err_and(|error| error.to_string().contains("user name is empty")), "it asks nobody for a user");
    let mut save = Command::new(syncer());
    save.args(["snapshot", "save", "--endpoint", &etcd.spec.client_url(), "--to"]).arg(home.path().join("saved"));
    let out = output(&mut save);
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.code() == Some(4) && said.contains("asks for a user"), "{said}");
    drop(etcd);

    let target = home.path().join("new");
    let mut command = Command::new(syncer());
    command.args(["migrate", "--verify", "full", "--from", &format!("snapshot:{path}"), "--to"]);
    command.arg(format!("datadir:{}", target.display())).arg("--etcd").arg(program("etcd", "3.6"));
    let out = output(&mut command);
    let said = String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned();
    assert!(out.status.success(), "{said}");
    assert!(said.contains("2 users and roles are left behind, with authentication (for one, root)"), "{said}");
    let etcd = EtcdSpec::new("3.6", "seed", &target).start();
    run(async {
        let mut client = etcd.client().await;
        assert_eq!(all_keys(&mut client).await.len(), 1, "the one key is moved");
        client.put("/new", "y", None).await.expect("nobody is asked for a user");
        assert!(client.user_list().await.expect("list users").users().is_empty(), "users are left");
    });
}
