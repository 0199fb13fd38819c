//! The rows of bucket `key`, checked.

use std::fs::File;

use super::error::BackendError;
use crate::datadir::KeyRecord;
use crate::datadir::bolt::{BoltReader, Bucket};
use crate::datadir::schema::{RevisionKey, decode_key_value, decode_revision_key};

/// One revision of a key.
#[derive(Clone, Copy, Debug)]
pub struct Row<'b> {
    /// Its place in the bucket, from 0.
    pub place: u32,
    /// Whether the key was deleted by it.
    pub tombstone: bool,
    /// The record, with its place in the transaction; of a tombstone only the key means anything.
    pub record: KeyRecord<'b>,
}

/// Calls `each` for every row in the order of revisions.
pub fn walk<E: From<BackendError>>(
    reader: &BoltReader<File>,
    bucket: &Bucket,
    mut each: impl FnMut(&Row<'_>) -> Result<(), E>,
) -> Result<(), E> {
    let mut cursor = reader.cursor(bucket).map_err(BackendError::from)?;
    let mut place = 0_u32;
    while let Some((key, value)) = cursor.next().map_err(BackendError::from)? {
        let revision = decode_revision_key(key).ok_or(BackendError::BadRevision)?;
        each(&row(place, revision, value)?)?;
        place = place.checked_add(1).ok_or(BackendError::TooManyRows)?;
    }
    Ok(())
}

/// Decodes a row and checks what etcd would never have written.
fn row(place: u32, at: RevisionKey, value: &[u8]) -> Result<Row<'_>, BackendError> {
    let bad = |reason| BackendError::BadRow { revision: at.revision, sub: at.sub, reason };
    let mut record = decode_key_value(value).map_err(|_| bad("is no key and value"))?;
    record.sub = at.sub;
    if record.key.is_empty() {
        return Err(bad("has no key"));
    }
    if !at.tombstone {
        if record.mod_revision != at.revision {
            return Err(bad("says that it is of another revision"));
        }
        if record.create_revision.0 < 1 || record.create_revision > record.mod_revision {
            return Err(bad("was created after it was modified, or never"));
        }
        if record.version < 1 {
            return Err(bad("has no version"));
        }
    }
    Ok(Row { place, tombstone: at.tombstone, record })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datadir::schema::encode_key_value;
    use crate::ids::Revision;

    fn message(record: &KeyRecord<'_>) -> Vec<u8> {
        let (mut head, mut tail) = (Vec::new(), Vec::new());
        encode_key_value(record, &mut head, &mut tail);
        [head.as_slice(), record.value, &tail].concat()
    }

    #[test]
    fn what_etcd_never_writes_is_refused_and_a_tombstone_needs_only_its_key() {
        let at = RevisionKey { revision: Revision(7), sub: 2, tombstone: false };
        let (create_revision, mod_revision) = (Revision(5), Revision(7));
        let good = KeyRecord { key: b"/a", value: b"v", create_revision, mod_revision, sub: 2, version: 2, lease: 9 };
        assert_eq!(row(3, at, &message(&good)).unwrap().record, good);
        for (bad, reason) in [
            (KeyRecord { key: b"", ..good }, "has no key"),
            (KeyRecord { mod_revision: Revision(8), ..good }, "of another revision"),
            (KeyRecord { create_revision: Revision(8), ..good }, "created after"),
            (KeyRecord { create_revision: Revision(0), ..good }, "created after"),
            (KeyRecord { version: 0, ..good }, "has no version"),
        ] {
            let error = row(3, at, &message(&bad)).unwrap_err().to_string();
            assert!(error.contains(reason) && error.contains("7/2"), "{error}");
        }
        assert!(row(3, at, b"\xff\xff").is_err());
        let tombstone = RevisionKey { tombstone: true, ..at };
        let only_key = KeyRecord {
            value: b"",
            create_revision: Revision(0),
            mod_revision: Revision(0),
            version: 0,
            lease: 0,
            ..good
        };
        assert!(row(3, tombstone, &message(&only_key)).unwrap().tombstone);
    }
}
