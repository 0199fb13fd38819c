//! Where a data dir is to be put: by a rename, which neither a mount point nor a symbolic link takes.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use crate::disk::{at, parent_of};
use crate::exit::{Exit, refuse};

/// Makes sure that a data dir can be put at `dir`, where there is nothing or nothing worth keeping.
///
/// # Errors
/// [`Exit::RefusedDataDir`]: it is a symbolic link (one that leads nowhere may lead into a volume that is not mounted, so
/// that what it holds is unknown), a mount point, or no directory.
pub fn check(dir: &Path) -> anyhow::Result<()> {
    let refused = |what: &str, remedy: String| {
        Err(refuse(
            Exit::RefusedDataDir,
            format!("{} {what}, and etcd's data dir is put there by a rename", dir.display()),
            remedy,
        ))
    };
    let found = match dir.symlink_metadata() {
        Ok(found) => found,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(at(dir, e).into()),
    };
    let above = parent_of(dir);
    if found.is_symlink() {
        let to = fs::read_link(dir).map_err(|e| at(dir, e))?;
        let to = above.join(to);
        return refused(
            &format!("is a symbolic link to {}{}", to.display(), if to.exists() { "" } else { ", which is not there" }),
            format!(
                "mount the volume that it leads to at {}, or name a directory of that volume (--data-dir); then remove the link",
                above.display()
            ),
        );
    }
    if !found.is_dir() {
        return refused("is not a directory", "move it away".to_owned());
    }
    if is_mount_point(dir)? {
        return refused(
            "is a mount point of its own",
            format!("mount that volume at {} instead, so that {} is a directory on it", above.display(), dir.display()),
        );
    }
    Ok(())
}

/// Also of a directory that is bound from the same volume, which its device number does not tell.
fn is_mount_point(dir: &Path) -> io::Result<bool> {
    let real = fs::canonicalize(dir).map_err(|e| at(dir, e))?;
    let table = Path::new("/proc/self/mountinfo");
    let mounts = fs::read(table).map_err(|e| at(table, e))?;
    Ok(mounts.split(|byte| *byte == b'\n').filter_map(mount_point).any(|mounted| mounted == real))
}

/// The fifth field of a line (proc_pid_mountinfo(5)), in which blanks are written in octal.
fn mount_point(line: &[u8]) -> Option<PathBuf> {
    let mut rest = line.split(|byte| *byte == b' ').nth(4)?;
    let mut path = Vec::with_capacity(rest.len());
    while let Some((&byte, after)) = rest.split_first() {
        let octal = after.first_chunk::<3>().and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(escaped) if byte == b'\\' => {
                path.push(escaped);
                rest = &after[3..];
            }
            _ => {
                path.push(byte);
                rest = after;
            }
        }
    }
    Some(PathBuf::from(std::ffi::OsString::from_vec(path)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::ffi::OsStrExt;

    use crate::exit::exit_of;

    fn refused(dir: &Path) -> String {
        let error = check(dir).expect_err("it was taken");
        assert_eq!(exit_of(&error), Exit::RefusedDataDir);
        format!("{error:#}")
    }

    #[test]
    fn links_files_and_mount_points_are_no_place_for_a_data_dir() {
        let home = tempfile::tempdir().unwrap();
        let at = |name: &str| home.path().join(name);
        check(&at("absent")).unwrap();
        fs::create_dir(at("empty")).unwrap();
        check(&at("empty")).unwrap();
        fs::write(at("file"), "").unwrap();
        assert!(refused(&at("file")).contains("is not a directory"));
        std::os::unix::fs::symlink("nowhere", at("dangling")).unwrap();
        assert!(refused(&at("dangling")).contains("nowhere, which is not there"));
        std::os::unix::fs::symlink("empty", at("link")).unwrap();
        assert!(refused(&at("link")).contains("is a symbolic link to"));
        // A file system that is mounted everywhere.
        assert!(refused(Path::new("/proc")).contains("is a mount point of its own"));
    }

    #[test]
    fn blanks_in_a_mount_point_are_escaped() {
        let line = br"36 35 98:0 /mnt1 /mnt\040two\134x rw,noatime master:1 - ext3 /dev/root rw";
        assert_eq!(mount_point(line), Some(PathBuf::from(r"/mnt two\x")));
        assert_eq!(mount_point(b""), None);
        assert_eq!(mount_point(br"1 2 3 / /a\9 x").unwrap().as_os_str().as_bytes(), br"/a\9");
    }
}
