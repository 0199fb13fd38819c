//! Snapshots in object storage that speaks S3. An object is there only when it was completed, and it is completed only when
//! all of the snapshot has arrived and its checksum is right.
//!
//! Endpoint, region and credentials are those of the AWS tools' environment: `AWS_ENDPOINT_URL`, `AWS_REGION`,
//! `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY`, a web identity's `AWS_WEB_IDENTITY_TOKEN_FILE` and `AWS_ROLE_ARN`, a
//! container's or the machine's own. They are in no message of ours.

use std::fmt;
use std::future::Future;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use futures_util::StreamExt;
use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey};
use object_store::path::Path as ObjectPath;
use object_store::{BackoffConfig, Error, ObjectMeta, ObjectStore, ObjectStoreExt, RetryConfig};

use time::OffsetDateTime;

use super::digest::SnapshotDigest;
use super::environment;
use super::https::Connections;
use super::name::SnapshotName;
use super::parts::Parts;
use super::save::room;
use super::target::Stored;
use crate::disk::{Disk, parent_of};
use crate::exit::{Exit, refuse};
use crate::migrate::progress::Meter;
use crate::migrate::space;
use crate::settings::provenance::without_user;

/// A request that fails is sent again for so long.
const RETRY: Duration = Duration::from_secs(30);
/// A server that sends nothing for so long hangs.
const STALLED: Duration = Duration::from_secs(60);

/// So many names in a row that are taken are no snapshots: they would be one of each second.
const TAKEN_MAX: u32 = 60;

/// A bucket, and the part of it where snapshots are: `s3://BUCKET/PREFIX`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bucket {
    bucket: String,
    prefix: ObjectPath,
}

impl fmt::Display for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s3://{}", self.bucket)?;
        if self.prefix.is_root() { Ok(()) } else { write!(f, "/{}", self.prefix) }
    }
}

