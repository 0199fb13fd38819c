//! The command line.
//!
//! The image's entrypoint may be called by any name (`/vcluster` in the charts' images): what counts is the first
//! argument.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::exit::{Exit, refuse};
use crate::settings::chart_flags;
use crate::settings::flags::{Flags, one_line};
use crate::settings::provenance::without_user;
use crate::snapshot::command::SnapshotCommand;

/// The values file with every setting explained, `config/values.yaml`.
pub const EXAMPLE_VALUES: &str = include_str!("../config/values.yaml");

/// The program.
#[derive(Debug, Parser)]
#[command(
    name = "syncer",
    version,
    about = "Embedded etcd for virtual clusters: runs etcd, moves a SQLite store into it, then starts the API server",
    long_about = "syncer is the entrypoint of a virtual cluster's control-plane pod.\n\n\
        It runs and looks after a local etcd, moves an existing SQLite store (state.db) into it with every revision \
        kept, and only then starts the Kubernetes API server. It understands the values files of the vCluster charts \
        of 0.19 and of 0.20 and later, and the flags and variables that those charts pass.",
    after_long_help = "Exit codes:\n  \
        0 done, or stopped as asked   1 a fault, trying again may help   2 bad usage or values\n  \
        refused to protect data: 3 etcd's data dir   4 the store or snapshot to read   5 cluster membership\n  \
        6 certificates   7 space   8 the data dir is in use\n\n\
        Start with:\n  \
        syncer start --data-dir ./data      etcd on this machine, and an API server if one is found\n  \
        syncer config --values values.yaml  what a values file means, before it is used",
    subcommand_required = true,
    disable_help_subcommand = true
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the control plane: etcd, then the API server. The container's entrypoint.
    #[command(
        long_about = "Runs the control plane of one pod: etcd first, an existing state.db moved into it, then the API \
            server; all of it looked after until SIGTERM.\n\n\
            Every setting comes from, in rising order of precedence: its default, the values file, the environment, \
            a flag. `syncer config` with the same flags shows each and where it came from. For every flag there is \
            a variable: SYNCER_DATA_DIR is --data-dir (--port is SYNCER_FRONT_PORT). The variables of the charts are \
            read too: VCLUSTER_NAME, POD_NAME, POD_IP, NAMESPACE, VCLUSTER_DISTRO, VCLUSTER_COMMAND, \
            APISERVER_COMMAND, CONTROLLER_COMMAND, SCHEDULER_COMMAND, and RUST_LOG where neither --log-level nor \
            SYNCER_LOG_LEVEL is given. The other flags of the 0.19 charts are \
            accepted and passed over.\n\n\
            Without POD_NAME everything stays on loopback, so that it runs on a laptop as a normal user.",
        after_long_help = "Examples:\n  \
            syncer start --data-dir ./data\n      \
            on a laptop; moves ./data/state.db if it is there\n  \
            syncer start --values values.yaml --data-dir ./data --binaries ./bin\n      \
            as the chart's values say, with programs from ./bin\n  \
            syncer start --distro none --data-dir ./data\n      \
            etcd alone, for any API server beside it\n  \
            syncer start --etcd-embedded -- /vcluster-oss start\n      \
            etcd, then your own command in the API server's place"
    )]
    Start(StartArgs),
    /// Show every setting and where it comes from; exit 2 on a bad values file.
    #[command(after_long_help = "Examples:\n  \
            syncer config --values values.yaml\n  \
            syncer config -o json | jq '.settings[] | select(.setting == \"etcd.replicas\")'\n  \
            syncer config --example > values.yaml")]
    Config(ConfigArgs),
    /// Issue or check the certificates and keys of etcd and Kubernetes, in vCluster's layout.
    #[command(
        long_about = "Issues what is missing in a PKI directory, renews what was issued by syncer and ends within 90 \
            days, and shows every certificate. Existing files are used and never overwritten. `syncer start` does the \
            same by itself; this is for making them beforehand, and for looking.",
        after_long_help = "Examples:\n  \
            syncer certs --dir ./pki --name my-vcluster --namespace team --distro k8s\n  \
            syncer certs --check -o json\n  \
            syncer certs --dir ./pki --name my-vcluster --namespace team -o secret | kubectl apply -f -"
    )]
    Certs(Box<crate::pki::command::Args>),
    /// Copy one file, such as this program, out of an image that has no shell.
    #[command(after_long_help = "The copy has the permissions of SRC and appears only when it is whole.\n\n\
            Example:\n  syncer cp /usr/local/bin/kube-apiserver /binaries/kube-apiserver")]
    Cp {
        /// The file to copy.
        src: PathBuf,
        /// Its new name, or a directory that exists.
        dst: PathBuf,
    },
    /// Move a store from one form to another, offline; or say what that would do.
    #[command(
        long_about = "Makes a data dir of etcd, with a single member, from a state.db that kine or k3s wrote, or from \
            etcd's own stores: the data dir of a stopped etcd, a snapshot file, a running etcd. And the way back: a \
            state.db that kine goes on with, from any of those. Every live key keeps its revisions and its time to \
            live, and the store its revision; older revisions read as compacted. docs/migration.md has each journey.\n\n\
            Nobody may use the source meanwhile (but a running etcd), and a state.db's -wal must lie beside it. It is \
            never changed. The result is compared before it is put in place: a data dir by a real etcd, on loopback \
            only. Killed at any instant, the command can be given again. `syncer start` moves a state.db by itself, \
            and renames it afterwards.",
        after_long_help = "Examples:\n  \
            syncer migrate --from sqlite:state.db --to datadir:etcd --dry-run\n  \
            syncer migrate --from sqlite:state.db --to datadir:etcd --verify=full --etcd ./bin/etcd\n  \
            syncer migrate --from snapshot:backup.db --to datadir:etcd --bump-revision 1000000000\n  \
            syncer migrate --from datadir:etcd --to sqlite:state.db\n  \
            syncer migrate --from sqlite:/data/state.db --to datadir:/data/etcd --name vc-0 \\\n      \
            --peer-url https://vc-0.vc-headless.ns:2380 --client-url https://vc-0.vc-headless.ns:2379 -o json"
    )]
    Migrate(crate::migrate::command::Args),
    /// Go on with one member of a cluster whose majority is lost for good, or give its data up.
    #[command(
        long_about = "Shows what is left on the volume of a member whose cluster has no majority any more, and, when \
            told the cluster's ID, makes it the only member. The cluster's and the member's ID and all data stay; the \
            others' data must never be served again: with the host cluster's API the marker sees to that once this pod \
            has run alone; otherwise set their data dirs aside before their pods start.\n\n\
            Try everything else first: a majority that comes back, with its volumes, loses nothing. Of two voters, the \
            one that is left has every acknowledged write, and nothing is lost. Of more, the others may have \
            acknowledged writes without it: then it is reset only with --accept-loss, and the store's revision is \
            raised so that no client sees a revision twice. Take the volume whose log ends highest: compare the term \
            first, then the index.\n\n\
            A copy of the data dir is kept beside it (etcd.aside-TIME). Killed at any instant, the command can be \
            given again. Nobody may use the volume meanwhile: scale the StatefulSet to 0 and run this in a pod that \
            mounts it.",
        after_long_help = "Examples:\n  \
            syncer recover --data-dir /data\n      \
            what is there, what may be lost, what to do next; changes nothing\n  \
            syncer recover --data-dir /data --cluster-id 6d7d1a9c5e0f3b21\n      \
            go on with this member alone; refused (5) if acknowledged writes may be missing\n  \
            syncer recover --data-dir /data --cluster-id 6d7d1a9c5e0f3b21 --accept-loss\n      \
            the same although they may be missing\n  \
            syncer recover --data-dir /data --new-cluster --yes\n      \
            the data is damaged beyond use and there is no backup: set it aside, begin with an empty cluster\n\n\
            Exit codes: 0 shown, or done   1 a fault   2 bad usage   3 not a data dir that this could go on from, another \
            cluster's ID, or a restore is staged\n  \
            4 a deployed etcd may still be fenced by this volume\n  \
            5 writes may be missing, or the member is a learner or was removed   7 no room for the copy   8 in use"
    )]
    Recover(Box<crate::reset::command::Args>),
    /// Take a snapshot of the store, restore one, list those that are kept, look through one.
    #[command(
        long_about = "Backups of the store, in the form of `etcdctl snapshot save`: etcd's own tools read ours, and we \
            theirs. With `snapshots` in the values file `syncer start` takes them by itself. `syncer snapshot restore` puts \
            one in the place of the present store. To make a data dir of one elsewhere: \
            `syncer migrate --from snapshot:FILE --to datadir:DIR`."
    )]
    Snapshot {
        /// What to do.
        #[command(subcommand)]
        command: SnapshotCommand,
    },
    /// Show what a boot in this pod would decide, and by which rule; changes nothing.
    #[command(
        long_about = "Looks at the volume and at the other pods as `syncer start` does when it boots, and shows what it \
            sees, what it would decide, and the rule that decides it. It changes nothing, and can be given beside a \
            running syncer. With --facts it decides on facts from a file instead, in any place.",
        after_long_help = "Examples:\n  \
            syncer plan\n      \
            in a pod: why it waits or refuses\n  \
            syncer plan --data-dir ./data\n      \
            on a laptop\n  \
            syncer plan -o json | jq .facts > facts.json; syncer plan --facts facts.json\n      \
            ask what it would do if the facts were others\n\n\
            Exit codes: 0 shown, whatever the decision   1 the volume cannot be looked at   2 bad usage, values or facts"
    )]
    Plan(Box<crate::plan::Args>),
    /// Print the version.
    Version,
}

