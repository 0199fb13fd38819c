//! Pods from another first ordinal on, which use the host cluster's API as another account than their own.

use super::*;
use crate::statefulset_box::network::GATEWAY;
use crate::statefulset_box::way::PORT;

/// An administrator's Secret, there before the first pod.
fn given_certs(set: &TestBox, folder: &Path) {
    let mut command = Command::new(syncer());
    command.args(["certs", "-o", "secret", "--name=vc", "--namespace=team-a", "--distro=k3s", "--dir"]);
    let made = command.arg(folder.join("pki")).output().expect("run syncer");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let manifest = folder.join("certs.yaml");
    std::fs::write(&manifest, made.stdout).expect("write it");
    set.kubectl(&["apply", "-f", manifest.to_str().expect("UTF-8")]);
}

/// Has the pods use the host cluster's API by this kubeconfig.
fn with_kubeconfig(config: &mut Config, file: &Path) {
    let Program::Syncer { args, .. } = &mut config.program else { panic!("pods of syncer") };
    args.push(format!("--host-kubeconfig={}", file.display()));
}

/// Writes a kubeconfig of an account that may do what from now on the pods' own may not.
fn kubeconfig_of_another_account(set: &TestBox, file: &Path) {
    set.kubectl(&["create", "serviceaccount", "another"]);
    let subject = r#"[{"op": "replace", "path": "/subjects/0/name", "value": "another"}]"#;
    set.kubectl(&["patch", "rolebinding", "vc", "--type=json", "-p", subject]);
    let may = ["auth", "can-i", "--list", "--as=system:serviceaccount:team-a:vc-vc"];
    poll("the pods' own account may do nothing", CHANGE, || {
        (!set.kubectl(&may).contains("statefulsets")).then_some(())
    });
    let token = set.kubectl(&["create", "token", "another"]);
    let ca = set.dir().join("host/serviceaccount/ca.crt");
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: pods\n\
         clusters:\n- name: pods\n  cluster:\n    server: https://{GATEWAY}:{PORT}\n    certificate-authority: {}\n\
         users:\n- name: pods\n  user:\n    token: {token}\n\
         contexts:\n- name: pods\n  context:\n    cluster: pods\n    user: pods\n",
        ca.display()
    );
    std::fs::write(file, text).expect("write a kubeconfig");
}

/// As the charts of 0.19 have it: one pod after the other; here from ordinal 2 on, which is the seed. The pods use the API by a
/// kubeconfig, as another account than their own, which may do nothing.
#[test]
fn in_order_from_another_first_ordinal() {
    if !possible() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let kubeconfig = folder.path().join("kubeconfig");
    let set = hosted(0, Policy::OrderedReady, |config| {
        config.first = 2;
        with_k3s(config, folder.path());
        with_kubeconfig(config, &kubeconfig);
    });
    kubeconfig_of_another_account(&set, &kubeconfig);
    given_certs(&set, folder.path());
    set.kubectl(&["scale", "statefulset", "vc", "--replicas=3"]);
    let mut scene = Scene::from(2, 3, set);
    let cluster = formed(&scene.set).expect("formed by pod 2");
    let ca = std::fs::read(folder.path().join("pki/etcd/ca.key")).expect("a CA");
    assert!((2..5).all(|ordinal| own(&scene.set, ordinal, "etcd/ca.key") == STANDARD.encode(&ca)), "another CA");
    for replicas in [1, 3] {
        scale(&mut scene, replicas);
    }
    etcd_calls_it_healthy();
    let before = scene.set.status().expect("a status");
    scene.set.roll().expect("roll");
    let rolled = |s: &Status| {
        let newer = |(ordinal, was): (&u32, &PodStatus)| {
            s.pods.get(ordinal).is_some_and(|pod| pod.incarnation > was.incarnation)
        };
        s.settled && before.pods.iter().all(newer)
    };
    scene.set.wait("each pod is replaced", CHANGE * 2, rolled).unwrap_or_else(|e| panic!("{e:#}"));
    scene.rests("rolled", 3);
    assert_eq!(formed(&scene.set), Some(cluster));
    let token = scene.set.kubectl(&["get", "secret", "vc-k3s-vc", "-o", "jsonpath={.data.token}"]);
    for ordinal in 2..5 {
        let given = std::fs::read(scene.set.volume(&format!("vc-{ordinal}")).join("given-token")).expect("k3s has run");
        assert!(given.len() == 64 && STANDARD.encode(given) == token, "pod {ordinal} has another token");
    }
    assert!(!scene.writer.finish().is_empty());
}
