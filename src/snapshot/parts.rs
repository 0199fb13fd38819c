//! The parts of an object that goes up. Until they are put together there is no object, and they are billed all the same: so
//! whatever fails, those that have gone up are removed.

use std::time::Duration;

use object_store::{Error, MultipartUpload, Result};
use tokio::task::JoinSet;

/// A part's length in bytes; the last may be shorter. S3 allows 10,000 parts of at least 5 MiB: 78 GiB.
const PART: usize = 8 << 20;
/// Parts on their way at a time: what a snapshot takes of memory is a few times a part.
const IN_FLIGHT: usize = 2;
/// S3 takes minutes to put a large object together, and says so as it goes.
const COMPLETED: Duration = Duration::from_secs(600);
/// A part that is on its way when another has failed is waited for.
const ARRIVED: Duration = Duration::from_secs(30);
/// A server that fails is not asked for longer to remove what it has.
const REMOVED: Duration = Duration::from_secs(90);

/// An object's parts.
pub struct Parts {
    upload: Box<dyn MultipartUpload>,
    /// What is not sent yet.
    part: Vec<u8>,
    going: JoinSet<Result<()>>,
}

impl Parts {
    /// Of an upload that was begun.
    pub fn of(upload: Box<dyn MultipartUpload>) -> Parts {
        Parts { upload, part: Vec::new(), going: JoinSet::new() }
    }

    /// Takes the next bytes.
    ///
    /// # Errors
    /// A part was not taken: [`Parts::abort`] is due.
    pub async fn write(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(PART - self.part.len()));
            self.part.extend_from_slice(now);
            bytes = later;
            if self.part.len() == PART {
                self.wait(IN_FLIGHT - 1).await?;
                self.send();
            }
        }
        Ok(())
    }

    /// Puts them together.
    ///
    /// # Errors
    /// They could not be, and are removed.
    pub async fn complete(self) -> Result<()> {
        self.complete_within(COMPLETED).await
    }

    async fn complete_within(mut self, given: Duration) -> Result<()> {
        if !self.part.is_empty() {
            self.send();
        }
        // Each part has a time limit of its own.
        let completed = match self.wait(0).await {
            Ok(()) => tokio::time::timeout(given, self.upload.complete()).await.unwrap_or_else(|_| {
                let source = format!("it has not put the parts together within {} s", given.as_secs()).into();
                Err(Error::Generic { store: "S3", source })
            }),
            Err(error) => Err(error),
        };
        match completed {
            Ok(_) => Ok(()),
            Err(error) => {
                self.abort().await;
                Err(error)
            }
        }
    }

    /// Removes what has gone up.
    pub async fn abort(mut self) {
        // One that arrives behind the abort stays.
        let arrived = async { while self.going.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(ARRIVED, arrived).await;
        self.going.shutdown().await;
        let left = match tokio::time::timeout(REMOVED, self.upload.abort()).await {
            // Of one that was completed after all nothing is left.
            Ok(Ok(()) | Err(Error::NotFound { .. })) => return,
            Ok(Err(error)) => super::bucket::said(&error),
            Err(_) => format!("no answer within {} s", REMOVED.as_secs()),
        };
        tracing::warn!("parts of a snapshot could not be removed from its bucket: {left}");
    }

    fn send(&mut self) {
        let part = std::mem::take(&mut self.part);
        self.going.spawn(self.upload.put_part(part.into()));
    }

    /// Until no more than so many are on their way.
    async fn wait(&mut self, left: usize) -> Result<()> {
        while self.going.len() > left
            && let Some(arrived) = self.going.join_next().await
        {
            arrived??;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use object_store::{PutPayload, PutResult, UploadPart};

    use super::*;

    /// A server that takes so many parts and fails at the next, or hangs when it is to put them together.
    #[derive(Debug)]
    struct Server {
        takes: u32,
        completes: bool,
        aborted: Arc<AtomicU32>,
    }

    fn failed() -> Error {
        Error::Generic { store: "S3", source: "no space".into() }
    }

    #[async_trait::async_trait]
    impl MultipartUpload for Server {
        fn put_part(&mut self, _: PutPayload) -> UploadPart {
            let taken = self.takes.checked_sub(1).ok_or_else(failed);
            self.takes = self.takes.saturating_sub(1);
            Box::pin(async { taken.map(drop) })
        }

        async fn complete(&mut self) -> Result<PutResult> {
            if !self.completes {
                std::future::pending::<()>().await;
            }
            Ok(PutResult { e_tag: None, version: None, extensions: Default::default() })
        }

        async fn abort(&mut self) -> Result<()> {
            self.aborted.fetch_add(1, Ordering::Relaxed);
            Ok(())
        }
    }

    #[tokio::test]
    async fn what_cannot_be_completed_is_removed() {
        for (takes, completes, written) in
            [(3, true, Ok(())), (2, true, Err("no space")), (3, false, Err("within 0 s"))]
        {
            let aborted = Arc::new(AtomicU32::new(0));
            let mut parts = Parts::of(Box::new(Server { takes, completes, aborted: Arc::clone(&aborted) }));
            parts.write(&vec![7; 2 * PART + 1]).await.expect("two parts");
            let done = parts.complete_within(Duration::ZERO).await;
            let (said, removed) = (done.as_ref().err().map(ToString::to_string), aborted.load(Ordering::Relaxed));
            match written {
                Ok(()) => assert_eq!((said, removed), (None, 0)),
                Err(why) => {
                    assert!(said.as_ref().is_some_and(|said| said.contains(why)) && removed == 1, "{said:?} {removed}")
                }
            }
        }
    }
}