/// Arguments of `syncer start`.
#[derive(Args, Debug)]
pub struct StartArgs {
    /// Settings.
    #[command(flatten)]
    pub flags: Flags,

    /// A command to run in the API server's place, once etcd serves and the store is moved. In a pod, port 8443 is its own from
    /// then on, with the probes: that they do not depend on the datastore is its affair.
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

/// Arguments of `syncer config`.
#[derive(Args, Debug)]
pub struct ConfigArgs {
    /// Settings, as `syncer start` has them.
    #[command(flatten)]
    pub flags: Flags,

    /// Form of the output.
    #[arg(short, long, value_enum, default_value = "yaml")]
    pub output: Output,

    /// Print a values file with every setting explained, and nothing else.
    #[arg(long)]
    pub example: bool,
}

/// Form of a command's output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// YAML; the source of each setting is a comment.
    Yaml,
    /// JSON.
    Json,
}

/// A command line that was understood.
#[derive(Debug)]
pub enum Parsed {
    /// Do this. The names are flags of the charts that were passed over.
    Run(Box<Command>, Vec<String>),
    /// Print this text (help, version) and succeed.
    Print(String),
}

/// Parses a command line, its first element being the program's name.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> anyhow::Result<Parsed> {
    let mut args: Vec<OsString> = args.into_iter().collect();
    let mut passed_over = Vec::new();
    if args.get(1).is_some_and(|command| ["start", "config", "plan"].iter().any(|own| command == own)) {
        let rest = args.split_off(2);
        let (ours, taken) = chart_flags::take(rest);
        args.extend(ours);
        passed_over = taken;
    }
    let command = args.get(1).and_then(|c| c.to_str()).filter(|c| !c.starts_with('-')).map(str::to_owned);
    match Cli::try_parse_from(args) {
        Ok(Cli { command: Command::Version }) => Ok(Parsed::Print(format!("syncer {}\n", env!("CARGO_PKG_VERSION")))),
        Ok(cli) => Ok(Parsed::Run(Box::new(cli.command), passed_over)),
        Err(error) if !error.use_stderr() => Ok(Parsed::Print(error.render().to_string())),
        Err(error) => Err(usage(&without_secrets(error), command.as_deref())),
    }
}

