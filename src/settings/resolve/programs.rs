//! Programs: where they are found, and the commands and arguments that the charts give.

use std::path::PathBuf;

use super::{Given, Resolver, Source};
use crate::settings::env::{self, Env, variable_of};
use crate::settings::provenance::redacted;
use crate::settings::values::{self, Spot, ValuesError};
use crate::settings::{Distro, DistroCommand, Programs};

impl Resolver<'_> {
    /// Commands and arguments. Where the environment gives a command, the chart has put the values' into it.
    pub(super) fn programs(
        &mut self,
        distro: Distro,
        folders: Vec<PathBuf>,
        source: Source,
        commands: Commands,
    ) -> anyhow::Result<Programs> {
        let values = self.values.clone();
        let single = matches!(distro, Distro::K3s | Distro::K0s);
        let api = !single && distro != Distro::None;
        self.notes.note("programs.folders", &folders, source);
        let mut programs = Programs { folders, ..Programs::default() };
        programs.vcluster = self.command("programs.vcluster", single, &commands.vcluster, values.vcluster);
        programs.apiserver = self.command("programs.apiserver", api, &commands.apiserver, values.apiserver);
        programs.controller = self.command("programs.controller", api, &commands.controller, values.controller);
        programs.scheduler = self.command("programs.scheduler", api, &commands.scheduler, values.scheduler);
        let (server, in_env) = if single {
            (values.vcluster_extra_args, commands.vcluster.is_some())
        } else {
            (values.apiserver_extra_args, commands.apiserver.is_some())
        };
        if single || api {
            let own = |spot: Option<Spot<Vec<String>>>, in_env: bool| spot.filter(|_| !in_env);
            programs.apiserver_extra_args = self.args("programs.apiserverExtraArgs", own(server, in_env));
            if api {
                let spot = own(values.controller_extra_args, commands.controller.is_some());
                programs.controller_extra_args = self.args("programs.controllerExtraArgs", spot);
                let spot = own(values.scheduler_extra_args, commands.scheduler.is_some());
                programs.scheduler_extra_args = self.args("programs.schedulerExtraArgs", spot);
            }
            let enabled = given!(self, enable_scheduler, "enable-scheduler").or(self.spot(values.scheduler_enabled));
            programs.scheduler_enabled = self.take("programs.schedulerEnabled", enabled, "", || false);
            let bare = programs.controller.is_none() && programs.apiserver.is_some();
            programs.controller_disabled =
                self.take("programs.controllerDisabled", self.spot(values.controller_disabled), "", || bare);
        }
        if distro == Distro::K0s
            && let Some((config, source)) = self.spot(values.k0s_config)
        {
            self.notes.note("programs.k0sConfig", format!("({} lines)", config.lines().count()), source);
            programs.k0s_config = Some(config);
        }
        Ok(programs)
    }

    fn args(&mut self, setting: &'static str, spot: Option<Spot<Vec<String>>>) -> Vec<String> {
        let (args, source) = self.spot(spot).unwrap_or((Vec::new(), Source::Default("")));
        self.notes.note(setting, redacted(&args), source);
        args
    }

    fn command(
        &mut self,
        setting: &'static str,
        wanted: bool,
        env: &Given<DistroCommand>,
        values: Option<Spot<DistroCommand>>,
    ) -> Option<DistroCommand> {
        let (command, source) = env.clone().or(self.spot(values)).filter(|_| wanted)?;
        let args: Vec<String> = command.command.iter().chain(&command.args).cloned().collect();
        self.notes.note(setting, redacted(&args), source);
        Some(command)
    }
}

/// The commands that the charts pass in the environment.
pub(super) struct Commands {
    pub(super) vcluster: Given<DistroCommand>,
    pub(super) apiserver: Given<DistroCommand>,
    pub(super) controller: Given<DistroCommand>,
    pub(super) scheduler: Given<DistroCommand>,
}

impl Commands {
    pub(super) fn read(env: &dyn Env) -> anyhow::Result<Commands> {
        let read = |name: &str| -> anyhow::Result<Given<DistroCommand>> {
            let Some(text) = env.get(name)? else { return Ok(None) };
            let command = values::command(name, &text).map_err(ValuesError::refuse)?;
            Ok(Some((command, Source::Env(name.to_owned()))))
        };
        Ok(Commands {
            vcluster: read(env::VCLUSTER_COMMAND)?,
            apiserver: read(env::APISERVER_COMMAND)?,
            controller: read(env::CONTROLLER_COMMAND)?,
            scheduler: read(env::SCHEDULER_COMMAND)?,
        })
    }

    /// The distro that a command is of: 0.17 passed no `VCLUSTER_DISTRO`.
    pub(super) fn distro(&self) -> Given<Distro> {
        if let Some((command, source)) = &self.vcluster {
            let k0s = command.command.first().is_some_and(|program| program.ends_with("k0s"));
            return Some((if k0s { Distro::K0s } else { Distro::K3s }, source.clone()));
        }
        self.apiserver.as_ref().map(|(_, source)| (Distro::K8s, source.clone()))
    }
}
