//! A small file that is replaced as a whole and never believed when it is damaged: journals.
//!
//! ```text
//! offset  size  content
//!      0     8  magic; the last byte is the format's version
//!      8     4  length of the payload, u32 little endian
//!     12     4  CRC-32C of the payload, u32 little endian
//!     16     n  payload: JSON
//! ```

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

use crate::disk::at;

const HEADER: usize = 16;

/// The time now in seconds since 1970, as such files hold it.
pub fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Why such a file cannot be read.
#[derive(Debug, Error)]
pub enum RecordError {
    /// Not one of ours, of another version, or damaged.
    #[error("{} is not a whole journal: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The disk failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// The bytes of the file, whose payload must not be above `max` bytes.
pub fn encode(magic: &[u8; 8], max: usize, value: &impl Serialize) -> anyhow::Result<Vec<u8>> {
    let payload = serde_json::to_vec(value).context("encode the journal")?;
    anyhow::ensure!(payload.len() <= max, "the journal would be larger than {max} bytes");
    let mut bytes = Vec::with_capacity(HEADER + payload.len());
    bytes.extend_from_slice(magic);
    bytes.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&crc32c::crc32c(&payload).to_le_bytes());
    bytes.extend_from_slice(&payload);
    Ok(bytes)
}

/// What the file's bytes say.
pub fn decode<T: DeserializeOwned>(magic: &[u8; 8], bytes: &[u8]) -> Result<T, String> {
    let (header, payload) = bytes.split_first_chunk::<HEADER>().ok_or("it is too short")?;
    let (found, rest) = header.split_first_chunk::<8>().ok_or("it is too short")?;
    if found != magic {
        return Err(if found[..7] == magic[..7] {
            "it was written by another version of syncer".to_owned()
        } else {
            "it does not begin as one".to_owned()
        });
    }
    let (length, crc) = (u32::from_le_bytes([rest[0], rest[1], rest[2], rest[3]]), &rest[4..8]);
    if length as usize != payload.len() {
        return Err(format!("it has {} bytes where it promises {length}", payload.len()));
    }
    if crc32c::crc32c(payload).to_le_bytes() != crc {
        return Err("its checksum differs".to_owned());
    }
    serde_json::from_slice(payload).map_err(|e| e.to_string())
}

/// What is there and is not to be read, however often it is tried, is as good as damaged.
fn unreadable(path: &Path, error: io::Error) -> RecordError {
    let reason = match error.kind() {
        io::ErrorKind::IsADirectory => "it is a directory",
        io::ErrorKind::PermissionDenied => "the user that syncer runs as may not read it",
        _ => return at(path, error).into(),
    };
    RecordError::Damaged { path: path.to_owned(), reason: reason.to_owned() }
}

/// Reads the file at `path`, if there is one.
pub fn load<T: DeserializeOwned>(magic: &[u8; 8], max: usize, path: &Path) -> Result<Option<T>, RecordError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => return Ok(None),
        Err(e) => return Err(unreadable(path, e)),
    };
    let mut bytes = Vec::new();
    let limit = (HEADER + max + 1) as u64;
    file.take(limit).read_to_end(&mut bytes).map_err(|e| unreadable(path, e))?;
    decode(magic, &bytes).map(Some).map_err(|reason| RecordError::Damaged { path: path.to_owned(), reason })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_file_is_damaged_and_what_is_not_there_is_absent() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("record");
        let look = || load::<u64>(b"SYNCTST1", 64, &path);
        assert!(matches!(look(), Ok(None)));
        std::fs::create_dir(&path).unwrap();
        let error = look().unwrap_err();
        assert!(matches!(&error, RecordError::Damaged { reason, .. } if reason == "it is a directory"), "{error}");
        let denied = unreadable(&path, io::ErrorKind::PermissionDenied.into());
        assert!(matches!(denied, RecordError::Damaged { .. }), "{denied}");
        // A disk that fails may work again.
        assert!(matches!(unreadable(&path, io::Error::from_raw_os_error(libc::EIO)), RecordError::Io(_)));
    }
}