/// Of a command line of `start` that was not understood: where the volume and the certificates are.
pub fn volume_of(args: &[OsString]) -> Option<Flags> {
    if args.get(1).is_none_or(|command| command != "start") {
        return None;
    }
    let own = args.iter().take_while(|arg| *arg != "--");
    let given = |flag: &str| {
        let mut args = own.clone().filter_map(|arg| arg.to_str());
        args.find_map(|arg| arg.strip_prefix(flag)?.strip_prefix('=').map(str::to_owned)).or_else(|| {
            let mut args = own.clone().skip_while(|arg| *arg != flag);
            args.nth(1)?.to_str().map(str::to_owned)
        })
    };
    let path = |flag| given(flag).map(PathBuf::from);
    Some(Flags { data_dir: path("--data-dir"), pki_dir: path("--pki-dir"), name: given("--name"), ..Flags::default() })
}

/// The complaint with no password in it that stood in a URL.
fn without_secrets(mut error: clap::Error) -> clap::Error {
    use clap::error::{ContextKind, ContextValue};
    for kind in [ContextKind::InvalidValue, ContextKind::InvalidArg] {
        if let Some(ContextValue::String(text)) = error.get(kind) {
            let shown = without_user(text);
            error.insert(kind, ContextValue::String(shown));
        }
    }
    error
}

