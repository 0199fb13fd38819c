//! A save whose place hangs, or whose member lacks what was acknowledged.

use std::io;
use std::sync::{Arc, Mutex};

use syncer::disk::{Disk, DiskFile, RealDisk};
use syncer::etcd::client::{EtcdClient, EtcdEndpoint};
use syncer::exit::{Exit, exit_of};
use syncer::ids::Revision;
use syncer::migrate::progress::Meter;
use syncer::snapshot::save::{Held, Saved, Wanted, save};
use syncer::snapshot::target::Target;

use super::*;
use crate::support::etcd::PATIENCE;

/// One on which making a file, and a file's second name, take until the locks are free.
#[derive(Clone, Default)]
struct Hanging {
    create: Arc<Mutex<()>>,
    link: Arc<Mutex<()>>,
}

impl Disk for Hanging {
    fn create(&self, path: &Path, mode: u32) -> io::Result<Box<dyn DiskFile>> {
        let _held = self.create.lock();
        RealDisk.create(path, mode)
    }
    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        RealDisk.open(path)
    }
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        RealDisk.create_dir(path)
    }
    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        let _held = self.link.lock();
        RealDisk.link(from, to)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        RealDisk.rename(from, to)
    }
    fn remove_file(&self, path: &Path) -> io::Result<()> {
        RealDisk.remove_file(path)
    }
    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        RealDisk.remove_dir_all(path)
    }
    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        RealDisk.sync_dir(path)
    }
}

fn saved(
    etcd: &Etcd,
    disk: &Hanging,
    place: &Path,
    (least, patience): (Revision, Duration),
    held: Held<'_>,
) -> anyhow::Result<Saved> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let saved = runtime.block_on(async {
        let endpoint = EtcdEndpoint { url: etcd.spec.client_url(), tls: None, server_name: None };
        let mut client = EtcdClient::connect(&endpoint).await.expect("a client");
        let name = "vc-20260102T000000Z.db".parse().expect("a name");
        let wanted = Wanted { name: &name, size: 1 << 20, least, patience };
        save(disk, &mut client, &Target::directory(place), &wanted, held, &Meter::default()).await
    });
    runtime.shutdown_background();
    saved
}

/// etcd frees nothing of its backend while it sends, and a pod has more to do than to wait.
#[test]
fn a_place_that_hangs_holds_up_neither_etcd_nor_the_pod() {
    let home = tempfile::tempdir().expect("a folder");
    let etcd = EtcdSpec::new("3.6", "seed", &home.path().join("etcd")).start();
    run(async {
        // More than is on its way at a time.
        let mut client = etcd.client().await;
        for n in 0..4 {
            client.put(format!("/large/{n}"), vec![n; 1_000_000], None).await.expect("put");
        }
    });
    let (disk, place) = (Hanging::default(), home.path().join("kept"));
    let (backend, writing) = (tokio::sync::Mutex::default(), Arc::new(()));
    let held = || Held { backend: Some(&backend), reading: None, writing: Arc::clone(&writing) };
    let gone = || poll("the writer goes away", PATIENCE, || (Arc::strong_count(&writing) == 1).then_some(()));

    let lock = disk.create.lock().expect("a lock");
    let error = saved(&etcd, &disk, &place, (Revision(0), Duration::from_secs(1)), held()).expect_err("it hangs");
    assert!(format!("{error:#}").contains("kept hangs: it has taken nothing for 1 s"), "{error:#}");
    assert!(backend.try_lock().is_ok(), "etcd still sends");
    assert_eq!(Arc::strong_count(&writing), 2, "somebody still writes, and that is not told");
    drop(lock);
    gone();
    assert_eq!(files(&place), Vec::<PathBuf>::new(), "what was begun is removed");

    // All has arrived, and does not become durable.
    let lock = disk.link.lock().expect("a lock");
    let name = std::thread::scope(|scope| {
        let save = scope.spawn(|| saved(&etcd, &disk, &place, (Revision(0), PATIENCE), held()));
        poll("it is being written", PATIENCE, || (files(&place).len() == 1).then_some(()));
        poll("etcd has sent all", PATIENCE, || backend.try_lock().ok().map(|_| ()));
        assert!(Arc::strong_count(&writing) > 1, "somebody still writes, and that is not told");
        drop(lock);
        save.join().expect("it ends").expect("it is kept").name
    });
    gone();
    assert_eq!(files(&place), [place.join(name.to_string())]);
}

#[test]
fn a_snapshot_that_lacks_what_was_acknowledged_is_not_kept() {
    let home = tempfile::tempdir().expect("a folder");
    let etcd = EtcdSpec::new("3.6", "seed", &home.path().join("etcd")).start();
    let revision = run(async {
        let mut client = etcd.client().await;
        fill(client.clone()).await;
        client.get("/", None).await.expect("read").header().expect("a header").revision()
    });
    let (disk, place) = (Hanging::default(), home.path().join("kept"));
    let save = |least| saved(&etcd, &disk, &place, (Revision(least), PATIENCE), Held::default());
    let error = save(revision + 1).expect_err("it lacks one");
    assert_eq!(exit_of(&error), Exit::RefusedSource, "{error:#}");
    let told = format!("it is at revision {revision}, and {} was acknowledged", revision + 1);
    assert!(format!("{error:#}").contains(&told), "{error:#}");
    assert_eq!(files(&place), Vec::<PathBuf>::new());
    assert_eq!(save(revision).expect("it has all").content.expect("it was read").revision, Revision(revision));
}
