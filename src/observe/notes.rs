//! The notes beside the data dir: what a step was about to do, durable before it does it.
//!
//! One JSON file, `syncer.notes.json` on the volume, replaced by rename. No file: no notes. A file that cannot be read
//! is an error and never "no notes": it may say that this volume must not start.

use std::io;
use std::path::Path;

use anyhow::Context;

use crate::boot::Notes;
use crate::disk::{Disk, at};
use crate::exit::{Exit, refuse};

/// The file's name, in the data directory.
pub const FILE_NAME: &str = "syncer.notes.json";

/// What to do about notes that cannot be read. Nobody else knows all of what they say.
const REMEDY: &str = "they say which clusters this volume must not start again (superseded by a restore, left, served by others since a \
     reset), so do not go on without them: put the file back from a copy of the volume; without one, and while other pods \
     serve the cluster, give this pod an empty volume, from which it joins anew; if no other volume has the data, keep this \
     one and make a new store of what it has, or of a backup, on an empty one (docs/migration.md)";
/// No notes are longer.
const BYTES_MAX: u64 = 1 << 20;

/// The notes on the volume at `data_dir`.
pub fn load(data_dir: &Path) -> anyhow::Result<Notes> {
    let path = data_dir.join(FILE_NAME);
    let mut bytes = Vec::new();
    match std::fs::File::open(&path) {
        Ok(file) => {
            io::Read::read_to_end(&mut io::Read::take(file, BYTES_MAX), &mut bytes).map_err(|e| at(&path, e))?;
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Notes::default()),
        Err(e) => return Err(at(&path, e).into()),
    }
    serde_json::from_slice(&bytes).map_err(|e| {
        let what = format!("{} holds no notes of this version of syncer: {e}", path.display());
        refuse(Exit::RefusedDataDir, what, REMEDY)
    })
}

/// Changes the notes durably.
pub fn change(disk: &dyn Disk, data_dir: &Path, change: impl FnOnce(&mut Notes)) -> anyhow::Result<()> {
    let before = load(data_dir)?;
    let mut notes = before.clone();
    change(&mut notes);
    if notes == before {
        return Ok(());
    }
    let bytes = serde_json::to_vec(&notes).context("encode the notes")?;
    disk.write_durable(&data_dir.join(FILE_NAME), &bytes, 0o600).context("write the notes")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::RealDisk;
    use crate::exit::exit_of;
    use crate::ids::ClusterId;

    #[test]
    fn notes_come_back_and_damage_is_no_absence() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(load(dir.path()).unwrap(), Notes::default());
        change(&RealDisk, dir.path(), |notes| notes.set_aside = Some(ClusterId(7))).unwrap();
        assert_eq!(load(dir.path()).unwrap().set_aside, Some(ClusterId(7)));
        std::fs::write(dir.path().join(FILE_NAME), "{").unwrap();
        let error = load(dir.path()).unwrap_err();
        assert_eq!(exit_of(&error), Exit::RefusedDataDir, "{error:#}");
        let error = format!("{error:#}");
        assert!(error.contains(FILE_NAME) && error.contains("put the file back"), "{error}");
    }
}
