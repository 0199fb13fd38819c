//! `migrateFromEtcd`: a deployed etcd, fenced, moved into a pod's own, and left fenced.

mod apiserver;
mod crash;
mod eks;
mod fence;
mod large;
mod pods;
mod refused;
mod room;
mod slow;
pub mod switch;
mod trouble;
mod undo;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use etcd_client::{Client, LeaseGrantOptions, PutOptions};
use syncer::disk::RealDisk;
use syncer::pki::plan::Input;
use syncer::pki::{EtcdTlsFiles, Mode, PkiPaths, ensure_input};
use syncer::settings::Distro;
use time::OffsetDateTime;

use crate::support::etcd::{Etcd, EtcdSpec, ServedKey, program, run, try_all_keys};
use crate::support::pod::TestPod;
use crate::support::syncer;

const ON: &str = "embeddedEtcd:\n  enabled: true\n";

/// The certificates of a virtual cluster, which its deployed etcd has too.
fn certificates(pki_dir: &Path, distro: Distro, apiserver_port: u16) -> EtcdTlsFiles {
    let input = Input {
        pki_dir: pki_dir.to_owned(),
        lasting_dir: None,
        distro,
        etcd: true,
        name: "my".to_owned(),
        namespace: "team".to_owned(),
        cluster_domain: "cluster.local".to_owned(),
        pod: "my-0".to_owned(),
        pod_ip: None,
        in_pod: false,
        desired: 1,
        tls_sans: Vec::new(),
        service_cidr: "10.96.0.0/12".to_owned(),
        apiserver_port,
    };
    let (_, refusals) = ensure_input(&input, &RealDisk, OffsetDateTime::now_utc(), Mode::Ensure).expect("certificates");
    assert_eq!(refusals, []);
    PkiPaths::new(pki_dir).etcd_tls()
}

/// A deployed etcd of so many members.
pub struct Deployed {
    members: Vec<Etcd>,
    _home: tempfile::TempDir,
}

impl Deployed {
    pub fn start(line: &'static str, members: usize, tls: Option<&EtcdTlsFiles>) -> Deployed {
        Deployed::with(line, members, tls, &[])
    }

    fn with(line: &'static str, members: usize, tls: Option<&EtcdTlsFiles>, flags: &[&str]) -> Deployed {
        let home = tempfile::tempdir().expect("a folder");
        let mut specs: Vec<_> = (0..members)
            .map(|n| EtcdSpec::new(line, &format!("vc-etcd-{n}"), &home.path().join(format!("vc-etcd-{n}"))))
            .collect();
        let cluster: Vec<_> = specs.iter().map(|spec| format!("{}={}", spec.name, spec.peer_url())).collect();
        let mut members: Vec<_> = specs
            .iter_mut()
            .map(|spec| {
                spec.initial_cluster = Some(cluster.join(","));
                spec.tls = tls.cloned();
                spec.flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
                spec.spawn()
            })
            .collect();
        members.iter_mut().for_each(Etcd::wait_until_serving);
        Deployed { members, _home: home }
    }

    /// One member, which listens at this URL too.
    fn also_at(line: &'static str, url: &str) -> Deployed {
        let home = tempfile::tempdir().expect("a folder");
        let mut spec = EtcdSpec::new(line, "vc-etcd-0", &home.path().join("vc-etcd-0"));
        // The last one of a flag counts.
        let both = format!("--listen-client-urls={},{url}", spec.client_url());
        spec.flags.push(both);
        Deployed { members: vec![spec.start()], _home: home }
    }

    /// The member that the tests ask and move from.
    pub fn one(&self) -> &Etcd {
        self.members.last().expect("a member")
    }

    pub fn url(&self) -> String {
        self.one().spec.client_url()
    }

    fn asked<T>(&self, ask: impl AsyncFnOnce(Client) -> T) -> T {
        run(async { ask(self.one().client().await).await })
    }

    /// Keys with and without leases, changed and deleted ones, and some compacted.
    pub fn fill(&self, keys: usize) {
        self.asked(async |mut client| {
            client.lease_grant(3600, Some(LeaseGrantOptions::new().with_id(77))).await.expect("a lease");
            let (value, leased) = ("v".repeat(300), Some(PutOptions::new().with_lease(77)));
            for n in 0..keys {
                let options = leased.clone().filter(|_| n % 5 == 0);
                client.put(format!("/registry/configmaps/{n:06}"), value.as_str(), options).await.expect("put");
            }
            for n in (0..keys).step_by(7) {
                client.delete(format!("/registry/configmaps/{n:06}"), None).await.expect("delete");
            }
            let put = client.put("/registry/last", "x", None).await.expect("put");
            client.compact(put.header().expect("a header").revision() - 3, None).await.expect("compact");
        });
    }

    /// Everything in it, and its revision.
    pub fn everything(&self) -> (i64, Vec<ServedKey>) {
        self.asked(async |mut client| contents(&mut client).await)
    }

    pub fn takes_writes(&self) -> bool {
        self.asked(async |mut client| match client.put("/probe", "x", None).await {
            Ok(_) => true,
            Err(error) => {
                assert!(error.to_string().contains("corrupt cluster"), "{error}");
                false
            }
        })
    }
}

async fn contents(client: &mut Client) -> (i64, Vec<ServedKey>) {
    try_contents(client).await.expect("read everything")
}

async fn try_contents(client: &mut Client) -> Result<(i64, Vec<ServedKey>), etcd_client::Error> {
    let keys = try_all_keys(client).await?;
    let revision = client.get("/", None).await?.header().expect("a header").revision();
    Ok((revision, keys))
}

/// A pod that is to move from `url`, and its certificates.
fn pod_with_certificates(distro: Distro) -> (TestPod, EtcdTlsFiles) {
    let pod = TestPod::new();
    let tls = certificates(&pod.data().join("pki"), distro, pod.apiserver_port);
    (pod, tls)
}

pub fn from(url: &str) -> String {
    format!("--migrate-from={url}")
}

/// Everything in the pod's etcd, and its revision.
pub fn moved(pod: &TestPod) -> (i64, Vec<ServedKey>) {
    pod.etcd(async |mut client| contents(&mut client).await)
}

/// `syncer migrate` of a running etcd into a data dir: the exit code, and what it says.
fn copied(url: &str, target: &Path) -> (Option<i32>, String) {
    let mut command = Command::new(syncer());
    command.args(["migrate", "-o", "json", &format!("--from=etcd:{url}")]);
    command.arg(format!("--to=datadir:{}", target.display())).arg("--etcd").arg(program("etcd", "3.6"));
    let out = command.output().expect("syncer runs");
    (out.status.code(), String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned())
}

/// Runs a pod that ends by itself, in time for a source that is asked for long.
pub fn ended(pod: &mut TestPod, extra: &[&str]) -> (Option<i32>, String) {
    pod.start("none", extra);
    let status = pod.wait_end(Duration::from_secs(180));
    (status.code(), pod.log())
}
