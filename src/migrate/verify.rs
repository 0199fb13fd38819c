//! Asking a running etcd, on loopback only, whether it serves what was read from the source.

use std::time::Duration;

use anyhow::{Context, bail, ensure};
use etcd_client::{Client, GetOptions};
use sha2::{Digest, Sha256};

use super::convert::{KeyLease, LeaseAssigner, LiveKey};
use super::loopback::LoopbackEtcd;
use super::pipeline::copy;
use super::progress::{Meter, Stage};
use super::sink::Sink;
use super::source::Source;
use super::to_datadir::WrittenStore;
use crate::crash_point;
use crate::datadir::LeaseRecord;
use crate::disk::Disk;
use crate::ids::Revision;

/// How thoroughly the imported store is verified.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Verify {
    /// etcd's own hash over all keys at the imported revision, their number and the revision.
    #[default]
    Hash,
    /// Also read every key and lease back and compare with a second reading of the source.
    Full,
}

/// What etcd must report.
#[derive(Clone, Copy, Debug)]
pub struct Expected<'a> {
    /// The store's revision.
    pub revision: Revision,
    /// What was written.
    pub written: &'a WrittenStore,
}

/// One page of a full comparison, in bytes and in keys.
const PAGE_BYTES: u64 = 8 << 20;
const PAGE_KEYS: u64 = 1000;
/// Starts etcd on loopback, compares, and stops it. The source, if given, is read again for a full comparison.
pub fn verify(
    disk: &dyn Disk,
    etcd: &LoopbackEtcd<'_>,
    expected: &Expected<'_>,
    full: Option<&mut dyn Source>,
    meter: &Meter,
) -> anyhow::Result<()> {
    meter.begin(Stage::Verify, if full.is_some() { expected.written.datadir.keys } else { 0 });
    let asked = etcd.asked(disk, async |mut client, patience| {
        crash_point!("migrate-etcd-started");
        compare(&mut client, expected, patience).await?;
        match full {
            Some(source) => compare_fully(&mut client, expected, source, meter, patience).await,
            None => Ok(()),
        }
    });
    asked.context("verify the imported store with etcd")?;
    crash_point!("migrate-verified");
    Ok(())
}

/// Revision, number of keys, and etcd's hash over the bucket `key` at the imported revision.
async fn compare(client: &mut Client, expected: &Expected<'_>, patience: Duration) -> anyhow::Result<()> {
    let (revision, written) = (expected.revision, &expected.written.datadir);
    let count = GetOptions::new().with_all_keys().with_count_only().with_revision(revision.0);
    // It has no keys at a revision that it has not come to, or has compacted.
    let answer = timeout(patience, client.get(vec![0], Some(count)))
        .await
        .with_context(|| format!("count etcd's keys at revision {revision}"))?;
    let keys = u64::try_from(answer.count()).unwrap_or_default();
    ensure!(keys == written.keys, "etcd has {keys} keys at revision {revision}, the source {}", written.keys);
    let answer = timeout(patience, client.hash_kv(revision.0)).await.context("ask etcd for its hash")?;
    ensure!(
        answer.hash() == written.hash_kv,
        "etcd's hash at revision {revision} is {:08x}, that of what was read {:08x}",
        answer.hash(),
        written.hash_kv
    );
    Ok(())
}

/// Every key with all that belongs to it, and every lease. Keys come by name from etcd and by revision from the source,
/// so what is compared is a sum over the SHA-256 of each, which does not depend on their order.
async fn compare_fully(
    client: &mut Client,
    expected: &Expected<'_>,
    source: &mut dyn Source,
    meter: &Meter,
    patience: Duration,
) -> anyhow::Result<()> {
    let mut from_source = Multiset { leases: Some(LeaseAssigner::default()), ..Multiset::default() };
    let silent = Meter::default();
    copy(source, &mut from_source, &silent).context("read the source a second time")?;
    let mut from_etcd = Multiset::default();
    let page = (PAGE_BYTES / expected.written.largest.max(1)).clamp(1, PAGE_KEYS);
    let mut kv = client.kv_client().max_decoding_message_size(4 * PAGE_BYTES as usize);
    let mut from = vec![0];
    loop {
        let options = GetOptions::new().with_from_key().with_limit(page as i64).with_revision(expected.revision.0);
        let answer = timeout(patience, kv.get(from, Some(options))).await.context("read etcd's keys back")?;
        let mut bytes = 0;
        for kv in answer.kvs() {
            bytes += kv.value().len() as u64;
            from_etcd.add(
                &LiveKey {
                    key: kv.key(),
                    value: kv.value(),
                    create_revision: Revision(kv.create_revision()),
                    mod_revision: Revision(kv.mod_revision()),
                    sub: 0,
                    version: kv.version(),
                    lease: KeyLease::None,
                },
                kv.lease(),
            );
        }
        meter.advance(answer.kvs().len() as u64, bytes);
        match answer.kvs().last() {
            Some(last) if answer.more() => from = [last.key(), &[0]].concat(),
            _ => break,
        }
    }
    ensure!(
        (from_etcd.count, from_etcd.sum) == (from_source.count, from_source.sum),
        "{} keys read back from etcd differ from the {} of the source",
        from_etcd.count,
        from_source.count
    );
    compare_leases(client, &expected.written.leases, patience).await
}

