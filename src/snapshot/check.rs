//! Looking through a snapshot file: nothing is missing, nothing is damaged, and what is in it.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;

use serde::{Serialize, Serializer};
use thiserror::Error;

use super::digest::{DigestError, SnapshotDigest, UNIT};
use crate::datadir::bolt::{BoltError, BoltReader};
use crate::datadir::members::{revision, stored_members};
use crate::datadir::schema;
use crate::disk::at;
use crate::exit::{Exit, refuse};
use crate::ids::Revision;
use crate::migrate::backend::BackendError;

/// What is read at a time.
const PIECE: usize = 1 << 20;

/// A snapshot file that was looked through.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CheckedSnapshot {
    /// Its length in bytes, checksum included.
    pub bytes: u64,
    /// Whether it ends with a checksum, which was right. A copy of a backend file has none.
    pub checksum: bool,
    /// What is in it.
    #[serde(flatten)]
    pub content: StoreContent,
}

/// What is in a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct StoreContent {
    /// The store's revision.
    pub revision: Revision,
    /// Values in it: every key's newest, older ones that are not compacted, and deletions.
    pub revisions: u64,
    /// The names of the members that it knows.
    pub members: Vec<String>,
    /// CRC-32C over all buckets: what `etcdutl snapshot status` shows as the hash.
    #[serde(serialize_with = "hexadecimal")]
    pub hash: u32,
}

fn hexadecimal<S: Serializer>(hash: &u32, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{hash:x}"))
}