impl Bucket {
    /// Of what follows `s3://`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        // Credentials are no part of a place, and may have slashes.
        let user = text.split_once('@').map(|(before, _)| before);
        if user.is_some_and(|before| before.contains(':') || !before.contains('/')) {
            return Err(format!("{} has credentials in it: name them in the environment", without_user(text)));
        }
        let (bucket, prefix) = text.split_once('/').unwrap_or((text, ""));
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.');
        if !(3..=63).contains(&bucket.len()) || !bucket.chars().all(allowed) {
            return Err(format!("{bucket:?} is no name of a bucket"));
        }
        let prefix = ObjectPath::parse(prefix).map_err(|_| format!("{prefix:?} is no prefix of objects"))?;
        Ok(Bucket { bucket: bucket.to_owned(), prefix })
    }

    /// Splits a snapshot's own name off: `s3://BUCKET/PREFIX/NAME`.
    pub fn split(self) -> (Bucket, Option<String>) {
        let mut parts: Vec<_> = self.prefix.parts().map(|part| part.as_ref().to_owned()).collect();
        let name = parts.pop();
        (Bucket { prefix: parts.into_iter().collect(), ..self }, name)
    }

    fn object(&self, name: &str) -> ObjectPath {
        self.prefix.clone().join(name)
    }

    fn store(&self) -> anyhow::Result<AmazonS3> {
        let backoff = BackoffConfig { init_backoff: Duration::from_millis(200), ..BackoffConfig::default() };
        let set =
            std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
        if let Some((what, remedy)) = environment::fault(set, |file| std::fs::read_to_string(file)) {
            return Err(refuse(Exit::Usage, format!("{self} cannot be used: {what}"), remedy));
        }
        let mut builder = AmazonS3Builder::from_env();
        let endpoint = [AmazonS3ConfigKey::S3Endpoint, AmazonS3ConfigKey::Endpoint];
        let endpoint = endpoint.iter().find_map(|key| builder.get_config_value(key));
        if endpoint.is_some_and(|endpoint| endpoint.starts_with("http://")) {
            builder = builder.with_allow_http(true);
        }
        let built = builder
            .with_bucket_name(&self.bucket)
            .with_retry(RetryConfig { backoff, max_retries: 5, retry_timeout: RETRY })
            .with_http_connector(Connections::new()?)
            .build();
        built.map_err(|e| {
            let remedy = "look at AWS_ENDPOINT_URL, AWS_REGION and the variables that hold the credentials";
            refuse(Exit::Usage, format!("{self} cannot be used: {}", said(&e)), remedy)
        })
    }

    /// The snapshots that are there, in no order.
    ///
    /// # Errors
    /// The bucket does not answer, or does not let itself be listed.
    pub async fn list(&self) -> anyhow::Result<Vec<Stored>> {
        // What lies deeper belongs to somebody else, and may be very much.
        let listed =
            within(self.store()?.list_with_delimiter(Some(&self.prefix))).await?.map_err(|e| self.failed(e))?;
        let found = listed.objects.into_iter().filter_map(|object| {
            let name = object.location.filename().and_then(|name| name.parse().ok())?;
            Some(Stored { name, bytes: object.size })
        });
        Ok(found.collect())
    }

    /// Removes a snapshot. One that is gone already is no error.
    ///
    /// # Errors
    /// As [`Bucket::list`].
    pub async fn remove(&self, name: &SnapshotName) -> anyhow::Result<()> {
        match within(self.store()?.delete(&self.object(&name.to_string()))).await? {
            Ok(()) | Err(Error::NotFound { .. }) => Ok(()),
            Err(e) => Err(self.failed(e)),
        }
    }

    /// Begins a snapshot; with the next free name if there is one of this name.
    ///
    /// # Errors
    /// As [`Bucket::list`].
    pub async fn begin(&self, name: &SnapshotName) -> anyhow::Result<BucketUpload> {
        let store = self.store()?;
        let mut name = name.clone();
        let mut taken = 0;
        while self.head(&store, &name.to_string()).await?.is_some() {
            taken += 1;
            if taken == TAKEN_MAX {
                let what = format!("{self} says of each of {taken} names that there is an object of that name already");
                let remedy = "look at AWS_ENDPOINT_URL: what answers there may be a console or a proxy, and no S3";
                return Err(refuse(Exit::Usage, what, remedy));
            }
            name = name.later();
        }
        let object = self.object(&name.to_string());
        let upload = within(store.put_multipart(&object)).await?.map_err(|e| self.failed(e))?;
        let (bucket, parts, digest) = (self.clone(), Parts::of(upload), SnapshotDigest::default());
        Ok(BucketUpload { bucket, store, name, parts, digest })
    }

    /// The length of the object `name`, and when it was put there; `None` if it is not there.
    ///
    /// # Errors
    /// As [`Bucket::list`].
    pub async fn look(&self, name: &str) -> anyhow::Result<Option<(u64, OffsetDateTime)>> {
        let Some(meta) = self.head(&self.store()?, name).await? else { return Ok(None) };
        Ok(Some((meta.size, put_there(&meta)?)))
    }

    /// Whether the object `name` is the snapshot of this length and checksum, which stands at its end; `None`: it is not there.
    async fn holds(&self, store: &AmazonS3, name: &str, bytes: u64, sum: &[u8]) -> anyhow::Result<Option<bool>> {
        let Some(meta) = self.head(store, name).await? else { return Ok(None) };
        if meta.size != bytes {
            return Ok(Some(false));
        }
        let end = bytes.saturating_sub(sum.len() as u64)..bytes;
        let end = within(store.get_range(&self.object(name), end)).await?.map_err(|e| self.failed(e))?;
        Ok(Some(*end == *sum))
    }

    async fn head(&self, store: &AmazonS3, name: &str) -> anyhow::Result<Option<ObjectMeta>> {
        match within(store.head(&self.object(name))).await? {
            Ok(meta) => Ok(Some(meta)),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(e) => Err(self.failed(e)),
        }
    }

    /// Copies the object `name` to the new file `to`, durably, as the meter shows; when it was put there.
    ///
    /// # Errors
    /// [`Exit::RefusedSource`] if there is none; as [`Bucket::list`]; a full disk.
    pub async fn fetch(&self, disk: &dyn Disk, name: &str, to: &Path, meter: &Meter) -> anyhow::Result<OffsetDateTime> {
        // How much it is, the bucket tells.
        meter.begin_fetch(0);
        let found = match within(self.store()?.get(&self.object(name))).await? {
            Err(Error::NotFound { .. }) => {
                let what = format!("there is no {name} in {self}");
                let remedy = format!("`syncer snapshot list --from {self}` shows what there is");
                return Err(refuse(Exit::RefusedSource, what, remedy));
            }
            found => found.map_err(|e| self.failed(e))?,
        };
        let (bytes, put) = (found.meta.size, put_there(&found.meta)?);
        let scratch = parent_of(to);
        room(&scratch, bytes, space::free(&scratch)?)?;
        meter.begin_fetch(bytes);
        let mut arriving = found.into_stream();
        let mut file = disk.create(to, 0o600)?;
        let mut written = 0;
        while let Some(piece) = within(arriving.next()).await? {
            let piece = piece.map_err(|e| self.failed(e))?;
            file.write_at(&piece, written)?;
            written += piece.len() as u64;
            crate::crash_point!("source-half-fetched");
            meter.advance(0, piece.len() as u64);
        }
        file.sync()?;
        ensure!(written == bytes, "{name} in {self} has {bytes} bytes, and {written} of them came");
        Ok(put)
    }

    fn failed(&self, error: Error) -> anyhow::Error {
        let what = format!("{self} fails: {}", said(&error));
        // Of a listing the library tells the status in words alone.
        let status = |status: &str| what.contains(&format!("status code: {status}"));
        match error {
            _ if status("401") || status("403") => {
                refuse(Exit::Usage, what, "look at the credentials in the environment, and what they are allowed")
            }
            Error::NotFound { .. } | Error::Generic { .. } if status("404") => refuse(
                Exit::Usage,
                what,
                "make the bucket, or look at AWS_ENDPOINT_URL, AWS_REGION and the credentials",
            ),
            _ => anyhow::anyhow!(what),
        }
    }
}

