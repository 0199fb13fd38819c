//! One question to one server: a datagram, and TCP if the answer does not fit into one.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use hickory_proto::op::{Edns, Message, Query};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use super::answer::belongs;

/// Answers up to this come in one datagram that no path fragments (DNS flag day 2020).
const PAYLOAD: u16 = 1232;

/// Asks; an error is the reason why nothing is known. Datagrams that are not the response to this question are passed
/// over: whoever sends them must not keep the real one from us.
pub async fn ask(server: SocketAddr, query: &Query, patience: Duration) -> Result<Message, String> {
    let mut strangers = 0_u32;
    match timeout(patience, by_udp(server, query, &mut strangers)).await {
        Ok(Ok(message)) if message.metadata.truncation => match timeout(patience, by_tcp(server, query)).await {
            Ok(result) => result.map_err(|e| format!("{server} by TCP: {e}")),
            Err(_) => Err(format!("{server} by TCP: no answer in {patience:?}")),
        },
        Ok(result) => result.map_err(|e| format!("{server}: {e}")),
        Err(_) if strangers > 0 => {
            Err(format!("{server}: {strangers} datagrams and none that answers the question in {patience:?}"))
        }
        Err(_) => Err(format!("{server}: no answer in {patience:?}")),
    }
}

/// The query as a message with an ID that cannot be guessed. (Nor can the port: the kernel chooses it.)
fn message(query: &Query) -> io::Result<(u16, Vec<u8>)> {
    let mut message = Message::query();
    message.metadata.id = rand::random();
    message.metadata.recursion_desired = true;
    message.add_query(query.clone());
    let mut edns = Edns::new();
    edns.set_max_payload(PAYLOAD);
    message.set_edns(edns);
    Ok((message.metadata.id, message.to_vec().map_err(io::Error::other)?))
}

async fn by_udp(server: SocketAddr, query: &Query, strangers: &mut u32) -> io::Result<Message> {
    let (id, bytes) = message(query)?;
    let any = if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind(SocketAddr::new(any, 0)).await?;
    // Connected: only the server's own datagrams arrive, and a closed port is told.
    socket.connect(server).await?;
    socket.send(&bytes).await?;
    let mut buffer = [0; 4096];
    loop {
        let length = socket.recv(&mut buffer).await?;
        match buffer.get(..length).map(Message::from_vec) {
            Some(Ok(message)) if belongs(id, query, &message) => return Ok(message),
            _ => *strangers = strangers.saturating_add(1),
        }
    }
}

async fn by_tcp(server: SocketAddr, query: &Query) -> io::Result<Message> {
    let (id, bytes) = message(query)?;
    let mut stream = TcpStream::connect(server).await?;
    // RFC 1035, 4.2.2: the length goes before the message.
    let length = u16::try_from(bytes.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes()[..], &bytes].concat()).await?;
    let mut buffer = vec![0; stream.read_u16().await?.into()];
    stream.read_exact(&mut buffer).await?;
    let message = Message::from_vec(&buffer).map_err(io::Error::other)?;
    if belongs(id, query, &message) { Ok(message) } else { Err(io::Error::other("an answer to another question")) }
}
