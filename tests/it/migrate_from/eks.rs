//! The eks charts' move of their deployed etcd, by the values and the environment that they give the pod: both upgrades.

use serde_json::{Value, json};
use syncer::settings::flags::DistroFlag;

use super::apiserver::old_apiserver;
use super::*;
use crate::serve::chart_variable;
use crate::support::etcd::PATIENCE;
use crate::support::kube::Kube;
use crate::support::pod::child_running;
use crate::support::{poll, repository};
use crate::way_back::{MAPS, kube};

/// What eks has of its controllers.
const CONTROLLERS: &str = "--controllers=*,-nodeipam,-persistentvolume-binder,-attachdetach,-persistentvolume-expander,-cloud-node-lifecycle,-ttl";

/// A generation of the charts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Chart {
    V019,
    V020,
}

impl Chart {
    /// The values of the first upgrade, which `moves`, or of the second.
    fn values(self, moves: bool) -> String {
        match self {
            Chart::V019 => {
                let text = std::fs::read_to_string(repository("tests/fixtures/values/eks-0.19.yaml")).expect("values");
                let asked = text.replace("migrateFromEtcd: false", &format!("migrateFromEtcd: {moves}"));
                asked.replace("replicas: 3", "replicas: 1")
            }
            Chart::V020 => format!(
                "controlPlane:\n  distro: {{eks: {{enabled: true}}}}\n  backingStore:\n    etcd:\n      \
                 embedded: {{enabled: true, migrateFromDeployedEtcd: {moves}}}\n      deploy: {{enabled: false}}\n"
            ),
        }
    }

    /// Nothing but the chart itself says that it is eks.
    fn command(self, pod: &TestPod, extra: &[&str]) -> Command {
        let ours = pod.command("eks", extra);
        let mut command = Command::new(ours.get_program());
        command.args(ours.get_args().filter(|arg| *arg != "--distro=eks"));
        if self == Chart::V019 {
            command.env("VCLUSTER_DISTRO", "eks");
            for variable in ["APISERVER_COMMAND", "CONTROLLER_COMMAND"] {
                let pki = pod.data().join("pki");
                command.env(variable, chart_variable("eks", variable, &pki, pod.client_port(), pod.apiserver_port));
            }
        }
        command
    }

    fn start(self, pod: &mut TestPod, moves: bool, extra: &[&str]) -> Kube {
        pod.values(&self.values(moves));
        let command = self.command(pod, extra);
        pod.spawn(command);
        pod.wait_ready();
        let arguments = |program| poll(&format!("{program} runs"), PATIENCE, || child_running(pod.pid(), program)).1;
        assert!(
            arguments("kube-controller-manager").iter().any(|given| given == CONTROLLERS),
            "{self:?}: another distro"
        );
        // The chart's own command, or the default.
        let audits = arguments("kube-apiserver").iter().any(|given| given == "--audit-log-path=-");
        assert_eq!(audits, self == Chart::V019);
        kube(pod)
    }
}

fn map(name: &str) -> Value {
    json!({"metadata": {"name": name}, "data": {"v": "first"}})
}

fn version(object: &Value) -> i64 {
    let version = object["metadata"]["resourceVersion"].as_str().expect("a resourceVersion");
    version.parse().expect("a number")
}

/// The ConfigMaps of the test itself, less what the controllers make.
async fn maps(kube: &Kube) -> Vec<Value> {
    let (mut maps, _) = kube.list(MAPS).await.expect("list");
    maps.retain(|map| map["metadata"]["name"] != "kube-root-ca.crt");
    maps
}

#[test]
fn an_eks_charts_etcd_is_moved_and_both_upgrades_serve_it() {
    if std::env::var_os("SYNCER_QUICK").is_some() {
        eprintln!("skipped: --quick");
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("runtime");
    for chart in [Chart::V019, Chart::V020] {
        let home = tempfile::tempdir().expect("a folder");
        let (mut pod, tls) = pod_with_certificates(Distro::Eks);
        let source = Deployed::start("3.5", 1, Some(&tls));
        let (old, before) = runtime.block_on(async {
            let (processes, old) = old_apiserver(DistroFlag::Eks, &pod, &source, home.path()).await;
            for n in 0..30 {
                old.create(MAPS, &map(&format!("map-{n}"))).await.expect("create");
            }
            for n in (0..30).step_by(4) {
                old.merge(&format!("{MAPS}/map-{n}"), &json!({"data": {"v": "second"}})).await.expect("change");
            }
            for n in (1..30).step_by(7) {
                old.delete(&format!("{MAPS}/map-{n}")).await.expect("delete");
            }
            let before = maps(&old).await;
            ((processes, old), before)
        });

        let new = chart.start(&mut pod, true, &[&from(&source.url())]);
        runtime.block_on(async {
            assert_eq!(maps(&new).await, before, "{chart:?}");
            let error = format!("{:#}", old.1.create(MAPS, &map("too-late")).await.expect_err("a write to the source"));
            assert!(error.contains("corrupt cluster"), "{chart:?}: {error}");
            let made = new.create(MAPS, &map("after-the-move")).await.expect("create");
            assert!(before.iter().all(|object| version(object) < version(&made)), "{chart:?}: {made}");
            new.create("/api/v1/namespaces", &json!({"metadata": {"name": "new"}})).await.expect("create");
        });
        poll("the controllers make an account for a new namespace", PATIENCE, || {
            runtime.block_on(new.get("/api/v1/namespaces/new/serviceaccounts/default")).ok()
        });
        let before = runtime.block_on(maps(&new));
        assert_eq!(pod.stop().code(), Some(0), "{chart:?}: {}", pod.log());

        // The chart removes its etcd, and whatever used it.
        drop(old);
        drop(source);
        let new = chart.start(&mut pod, false, &[]);
        runtime.block_on(async {
            assert_eq!(maps(&new).await, before, "{chart:?}: the second upgrade");
            let made = new.create(MAPS, &map("after-the-second-upgrade")).await.expect("create");
            assert!(before.iter().all(|object| version(object) < version(&made)), "{chart:?}: {made}");
        });
        assert_eq!(pod.log().matches("moved and committed").count(), 1, "{chart:?}: it was moved again: {}", pod.log());
        assert_eq!(pod.stop().code(), Some(0), "{chart:?}: {}", pod.log());
    }
}
