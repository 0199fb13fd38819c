//! Notices that the values file changed, without polling.
//!
//! A Secret or ConfigMap volume is a directory in which `config.yaml` links to `..data/config.yaml` and `..data` links
//! to a directory of the moment; an update makes a new directory and renames a new `..data` over the old one
//! (Kubernetes: `pkg/volume/util/atomic_writer.go`). Editors and `kubectl cp` replace or rewrite a plain file. Both
//! show as events in the directories that the path leads through, so those are watched with inotify, and after each
//! event the file is read again. A file mounted with `subPath` is never updated by the kubelet, so nothing is seen.
//!
//! A file that is not good is reported once, and the settings stay as they are.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::Settings;
use super::change::{self, Change, Effect};
use super::load::Loader;
use super::values::{self, ValuesError};
use crate::disk::parent_of;
use crate::telemetry;

/// How long events must be quiet before the file is read: a replacement is several events.
const QUIET: Duration = Duration::from_millis(100);
/// But not longer than this, so that a directory with much traffic does not hold it off.
const QUIET_AT_MOST: Duration = Duration::from_secs(2);
/// The most symbolic links followed, as the kernel does (path_resolution(7)).
const MAX_LINKS: usize = 40;

/// Watches the values file of a [`Loader`].
pub struct Watch {
    loader: Arc<Loader>,
    path: PathBuf,
    queue: AsyncFd<Queue>,
    /// Names on the way to the file; events of other files in the same directories do not concern us.
    names: Vec<OsString>,
    settings: Settings,
    /// The content that was looked at last, or why there was none.
    seen: Option<Result<Vec<u8>, ValuesError>>,
    broken: bool,
}

/// New settings.
#[derive(Clone, Debug)]
pub struct Changed {
    /// All of them: those that need a restart of the pod are still the old ones.
    pub settings: Settings,
    /// What differs.
    pub changes: Vec<Change>,
    /// Things worth a warning.
    pub warnings: Vec<String>,
}

impl Watch {
    /// Watches the file that `settings` came from; `None` if there was none. An error means that inotify is not to be
    /// had (a limit of the node): the pod can run on without noticing changes. Needs a tokio runtime with I/O.
    pub fn new(loader: impl Into<Arc<Loader>>, settings: Settings) -> io::Result<Option<Watch>> {
        let Some(path) = settings.values_file.clone() else { return Ok(None) };
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        let names = add(&inotify, &path)?;
        // SAFETY: `Queue` owns its descriptor, which is open and stays the same for as long as it lives.
        let queue = unsafe { AsyncFd::register_with_interest(Queue(inotify), Interest::READABLE) }?;
        Ok(Some(Watch { loader: loader.into(), path, queue, names, settings, seen: None, broken: false }))
    }

    /// Waits for the next change of the settings. An error is a bad file, or the end of watching: report it and call
    /// again; nothing comes twice. Dropping the future loses nothing.
    pub async fn next(&mut self) -> anyhow::Result<Changed> {
        loop {
            if let Some(result) = self.look() {
                return result;
            }
            if self.broken {
                return std::future::pending().await;
            }
            if let Err(error) = self.event().await {
                self.broken = true;
                return Err(error)
                    .with_context(|| format!("watch {}: changes of it act at the next start", self.path.display()));
            }
        }
    }

    /// Reads the file and compares. `None`: nothing to tell.
    fn look(&mut self) -> Option<anyhow::Result<Changed>> {
        let seen = values::read_bytes(&self.path);
        if self.seen.as_ref() == Some(&seen) {
            return None;
        }
        let loaded = match &seen {
            Ok(bytes) => self.loader.load_from(&self.path, bytes),
            Err(error) => Err(error.clone().refuse()),
        };
        self.seen = Some(seen);
        let loaded = match loaded {
            Ok(loaded) => loaded,
            Err(error) => return Some(Err(error)),
        };
        let changes = change::between(&self.settings, &loaded.settings);
        if changes.is_empty() {
            return None;
        }
        self.settings = change::apply(&self.settings, &loaded.settings);
        let warnings = loaded.provenance.warnings;
        Some(Ok(Changed { settings: self.settings.clone(), changes, warnings }))
    }

