//! start

use crate::settings::Settings;
use crate::settings::load::Loader;

/// Runs the pod until it is told to stop. `loader` reads the settings again when the values file changes.
pub async fn run(_settings: Settings, _loader: Loader) -> anyhow::Result<()> {
    anyhow::bail!("start is not there yet")
}
