//! Writes the log of a cluster of one member, as `etcdutl snapshot restore` would.
//!
//! Source: etcd `etcdutl/snapshot/v3_snapshot.go` (`saveWALAndSnap`), `server/storage/wal/wal.go` (`Create`). The
//! snapshot record is what makes a member that joins later receive the whole store: without it the log would claim to
//! hold everything from index 1 on, and the joiner would come up empty.

use std::io;
use std::path::Path;

use super::record::{
    ConfState, Entry, EntryKind, HardState, Metadata, RecordEncoder, SnapshotRecord, TYPE_CRC, TYPE_ENTRY,
    TYPE_METADATA, TYPE_SNAPSHOT, TYPE_STATE, add_voter,
};
use crate::datadir::identity::MemberIdentity;
use crate::datadir::schema::member_json;
use crate::datadir::snapshot::RESTORED;
use crate::disk::Disk;

/// The first segment's name: sequence number and first index, in hex.
pub const FIRST_SEGMENT: &str = "0000000000000000-0000000000000000.wal";
/// Bytes that etcd allocates for a segment ahead of writing.
pub const SEGMENT_BYTES: u64 = 64_000_000;

/// The bytes of the log of a new cluster of this one member.
pub fn restored_log(member: &MemberIdentity) -> Vec<u8> {
    let id = member.member_id();
    let metadata = Metadata { member: id, cluster: member.cluster_id() };
    let change = add_voter(id, &member_json(member, false));
    let (term, index) = RESTORED;
    let entry = Entry { kind: EntryKind::ConfChange, term, index, data: &change };
    let state = HardState { term: term.0, vote: id.0, commit: index.0 };
    let conf_state = Some(ConfState { voters: vec![id.0], learners: vec![] });
    let snapshot = SnapshotRecord { index: index.0, term: term.0, conf_state };

    let mut log = RecordEncoder::resume(0);
    log.push(TYPE_CRC, &[]);
    log.push(TYPE_METADATA, &metadata.encode());
    log.push(TYPE_SNAPSHOT, &SnapshotRecord::default().encode());
    log.push(TYPE_ENTRY, &entry.encode());
    log.push(TYPE_STATE, &state.encode());
    log.push(TYPE_SNAPSHOT, &snapshot.encode());
    log.into_bytes()
}

/// Writes the log into `dir`, which is created, durably.
pub fn write_wal(disk: &dyn Disk, dir: &Path, member: &MemberIdentity) -> io::Result<()> {
    disk.create_dir(dir)?;
    let mut file = disk.create(&dir.join(FIRST_SEGMENT), 0o600)?;
    file.preallocate(SEGMENT_BYTES);
    file.write_at(&restored_log(member), 0)?;
    file.sync()?;
    disk.sync_dir(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first bytes of the segment that `etcdutl snapshot restore` of 3.6.16 writes for the member below.
    const GOLDEN: &str = concat!(
        "040000000000008408041000000000002000000000000000080110fbeabec9071a1608c9a4e081fff1beb6fc0110a082",
        "fde6d0e4b3bcb7010e00000000000082080510a9d18587031a040800100000006f00000000000081080210e0dbaed509",
        "1a65080110011801225d0800100018c9a4e081fff1beb6fc01224c7b226964223a313831383931383935393036373136",
        "39323336312c227065657255524c73223a5b22687474703a2f2f3132372e302e302e313a35225d2c226e616d65223a22",
        "706f642d30227d001900000000000087080310e9c7a2cc0e1a0f080110c9a4e081fff1beb6fc01180100000000000000",
        "1d00000000000083080510b68df793091a13080110011a0d08c9a4e081fff1beb6fc0128000000000000000000000000",
    );

    #[test]
    fn a_new_log_has_etcd_s_bytes() {
        let member = MemberIdentity {
            name: "pod-0".into(),
            peer_urls: vec!["http://127.0.0.1:5".into()],
            client_urls: vec!["http://127.0.0.1:6".into()],
            token: "tok".into(),
        };
        let hex: String = restored_log(&member).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(GOLDEN.trim_end_matches("00"), hex.trim_end_matches("00"));
    }
}