    /// Waits until something happened on the way to the file and it is quiet again.
    async fn event(&mut self) -> io::Result<()> {
        self.drain().await?;
        let settle = async {
            while let Ok(result) = timeout(QUIET, self.drain()).await {
                result?;
            }
            io::Result::Ok(())
        };
        timeout(QUIET_AT_MOST, settle).await.unwrap_or(Ok(()))?;
        // The links may lead elsewhere now. Watching a directory a second time changes nothing.
        match add(&self.queue.get_ref().0, &self.path) {
            Ok(names) => self.names = names,
            // A directory is being replaced; its own disappearance and return are events too.
            Err(e) if e.kind() == io::ErrorKind::NotFound => sleep(QUIET).await,
            Err(e) => return Err(e),
        }
        Ok(())
    }

    /// Waits for events that concern the file, and reads all there are.
    async fn drain(&self) -> io::Result<()> {
        let mut concerned = false;
        while !concerned {
            let mut ready = self.queue.readable().await?;
            loop {
                match self.queue.get_ref().0.read_events() {
                    // One without a name is about a directory itself, or says that events were lost.
                    Ok(events) => {
                        concerned |=
                            events.iter().any(|e| e.name.as_ref().is_none_or(|name| self.names.contains(name)));
                    }
                    Err(Errno::EAGAIN) => break,
                    Err(Errno::EINTR) => {}
                    Err(e) => return Err(e.into()),
                }
            }
            ready.clear_ready();
        }
        Ok(())
    }
}

/// Follows the values file in a task of its own for as long as somebody holds the receiver: logs what changes and what
/// it takes to act, sets the log level at once, and gives the settings that hold from then on. Without a values file,
/// or without inotify (which is logged), they never change.
pub fn follow(loader: impl Into<Arc<Loader>>, settings: Settings) -> watch::Receiver<Settings> {
    let (sender, receiver) = watch::channel(settings.clone());
    let watch = match Watch::new(loader, settings) {
        Ok(Some(watch)) => watch,
        Ok(None) => return receiver,
        Err(error) => {
            tracing::warn!(%error, "the values file cannot be watched; changes of it act at the next start");
            return receiver;
        }
    };
    tokio::spawn(tell(watch, sender));
    receiver
}

async fn tell(mut watch: Watch, sender: watch::Sender<Settings>) {
    loop {
        let changed = tokio::select! {
            changed = watch.next() => changed,
            () = sender.closed() => return,
        };
        match changed {
            Ok(changed) => {
                for change in &changed.changes {
                    let acts = match change.effect {
                        Effect::Live => "now",
                        Effect::EtcdRestart => "now, by a restart of etcd",
                        Effect::PodRestart => "when the pod is started again",
                    };
                    let (setting, old, new) = (change.setting, &change.old, &change.new);
                    tracing::info!(setting, old, new, acts, "a setting has changed in the values file");
                }
                for warning in &changed.warnings {
                    tracing::warn!("{warning}");
                }
                telemetry::set_level(&changed.settings.log_level);
                sender.send_replace(changed.settings);
            }
            Err(error) => tracing::error!("{error:#}; the settings stay as they are"),
        }
    }
}

/// [`Inotify`] as tokio wants it.
struct Queue(Inotify);

