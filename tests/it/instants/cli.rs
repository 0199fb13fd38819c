//! `syncer migrate` and `syncer snapshot save`.

use std::path::PathBuf;
use std::sync::OnceLock;

use serde_json::Value;
use syncer::datadir::lock::LOCK_FILE;

use super::*;
use crate::migrate::back::live_of;
use crate::support::etcd::{Etcd, EtcdSpec, ServedKey, all_keys, program, run};
use crate::support::kine_db::Live;
use crate::support::syncer;
use crate::support::versitygw::VersityGw;

/// A stopped etcd's data dir, and a snapshot of it.
struct Store {
    home: tempfile::TempDir,
    keys: Vec<ServedKey>,
}

impl Store {
    fn datadir(&self) -> String {
        format!("datadir:{}", self.home.path().join("etcd").display())
    }

    fn snapshot(&self) -> String {
        format!("snapshot:{}", self.home.path().join("snapshot.db").display())
    }
}

fn filled(home: &Path) -> Etcd {
    let etcd = EtcdSpec::new("3.6", "a", &home.join("etcd")).start();
    run(async {
        let mut client = etcd.client().await;
        for n in 0..600 {
            client.put(format!("/registry/configmaps/{:03}", n % 400), vec![b'v'; 2000], None).await.expect("put");
        }
        client.delete("/registry/configmaps/007", None).await.expect("delete");
    });
    etcd
}

fn store() -> &'static Store {
    static STORE: OnceLock<Store> = OnceLock::new();
    STORE.get_or_init(|| {
        let home = tempfile::tempdir().expect("a folder");
        let mut etcd = filled(home.path());
        etcd.ctl(&["snapshot", "save", &home.path().join("snapshot.db").display().to_string()]);
        let keys = run(async { all_keys(&mut etcd.client().await).await });
        // Killed, so that its log is ahead of its backend.
        etcd.kill();
        Store { home, keys }
    })
}

/// `syncer migrate`.
struct Migrate<'a> {
    from: String,
    to: &'static str,
    want: &'a [ServedKey],
    /// What it has in its environment.
    env: Vec<(&'static str, String)>,
}

impl Migrate<'_> {
    fn target(&self, place: &tempfile::TempDir) -> PathBuf {
        place.path().join(if self.to == "sqlite" { "state.db" } else { "etcd" })
    }

    fn check(&self, target: &Path, what: &str) {
        if self.to == "sqlite" {
            let want: Live = self.want.iter().map(|k| (k.0.clone(), (k.1.clone(), k.2, k.3, 0))).collect();
            assert!(live_of(target).0 == want, "{what}: another store");
        } else {
            let etcd = EtcdSpec::new("3.6", "seed", target).start();
            assert!(run(async { all_keys(&mut etcd.client().await).await }) == self.want, "{what}: another store");
        }
    }
}

impl Journey for Migrate<'_> {
    type Place = tempfile::TempDir;

    fn name(&self) -> String {
        let from = self.from.split('/').next().unwrap_or_default();
        format!("{from} to {}", self.to)
    }

    fn fresh(&self) -> tempfile::TempDir {
        tempfile::tempdir().expect("a folder")
    }

    fn attempt(&self, place: &tempfile::TempDir) -> Command {
        let mut command = Command::new(syncer());
        command.args(["migrate", "-o", "json", "--from", &self.from, "--to"]);
        command.arg(format!("{}:{}", self.to, self.target(place).display()));
        command.arg("--etcd").arg(program("etcd", "3.6")).env_remove("SYNCER_CRASH_AT").envs(self.env.clone());
        command
    }

    fn may_end(&self, status: ExitStatus) -> bool {
        status.success()
    }

    fn left(&self, place: &mut tempfile::TempDir, what: &str) -> bool {
        // A target under its name is a whole one, whoever looks.
        let target = self.target(place);
        if target.exists() && self.to == "sqlite" {
            self.check(&target, what);
        }
        target.exists()
    }

    fn end(&self, place: &mut tempfile::TempDir, what: &str) -> Duration {
        let (was_there, begun) = (self.target(place).exists(), Instant::now());
        let out = self.attempt(place).output().expect("run syncer");
        let took = begun.elapsed();
        assert!(out.status.success(), "{what}: {}", String::from_utf8_lossy(&out.stderr));
        let told: Value = serde_json::from_slice(&out.stdout).expect("a report");
        assert_eq!(
            told["movedBefore"] == true,
            was_there,
            "{what}: what is in place is moved once, and told of: {told}"
        );
        self.check(&self.target(place), what);
        let entries = std::fs::read_dir(place.path()).expect("list");
        let mut names: Vec<_> = entries.map(|entry| entry.expect("an entry").file_name()).collect();
        // Of the etcd that was just looked at, and of a killed one's lock.
        names.retain(|name| name != "etcd.log" && name != LOCK_FILE);
        assert!(names.len() == 2, "{what}: {names:?} are left, not the target and its journal");
        took
    }
}

#[test]
fn a_migration_offline_converges() {
    let store = store();
    for (from, to) in [
        (store.snapshot(), "datadir"),
        (store.datadir(), "datadir"),
        (store.snapshot(), "sqlite"),
        (store.datadir(), "sqlite"),
    ] {
        killed(&Migrate { from, to, want: &store.keys, env: Vec::new() }, 8);
    }
}

