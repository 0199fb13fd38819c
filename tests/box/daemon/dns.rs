//! The cluster's DNS.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use super::super::coredns::{Records, UP, corefile, reverse_name};
use super::super::pod;
use super::driver::Driver;
use super::{Daemon, write};

/// How long CoreDNS may take to listen.
const DNS_PATIENCE: Duration = Duration::from_secs(30);

impl Daemon {
    pub(super) fn start_dns(&mut self) -> anyhow::Result<()> {
        self.write_zone()?;
        self.write_corefile()?;
        let file = self.path("logs/coredns.log");
        let log = File::options().create(true).append(true).open(&file)?;
        let ups = || fs::read_to_string(&file).map(|log| log.matches(UP).count());
        let before = ups()?;
        let mut command = Command::new(&self.config.coredns);
        command.arg("-conf").arg(self.path("dns/Corefile"));
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0);
        pod::dies_with_parent(&mut command);
        let coredns = self.config.coredns.display().to_string();
        let child = self.network.inside(move || command.spawn()).with_context(|| format!("start {coredns}"))?;
        self.dns = Some(child);
        let began = Instant::now();
        while ups()? == before {
            let ended = self.dns.as_mut().and_then(|child| child.try_wait().ok().flatten());
            ensure!(ended.is_none(), "CoreDNS ended; see logs/coredns.log");
            ensure!(began.elapsed() < DNS_PATIENCE, "CoreDNS is not up; see logs/coredns.log");
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    pub(super) fn stop_dns(&mut self) {
        if let Some(mut dns) = self.dns.take() {
            // It may have ended already.
            let _ = dns.kill();
            let _ = dns.wait();
        }
    }

    pub(super) fn write_corefile(&self) -> anyhow::Result<()> {
        let (zone, reverse) = (self.path("dns/zone"), self.path("dns/reverse"));
        let names = [self.zone.domain.clone(), reverse_name(self.network.first_octets())];
        let files = [(names[0].clone(), zone.as_path()), (names[1].clone(), reverse.as_path())];
        let kubeconfig = self.path("host/pki/admin.conf");
        let records = match self.driver {
            Driver::Own(_) => Records::Files(&files),
            Driver::Host(_) => Records::Kubernetes(&names, &kubeconfig, self.config.ttl),
        };
        write(&self.path("dns/Corefile"), &corefile(self.network.dns(), records, self.mood))
    }

    pub(super) fn write_zone(&mut self) -> anyhow::Result<()> {
        self.serial += 1;
        write(&self.path("dns/zone"), &self.zone.file(self.serial))?;
        write(&self.path("dns/reverse"), &self.zone.reverse_file(self.network.first_octets(), self.serial))
    }
}