impl AsRawFd for Queue {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

/// Watches every directory that the path leads through. Returns the names on the way.
fn add(inotify: &Inotify, path: &Path) -> io::Result<Vec<OsString>> {
    let what = AddWatchFlags::IN_CREATE
        | AddWatchFlags::IN_MOVED_TO
        | AddWatchFlags::IN_CLOSE_WRITE
        | AddWatchFlags::IN_DELETE
        | AddWatchFlags::IN_MOVED_FROM
        | AddWatchFlags::IN_ATTRIB
        | AddWatchFlags::IN_MOVE_SELF
        | AddWatchFlags::IN_DELETE_SELF
        | AddWatchFlags::IN_ONLYDIR;
    let steps = steps(path);
    for (dir, _) in &steps {
        inotify.add_watch(dir, what)?;
    }
    Ok(steps.into_iter().map(|(_, name)| name).collect())
}

/// The directories on the way to the path's file, each with the name that is looked up in it.
fn steps(path: &Path) -> Vec<(PathBuf, OsString)> {
    let mut steps = Vec::new();
    let mut path = path.to_owned();
    for _ in 0..MAX_LINKS {
        let dir = parent_of(&path);
        let name = path.file_name().unwrap_or_default().to_owned();
        // The directory may itself be reached through a link that is replaced, such as `..data`.
        if let (Some(link), Ok(target)) = (dir.file_name(), dir.read_link()) {
            let above = parent_of(&dir);
            steps.push((above.clone(), link.to_owned()));
            path = above.join(target).join(name);
            continue;
        }
        steps.push((dir.clone(), name));
        match path.read_link() {
            Ok(target) => path = dir.join(target),
            Err(_) => break,
        }
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::load::tests::loader;
    use std::fs;
    use std::os::unix::fs::symlink;
    use tempfile::TempDir;

    const DEADLINE: Duration = Duration::from_secs(20);

    fn values(replicas: u32) -> String {
        format!("embeddedEtcd: {{enabled: true}}\nsyncer: {{replicas: {replicas}}}\n")
    }

    fn watch(path: &Path) -> Watch {
        let mut loader = loader(&[]);
        loader.flags.values = Some(path.to_owned());
        let settings = loader.load().unwrap().settings;
        Watch::new(loader, settings).unwrap().unwrap()
    }

    async fn next(watch: &mut Watch) -> anyhow::Result<Changed> {
        timeout(DEADLINE, watch.next()).await.expect("no change was noticed: is inotify to be had here?")
    }

    async fn replicas(watch: &mut Watch, want: u32) {
        let changed = next(watch).await.unwrap();
        assert_eq!(changed.settings.etcd.replicas, want);
        let [change] = changed.changes.as_slice() else { panic!("{changed:?}") };
        assert_eq!((change.setting, change.effect), ("etcd.replicas", Effect::Live));
    }

    /// A volume as the kubelet writes it.
    struct Volume(TempDir, u32);

    impl Volume {
        fn write(&mut self, content: &str) {
            let old = self.0.path().join(format!("..{}", self.1));
            self.1 += 1;
            let new = format!("..{}", self.1);
            fs::create_dir(self.0.path().join(&new)).unwrap();
            fs::write(self.0.path().join(&new).join("config.yaml"), content).unwrap();
            symlink(&new, self.0.path().join("..data_tmp")).unwrap();
            #[allow(clippy::disallowed_methods, reason = "this is the kubelet's rename, not ours")]
            fs::rename(self.0.path().join("..data_tmp"), self.0.path().join("..data")).unwrap();
            let link = self.0.path().join("config.yaml");
            if link.symlink_metadata().is_err() {
                symlink("..data/config.yaml", link).unwrap();
            }
            if old.exists() {
                fs::remove_dir_all(old).unwrap();
            }
        }
    }

    #[tokio::test]
    async fn a_mounted_volume_is_followed_through_its_links() {
        let mut volume = Volume(tempfile::tempdir().unwrap(), 0);
        volume.write(&values(1));
        let mut watch = watch(&volume.0.path().join("config.yaml"));
        for n in [3, 5, 3] {
            volume.write(&values(n));
            replicas(&mut watch, n).await;
        }
    }

    #[tokio::test]
    async fn a_plain_file_rewritten_or_replaced_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("values.yaml");
        fs::write(&file, values(1)).unwrap();
        let mut watch = watch(&file);
        fs::write(&file, values(3)).unwrap();
        replicas(&mut watch, 3).await;
        fs::write(dir.path().join("new"), values(5)).unwrap();
        #[allow(clippy::disallowed_methods, reason = "this is an editor's rename, not ours")]
        fs::rename(dir.path().join("new"), &file).unwrap();
        replicas(&mut watch, 5).await;
        fs::remove_file(&file).unwrap();
        let gone = next(&mut watch).await.unwrap_err().to_string();
        assert!(gone.contains("values.yaml") && gone.contains("cannot be read"), "{gone}");
        fs::write(&file, values(1)).unwrap();
        replicas(&mut watch, 1).await;
    }

    #[tokio::test]
    async fn a_change_before_the_first_call_is_not_missed() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("values.yaml");
        fs::write(&file, values(1)).unwrap();
        let mut watch = watch(&file);
        fs::write(&file, values(3)).unwrap();
        replicas(&mut watch, 3).await;
        // A future that is dropped at any moment loses nothing.
        for n in [5, 3, 1] {
            fs::write(&file, values(n)).unwrap();
            let _ = timeout(Duration::from_millis(30), watch.next()).await;
            if watch.settings.etcd.replicas != n {
                replicas(&mut watch, n).await;
            }
        }
    }

