//! Sources that answer, and whose snapshot does not come: a bad disk, or something between that holds up long answers alone.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::time::Instant;

use syncer::migrate::fence::{self, FencePhase};

use super::*;

/// What passes of one connection before it is held up: every answer but a snapshot.
const FREE: usize = 128 << 10;

/// A way to a source by which the first bytes of each connection come at once, and the others one piece in each `pause`;
/// none does if there is no pause. Its URL.
fn held_up(source: &Deployed, pause: Option<Duration>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let to = source.url().rsplit_once('/').expect("a URL").1.to_owned();
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let Ok(client) = client else { return };
            let Ok(server) = TcpStream::connect(&to) else { continue };
            let (mut from, mut into) = (client.try_clone().expect("a socket"), server.try_clone().expect("a socket"));
            std::thread::spawn(move || {
                let _ = std::io::copy(&mut from, &mut into);
                let _ = into.shutdown(Shutdown::Both);
            });
            std::thread::spawn(move || answers(server, client, pause));
        }
    });
    format!("http://127.0.0.1:{port}")
}

fn answers(mut server: TcpStream, mut client: TcpStream, pause: Option<Duration>) {
    let (mut piece, mut passed) = ([0; 16 << 10], 0);
    loop {
        if passed > FREE {
            std::thread::sleep(pause.unwrap_or(Duration::from_secs(600)));
        }
        let Some(read) = server.read(&mut piece).ok().filter(|read| *read > 0) else { break };
        if client.write_all(&piece[..read]).is_err() {
            break;
        }
        passed += read;
    }
    let _ = client.shutdown(Shutdown::Both);
}

/// A number in a line of the log, which is text or JSON; 0 if it is not there.
fn number(line: &str, name: &str) -> u64 {
    let behind = line.split_once(&format!("{name}=")).or_else(|| line.split_once(&format!("\"{name}\":")));
    let digits: String = behind.map_or("", |(_, rest)| rest).chars().take_while(char::is_ascii_digit).collect();
    digits.parse().unwrap_or(0)
}

/// It answers every question, so that asking again would never end: its writers wait for that.
#[test]
fn a_source_whose_snapshot_does_not_come_is_let_go_in_time() {
    let source = Deployed::start("3.6", 1, None);
    source.fill(5000);
    let want = source.everything();
    let mut pod = TestPod::new();
    for (pause, words) in [
        (None, "take a snapshot: no answer within 2000 ms"),
        (Some(Duration::from_millis(300)), "its snapshot has not come within 8 s"),
    ] {
        let mut command = pod.command("none", &[&from(&held_up(&source, pause))]);
        command.env("SYNCER_SNAPSHOT_STALLED_SECONDS", "2").env("SYNCER_SNAPSHOT_SECONDS", "8");
        let begun = Instant::now();
        pod.spawn(command);
        let status = pod.wait_end(Duration::from_secs(120));
        let log = pod.log();
        assert!(status.code() == Some(4) && log.contains(words), "{words}: {log}");
        assert!(begun.elapsed() < Duration::from_secs(40), "it took {:?}: {log}", begun.elapsed());
        // The first time alone, in what both have said.
        assert_eq!(log.matches("taking another snapshot").count(), 1, "{log}");
        // What comes for as long as a line is shown is told, and of how much.
        let told = |line: &&str| line.contains("the work goes on") && number(line, "bytes") > 0;
        if pause.is_some() {
            let line = log.lines().find(told);
            let fetches = |line: &str| line.contains("fetch") && number(line, "bytes_at_most") > 1 << 20;
            assert!(line.is_some_and(fetches), "how far the snapshot has come is not shown: {line:?} of {log}");
        }
        assert_eq!(fence::load(&pod.data()).expect("read").expect("a record").phase, FencePhase::Lifted, "{log}");
    }
    assert_eq!(source.everything(), want);
    assert!(source.takes_writes(), "it is left fenced: {}", pod.log());
    // What is slow and comes in time is taken.
    let want = source.everything();
    let pause = Some(Duration::from_millis(20));
    pod.start("none", &[&from(&held_up(&source, pause))]);
    pod.wait_serving();
    assert_eq!(moved(&pod), want);
}
