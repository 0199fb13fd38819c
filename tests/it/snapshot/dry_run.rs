//! What a save would do, and what its report has.

use super::*;
use crate::support::SmallVolume;

#[test]
fn a_dry_run_says_what_a_save_would_do_and_writes_nothing() {
    let home = tempfile::tempdir().unwrap();
    let etcd = EtcdSpec::new("3.6", "a", &home.path().join("etcd")).start();
    run(async { fill(etcd.client().await).await });
    let (url, place) = (etcd.spec.client_url(), home.path().join("not/there/yet"));
    let save = |place: &Path, more: &[&str]| {
        let base = ["save", "--to", text(place), "--endpoint", &url, "--name", "vc", "--keep", "1"];
        ran(&mut snapshot(&[&base[..], more].concat()))
    };
    let told = json(&save(&place, &["--dry-run", "-o", "json"]));
    assert!(!home.path().join("not").exists() && told["dryRun"] == true, "{told}");
    assert_eq!(told["removed"], Value::Array(vec![]));

    let saved = json(&save(&place, &["-o", "json"]));
    // The same names for the same things.
    for same in ["source", "sourceRevision", "clusterId", "memberId", "place"] {
        assert!(told[same] == saved[same] && !saved[same].is_null(), "{same}: {told} {saved}");
    }
    // etcd's file grows by pages, up to a tenth of a second after what was written.
    let bytes = |report: &Value| report["targetBytes"].as_u64().expect("bytes");
    assert!(bytes(&told).abs_diff(bytes(&saved)) < 1 << 20, "{told} {saved}");
    assert_eq!(saved["source"], url);
    assert_eq!((&saved["revision"], &saved["hash"]), (&saved["snapshot"]["revision"], &saved["snapshot"]["hash"]));
    assert_eq!(saved["revision"], saved["sourceRevision"]);
    let file = PathBuf::from(saved["target"].as_str().expect("a path"));
    assert_eq!(files(&place), std::slice::from_ref(&file));
    assert_eq!(saved["targetBytes"], file.metadata().unwrap().len());
    assert!(
        saved["seconds"].as_f64() > Some(0.0) && saved["stages"].is_object() && saved["error"].is_null(),
        "{saved}"
    );

    let told = json(&save(&place, &["--dry-run", "-o", "json"]));
    assert_eq!(told["removed"][0], file.file_name().unwrap().to_str().unwrap());
    assert!(told["neededBytes"].as_u64() > Some(256 << 20) && told["freeBytes"].as_u64() > Some(0), "{told}");
    let out = save(&place, &["--dry-run"]);
    let said = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(said.contains("removes ") && said.ends_with("nothing has been changed\n"), "{said}");
    assert_eq!(files(&place), std::slice::from_ref(&file));

    // What a save would refuse, it refuses.
    for more in [&[][..], &["--dry-run"]] {
        let out = save(&file.join("below"), more);
        assert_eq!(out.status.code(), Some(2), "{more:?}: {}", error_of(&out));
        assert!(error_of(&out).contains("a snapshot cannot be kept in"), "{more:?}: {}", error_of(&out));
    }
    run(async { etcd.client().await.member_add(["http://127.0.0.1:1"], None).await.map(|_| ()) }).expect("add");
    let out = save(&place, &["--dry-run"]);
    assert!(out.status.code() == Some(4) && error_of(&out).contains("reaches no quorum"), "{}", error_of(&out));
}

/// An etcd may run there, whose log and backend grow meanwhile.
#[test]
fn a_save_does_not_fill_its_volume() {
    let home = tempfile::tempdir().unwrap();
    let etcd = EtcdSpec::new("3.6", "a", &home.path().join("etcd")).start();
    run(async { fill(etcd.client().await).await });
    let url = etcd.spec.client_url();
    for (mib, fits) in [(250, false), (300, true)] {
        let Some(volume) = SmallVolume::mount(mib << 20) else { return };
        let base = ["save", "--to", text(volume.path()), "--endpoint", &url, "--name", "vc"];
        let dry = ran(snapshot(&base).arg("--dry-run"));
        let said = String::from_utf8_lossy(&dry.stdout).into_owned();
        assert!(dry.status.success() && said.contains("NOT ENOUGH") != fits, "{mib} MiB: {said}{}", error_of(&dry));
        let out = ran(&mut snapshot(&base));
        let said = error_of(&out);
        assert_eq!(out.status.code(), Some(if fits { 0 } else { 7 }), "{mib} MiB: {said}");
        assert!(fits || said.contains("and 256 MiB are to be left"), "{mib} MiB: {said}");
        let left = files(volume.path());
        assert_eq!(left.len(), usize::from(fits), "{mib} MiB: {left:?}");
    }
}