    #[tokio::test]
    async fn a_bad_file_is_told_once_and_the_settings_stay() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("values.yaml");
        fs::write(&file, values(3)).unwrap();
        let mut watch = watch(&file);
        fs::write(&file, "embeddedEtcd:\n  enabeld: true\n").unwrap();
        let error = next(&mut watch).await.unwrap_err();
        assert!(error.to_string().contains("values.yaml:2"), "{error}");
        assert_eq!(watch.settings.etcd.replicas, 3);
        // The same bad content again is no news, and neither is a return to what holds.
        fs::write(&file, "embeddedEtcd:\n  enabeld: true\n").unwrap();
        fs::write(&file, values(3)).unwrap();
        let quiet = timeout(4 * QUIET, watch.next()).await;
        assert!(quiet.is_err(), "{quiet:?}");
        fs::write(&file, values(5)).unwrap();
        replicas(&mut watch, 5).await;
    }

    #[tokio::test]
    async fn what_needs_a_restart_is_told_and_does_not_hold_yet() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("values.yaml");
        fs::write(&file, values(3)).unwrap();
        let mut watch = watch(&file);
        fs::write(&file, format!("{}serviceCIDR: 10.0.0.0/16\n", values(5))).unwrap();
        let changed = next(&mut watch).await.unwrap();
        let effects: Vec<_> = changed.changes.iter().map(|c| (c.setting, c.effect)).collect();
        assert_eq!(effects, [("etcd.replicas", Effect::Live), ("serviceCidr", Effect::PodRestart)]);
        assert_eq!(changed.settings.etcd.replicas, 5);
        assert_eq!(changed.settings.service_cidr, "10.96.0.0/12");
    }

    #[tokio::test]
    async fn other_files_in_the_directory_do_not_wake_it() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("values.yaml");
        fs::write(&file, values(3)).unwrap();
        let watch = watch(&file);
        let noise = async {
            for n in 0..20 {
                fs::write(dir.path().join(format!("other-{n}")), "x").unwrap();
                sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::select! {
            result = watch.drain() => panic!("{result:?}"),
            () = noise => {}
        }
    }

    #[tokio::test]
    async fn followers_get_the_settings_that_hold() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("values.yaml");
        fs::write(&file, values(1)).unwrap();
        let mut loader = loader(&[]);
        loader.flags.values = Some(file.clone());
        let settings = loader.load().unwrap().settings;
        let mut receiver = follow(loader, settings);
        for n in [3, 5] {
            fs::write(&file, values(n)).unwrap();
            timeout(DEADLINE, receiver.wait_for(|s| s.etcd.replicas == n)).await.expect("no news").unwrap();
        }
    }

    #[tokio::test]
    async fn links_in_a_circle_end() {
        let dir = tempfile::tempdir().unwrap();
        symlink("b", dir.path().join("a")).unwrap();
        symlink("a", dir.path().join("b")).unwrap();
        assert_eq!(steps(&dir.path().join("a")).len(), MAX_LINKS);
    }
}