/// Another save of the same second was there first: this one is to be taken again, with a name of its own.
#[derive(Debug, thiserror::Error)]
#[error("another save has given its snapshot this name meanwhile")]
pub struct NameTaken;

/// A snapshot that goes up. Dropped, it leaves parts that nobody lists; buckets have a rule that removes such
/// (`AbortIncompleteMultipartUpload`). [`BucketUpload::abort`] leaves none, nor does a commit that fails.
pub struct BucketUpload {
    bucket: Bucket,
    store: AmazonS3,
    name: SnapshotName,
    parts: Parts,
    digest: SnapshotDigest,
}

impl BucketUpload {
    /// The name that it will have.
    pub fn name(&self) -> &SnapshotName {
        &self.name
    }

    /// Takes the next bytes.
    ///
    /// # Errors
    /// A part was not taken.
    pub async fn write(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        self.digest.update(bytes);
        self.parts.write(bytes).await.map_err(|e| self.bucket.failed(e))
    }

    /// Checks that what came is whole, and gives it its name; its length in bytes.
    ///
    /// # Errors
    /// The checksum is wrong, or not all has arrived in the bucket: there is no snapshot then. [`NameTaken`].
    pub async fn commit(self) -> anyhow::Result<u64> {
        let BucketUpload { bucket, store, name, parts, digest } = self;
        let (name, bytes) = (name.to_string(), digest.bytes());
        let sum = match digest.finish() {
            Ok(sum) => sum,
            Err(error) => {
                parts.abort().await;
                return Err(anyhow::Error::from(error).context("check what etcd has sent"));
            }
        };
        crate::crash_point!("snapshot-before-commit");
        match parts.complete().await {
            Ok(()) => {}
            // Asked again, as its answer was lost, it finds the object that it has made.
            Err(e @ (Error::Precondition { .. } | Error::AlreadyExists { .. })) => {
                match bucket.holds(&store, &name, bytes, &sum).await? {
                    Some(true) => {}
                    Some(false) => return Err(NameTaken.into()),
                    None => return Err(bucket.failed(e)),
                }
            }
            Err(e) => return Err(bucket.failed(e)),
        }
        crate::crash_point!("snapshot-committed");
        let kept = bucket.head(&store, &name).await?.map(|meta| meta.size);
        ensure!(kept == Some(bytes), "{name} in {bucket} should have {bytes} bytes, and has {kept:?}");
        Ok(bytes)
    }

