//! `syncer cp`: copies a program out of, or into, an image that has no shell.
//!
//! The k8s and eks charts of 0.19 run `/binaries/vcluster cp SRC DST` inside the distroless images of the Kubernetes
//! programs. The copy appears under its name only when it is whole, so that a main container never runs half of it,
//! and replacing a program that runs does not fail with "text file busy".

use std::fs::{self, File, Permissions};
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::disk::{Disk, temporary_beside};
use crate::exit::{Exit, refuse};

/// Copies the file `from`, with its permission bits, to the file `to` or into the directory `to`. Returns where the
/// copy is.
pub fn copy(disk: &dyn Disk, from: &Path, to: &Path) -> anyhow::Result<PathBuf> {
    let usage = |what: String, remedy: &str| refuse(Exit::Usage, what, remedy);
    let meta = match fs::metadata(from) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Err(usage(format!("{} does not exist", from.display()), "check the path in this image"));
        }
        meta => meta.with_context(|| format!("look at {}", from.display()))?,
    };
    if !meta.is_file() {
        return Err(usage(format!("{} is not a file", from.display()), "cp copies one file"));
    }
    let name = from.file_name().ok_or_else(|| usage(format!("{} has no name", from.display()), "name a file"))?;
    let target = if to.is_dir() { to.join(name) } else { to.to_owned() };
    if target.file_name().is_none() {
        return Err(usage(format!("{} is not a file's name", to.display()), "name a file or a directory that exists"));
    }
    if fs::canonicalize(from).ok().is_some_and(|f| fs::canonicalize(&target).ok() == Some(f)) {
        return Ok(target);
    }
    let temporary = temporary_beside(&target);
    let done = write(disk, from, &temporary, meta.permissions().mode() & 0o7777)
        .and_then(|()| disk.rename_durable(&temporary, &target));
    if let Err(e) = done {
        // What is half written is worth nothing; the first error is the one to report.
        let _ = disk.remove_file(&temporary);
        return Err(e).with_context(|| format!("copy {} to {}", from.display(), target.display()));
    }
    Ok(target)
}

fn write(disk: &dyn Disk, from: &Path, temporary: &Path, mode: u32) -> io::Result<()> {
    disk.forget_file(temporary)?;
    let mut source = File::open(from)?;
    let mut copy = disk.create(temporary, 0o600)?;
    let mut buffer = vec![0; 1 << 20];
    let mut offset = 0;
    loop {
        let n = source.read(&mut buffer)?;
        let Some(chunk) = buffer.get(..n).filter(|chunk| !chunk.is_empty()) else { break };
        copy.write_at(chunk, offset)?;
        offset += n as u64;
    }
    // After writing, and not through `create`, whose mode the umask narrows.
    fs::set_permissions(temporary, Permissions::from_mode(mode))?;
    copy.sync()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::RealDisk;
    use crate::exit::exit_of;

    #[test]
    fn copies_content_and_mode_to_a_file_or_into_a_directory() {
        let dir = tempfile::tempdir().unwrap();
        let (from, bin) = (dir.path().join("program"), dir.path().join("bin"));
        let content: Vec<u8> = (0..3 * 1024 * 1024 + 7).map(|i| (i % 251) as u8).collect();
        fs::write(&from, &content).unwrap();
        fs::set_permissions(&from, Permissions::from_mode(0o4755)).unwrap();
        fs::create_dir(&bin).unwrap();
        fs::write(bin.join("other"), "old").unwrap();
        for (to, want) in [(bin.clone(), bin.join("program")), (bin.join("other"), bin.join("other"))] {
            assert_eq!(copy(&RealDisk, &from, &to).unwrap(), want);
            assert!(fs::read(&want).unwrap() == content, "{} differs", want.display());
            assert_eq!(fs::metadata(&want).unwrap().permissions().mode() & 0o7777, 0o4755);
        }
        assert_eq!(copy(&RealDisk, &from, &from).unwrap(), from, "onto itself changes nothing");
        assert!(fs::read(&from).unwrap() == content);
        assert_eq!(fs::read_dir(&bin).unwrap().count(), 2, "no temporary file is left");
    }

    #[test]
    fn what_cannot_be_copied_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let missing = copy(&RealDisk, &dir.path().join("no"), dir.path()).unwrap_err();
        assert_eq!(exit_of(&missing), Exit::Usage);
        assert_eq!(exit_of(&copy(&RealDisk, dir.path(), dir.path()).unwrap_err()), Exit::Usage);
        let file = dir.path().join("f");
        fs::write(&file, "x").unwrap();
        let error = copy(&RealDisk, &file, &dir.path().join("no/such/f")).unwrap_err();
        assert!(format!("{error:#}").contains("no/such/f"), "{error:#}");
    }
}