/// Why a file is no snapshot that can be relied on.
#[derive(Debug, Error)]
pub enum SnapshotError {
    /// It cannot be read.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// A directory, a device.
    #[error("it is not a regular file")]
    NotAFile,
    /// Its checksum is missing or wrong.
    #[error(transparent)]
    Digest(#[from] DigestError),
    /// The backend in it is damaged.
    #[error("its content is damaged: {0}")]
    Backend(#[from] BoltError),
    /// It has no keys' bucket, or a member that is none.
    #[error("its content is not a store of etcd: {0}")]
    Foreign(String),
}

impl SnapshotError {
    /// As the refusal of the file at `path`.
    pub fn refused(self, path: &str) -> anyhow::Error {
        match self {
            // As every journey that reads a snapshot refuses these.
            SnapshotError::Io(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => refuse(
                Exit::RefusedSource,
                format!("{path} is not read: there is nothing of this name"),
                "`syncer snapshot list` shows those of a place",
            ),
            SnapshotError::Io(e) if e.kind() == ErrorKind::PermissionDenied => {
                refuse(Exit::RefusedSource, format!("{path} is not read: {e}"), "see the cause")
            }
            SnapshotError::Io(e) => anyhow::Error::from(e).context(format!("read {path}")),
            SnapshotError::NotAFile => refuse(
                Exit::RefusedSource,
                format!("{path} is not read: it is not a regular file"),
                "name a snapshot file, not the directory that holds it",
            ),
            SnapshotError::Digest(DigestError::Length(bytes)) if bytes > 0 && bytes % UNIT == 0 => {
                BackendError::NoChecksum.refusal(Path::new(path))
            }
            damaged => refuse(
                Exit::RefusedSource,
                format!("{path} is not a snapshot that can be relied on: {damaged}"),
                "use another; `syncer snapshot list` shows those of a place",
            ),
        }
    }
}

/// Reads all of the file at `path`, twice: its bytes for the checksum, its pages for what is in them. Without `checksum`,
/// one that has none is taken as it is.
pub fn check(path: &Path, checksum: bool) -> Result<CheckedSnapshot, SnapshotError> {
    // Before it is opened: a pipe would be waited for.
    if !path.metadata().map_err(|e| at(path, e))?.is_file() {
        return Err(SnapshotError::NotAFile);
    }
    let mut file = File::open(path).map_err(|e| at(path, e))?;
    let mut digest = SnapshotDigest::default();
    let mut piece = vec![0; PIECE];
    loop {
        match file.read(&mut piece).map_err(|e| at(path, e))? {
            0 => break,
            read => digest.update(&piece[..read]),
        }
    }
    let bytes = digest.bytes();
    let checksum = match digest.finish() {
        Ok(_) => true,
        Err(DigestError::Length(_)) if !checksum => false,
        Err(error) => return Err(error.into()),
    };
    Ok(CheckedSnapshot { bytes, checksum, content: content(path)? })
}

/// Reads the pages of the file at `path`, and not its checksum: what is in them.
pub fn content(path: &Path) -> Result<StoreContent, SnapshotError> {
    let file = File::open(path).map_err(|e| at(path, e))?;
    let reader = BoltReader::open(file)?;
    let (mut hash, mut revisions) = (0, 0);
    let mut has_keys = false;
    for name in reader.bucket_names()? {
        let Some(bucket) = reader.bucket(&name)? else { continue };
        hash = crc32c::crc32c_append(hash, name.as_bytes());
        let is_keys = name == schema::BUCKET_KEY;
        has_keys |= is_keys;
        let mut cursor = reader.cursor(&bucket)?;
        while let Some((key, value)) = cursor.next()? {
            hash = crc32c::crc32c_append(crc32c::crc32c_append(hash, key), value);
            if is_keys {
                revisions += 1;
            }
        }
    }
    if !has_keys {
        return Err(SnapshotError::Foreign(format!("it has no bucket {:?}", schema::BUCKET_KEY)));
    }
    let members = stored_members(path).map_err(|e| SnapshotError::Foreign(e.to_string()))?.members;
    let members = members.into_iter().map(|member| member.name).collect();
    Ok(StoreContent { revision: revision(&reader)?, revisions, members, hash })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datadir::{DatadirWriter, KeyRecord, MemberIdentity};
    use crate::disk::RealDisk;
    use sha2::{Digest, Sha256};
    use std::path::PathBuf;

    /// A backend as a snapshot of it would be.
    fn snapshot(dir: &Path) -> PathBuf {
        let mut writer = DatadirWriter::create(&RealDisk, &dir.join("etcd")).unwrap();
        for n in 2..600 {
            let (create_revision, mod_revision) = (Revision(n), Revision(n));
            let (key, value) = (format!("/k/{n}"), vec![n as u8; 200]);
            let record = KeyRecord {
                key: key.as_bytes(),
                value: &value,
                create_revision,
                mod_revision,
                sub: 0,
                version: 1,
                lease: 0,
            };
            writer.put(&record).unwrap();
        }
        let urls = vec!["http://127.0.0.1:1".to_owned()];
        let member = MemberIdentity { name: "a".into(), peer_urls: urls.clone(), client_urls: urls, token: "t".into() };
        writer.finish(Revision(700), &[], &member).unwrap();
        let mut bytes = std::fs::read(dir.join("etcd/member/snap/db")).unwrap();
        let sum = Sha256::digest(&bytes);
        bytes.extend_from_slice(&sum);
        let path = dir.join("snapshot.db");
        std::fs::write(&path, bytes).unwrap();
        path
    }

    #[test]
    fn what_is_in_it_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = snapshot(dir.path());
        let found = check(&path, true).unwrap();
        assert_eq!((found.content.revision, found.content.revisions, found.checksum), (Revision(700), 598, true));
        assert_eq!(found.content.members, ["a"]);
        let backend = dir.path().join("etcd/member/snap/db");
        let bare = check(&backend, false).unwrap();
        assert_eq!((bare.checksum, bare.content.hash, bare.bytes + 32), (false, found.content.hash, found.bytes));
        let error = check(&backend, true).unwrap_err();
        assert!(matches!(error, SnapshotError::Digest(DigestError::Length(_))), "{error}");
    }

    #[test]
    fn damage_is_found_even_where_the_checksum_was_made_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = snapshot(dir.path());
        let whole = std::fs::read(&path).unwrap();
        let refused = |bytes: &[u8], checksum| {
            std::fs::write(&path, bytes).unwrap();
            check(&path, checksum).unwrap_err()
        };
        assert!(matches!(refused(&whole[..whole.len() - 512], true), SnapshotError::Digest(DigestError::Mismatch)));
        assert!(matches!(refused(&whole[..8000], true), SnapshotError::Digest(DigestError::Length(8000))));
        assert!(matches!(refused(&whole[..8192], false), SnapshotError::Backend(_)));
        let mut damaged = whole[..whole.len() - 32].to_vec();
        let page = damaged.len() / 2 / 4096 * 4096;
        damaged[page..page + 4096].fill(0x55);
        let sum = Sha256::digest(&damaged);
        damaged.extend_from_slice(&sum);
        assert!(matches!(refused(&damaged, true), SnapshotError::Backend(_)));
        assert!(check(&dir.path().join("none"), true).is_err());
        // A right checksum that does not match is damage, also where none is needed.
        let mut changed = whole;
        changed[5000] ^= 1;
        assert!(matches!(refused(&changed, false), SnapshotError::Digest(DigestError::Mismatch)));
    }
}
