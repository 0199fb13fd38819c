//! Those that are left when others are gone for good: what is repaired by itself, and what waits for its remedy. Without a
//! host API.

use super::{CHANGE, Scene, etcd_calls_it_healthy};
use crate::statefulset_box::protocol::Policy;
use crate::support::poll;

impl Scene {
    /// Waits until pod `ordinal` has said this so many times.
    fn says(&self, ordinal: u32, what: &str, times: usize) {
        let pod = format!("vc-{ordinal}");
        let said = || (self.set.log(&pod).matches(what).count() == times).then_some(());
        poll(&format!("pod {ordinal} says {what:?} {times} times"), CHANGE, said);
    }
}

const RESET: &str = "the reset is finished";

/// The two were three a moment ago. Which of them loses its volume makes no difference, nor whether the other runs.
#[test]
fn of_two_voters_one_goes_on_without_loss_when_the_other_has_lost_its_volume() {
    let mut scene = Scene::begin(Policy::Parallel);
    etcd_calls_it_healthy();
    scene.scale(2);
    scene.set.lose_volume(1).expect("lose the volume");
    scene.says(0, RESET, 1);
    scene.rests("pod 1 lost its volume", 2);

    scene.set.lose_volume(1).expect("lose the volume");
    scene.set.kill9(0).expect("kill");
    scene.says(0, RESET, 2);
    scene.rests("pod 1 lost its volume while pod 0 was down", 2);

    scene.set.lose_volume(0).expect("lose the volume");
    scene.says(1, RESET, 1);
    scene.rests("the seed lost its volume", 2);
    scene.says(0, RESET, 2);
    assert!(!scene.writer.finish().is_empty());
}
