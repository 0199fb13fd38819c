//! A real S3 server over a folder, for a test.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::unistd::Pid;

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

fn name_of(path: &Path) -> String {
    path.file_name().expect("a file has a name").to_string_lossy().into_owned()
}

impl Drop for VersityGw {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
