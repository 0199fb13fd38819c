//! What is looked at before a snapshot is staged: the file, the volume, and what the present store has come to.

use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use anyhow::Context;

use super::record;
use crate::boot::{BootDecision, DataDirFact, Facts, RestoreFact, Staged, decide};
use crate::datadir::lock::in_use;
use crate::etcd::EtcdVersion;
use crate::etcd::client::{EtcdClient, EtcdEndpoint};
use crate::exit::{Exit, refuse};
use crate::host::{Host, View};
use crate::ids::{ClusterId, MemberId, Revision};
use crate::migrate::backend::BackendError;
use crate::migrate::fence;
use crate::observe;
use crate::pki::PkiPaths;
use crate::settings::Settings;
use crate::snapshot::digest::UNIT;

/// How long the etcd beside us may take to tell its revision.
const ANSWER: Duration = Duration::from_secs(3);
/// So often what is written to meanwhile is looked at again when a look at it makes no sense.
const LOOKS: u32 = 5;
/// Between two such looks.
const BETWEEN_LOOKS: Duration = Duration::from_millis(100);

/// Size in bytes, and modification time in nanoseconds since 1970, of a snapshot that is a file and may be read; `None`:
/// it is in a bucket.
///
/// # Errors
/// [`Exit::RefusedSource`]: there is none, or it has no checksum and that was not allowed.
pub fn file(place: &Path, skip_hash_check: bool) -> anyhow::Result<Option<(u64, i128)>> {
    if place.to_str().is_some_and(|place| place.starts_with("s3://")) {
        return Ok(None);
    }
    let refused = |what: &str, remedy: &str| {
        Err(refuse(Exit::RefusedSource, format!("{} is not read: {what}", place.display()), remedy))
    };
    let meta = match place.metadata() {
        Ok(meta) if meta.is_file() => meta,
        Ok(_) => return refused("it is not a regular file", "name a snapshot file, not the directory that holds it"),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return refused("there is nothing of this name", "`syncer snapshot list` shows those of a place");
        }
        Err(e) => return Err(crate::disk::at(place, e)).context("look at the snapshot"),
    };
    checksummed(place, place, skip_hash_check)?;
    let modified = meta.modified().ok().and_then(|at| at.duration_since(std::time::UNIX_EPOCH).ok());
    Ok(Some((meta.len(), modified.map_or(0, |since| since.as_nanos() as i128))))
}

/// Refuses a snapshot without a checksum at its end, unless that is allowed: `file` is what `place` names, fetched from there
/// if it is in a bucket.
pub fn checksummed(place: &Path, file: &Path, skip_hash_check: bool) -> anyhow::Result<()> {
    let length = file.metadata().map_err(|e| crate::disk::at(file, e)).context("look at the snapshot")?.len();
    if length % UNIT != 0 || skip_hash_check {
        return Ok(());
    }
    Err(BackendError::NoChecksum.refusal(place))
}

/// The facts of this volume, as far as nobody else is needed for them, and the host API's word on the seed and the marker.
pub async fn facts(settings: &Settings, version: EtcdVersion) -> anyhow::Result<Facts> {
    let used = in_use(&settings.data_dir).context("look whether syncer runs")?;
    let mut looks = 1;
    let mut facts = loop {
        let looked = observe::facts(settings, observe::schema(Some(version))).context("look at the volume");
        // Between two reads etcd has written, or has removed a file.
        let torn = !matches!(&looked, Ok(facts) if !matches!(facts.data_dir, DataDirFact::Damaged(_)));
        if !(used && torn && looks < LOOKS) {
            break looked?;
        }
        looks += 1;
        sleep(BETWEEN_LOOKS);
    };
    if let Some(host) = Host::of(settings) {
        let (set, marker) = tokio::join!(host.set(), host.marker());
        // Which pod is the seed is said at the start.
        let seed = settings.pod.ordinal;
        View { set, marker, ..View::default() }.add_to(&mut facts, seed);
    }
    Ok(facts)
}

/// Refuses now what a start would refuse.
pub fn allowed(facts: &Facts, data_dir: &Path) -> anyhow::Result<()> {
    fence::refuse_raised(data_dir, &facts.fence)?;
    if facts.notes.resetting && matches!(facts.data_dir, DataDirFact::Valid { .. }) {
        return Err(refuse(
            Exit::RefusedDataDir,
            "a reset of this data dir was begun and not finished",
            "let the pod finish it, then restore the snapshot; or give it up: move reset.journal away",
        ));
    }
    let staged =
        Staged { member: MemberId(0), cluster: ClusterId(0), replaces: None, begun: None, whole: true, outrun: false };
    match decide(&Facts { restore: RestoreFact::Staged(staged), ..facts.clone() }) {
        BootDecision::Refuse(refusal) => Err(refusal.error()),
        _ => Ok(()),
    }
}

/// The cluster whose data dir is in the place now.
pub fn present_cluster(facts: &Facts) -> Option<ClusterId> {
    match facts.data_dir {
        DataDirFact::Valid { cluster, .. } => Some(cluster),
        _ => facts.owner.map(|(_, cluster)| cluster),
    }
}

/// The revision of the present store, where it can be told: by its etcd, or by its backend, which no etcd that serves
/// writes to then.
pub async fn seen(settings: &Settings) -> Option<Revision> {
    let asked = async {
        let tls = PkiPaths::new(&settings.pki_dir).etcd_tls().client();
        let mut etcd = EtcdClient::connect(&EtcdEndpoint::on_loopback(settings.listen.client_port, tls)).await?;
        etcd.status(ANSWER).await
    };
    if in_use(&settings.data_dir).unwrap_or(true)
        && let Ok(Ok(status)) = tokio::time::timeout(ANSWER, asked).await
    {
        return Some(status.revision);
    }
    let look = || record::present_revision(&settings.etcd_dir());
    let mut last = look();
    for _ in 0..LOOKS {
        sleep(BETWEEN_LOOKS);
        let now = look();
        if now == last {
            return now;
        }
        last = now;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::FenceFact;
    use crate::exit::exit_of;
    use crate::ids::Ordinal;

    #[test]
    fn a_fence_around_an_etcd_that_is_gone_can_be_forgotten() {
        let facts = |fence| Facts { fence, ..Facts::serving(Ordinal(0), DataDirFact::Empty) };
        let volume = Path::new("/volume");
        let raised = FenceFact::Raised { source: "https://vc-etcd:2379".into(), moved: false };
        let error = allowed(&facts(raised), volume).unwrap_err();
        assert_eq!(exit_of(&error), Exit::RefusedDataDir);
        assert!(error.to_string().contains("gone for good, move /volume/migration.fence away"), "{error}");
        allowed(&facts(FenceFact::Absent), volume).unwrap();
    }
}
