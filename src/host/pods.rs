//! Pods, one by one by their names, and the volumes of all ordinals.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::api::ListParams;

use super::client::{Client, DEADLINE, answer, known};
use crate::boot::{Known, PodFact};
use crate::ids::Ordinal;

/// The label that tells which revision of the StatefulSet a pod was made of.
const REVISION: &str = "controller-revision-hash";
/// Objects in one part of a list.
const PART: u32 = 500;
/// More parts than any namespace has.
const PARTS_MAX: usize = 200;

/// The pod of an ordinal; `newest` is the StatefulSet's newest revision, if that is known.
pub async fn get(client: &Client, ordinal: Ordinal, newest: Option<&str>) -> Known<PodFact> {
    let name = format!("{}-{ordinal}", client.name);
    let asked = async {
        let api = client.objects::<Pod>().await?;
        answer(&name, DEADLINE, api.get_metadata(&name)).await
    };
    match known(asked.await) {
        Known::Present(pod) => {
            let revision = pod.metadata.labels.as_ref().and_then(|labels| labels.get(REVISION));
            Known::Present(PodFact {
                terminating: pod.metadata.deletion_timestamp.is_some(),
                current_revision: revision.zip(newest).map(|(revision, newest)| revision == newest),
            })
        }
        Known::Absent => Known::Absent,
        Known::Unknown(why) => Known::Unknown(format!("the pod {name}: {why}")),
    }
}

/// Where the pod of an ordinal takes clients, if it does by the kubelet's word and is not about to stop.
pub async fn ready_address(client: &Client, ordinal: Ordinal) -> Option<IpAddr> {
    let name = format!("{}-{ordinal}", client.name);
    let pod = async { answer(&name, DEADLINE, client.objects::<Pod>().await?.get(&name)).await }.await.ok()?;
    ready_at(&pod)
}

fn ready_at(pod: &Pod) -> Option<IpAddr> {
    let status = pod.status.as_ref().filter(|_| pod.metadata.deletion_timestamp.is_none())?;
    let conditions = status.conditions.as_deref().unwrap_or_default();
    let ready = conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True");
    status.pod_ip.as_ref().filter(|_| ready)?.parse().ok()
}

/// The other ordinals that have a PVC made from one of these templates. All claims of the namespace are looked at: one that
/// was restored by hand has no labels.
pub async fn claims(client: &Client, templates: &[String]) -> Known<Vec<Ordinal>> {
    let asked = async {
        let api = client.objects::<PersistentVolumeClaim>().await?;
        let mut params = ListParams::default().limit(PART);
        let mut names = Vec::new();
        for _ in 0..PARTS_MAX {
            let part = answer("", DEADLINE, api.list_metadata(&params)).await?;
            names.extend(part.items.into_iter().filter_map(|claim| claim.metadata.name));
            match part.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params = params.continue_token(&token),
                None => return Ok(names),
            }
        }
        Err(super::client::Failure::Unknown("the list of claims has no end".to_owned()))
    };
    match known(asked.await) {
        Known::Present(names) => Known::Present(claimed(&names, templates, &client.name, client.ordinal)),
        Known::Absent => Known::Unknown("the claims: not found".to_owned()),
        Known::Unknown(why) => Known::Unknown(format!("the claims: {why}")),
    }
}

fn claimed(names: &[String], templates: &[String], set: &str, own: Ordinal) -> Vec<Ordinal> {
    // One template's name may be how another's begins: by which of them a claim is a pod's, the rest of it tells.
    let by = |name: &str, template: &String| {
        let pod = name.strip_prefix(template.as_str())?.strip_prefix('-')?;
        Ordinal::of_pod(pod).filter(|(of, _)| *of == set).map(|(_, ordinal)| ordinal)
    };
    let of = |name: &String| templates.iter().find_map(|template| by(name, template));
    let mut ordinals: Vec<_> = names.iter().filter_map(of).filter(|ordinal| *ordinal != own).collect();
    ordinals.sort_unstable();
    ordinals.dedup();
    ordinals
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_are_led_to_a_pod_that_is_ready_and_stays() {
        let pod = |ready: &str, ip: Option<&str>| -> Pod {
            serde_json::from_value(serde_json::json!({
                "metadata": {"name": "vc-0"},
                "status": {
                    "podIP": ip,
                    "conditions": [{"type": "Initialized", "status": "True"}, {"type": "Ready", "status": ready}],
                },
            }))
            .unwrap()
        };
        let address = "10.0.0.7".parse().ok();
        assert_eq!(ready_at(&pod("True", Some("10.0.0.7"))), address);
        assert_eq!(ready_at(&pod("False", Some("10.0.0.7"))), None);
        assert_eq!(ready_at(&pod("True", None)), None);
        assert_eq!(ready_at(&Pod::default()), None);
        let mut going = pod("True", Some("10.0.0.7"));
        going.metadata.deletion_timestamp = serde_json::from_str("\"2026-01-01T00:00:00Z\"").unwrap();
        assert_eq!(ready_at(&going), None);
    }

    #[test]
    fn a_claim_tells_its_ordinal_by_its_name() {
        let names = ["data-vc-0", "data-vc-1", "data-vc-7", "data-vcx-3", "data-vc-etcd-0", "other-vc-2", "wal-vc-1"];
        let names = names.map(str::to_owned);
        let of = |templates: &[&str]| {
            let templates: Vec<_> = templates.iter().map(|t| (*t).to_owned()).collect();
            claimed(&names, &templates, "vc", Ordinal(0))
        };
        assert_eq!(of(&["data"]), [Ordinal(1), Ordinal(7)]);
        assert_eq!(of(&["wal", "data"]), [Ordinal(1), Ordinal(7)]);
        assert_eq!(of(&[]), []);
    }

    #[test]
    fn a_template_s_name_may_begin_with_another_s() {
        let names = ["data-0", "data-vc-1", "data-etcd-vc-2", "data-etcd-vc-0"].map(str::to_owned);
        for templates in [["data", "data-etcd"], ["data-etcd", "data"]] {
            let found = claimed(&names, &templates.map(str::to_owned), "vc", Ordinal(0));
            assert_eq!(found, [Ordinal(1), Ordinal(2)], "{templates:?}: a volume that is not seen is taken for none");
        }
    }
}