/// clap's complaint as our one line.
fn usage(error: &clap::Error, command: Option<&str>) -> anyhow::Error {
    use clap::error::ErrorKind::{DisplayHelpOnMissingArgumentOrSubcommand, InvalidSubcommand, MissingSubcommand};
    match error.kind() {
        DisplayHelpOnMissingArgumentOrSubcommand | MissingSubcommand => {
            refuse(Exit::Usage, "no command is given", "try `syncer start --help` or `syncer --help`")
        }
        InvalidSubcommand => refuse(Exit::Usage, one_line(error), "`syncer --help` lists the commands"),
        _ => {
            let help = command.map_or("syncer --help".to_owned(), |c| format!("syncer {c} --help"));
            refuse(Exit::Usage, one_line(error), format!("`{help}` explains the arguments"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn words(line: &str) -> Vec<OsString> {
        line.split_whitespace().map(OsString::from).collect()
    }

    #[test]
    fn the_volume_is_known_of_a_start_that_is_not_understood() {
        let volume = |line| volume_of(&words(line)).map(|flags| (flags.data_dir, flags.pki_dir, flags.name));
        assert_eq!(volume("syncer migrate --data-dir=/x --nonsense"), None);
        assert_eq!(volume("syncer start --nonsense"), Some((None, None, None)));
        let all = Some((Some("/x".into()), Some("/p".into()), Some("vc".to_owned())));
        assert_eq!(volume("syncer start --nonsense --data-dir /x --pki-dir=/p --name=vc"), all);
        assert_eq!(volume("syncer start --nonsense --name vc --data-dir=/x --pki-dir /p -- sh --name=other"), all);
        assert_eq!(volume("syncer start --data-dir"), Some((None, None, None)));
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_charts_arguments_are_accepted_as_they_are() {
        for line in [
            // k8s and eks, from charts/k8s/templates/syncer.yaml of 0.19.
            "/vcluster start --name=vc --request-header-ca-cert=/pki/front-proxy-ca.crt --client-ca-cert=/pki/ca.crt \
             --server-ca-cert=/pki/ca.crt --server-ca-key=/pki/ca.key --kube-config=/pki/admin.conf \
             --service-account=vc-workload-vc --migrate-from=https://vc-etcd:2379 --enable-scheduler \
             --default-image-registry=reg/ --kube-config-context-name=my-vcluster --etcd-embedded --etcd-replicas=3 \
             --leader-elect=true --tls-san=vc.example.com --enforce-pod-security-standard=baseline \
             --sync=hoststorageclasses,-ingresses --sync-all-nodes --node-selector=a=b --multi-namespace-mode=true \
             --sync-all-configmaps=true --sync-all-secrets=true --fake-kubelet-ips=false --proxy-metrics-server=true \
             --integrated-coredns=true --use-coredns-plugin=true --enforce-validating-hook=e30= \
             --enforce-mutating-hook=e30= --map-host-service=a/b=c/d --map-virtual-service=a/b=c --plugins=x",
            // k3s.
            "/vcluster start --name=vc --kube-config=/data/k3s-config/kube-config.yaml \
             --service-account=vc-workload-vc --pro-license-secret=x --leader-elect=false --tls-san=a,b --tls-san=c",
            // Since 0.20.
            "/vcluster start",
            "/vcluster start --config /var/vcluster/config.yaml",
        ] {
            let parsed = parse(words(line)).unwrap_or_else(|e| panic!("{line}: {e}"));
            assert!(matches!(parsed, Parsed::Run(command, _) if matches!(*command, Command::Start(_))), "{line}");
        }
    }

    #[test]
    fn a_wrapped_command_is_kept_as_it_is() {
        let parsed = parse(words("syncer start --name a -- /x start --sync b --values c --")).unwrap();
        let Parsed::Run(command, passed_over) = parsed else { panic!("{parsed:?}") };
        let Command::Start(start) = *command else { panic!() };
        assert_eq!(start.command, words("/x start --sync b --values c --"));
        assert_eq!((start.flags.values, passed_over.len()), (None, 0));
    }

    #[test]
    fn a_complaint_tells_no_password() {
        for line in [
            "syncer snapshot list --from s3://id:s3cret@backups/vc",
            "syncer snapshot list --from s3://id:s3cret/x@backups/vc",
            "syncer snapshot save --to=s3://id:s3cret@backups",
            "syncer migrate --from https://u:s3cret@a:1 --to sqlite:x",
        ] {
            let text = parse(words(line)).unwrap_err().to_string();
            assert!(!text.contains("s3cret") && text.contains("(set, not shown)@"), "{text}");
        }
    }

    #[test]
    fn bad_usage_is_one_line_with_a_remedy() {
        for (line, want) in [
            ("syncer", "no command is given"),
            ("syncer strat", "similar subcommand exists: 'start'"),
            ("syncer start --etcd-replcas=3", "similar argument exists: '--etcd-replicas'"),
            ("syncer start --etcd-replicas=many", "--etcd-replicas"),
            ("syncer start --client-port=0", "1 to 65535"),
            ("syncer start stray", "stray"),
            ("syncer start --distro=k9s", "possible values: k8s"),
            ("syncer cp one", "<DST>"),
        ] {
            let error = parse(words(line)).expect_err(line);
            assert_eq!(crate::exit::exit_of(&error), Exit::Usage, "{line}");
            let text = error.to_string();
            assert!(text.contains(want) && text.contains("syncer ") && !text.contains('\n'), "{line}: {text}");
        }
    }

    #[test]
    fn help_teaches_and_hides_what_is_not_there() {
        for (line, words_of_it) in [
            ("syncer --help", &["start", "config", "cp", "Exit codes", "state.db"][..]),
            ("syncer start --help", &["--data-dir", "Datastore:", "Network:", "SYNCER_DATA_DIR", "Examples:", "2379"]),
            ("syncer config --help", &["--example", "json"]),
            ("syncer recover --help", &["--cluster-id", "--accept-loss", "--new-cluster", "Examples:", "Exit codes"]),
            ("syncer --version", &["syncer 0."]),
            ("syncer version", &["syncer 0."]),
        ] {
            let Parsed::Print(text) = parse(words(line)).unwrap() else { panic!("{line}") };
            for word in words_of_it {
                assert!(text.contains(word), "{line} does not say {word}: {text}");
            }
            for word in ["snapshot save", "--client-ca-cert", "--leader-elect"] {
                assert!(!text.contains(word), "{line} says {word}");
            }
        }
    }
}
