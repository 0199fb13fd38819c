//! The checksum of a snapshot: its last 32 bytes are the SHA-256 of all before them. The backend file in front of them is
//! made of whole pages, so the length of the whole leaves 32 when divided by 512 (etcd:
//! `etcdutl/snapshot/v3_snapshot.go`, `hasChecksum`; `server/etcdserver/api/v3rpc/maintenance.go`, `Snapshot`).

use sha2::{Digest, Sha256};
use thiserror::Error;

/// Bytes of the checksum.
pub const CHECKSUM: usize = 32;
/// The backend's length is a multiple of this.
pub const UNIT: u64 = 512;

/// Why bytes are no whole snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum DigestError {
    /// It was cut off, or is no snapshot.
    #[error("it has {0} bytes, which no whole snapshot has: it was cut off, or has no checksum at its end")]
    Length(u64),
    /// Something in it was changed.
    #[error("its checksum is not that of its content: it is damaged")]
    Mismatch,
}

/// Checks a snapshot as it goes by.
#[derive(Clone, Debug, Default)]
pub struct SnapshotDigest {
    hasher: Sha256,
    /// The last bytes so far, which are the checksum if nothing follows.
    held: Vec<u8>,
    bytes: u64,
}

impl SnapshotDigest {
    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        if let Some(settled) = bytes.len().checked_sub(CHECKSUM) {
            let (body, last) = bytes.split_at(settled);
            self.hasher.update(&self.held);
            self.hasher.update(body);
            self.held.clear();
            self.held.extend_from_slice(last);
            return;
        }
        self.held.extend_from_slice(bytes);
        if let Some(settled) = self.held.len().checked_sub(CHECKSUM) {
            self.hasher.update(&self.held[..settled]);
            self.held.drain(..settled);
        }
    }

    /// Bytes so far.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// After the last bytes: whether they were a whole snapshot. Its checksum.
    pub fn finish(self) -> Result<[u8; CHECKSUM], DigestError> {
        if self.bytes % UNIT != CHECKSUM as u64 || self.bytes < UNIT {
            return Err(DigestError::Length(self.bytes));
        }
        let sum: [u8; CHECKSUM] = self.hasher.finalize().into();
        if self.held == sum { Ok(sum) } else { Err(DigestError::Mismatch) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(units: usize) -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..units * UNIT as usize).map(|i| (i / 7) as u8).collect();
        let sum = Sha256::digest(&bytes);
        bytes.extend_from_slice(&sum);
        bytes
    }

    fn digest(bytes: &[u8], step: usize) -> Result<[u8; CHECKSUM], DigestError> {
        let mut digest = SnapshotDigest::default();
        bytes.chunks(step).for_each(|chunk| digest.update(chunk));
        assert_eq!(digest.bytes(), bytes.len() as u64);
        digest.finish()
    }

    #[test]
    fn a_whole_one_is_known_in_whatever_pieces_it_comes() {
        let whole = snapshot(5);
        for step in [1, 2, 31, 32, 33, 64, 500, 10_000] {
            assert_eq!(digest(&whole, step).unwrap(), whole[whole.len() - CHECKSUM..], "{step}");
        }
    }

    #[test]
    fn whatever_is_missing_or_changed_is_found() {
        let whole = snapshot(2);
        for length in [0, 1, 31, 32, 33, 512, 544, whole.len() - 512, whole.len() - 1] {
            assert!(digest(&whole[..length], 100).is_err(), "{length}");
        }
        for at in [0, 511, 512, 1023, 1024, whole.len() - 1] {
            let mut changed = whole.clone();
            changed[at] ^= 1;
            assert_eq!(digest(&changed, 100), Err(DigestError::Mismatch), "{at}");
        }
    }
}
