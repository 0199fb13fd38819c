//! Raw TCP from one socket to another and back, with nothing read into it.
//!
//! A connection that is silent holds no buffer, so that thousands of idle watches cost their two sockets and a small
//! task each. A slow reader holds one buffer and stops its writer, never more.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Mutex;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

/// One read at most. A page list of kube-apiserver comes in TLS records of 16 KiB.
const BUFFER_BYTES: usize = 32 * 1024;

/// Buffers kept for reuse; more are made when more connections are busy at once, and given back to the allocator.
const KEPT_BUFFERS: usize = 16;

/// Seconds of silence before the kernel asks whether the other side is still there, and between its questions.
const KEEPALIVE_IDLE_SECONDS: libc::c_int = 60;
const KEEPALIVE_INTERVAL_SECONDS: libc::c_int = 15;

/// Buffers between uses.
#[derive(Default)]
pub struct Buffers(Mutex<Vec<Box<[u8]>>>);

impl Buffers {
    fn take(&self) -> Box<[u8]> {
        let kept = self.0.lock().ok().and_then(|mut kept| kept.pop());
        kept.unwrap_or_else(|| vec![0; BUFFER_BYTES].into_boxed_slice())
    }

    fn give(&self, buffer: Box<[u8]>) {
        if let Ok(mut kept) = self.0.lock()
            && kept.len() < KEPT_BUFFERS
        {
            kept.push(buffer);
        }
    }
}

/// Passes bytes both ways until both sides have closed, or one has failed. When one side closes its half, the other
/// side's half is closed after the last byte and the opposite direction goes on.
pub async fn pass(client: TcpStream, server: TcpStream, buffers: &Buffers) -> io::Result<()> {
    for socket in [&client, &server] {
        socket.set_nodelay(true)?;
        keep_alive(socket)?;
    }
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    tokio::try_join!(one_way(from_client, to_server, buffers), one_way(from_server, to_client, buffers))?;
    Ok(())
}

async fn one_way(from: OwnedReadHalf, mut to: OwnedWriteHalf, buffers: &Buffers) -> io::Result<()> {
    loop {
        from.readable().await?;
        let mut buffer = buffers.take();
        let open = drain(&from, &mut to, &mut buffer).await?;
        buffers.give(buffer);
        if !open {
            return to.shutdown().await;
        }
    }
}

/// Passes on what has come; whether more may come.
async fn drain(from: &OwnedReadHalf, to: &mut OwnedWriteHalf, buffer: &mut [u8]) -> io::Result<bool> {
    loop {
        match from.try_read(buffer) {
            Ok(0) => return Ok(false),
            Ok(n) => to.write_all(buffer.get(..n).unwrap_or_default()).await?,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(true),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

/// Lets the kernel find out about a peer that is gone without a word: an idle connection has no other deadline.
fn keep_alive(socket: &TcpStream) -> io::Result<()> {
    for (level, option, value) in [
        (libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1),
        (libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, KEEPALIVE_IDLE_SECONDS),
        (libc::IPPROTO_TCP, libc::TCP_KEEPINTVL, KEEPALIVE_INTERVAL_SECONDS),
    ] {
        // SAFETY: the descriptor is open while `socket` lives, and the pointer and length describe `value`, which
        // outlives the call; these options take a c_int.
        let result = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                level,
                option,
                std::ptr::from_ref(&value).cast(),
                size_of::<libc::c_int>() as libc::socklen_t,
            )
        };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt;
    use tokio::net::TcpListener;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let connect = TcpStream::connect(listener.local_addr().unwrap());
        let (a, b) = tokio::join!(connect, listener.accept());
        (a.unwrap(), b.unwrap().0)
    }

    #[tokio::test]
    async fn a_half_close_lets_the_answer_through() {
        let (mut client, front) = pair().await;
        let (back, mut server) = pair().await;
        let pump = tokio::spawn(async move { pass(front, back, &Buffers::default()).await });
        let question = vec![7u8; 3 * BUFFER_BYTES + 11];
        let send = async {
            client.write_all(&question).await.unwrap();
            client.shutdown().await.unwrap();
            let mut answer = Vec::new();
            client.read_to_end(&mut answer).await.unwrap();
            answer
        };
        let answer = async {
            let mut got = Vec::new();
            server.read_to_end(&mut got).await.unwrap();
            server.write_all(&got).await.unwrap();
            server.shutdown().await.unwrap();
        };
        let (answer, ()) = tokio::join!(send, answer);
        assert_eq!(answer, question);
        pump.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_vanished_server_ends_the_connection() {
        let (mut client, front) = pair().await;
        let (back, server) = pair().await;
        let pump = tokio::spawn(async move { pass(front, back, &Buffers::default()).await });
        drop(server);
        let mut rest = Vec::new();
        assert_eq!(client.read_to_end(&mut rest).await.unwrap(), 0);
        drop(client);
        pump.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_slow_reader_stops_the_writer() {
        let (mut client, front) = pair().await;
        let (back, mut server) = pair().await;
        let pump = tokio::spawn(async move { pass(front, back, &Buffers::default()).await });
        // The server reads nothing: what the kernel and one buffer hold is all that the client can send.
        let chunk = vec![0u8; 1 << 20];
        let mut sent = 0usize;
        while let Ok(wrote) = tokio::time::timeout(std::time::Duration::from_millis(300), client.write(&chunk)).await {
            sent += wrote.unwrap();
            assert!(sent < 256 << 20, "the writer was never stopped");
        }
        let read = tokio::spawn(async move {
            let mut all = Vec::new();
            server.read_to_end(&mut all).await.unwrap();
            all.len()
        });
        client.shutdown().await.unwrap();
        assert_eq!(read.await.unwrap(), sent);
        drop(client);
        pump.await.unwrap().unwrap();
    }
}
