//! A running etcd as the source, by hand: over TLS, and with what it does not trust.

use syncer::pki::{EtcdTlsFiles, throwaway};

use super::*;
use crate::support::etcd::SOURCES;

const KEYS: usize = 150;

fn migrate_from(url: &str, tls: Option<&EtcdTlsFiles>, to: &str) -> Command {
    let mut command = Command::new(syncer());
    command.args(["migrate", "--from", &format!("etcd:{url}"), "--to", to, "--etcd"]).arg(part("etcd"));
    if let Some(tls) = tls {
        command.arg("--cacert").arg(&tls.ca).arg("--cert").arg(&tls.client_cert).arg("--key").arg(&tls.client_key);
    }
    command
}

#[test]
fn a_running_etcd_is_read_over_tls_and_goes_on() {
    for line in SOURCES {
        let home = tempfile::tempdir().expect("a folder");
        let tls = throwaway(&home.path().join("pki")).expect("certificates");
        let mut spec = EtcdSpec::new(line, "a", &home.path().join("running"));
        spec.tls = Some(tls.clone());
        let etcd = spec.start();
        let put = |n: usize| {
            run(async {
                let mut client = etcd.client().await;
                client.put(format!("/registry/configmaps/{n:03}"), "v".repeat(500), None).await.expect("put");
            });
        };
        (0..KEYS).for_each(put);
        let (dir, db) = (home.path().join("etcd"), home.path().join("state.db"));
        let to = [format!("datadir:{}", dir.display()), format!("sqlite:{}", db.display())];
        for to in &to {
            let out = output(&mut migrate_from(&spec.client_url(), Some(&tls), to));
            let text = String::from_utf8_lossy(&out.stdout).into_owned();
            assert!(out.status.success(), "{line}: {}", String::from_utf8_lossy(&out.stderr));
            assert!(text.contains(&format!("moved {KEYS} keys")), "{line}: {text}");
        }
        let rows: i64 = rusqlite::Connection::open(&db)
            .and_then(|db| {
                db.query_row("SELECT count(*) FROM kine WHERE name LIKE '/registry/%'", [], |row| row.get(0))
            })
            .expect("count the rows");
        assert_eq!(usize::try_from(rows).expect("a count"), KEYS);
        let mut moved = EtcdSpec::new("3.6", "default", &dir).start();
        assert_eq!(run(async { all_keys(&mut moved.client().await).await }).len(), KEYS, "{line}");
        moved.stop();
        // It was only read.
        put(KEYS);

        // One that is not trusted, and one that does not trust us, are told apart from one that is away; nothing is made.
        let other = throwaway(&home.path().join("other")).expect("certificates");
        let mixed = EtcdTlsFiles { ca: tls.ca.clone(), ..other.clone() };
        for tls in [&other, &mixed].into_iter().filter(|_| line == "3.6") {
            let nothing = home.path().join("nothing");
            let to = format!("datadir:{}", nothing.display());
            let out = output(&mut migrate_from(&spec.client_url(), Some(tls), &to));
            let text = String::from_utf8_lossy(&out.stderr).into_owned();
            assert_eq!(out.status.code(), Some(4), "{line}: {text}");
            assert!(!nothing.exists() && !text.contains("panicked"), "{line}: {text}");
        }
    }
}
