//! What a distro needs on disk before its processes start: the k3s token, the k0s configuration and an empty run
//! folder. And the stores that a distro keeps for itself, which nobody may pass over.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;

use anyhow::{Context, Result};

use super::distro::{Backend, Prepared, SpecError};
use super::{k0s, token};
use crate::disk::{Disk, parent_of};
use crate::exit::{Exit, refuse};
use crate::settings::{Distro, Settings};
use crate::supervise::spec::ChildSpec;

/// Refuses what cannot be started, while nothing has been changed yet: a store that was moved for the sake of programs
/// that are not there could not be moved back.
pub fn check_programs(settings: &Settings, specs: &[ChildSpec]) -> anyhow::Result<()> {
    let Some(missing) = specs.iter().find(|spec| !spec.has_program()) else { return Ok(()) };
    let (name, program) = (missing.role.name(), missing.program.display());
    let what = format!("{name} cannot be started: there is no program {program}; nothing was changed");
    let remedy = if settings.wrapped.is_some() {
        "correct the command after `--`"
    } else {
        "put the program into a folder that --binaries names, or choose another --distro"
    };
    Err(refuse(Exit::Usage, what, remedy))
}

/// Carries out what [`super::distro::specs`] rests on. Safe to repeat; to be called before each first start.
pub fn prepare(settings: &Settings, backend: &Backend, disk: &dyn Disk) -> Result<Prepared> {
    if settings.wrapped.is_some() {
        return Ok(Prepared::default());
    }
    match settings.distro {
        Distro::K3s => Ok(Prepared { k3s_token: Some(k3s_token(settings, disk).context("find the k3s token")?) }),
        Distro::K0s => {
            write_k0s_config(settings, backend)?;
            empty_k0s_run_dir(settings)?;
            Ok(Prepared::default())
        }
        Distro::K8s | Distro::Eks | Distro::None => Ok(Prepared::default()),
    }
}

/// As an error for the user: a contradiction in the values is bad usage.
pub fn usage(error: SpecError) -> anyhow::Error {
    refuse(Exit::Usage, error.to_string(), "")
}

/// The k3s token: the one that is known, or a new one, kept for ever. With a host API it has come from there.
fn k3s_token(settings: &Settings, disk: &dyn Disk) -> Result<String> {
    if let Some(token) = token::known(settings)? {
        return Ok(token);
    }
    if settings.etcd.replicas > 1 {
        return Err(refuse(
            Exit::Usage,
            "more than one k3s replica needs one token for all of them, and neither the values nor the volume have it",
            "set k3sToken (0.20 and later: controlPlane.distro.k3s.token) to the same text for every pod",
        ));
    }
    let token = token::new();
    token::keep(settings, &token, disk)?;
    Ok(token)
}

/// The file is made anew at each start and read by k0s alone, so it needs no fsync; it may hold a password of a
/// database, so nobody else may read it.
fn write_k0s_config(settings: &Settings, backend: &Backend) -> Result<()> {
    let config = k0s::config(settings, backend).map_err(usage)?;
    let say = || format!("write the k0s configuration {}", config.path.display());
    fs::create_dir_all(parent_of(&config.path)).with_context(say)?;
    // Removed first: a file that is there may belong to somebody else or be a link.
    match fs::remove_file(&config.path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e).with_context(say),
        _ => {}
    }
    let mut options = fs::OpenOptions::new();
    std::os::unix::fs::OpenOptionsExt::mode(options.write(true).create_new(true), 0o600);
    let mut file = options.open(&config.path).with_context(say)?;
    io::Write::write_all(&mut file, config.content.as_bytes()).with_context(say)
}

/// Empties k0s' run folder: it does not start beside the sockets and pid files of an earlier run.
fn empty_k0s_run_dir(settings: &Settings) -> Result<()> {
    let Some(dir) = k0s::run_dir(settings).map_err(usage)? else { return Ok(()) };
    let say = || format!("empty {}", dir.display());
    fs::create_dir_all(&dir).with_context(say)?;
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)).with_context(say)?;
    for entry in fs::read_dir(&dir).with_context(say)? {
        let path = entry.with_context(say)?.path();
        let is_dir = path.symlink_metadata().with_context(say)?.is_dir();
        let removed = if is_dir { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed.with_context(say)?;
    }
    Ok(())
}
