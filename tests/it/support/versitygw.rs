//! A real S3 server over a folder, for a test.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::unistd::Pid;
use object_store::ObjectStoreExt;
use object_store::aws::AmazonS3Builder;
use syncer::snapshot::https::Connections;

use super::etcd::run;
use super::{free_port, part, poll};

/// What gives access to all of it.
pub const ACCESS_KEY: &str = "syncer-test-access";
pub const SECRET_KEY: &str = "a-secret-that-no-log-may-tell";

/// A running versitygw. Killed when dropped.
pub struct VersityGw {
    dir: tempfile::TempDir,
    port: u16,
    tls: bool,
    child: Child,
}

impl VersityGw {
    /// One with these buckets; with TLS, by a certificate of its own.
    pub fn start(tls: bool, buckets: &[&str]) -> VersityGw {
        let dir = tempfile::tempdir().expect("a temporary folder");
        for folder in ["objects", "meta"] {
            std::fs::create_dir(dir.path().join(folder)).expect("make a folder");
        }
        for bucket in buckets {
            std::fs::create_dir(dir.path().join("objects").join(bucket)).expect("make a bucket");
        }
        let port = free_port();
        let log = File::create(dir.path().join("log")).expect("create the log");
        let errors = log.try_clone().expect("clone the log");
        let mut command = Command::new(part("versitygw"));
        command.arg("--port").arg(format!("127.0.0.1:{port}"));
        if tls {
            let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).expect("a certificate");
            std::fs::write(dir.path().join("tls.crt"), made.cert.pem()).expect("write the certificate");
            std::fs::write(dir.path().join("tls.key"), made.signing_key.serialize_pem()).expect("write its key");
            command.arg("--cert").arg(dir.path().join("tls.crt")).arg("--key").arg(dir.path().join("tls.key"));
        }
        command.arg("posix").arg("--sidecar").arg(dir.path().join("meta")).arg(dir.path().join("objects"));
        command.env("ROOT_ACCESS_KEY", ACCESS_KEY).env("ROOT_SECRET_KEY", SECRET_KEY);
        command.stdin(Stdio::null()).stdout(log).stderr(errors);
        // A test that is killed must not leave a server behind.
        // SAFETY: prctl is async-signal-safe and takes no pointers.
        unsafe {
            command.pre_exec(|| {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                Ok(())
            });
        }
        let child = command.spawn().expect("versitygw starts");
        let server = VersityGw { dir, port, tls, child };
        let what = format!("versitygw listens (its log: {})", server.dir.path().join("log").display());
        poll(&what, Duration::from_secs(60), || std::net::TcpStream::connect(("127.0.0.1", port)).ok());
        server
    }

    /// Its process.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).expect("a pid fits"))
    }

    /// What a client's environment says of it.
    pub fn env(&self) -> Vec<(&'static str, String)> {
        let scheme = if self.tls { "https" } else { "http" };
        let mut env = vec![
            ("AWS_ENDPOINT_URL", format!("{scheme}://127.0.0.1:{}", self.port)),
            ("AWS_ACCESS_KEY_ID", ACCESS_KEY.to_owned()),
            ("AWS_SECRET_ACCESS_KEY", SECRET_KEY.to_owned()),
            ("AWS_REGION", "us-east-1".to_owned()),
        ];
        if self.tls {
            env.push(("SSL_CERT_FILE", self.dir.path().join("tls.crt").display().to_string()));
        }
        env
    }

    /// A way to it by which it refuses every request whose first line is such a one; its URL. Without TLS.
    pub fn refusing(&self, such: fn(&str) -> bool) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let server = self.port;
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let Ok(client) = client else { return };
                std::thread::spawn(move || passed_on(client, server, such));
            }
        });
        format!("http://127.0.0.1:{port}")
    }

    /// Uploads in parts that are neither completed nor aborted.
    pub fn uploads(&self, bucket: &str) -> usize {
        let folders =
            |dir: PathBuf| std::fs::read_dir(dir).into_iter().flatten().map(|entry| entry.expect("read").path());
        folders(self.object(bucket, ".sgwtmp/multipart")).flat_map(folders).count()
    }

    /// Puts an object, as a client does: what is only a file in the folder is none for a condition. Without TLS.
    pub fn put(&self, bucket: &str, key: &str, bytes: &'static str) {
        let store = AmazonS3Builder::new()
            .with_endpoint(format!("http://127.0.0.1:{}", self.port))
            .with_allow_http(true)
            .with_region("us-east-1")
            .with_access_key_id(ACCESS_KEY)
            .with_secret_access_key(SECRET_KEY)
            .with_bucket_name(bucket)
            .with_http_connector(Connections::new().expect("connections"))
            .build()
            .expect("a bucket");
        run(async { store.put(&key.into(), bytes.into()).await }).expect("put an object");
    }

    /// The file of an object.
    pub fn object(&self, bucket: &str, key: &str) -> PathBuf {
        self.dir.path().join("objects").join(bucket).join(key)
    }

    /// The objects of a bucket below a prefix, as clients see them in the folder: nothing that is not completed.
    pub fn objects(&self, bucket: &str, prefix: &str) -> Vec<String> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(self.object(bucket, prefix)).into_iter().flatten() {
            let path: PathBuf = entry.expect("read the bucket").path();
            if path.is_file() {
                found.push(name_of(&path));
            }
        }
        found.sort();
        found
    }
}

/// Passes one request on, and its answer back.
fn passed_on(mut client: TcpStream, server: u16, refused: fn(&str) -> bool) -> Option<()> {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        client.read_exact(&mut byte).ok()?;
        head.extend(byte);
    }
    let head = String::from_utf8(head).ok()?;
    let header = |line: &str| line.split_once(':').map(|(name, value)| (name.to_lowercase(), value.trim().to_owned()));
    let length = head.lines().filter_map(header).find(|(name, _)| name == "content-length");
    let mut body = vec![0; length.map_or(0, |(_, length)| length.parse().expect("a length"))];
    client.read_exact(&mut body).ok()?;
    if refused(head.lines().next()?) {
        client.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").ok()?;
        return Some(());
    }
    let mut server = TcpStream::connect(("127.0.0.1", server)).ok()?;
    let head = head.replacen("\r\n", "\r\nConnection: close\r\n", 1);
    server.write_all(head.as_bytes()).ok()?;
    server.write_all(&body).ok()?;
    std::io::copy(&mut server, &mut client).ok()?;
    Some(())
}

fn name_of(path: &Path) -> String {
    path.file_name().expect("a file has a name").to_string_lossy().into_owned()
}

impl Drop for VersityGw {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
