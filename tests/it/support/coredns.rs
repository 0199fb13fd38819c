//! A real CoreDNS for a test: on loopback, with a zone that can be changed under it.

use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::{free_port, part, poll};
use crate::statefulset_box::coredns::{Mood, Records, UP, Zone, corefile};

const PATIENCE: Duration = Duration::from_secs(60);

/// A running CoreDNS. Killed when dropped.
pub struct CoreDns {
    dir: tempfile::TempDir,
    pub listen: SocketAddr,
    pub zone: Zone,
    serial: u32,
    child: Option<Child>,
}

impl CoreDns {
    /// One that serves `zone`.
    pub fn start(zone: Zone) -> CoreDns {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let listen = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let mut dns = CoreDns { dir, listen, zone, serial: 0, child: None };
        dns.write_zone();
        dns.configure(Mood::Well);
        dns.run();
        dns
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Starts it, after [`CoreDns::stop`] again.
    pub fn run(&mut self) {
        let log = File::options().create(true).append(true).open(self.path("log")).expect("open the log");
        let errors = log.try_clone().expect("clone the log");
        let mut command = Command::new(part("coredns"));
        command.arg("-conf").arg(self.path("Corefile")).stdin(Stdio::null()).stdout(log).stderr(errors);
        let before = self.log().matches(UP).count();
        self.child = Some(command.spawn().expect("CoreDNS starts"));
        poll("CoreDNS is up", PATIENCE, || (self.log().matches(UP).count() > before).then_some(()));
    }

    /// Ends it at once.
    pub fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    fn write_zone(&mut self) {
        self.serial += 1;
        let new = self.path("zone.new");
        std::fs::write(&new, self.zone.file(self.serial)).expect("write the zone");
        nix::fcntl::renameat(nix::fcntl::AT_FDCWD, &new, nix::fcntl::AT_FDCWD, &self.path("zone")).expect("rename");
    }

    fn configure(&self, mood: Mood) {
        let text = corefile(self.listen, Records::Files(&[(self.zone.domain.clone(), &self.path("zone"))]), mood);
        std::fs::write(self.path("Corefile"), text).expect("write the Corefile");
    }

    /// Changes the zone; the server takes it within moments.
    pub fn change(&mut self, change: impl FnOnce(&mut Zone)) {
        change(&mut self.zone);
        self.write_zone();
    }

    /// Changes what it does, by starting it anew: under load it is killed by the signal that asks it to reload.
    pub fn set_mood(&mut self, mood: Mood) {
        self.stop();
        self.configure(mood);
        self.run();
    }

    /// What it has printed; with a line for each question.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// How many questions it has been asked.
    pub fn questions(&self) -> usize {
        self.log().lines().filter(|line| line.contains(" IN ") && line.contains("[INFO] ")).count()
    }

    /// A `resolv.conf` for its clients, without a server: CoreDNS listens on a port of its own.
    pub fn resolv_conf(&self) -> PathBuf {
        let path = self.path("resolv.conf");
        std::fs::write(&path, self.zone.resolv_conf(self.listen.ip())).expect("write resolv.conf");
        path
    }

    /// Its folder.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }
}

impl Drop for CoreDns {
    fn drop(&mut self) {
        self.stop();
    }
}
