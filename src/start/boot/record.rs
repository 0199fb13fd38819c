//! The durable steps towards a start: notes on the volume, and the marker.

use anyhow::Context;

use super::{Boot, WAIT_FIRST, WAIT_MOST};
use crate::boot::{Facts, MarkerWrite, Notes, Record};
use crate::crash_point;
use crate::host::marker::Written;
use crate::ids::MemberId;
use crate::observe::notes;
use crate::start::{back, migrate_from, restore};

impl Boot<'_> {
    /// One durable record. A write of the marker whose outcome is not known is not tried again: it is decided anew.
    pub(super) async fn record(&mut self, record: Record, facts: &Facts) -> anyhow::Result<()> {
        let pod = self.pod;
        let note = |change: fn(&mut Notes)| notes::change(&pod.disk, &pod.settings.data_dir, change);
        match record {
            Record::Forming(write) => {
                note(|notes| notes.forming = true)?;
                if let Some(write) = write {
                    self.mark(&write).await?;
                }
            }
            Record::Survivor(write) => {
                if self.mark(&write).await? {
                    self.note_dropped(write.marker.dropped)?;
                }
            }
            Record::NoSurvivor(write) => {
                self.mark(&write).await?;
                self.note_dropped(Vec::new())?;
            }
            Record::Formed(write) | Record::Released(write) => {
                self.mark(&write).await?;
            }
            Record::FormingDone => {
                note(|notes| notes.forming = false)?;
                crash_point!("form-done");
            }
            Record::Withdrawn(write) => {
                if self.mark(&write).await? {
                    self.note_withdrawn()?;
                }
            }
            Record::WithdrawnAlready => self.note_withdrawn()?,
            Record::FenceKept => migrate_from::keep(pod)?,
            Record::RestoreBegun(replaced) => restore::begin(pod, &replaced).await?,
            Record::Restored(write) => {
                self.mark(&write).await?;
                crash_point!("restore-marked");
            }
            Record::WentBack => back::goes_on_sqlite(pod)?,
            Record::RestoreDone => restore::done(pod)?,
            Record::Dropped(members) => self.note_dropped(members)?,
            Record::Overtaken(member) => {
                notes::change(&pod.disk, &pod.settings.data_dir, |notes| notes.overtaken = Some(member))?;
            }
            Record::ResetDone => self.reset(facts).await?,
        }
        Ok(())
    }

    fn note_withdrawn(&self) -> anyhow::Result<()> {
        let pod = self.pod;
        notes::change(&pod.disk, &pod.settings.data_dir, |notes| notes.stopped = false)?;
        crash_point!("boot-withdrawn");
        Ok(())
    }

    pub(super) fn note_dropped(&self, members: Vec<MemberId>) -> anyhow::Result<()> {
        let pod = self.pod;
        notes::change(&pod.disk, &pod.settings.data_dir, |notes| notes.dropped = members)
    }

    /// Writes the marker; whether that is known to be done.
    async fn mark(&mut self, write: &MarkerWrite) -> anyhow::Result<bool> {
        let host = self.pod.host.as_ref().context("a marker without a host API")?;
        crash_point!("boot-before-mark");
        let written = host.write_marker(write).await;
        crash_point!("boot-marked");
        match &written {
            Written::Done => {
                self.unmarked = WAIT_FIRST;
                tracing::info!(marker = ?write.marker, "the marker is written");
            }
            other => {
                let remedy =
                    "let the pod's Role create and update ConfigMaps, as vCluster's does, and make the API reachable";
                tracing::warn!(?other, remedy, "the marker was not written, or that is not known: looking anew");
                tokio::time::sleep(self.unmarked).await;
                self.unmarked = (self.unmarked * 3 / 2).min(WAIT_MOST);
            }
        }
        Ok(written == Written::Done)
    }
}
