//! Every layout and every shape of row: imported, served by real etcd, equal key for key.

use super::*;
use crate::support::etcd::LINES;
use crate::support::kine_db::{ERAS, Era, History, busy};

fn check(history: &History, db: &Path, data_dir: &Path, line: &'static str) -> ImportOutcome {
    let outcome = import_at_boot(data_dir, line);
    let live = history.live();
    assert_eq!((outcome.keys, outcome.revision.0), (live.len() as u64, history.revision()));
    assert!(!db.exists() && data_dir.join("state.db.migrated").exists(), "{:?}", names(data_dir));
    assert_live(&served(line, &data_dir.join("etcd"), history.revision(), true), &live);
    outcome
}

#[test]
fn every_layout_is_served_key_for_key() {
    for (i, era) in ERAS.into_iter().enumerate() {
        for hot in [false, true] {
            let (dir, db) = volume();
            let history = busy(era, 500);
            if hot {
                history.write_hot(&db)
            } else {
                history.write_cold(&db)
            }
            let outcome = check(&history, &db, dir.path(), LINES[i % 3]);
            assert!(outcome.made.leases >= 3, "{era:?}");
            let mut left = vec!["etcd", "etcd.log", "migration.journal", "state.db.migrated"];
            if hot {
                left.extend(["state.db.migrated-shm", "state.db.migrated-wal"]);
            }
            assert_eq!(names(dir.path()), left, "{era:?} {hot}");
        }
    }
}

#[test]
fn a_compacted_store_is_served_key_for_key() {
    for (era, line) in [(Era::V0_5, "3.5"), (Era::V0_17, "3.7")] {
        let (dir, db) = volume();
        let mut history = busy(era, 300);
        history.compact(history.revision() - 100);
        history.write_hot(&db);
        let outcome = check(&history, &db, dir.path(), line);
        assert_eq!(outcome.warnings.broken_chains.count, 0);
    }
}

#[test]
fn leftovers_of_a_compaction_do_not_come_back_and_are_told() {
    let (dir, db) = volume();
    let mut history = busy(Era::V0_5, 300);
    // The mark was set, and the rows are still there: a tombstone keeps hiding what is older.
    history.mark_compacted(history.revision() - 10);
    history.write_cold(&db);
    let outcome = check(&history, &db, dir.path(), "3.6");
    assert!(outcome.warnings.broken_chains.count > 0);
}

#[test]
fn a_store_without_a_live_key_is_imported() {
    for only_own_row in [true, false] {
        let (dir, db) = volume();
        let mut history = History::new(Era::V0_14);
        if !only_own_row {
            history.create(b"/a", Some(b"1"), 0).delete(b"/a").gap();
        }
        history.write_hot(&db);
        let outcome = check(&history, &db, dir.path(), "3.6");
        assert_eq!(outcome.keys, 0);
    }
}

#[test]
fn the_revision_is_the_highest_id_even_of_a_tombstone_or_a_gap() {
    for gap in [false, true] {
        let (dir, db) = volume();
        let mut history = History::new(Era::V0_16);
        history.create(b"/a", Some(b"1"), 0).create(b"/b", Some(b"2"), 0).skip_to(5_000_000);
        if gap {
            history.gap()
        } else {
            history.delete(b"/b")
        };
        history.write_cold(&db);
        assert_eq!(history.revision(), 5_000_000);
        check(&history, &db, dir.path(), "3.6");
    }
}

#[test]
fn a_key_at_the_first_revision_is_kept() {
    for line in LINES {
        let (dir, db) = volume();
        let mut history = History::new(Era::V0_1);
        history.skip_to(7).create(b"/a", Some(b"1"), 0);
        history.write_cold(&db);
        rusqlite::Connection::open(&db)
            .unwrap()
            .execute_batch("DELETE FROM kine WHERE id = 1; UPDATE kine SET id = 1; PRAGMA wal_checkpoint(TRUNCATE)")
            .unwrap();
        let outcome = import_at_boot(dir.path(), line);
        assert_eq!((outcome.keys, outcome.revision.0), (1, 1));
        let live = served(line, &dir.path().join("etcd"), 1, true);
        assert_eq!(live.get(&b"/a"[..]), Some(&(b"1".to_vec(), 1, 1, 0)), "{line}");
    }
}

