//! SQLite stores: the way into etcd, and back.

use crate::config::Config;
use crate::etcd::{Dir, Entry, Op};
use crate::ids::ClusterId;
use crate::world::{Act, Process, Store, Volume, World};

impl World {
    /// A data dir is put in the store's place that lacks its write.
    pub(crate) fn import(&mut self, o: usize) {
        let (cluster, id) = (self.next_cluster, self.next_id);
        (self.next_cluster, self.next_id) = (cluster + 1, id + 1);
        let log = vec![Entry { term: 1, op: Op::Found(id, o as u8) }];
        let volume = &mut self.volumes[o];
        volume.notes.forming = true;
        volume.store = Some(Store::Importing);
        volume.dir = Some(Dir { cluster, member: id, term: 1, log, commit: 1 });
        self.pods[o].process = Process::Will(Act::CommitImport);
    }

    pub(crate) fn commit_import(&mut self, o: usize) {
        let Volume { dir: Some(dir), store, .. } = &mut self.volumes[o] else { return };
        dir.log.push(Entry { term: 1, op: Op::Write(0) });
        dir.commit = dir.log.len();
        *store = Some(Store::Migrated);
        self.pods[o].process = Process::Waits;
    }

    /// The store is written back, and the data dir set aside, which commits.
    pub(crate) fn write_back(&mut self, o: usize) {
        let Volume { dir, store, notes, .. } = &mut self.volumes[o];
        let Some(dir) = dir.take() else { return };
        notes.left = Some(ClusterId(dir.cluster.into()));
        *store = Some(Store::Sqlite);
    }

    /// The API server runs on SQLite.
    pub(crate) fn on_sqlite(&mut self, c: &Config, o: usize) {
        let Volume { store, notes, .. } = &mut self.volumes[o];
        if *store != Some(Store::Sqlite) && self.acked != 0 {
            self.loss = Some("an empty SQLite store takes the place of a formed cluster");
        }
        if let Some(left) = notes.left {
            if !notes.superseded.contains(&left) {
                notes.superseded.push(left);
            }
            notes.left = notes.left.filter(|_| c.host);
        }
    }
}