    /// Removes what has gone up.
    pub async fn abort(self) {
        self.parts.abort().await;
    }
}

fn put_there(meta: &ObjectMeta) -> anyhow::Result<OffsetDateTime> {
    OffsetDateTime::from_unix_timestamp(meta.last_modified.timestamp()).context("read when it was put there")
}

async fn within<T>(answer: impl Future<Output = T>) -> anyhow::Result<T> {
    let waited = tokio::time::timeout(RETRY + STALLED, answer).await;
    waited.context("wait for the object storage")
}

/// An error without the server's document, which may tell the request and its signature again.
pub(super) fn said(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    let document = ["<?xml", "<Error", "<html"].iter().filter_map(|start| text.find(start));
    // A proxy's may be of any form: what follows the status, or the words before it.
    let status = text.find("status code: ").and_then(|at| Some(at + text[at..].find(": ")? + 2));
    let status = status.and_then(|at| Some(at + text[at..].find(": ")?));
    let told = text.find("error response: ").map(|at| at + "error response".len());
    let Some(start) = document.chain(status).chain(told).min() else {
        return text.trim_end_matches([' ', ':']).to_owned();
    };
    let code = text.split_once("<Code>").and_then(|(_, rest)| rest.split_once("</Code>")).map(|(code, _)| code);
    format!("{}{}", text[..start].trim_end(), code.map_or_else(String::new, |code| format!(" {code}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_parsed() {
        for (text, shown) in
            [("backups", "s3://backups"), ("my.backups/a/b/", "s3://my.backups/a/b"), ("backups/", "s3://backups")]
        {
            assert_eq!(Bucket::parse(text).unwrap().to_string(), shown);
        }
        for bad in ["", "/x", "ab", "Backups", "key:secret@host", "back ups/x"] {
            assert!(Bucket::parse(bad).is_err(), "{bad}");
        }
        let (bucket, name) = Bucket::parse("backups/a/vc.db").unwrap().split();
        assert_eq!((bucket.to_string().as_str(), name.as_deref()), ("s3://backups/a", Some("vc.db")));
        assert_eq!(Bucket::parse("backups").unwrap().split().1, None);
    }

    #[test]
    fn a_servers_document_is_not_told() {
        let source = "403 Forbidden: <?xml version=\"1.0\"?><Error><Code>SignatureDoesNotMatch</Code><StringToSign>\
            AWS4-HMAC</StringToSign></Error>";
        let error = Error::PermissionDenied { path: "x".into(), source: source.into() };
        let text = said(&error);
        assert!(text.ends_with("403 Forbidden: SignatureDoesNotMatch"), "{text}");
        for (source, end) in [
            ("Server returned non-2xx status code: 403 Forbidden: your request: AWS4-HMAC secret", "403 Forbidden"),
            ("Server returned non-2xx status code: 404 Not Found: ", "404 Not Found"),
            ("Server returned error response: your request: AWS4-HMAC secret", "error response"),
        ] {
            let text = said(&Error::Generic { store: "S3", source: source.into() });
            assert!(text.ends_with(end), "{text}");
        }
    }
}