#[test]
fn values_beyond_etcds_default_limit_are_kept_and_the_limit_is_told() {
    let (dir, db) = volume();
    let mut history = History::new(Era::V0_5);
    history.create(b"/big", Some(&vec![7; 1_900_000]), 0).create(b"/small", Some(b"1"), 0);
    history.write_hot(&db);
    let outcome = check(&history, &db, dir.path(), "3.6");
    assert_eq!(outcome.warnings.large_values.count, 1);
    assert!(outcome.made.request_limit() > 1_900_000);
    // With the limit that is told, the value can be written again.
    let mut spec = EtcdSpec::new("3.6", "seed", &dir.path().join("etcd"));
    spec.flags = vec![format!("--max-request-bytes={}", outcome.made.request_limit())];
    let etcd = spec.start();
    run(async {
        let client = etcd.client().await;
        let mut kv = client.kv_client().max_encoding_message_size(4 << 20);
        kv.put("/big", vec![8; 1_900_000], None).await.expect("write the big value again");
    });
}

#[test]
fn rows_that_kine_would_not_write_are_clamped_and_counted() {
    let (dir, db) = volume();
    let mut history = History::new(Era::V0_5);
    history.create(b"/a", Some(b"1"), 0).update(b"/a", b"2", 0);
    history.create(b"/b", Some(b"1"), -5).create(b"/c", Some(b"1"), i64::MAX);
    history.create(b"007", Some(b"bond"), 0).create(b"1.5", Some(b"real"), 0);
    history.write_cold(&db);
    let connection = rusqlite::Connection::open(&db).unwrap();
    connection
        .execute_batch("UPDATE kine SET create_revision = 99 WHERE id = 3; PRAGMA wal_checkpoint(TRUNCATE)")
        .unwrap();
    drop(connection);
    let warnings = import_at_boot(dir.path(), "3.6").warnings;
    assert_eq!((warnings.create_revisions.count, warnings.ttls.count, warnings.numeric_names.count), (1, 2, 2));
    let live = served("3.6", &dir.path().join("etcd"), history.revision(), true);
    let get = |key: &str| live.get(key.as_bytes()).map(|(_, created, modified, ttl)| (*created, *modified, *ttl));
    assert_eq!(get("/a"), Some((3, 3, 0)));
    assert_eq!(get("/b"), Some((4, 4, 0)));
    assert_eq!(get("/c"), Some((5, 5, 9_000_000_000)));
    assert_eq!((get("7"), get("1.5")), (Some((6, 6, 0)), Some((7, 7, 0))));
}

#[test]
fn thousands_of_keys_share_leases_of_a_thousand() {
    let (dir, db) = volume();
    let mut history = History::new(Era::V0_17);
    for i in 0..2500 {
        history.create(format!("/registry/events/e{i}").as_bytes(), Some(b"x"), 3660);
    }
    history.write_cold(&db);
    assert_eq!(check(&history, &db, dir.path(), "3.6").made.leases, 3);
}

#[test]
fn a_new_column_order_does_not_matter() {
    let (dir, db) = volume();
    let history = busy(Era::V0_5, 50);
    history.write_cold(&db);
    rusqlite::Connection::open(&db)
        .unwrap()
        .execute_batch(
            "ALTER TABLE kine RENAME TO old;
             CREATE TABLE kine (extra TEXT, value BLOB, lease INTEGER, old_value BLOB, name TEXT, deleted INTEGER,
               prev_revision INTEGER, id INTEGER PRIMARY KEY, create_revision INTEGER, created INTEGER);
             INSERT INTO kine (id, name, created, deleted, create_revision, prev_revision, lease, value, old_value)
               SELECT id, name, created, deleted, create_revision, prev_revision, lease, value, old_value FROM old;
             DROP TABLE old; PRAGMA wal_checkpoint(TRUNCATE)",
        )
        .unwrap();
    check(&history, &db, dir.path(), "3.6");
}