/// Of a source that must be copied first.
#[test]
fn a_migration_from_elsewhere_converges() {
    let home = tempfile::tempdir().expect("a folder");
    let etcd = filled(home.path());
    let want = run(async { all_keys(&mut etcd.client().await).await });
    for to in ["datadir", "sqlite"] {
        let from = format!("etcd:{}", etcd.spec.client_url());
        killed(&Migrate { from, to, want: &want, env: Vec::new() }, 4);
    }
    let (server, place) = (VersityGw::start(false, &["backups"]), "s3://backups/vc");
    let save = SaveInBucket { etcd: &etcd, server: &server };
    let out = save.attempt(&place.to_owned()).output().expect("run syncer");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let from = format!("snapshot:{place}/{}", server.objects("backups", "vc").remove(0));
    killed(&Migrate { from, to: "datadir", want: &want, env: server.env() }, 4);
}

/// `syncer snapshot save` of a running etcd.
struct Save(Etcd);

impl Save {
    fn files(&self, place: &tempfile::TempDir, ending: &str) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(place.path()).expect("list");
        let files = entries.map(|entry| entry.expect("an entry").path());
        files.filter(|file| file.to_string_lossy().ends_with(ending)).collect()
    }
}

impl Journey for Save {
    type Place = tempfile::TempDir;

    fn name(&self) -> String {
        "snapshot save".to_owned()
    }

    fn fresh(&self) -> tempfile::TempDir {
        tempfile::tempdir().expect("a folder")
    }

    fn attempt(&self, place: &tempfile::TempDir) -> Command {
        let mut command = Command::new(syncer());
        command.args(["snapshot", "save", "--name", "vc", "-o", "json", "--to"]).arg(place.path());
        command.args(["--endpoint", &self.0.spec.client_url()]).env_remove("SYNCER_CRASH_AT");
        command
    }

    fn may_end(&self, status: ExitStatus) -> bool {
        status.success()
    }

    fn left(&self, place: &mut tempfile::TempDir, what: &str) -> bool {
        // What has a snapshot's name is whole.
        let named = self.files(place, ".db");
        for file in &named {
            let out = Command::new(syncer()).args(["snapshot", "verify"]).arg(file).output().expect("run syncer");
            assert!(out.status.success(), "{what}: {}", String::from_utf8_lossy(&out.stderr));
        }
        !named.is_empty()
    }

    fn end(&self, place: &mut tempfile::TempDir, what: &str) -> Duration {
        let begun = Instant::now();
        let out = self.attempt(place).output().expect("run syncer");
        let took = begun.elapsed();
        assert!(out.status.success(), "{what}: {}", String::from_utf8_lossy(&out.stderr));
        assert!(self.left(place, what), "{what}: there is no snapshot");
        assert!(self.files(place, ".part").is_empty(), "{what}: what killed ones left is not removed");
        took
    }
}

#[test]
fn a_snapshot_is_whole_or_has_no_name() {
    let home = tempfile::tempdir().expect("a folder");
    killed(&Save(filled(home.path())), 24);
}

/// The same into a bucket, where each attempt begins at a prefix of its own. What a killed one has sent of an object is no
/// object, and the bucket's lifecycle removes it.
struct SaveInBucket<'a> {
    etcd: &'a Etcd,
    server: &'a VersityGw,
}

impl SaveInBucket<'_> {
    fn verified(&self, object: &str, what: &str) {
        let mut command = Command::new(syncer());
        command.args(["snapshot", "verify", object]).envs(self.server.env());
        let out = command.output().expect("run syncer");
        assert!(out.status.success(), "{what}: {object}: {}", String::from_utf8_lossy(&out.stderr));
    }
}

impl Journey for SaveInBucket<'_> {
    type Place = String;

    fn name(&self) -> String {
        "snapshot save into a bucket".to_owned()
    }

    fn fresh(&self) -> String {
        format!("s3://backups/{:016x}", rand::random::<u64>())
    }

    fn attempt(&self, place: &String) -> Command {
        let mut command = Command::new(syncer());
        command.args(["snapshot", "save", "--name", "vc", "-o", "json", "--to", place]);
        command.args(["--endpoint", &self.etcd.spec.client_url()]);
        command.env_remove("SYNCER_CRASH_AT").envs(self.server.env());
        command
    }

    fn may_end(&self, status: ExitStatus) -> bool {
        status.success()
    }

    fn left(&self, place: &mut String, what: &str) -> bool {
        // What is an object is whole.
        let prefix = place.rsplit('/').next().expect("a prefix");
        let objects = self.server.objects("backups", prefix);
        objects.iter().for_each(|object| self.verified(&format!("{place}/{object}"), what));
        !objects.is_empty()
    }

    fn end(&self, place: &mut String, what: &str) -> Duration {
        let begun = Instant::now();
        let out = self.attempt(place).output().expect("run syncer");
        let took = begun.elapsed();
        assert!(out.status.success(), "{what}: {}", String::from_utf8_lossy(&out.stderr));
        assert!(self.left(place, what), "{what}: there is no snapshot");
        took
    }
}

#[test]
fn a_snapshot_in_a_bucket_is_whole_or_is_none() {
    let (home, server) = (tempfile::tempdir().expect("a folder"), VersityGw::start(false, &["backups"]));
    // Of several parts.
    let etcd = crate::bucket::etcd(home.path());
    killed(&SaveInBucket { etcd: &etcd, server: &server }, 8);
}
