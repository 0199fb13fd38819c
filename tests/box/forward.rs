//! A port of loopback, outside of the box, that leads to a port of a pod: of the one that has the name when somebody
//! connects.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::network::Place;

/// The pods' addresses now.
pub type Addresses = Arc<Mutex<BTreeMap<u32, IpAddr>>>;

/// Begins to forward; the address to connect to. It lasts as long as the box.
pub fn forward(place: Place, addresses: Addresses, ordinal: u32, port: u16) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let outside = listener.local_addr()?;
    std::thread::Builder::new().name("forward".into()).spawn(move || {
        for client in listener.incoming().flatten() {
            let address = addresses.lock().unwrap_or_else(PoisonError::into_inner).get(&ordinal).copied();
            let Some(address) = address else { continue };
            let place = place.clone();
            // Dropping the client tells it that nobody answers.
            let _ = std::thread::Builder::new().spawn(move || {
                let _ = place.enter().and_then(|()| relay(client, SocketAddr::new(address, port), |_| ()));
            });
        }
    })?;
    Ok(outside)
}

/// Passes on what both sides say, until the server has said all; `before` is called with the number of pieces that it has said,
/// before each of its pieces.
pub fn relay(client: TcpStream, to: SocketAddr, before: impl Fn(usize)) -> io::Result<()> {
    let server = TcpStream::connect_timeout(&to, Duration::from_secs(5))?;
    // Small messages both ways: without this each waits for the other side's delayed acknowledgement.
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (mut from_client, mut to_server) = (client.try_clone()?, server.try_clone()?);
    std::thread::Builder::new().spawn(move || {
        let _ = io::copy(&mut from_client, &mut to_server);
        let _ = to_server.shutdown(Shutdown::Write);
    })?;
    let (mut from_server, mut to_client) = (server, client);
    let mut buffer = vec![0; 1 << 16];
    let mut said = 0;
    while let Ok(read @ 1..) = from_server.read(&mut buffer) {
        before(said);
        said += 1;
        if to_client.write_all(buffer.get(..read).unwrap_or_default()).is_err() {
            break;
        }
    }
    to_client.shutdown(Shutdown::Both)
}
