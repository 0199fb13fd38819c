//! Defaults, values file, environment and flags, in rising order of precedence, become one [`Settings`].
//!
//! Everything that is wrong is refused with exit code 2, naming the flag, the variable, or file and line. What is read
//! from outside besides these (where a default file lies, which programs there are) stands in [`Surroundings`]. The
//! decisions are in [`super::resolve`].

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::Settings;
use super::env::{self, Env};
use super::flags::Flags;
use super::provenance::{Provenance, Source};
use super::resolve;
use super::values::{self, Values, ValuesError};

/// Where the charts since 0.20 mount their values, newest first (0.26 and later, before that).
pub const MOUNTED_VALUES: [&str; 2] = ["/var/lib/vcluster/config.yaml", "/var/vcluster/config.yaml"];
/// Where Kubernetes tells a pod its namespace.
pub const NAMESPACE_FILE: &str = "/var/run/secrets/kubernetes.io/serviceaccount/namespace";

/// What is looked up outside of file, environment and flags. Tests give their own.
#[derive(Clone, Debug)]
pub struct Surroundings {
    /// Values files that are used if they exist, the first one first.
    pub values_files: Vec<PathBuf>,
    /// The file with the pod's namespace.
    pub namespace_file: PathBuf,
    /// Folders of programs behind `--binaries`.
    pub folders: Vec<PathBuf>,
}

impl Surroundings {
    /// Those of this machine.
    pub fn of_this_machine() -> Surroundings {
        let own = std::env::current_exe().ok().and_then(|exe| exe.parent().map(Path::to_owned));
        Surroundings {
            values_files: MOUNTED_VALUES.iter().map(PathBuf::from).collect(),
            namespace_file: PathBuf::from(NAMESPACE_FILE),
            folders: std::iter::once(PathBuf::from("/binaries")).chain(own).collect(),
        }
    }
}

/// Loads the settings, again and again if the values file changes.
pub struct Loader {
    /// As typed.
    pub flags: Flags,
    /// `start ... -- COMMAND`.
    pub wrapped: Option<Vec<OsString>>,
    /// The environment.
    pub env: Box<dyn Env>,
    /// The rest.
    pub surroundings: Surroundings,
}

/// Settings with where they come from.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The settings.
    pub settings: Settings,
    /// Where each comes from, and warnings.
    pub provenance: Provenance,
}

/// Why there are no settings.
#[derive(Debug)]
pub struct Refused {
    /// The refusal.
    pub error: anyhow::Error,
    /// What they are in spite of it, where they are refused for the datastore that they ask for.
    pub settings: Option<Box<Settings>>,
}

impl From<anyhow::Error> for Refused {
    fn from(error: anyhow::Error) -> Self {
        Refused { error, settings: None }
    }
}

impl Loaded {
    /// The settings for a command that is about embedded etcd, which is taken to be on where nothing says otherwise: by
    /// `kubectl exec` a command has the environment of the entrypoint and none of its flags.
    pub fn with_etcd(self) -> Settings {
        let unsaid = self.says_nothing_of_etcd();
        let mut settings = self.settings;
        settings.etcd.enabled |= unsaid;
        settings
    }

    /// Whether nothing says if embedded etcd is on.
    pub fn says_nothing_of_etcd(&self) -> bool {
        matches!(self.provenance.source("etcd.enabled"), None | Some(Source::Default(_)))
    }
}

impl Loader {
    /// Reads everything and decides.
    pub fn load(&self) -> anyhow::Result<Loaded> {
        self.loaded().map_err(|refused| refused.error)
    }

    /// As [`Loader::load`], for a start: something may be left to do on the volume even of settings that are refused.
    pub fn load_or_refused(&self) -> Result<Loaded, Refused> {
        self.loaded().map_err(|refused| match refused.settings {
            Some(_) => refused,
            None => Refused { settings: self.of_volume().map(Box::new), ..refused },
        })
    }

    /// What holds of the volume whatever else is wrong: where it is, and where its certificates are. `None`: that is wrong too.
    pub fn of_volume(&self) -> Option<Settings> {
        let set = Flags::of_variables(&*self.env, vec!["data-dir".to_owned(), "pki-dir".to_owned()]).ok()?;
        let flags = Flags {
            data_dir: self.flags.data_dir.clone().or(set.data_dir),
            pki_dir: self.flags.pki_dir.clone().or(set.pki_dir),
            name: self.flags.name.clone(),
            distro: self.flags.distro,
            ..Flags::default()
        };
        let passed_on = env::OF_THE_POD.iter().filter_map(|name| Some(((*name).to_owned(), self.env.get_os(name)?)));
        let env: BTreeMap<String, OsString> = passed_on.collect();
        let surroundings = Surroundings { values_files: Vec::new(), ..self.surroundings.clone() };
        let loader = Loader { flags, wrapped: None, env: Box::new(env), surroundings };
        loader.loaded().ok().map(|loaded| loaded.settings)
    }

    fn loaded(&self) -> Result<Loaded, Refused> {
        match self.values_file()? {
            Some(path) => {
                let bytes = values::read_bytes(&path).map_err(ValuesError::refuse)?;
                self.resolve_from(&path, &bytes)
            }
            None => self.resolve(None, Values::default()),
        }
    }

    /// As [`Loader::load`] with the values file's content at hand.
    pub fn load_from(&self, path: &Path, bytes: &[u8]) -> anyhow::Result<Loaded> {
        self.resolve_from(path, bytes).map_err(|refused| refused.error)
    }

    fn resolve_from(&self, path: &Path, bytes: &[u8]) -> Result<Loaded, Refused> {
        let values = values::parse(path, bytes).map_err(ValuesError::refuse)?;
        self.resolve(Some(path.to_owned()), values)
    }

    /// The values file: as given, else the first mounted one.
    pub fn values_file(&self) -> anyhow::Result<Option<PathBuf>> {
        if let Some(path) = self.flags.values.clone().or(Flags::from_env(&*self.env)?.values) {
            return Ok(Some(path));
        }
        // One that is there but cannot be read must be reported, not passed over.
        let absent =
            |e: std::io::Error| matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory);
        Ok(self.surroundings.values_files.iter().find(|p| !p.symlink_metadata().is_err_and(absent)).cloned())
    }

    fn resolve(&self, file: Option<PathBuf>, values: Values) -> Result<Loaded, Refused> {
        let env_flags = Flags::from_env(&*self.env)?;
        resolve::settings(self, env_flags, file, values)
    }
}

#[cfg(test)]
pub(super) mod tests;
