//! Renewal while everything runs.

use std::convert::Infallible;
use std::time::Duration;

use time::OffsetDateTime;

use super::ensure::{Pki, ensure};
use crate::disk::Disk;
use crate::settings::Settings;
use crate::supervise::spec::Role;

/// How long to wait after a look that failed.
const RETRY: Duration = Duration::from_secs(60 * 60);

/// Looks at the certificates whenever one may be due, for as long as it is polled, and renews them. `restart` is told
/// who reads a renewed file only at start. A look that fails is logged and tried again: what runs goes on with the
/// certificates that it has, which are good for months when they become due.
pub async fn follow(settings: Settings, disk: impl Disk, pki: &Pki, mut restart: impl FnMut(&[Role])) -> Infallible {
    let mut wait = pki.next_check(OffsetDateTime::now_utc());
    loop {
        tokio::time::sleep(wait).await;
        let roles;
        (wait, roles) = look(&settings, &disk, OffsetDateTime::now_utc());
        if !roles.is_empty() {
            restart(&roles);
        }
    }
}

/// One look: how long to wait for the next, and who is to be restarted.
fn look(settings: &Settings, disk: &dyn Disk, now: OffsetDateTime) -> (Duration, Vec<Role>) {
    match ensure(settings, disk, now) {
        Ok(pki) => (pki.next_check(now), pki.restart()),
        Err(error) => {
            tracing::error!("certificates were not renewed, trying again in an hour: {error:#}");
            (RETRY, Vec::new())
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::ffi::OsString;

    use super::*;
    use crate::disk::RealDisk;
    use crate::settings::flags::{DistroFlag, Flags};
    use crate::settings::load::{Loader, Surroundings};

    #[test]
    fn a_look_renews_what_is_due_and_a_failed_one_is_tried_again() {
        let dir = tempfile::tempdir().unwrap();
        let flags = Flags {
            data_dir: Some(dir.path().to_owned()),
            distro: Some(DistroFlag::K8s),
            etcd_embedded: Some(true),
            ..Flags::default()
        };
        let surroundings =
            Surroundings { values_files: Vec::new(), namespace_file: "/nonexistent".into(), folders: Vec::new() };
        let env: BTreeMap<String, OsString> = BTreeMap::new();
        let settings = Loader { flags, wrapped: None, env: Box::new(env), surroundings }.load().unwrap().settings;
        let start = OffsetDateTime::now_utc();
        let halfday = Duration::from_secs(12 * 60 * 60);
        assert_eq!(look(&settings, &RealDisk, start), (halfday, Vec::new()));
        let later = start + time::Duration::days(300);
        assert_eq!(look(&settings, &RealDisk, later), (halfday, vec![Role::ControllerManager, Role::Scheduler]));
        assert_eq!(look(&settings, &RealDisk, later), (halfday, Vec::new()));
        std::fs::write(settings.pki_dir.join("ca.crt"), "damaged").unwrap();
        assert_eq!(look(&settings, &RealDisk, later), (RETRY, Vec::new()));
    }
}