async fn compare_leases(client: &mut Client, leases: &[LeaseRecord], patience: Duration) -> anyhow::Result<()> {
    for lease in leases {
        let answer = timeout(patience, client.lease_time_to_live(lease.id, None)).await.context("ask for a lease")?;
        // One that is shorter than the verification has expired, and etcd knows it no more (TTL -1).
        let expired = answer.ttl() < 0 && lease.ttl < patience.as_secs() as i64;
        ensure!(
            answer.granted_ttl() == lease.ttl || expired,
            "etcd grants lease {:x} {} seconds, the source {}",
            lease.id,
            answer.granted_ttl(),
            lease.ttl
        );
    }
    Ok(())
}

/// A sum over keys that does not depend on their order.
#[derive(Debug, Default)]
pub(super) struct Multiset {
    count: u64,
    sum: [u64; 4],
    leases: Option<LeaseAssigner>,
}

impl PartialEq for Multiset {
    fn eq(&self, other: &Multiset) -> bool {
        (self.count, self.sum) == (other.count, other.sum)
    }
}

impl Multiset {
    pub(super) fn add(&mut self, key: &LiveKey<'_>, lease: i64) {
        let mut hash = Sha256::new();
        for number in [key.key.len() as i64, key.create_revision.0, key.mod_revision.0, key.version, lease] {
            hash.update(number.to_le_bytes());
        }
        hash.update(key.key);
        hash.update(key.value);
        let digest: [u8; 32] = hash.finalize().into();
        let (words, _) = digest.as_chunks::<8>();
        let mut carry = false;
        for (sum, word) in self.sum.iter_mut().zip(words) {
            let (partial, first) = sum.overflowing_add(u64::from_le_bytes(*word));
            let (total, second) = partial.overflowing_add(u64::from(carry));
            (*sum, carry) = (total, first || second);
        }
        self.count += 1;
    }
}

impl Sink for Multiset {
    fn put(&mut self, key: &LiveKey<'_>) -> anyhow::Result<()> {
        let lease = self.leases.as_mut().map_or(0, |l| l.assign(key.lease));
        self.add(key, lease);
        Ok(())
    }
}

async fn timeout<T>(
    patience: Duration,
    call: impl Future<Output = Result<T, etcd_client::Error>>,
) -> anyhow::Result<T> {
    match tokio::time::timeout(patience, call).await {
        Ok(result) => Ok(result?),
        Err(_) => bail!("etcd did not answer within {} s", patience.as_secs()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key<'a>(name: &'a [u8], value: &'a [u8], revision: i64) -> LiveKey<'a> {
        let revision = Revision(revision);
        let lease = KeyLease::None;
        LiveKey { key: name, value, create_revision: revision, mod_revision: revision, sub: 0, version: 1, lease }
    }

    fn sum(keys: &[(LiveKey<'_>, i64)]) -> ([u64; 4], u64) {
        let mut set = Multiset::default();
        keys.iter().for_each(|(key, lease)| set.add(key, *lease));
        (set.sum, set.count)
    }

    #[test]
    fn the_sum_does_not_depend_on_the_order_and_on_everything_else() {
        let (a, b) = (key(b"/a", b"1", 2), key(b"/b", b"2", 3));
        let both = sum(&[(a, 0), (b, 7)]);
        assert_eq!(both, sum(&[(b, 7), (a, 0)]));
        for other in [
            [(a, 0), (key(b"/b", b"3", 3), 7)],
            [(a, 0), (key(b"/b2", b"", 3), 7)],
            [(a, 0), (key(b"/b", b"2", 4), 7)],
            [(a, 0), (b, 8)],
            [(a, 0), (LiveKey { version: 2, ..b }, 7)],
            [(a, 0), (LiveKey { create_revision: Revision(1), ..b }, 7)],
            [(a, 0), (a, 0)],
        ] {
            assert_ne!(both.0, sum(&other).0, "{other:?}");
        }
    }
}
