//! Datagrams and DNS.

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    thread,
};

use lb_health::probe::Outcome;
use lb_model::check::{Dns, Kind, Udp};

use crate::kit::{LONG, SHORT, failure, refusal, run};

/// Answers each datagram by `answer`, or not at all.
fn serve(answer: impl Fn(&[u8]) -> Option<Vec<u8>> + Send + 'static) -> SocketAddr {
    serve_at(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap(), answer)
}

fn serve_at(
    socket: UdpSocket,
    answer: impl Fn(&[u8]) -> Option<Vec<u8>> + Send + 'static,
) -> SocketAddr {
    let address = socket.local_addr().unwrap();
    thread::spawn(move || {
        let mut buffer = [0; 65_536];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            if let Some(answer) = answer(&buffer[..length]) {
                socket.send_to(&answer, from).unwrap();
            }
        }
    });
    address
}

fn udp(send: &[u8], expect: &[u8]) -> Kind {
    Kind::Udp(Udp { send: send.into(), expect: expect.into() })
}

#[tokio::test]
async fn an_answer_must_begin_as_expected() {
    let address =
        serve(|request| Some(if request == b"PING" { b"PONG\r\n".into() } else { Vec::new() }));
    assert_eq!(run(udp(b"PING", b"PONG"), address, LONG).await, Outcome::Up);
    assert_eq!(run(udp(b"PING", b""), address, LONG).await, Outcome::Up);
    assert_eq!(
        failure(run(udp(b"PING", b"pong"), address, LONG).await),
        "answers `PONG\\r\\n`, not `pong`"
    );
    assert_eq!(
        failure(run(udp(b"NOTHING", b"PONG"), address, LONG).await),
        "answers ``, not `PONG`"
    );
}

#[tokio::test]
async fn nothing_to_send_is_an_empty_datagram() {
    let address = serve(|request| request.is_empty().then(Vec::new));
    assert_eq!(run(udp(b"", b""), address, LONG).await, Outcome::Up);
    let reason = failure(run(udp(b"x", b""), address, SHORT).await);
    assert!(reason.starts_with("no answer within 200ms; its host is alive"), "{reason}");
}

#[tokio::test]
async fn only_as_much_of_an_answer_is_looked_at_as_expected() {
    let address = serve(|_| Some(vec![b'x'; 60_000]));
    assert_eq!(run(udp(b"", &[b'x'; 1_000]), address, LONG).await, Outcome::Up);
    let reason = failure(run(udp(b"", b"y"), address, LONG).await);
    assert!(reason.ends_with("xx…`, not `y`"), "{reason}");
}

#[tokio::test]
async fn a_port_that_nobody_has_refuses() {
    let address = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
    assert_eq!(refusal(run(udp(b"x", b""), address, LONG).await), "port unreachable");
    assert_eq!(refusal(run(Kind::Dns(Dns::default()), address, LONG).await), "port unreachable");
}

#[tokio::test]
async fn ipv6_is_asked_too() {
    let socket = UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).unwrap();
    let address = serve_at(socket, |request| Some(request.into()));
    assert_eq!(run(udp(b"echo", b"echo"), address, LONG).await, Outcome::Up);
}

fn as_answer(query: &[u8], rcode: u8) -> Vec<u8> {
    let mut answer = query.to_vec();
    answer[2] |= 0x80;
    answer[3] |= rcode;
    answer
}

#[tokio::test]
async fn a_name_server_must_answer_this_query_without_an_error() {
    let dns = || Kind::Dns(Dns { name: "www.example.com".into(), record: "A".into() });
    let good = serve(|query| Some(as_answer(query, 0)));
    assert_eq!(run(dns(), good, LONG).await, Outcome::Up);
    assert_eq!(run(Kind::Dns(Dns::default()), good, LONG).await, Outcome::Up);
    let failing = serve(|query| Some(as_answer(query, 2)));
    assert_eq!(failure(run(dns(), failing, LONG).await), "SERVFAIL");
    let other = serve(|query| {
        let mut answer = as_answer(query, 0);
        answer[0] ^= 1;
        Some(answer)
    });
    assert_eq!(failure(run(dns(), other, LONG).await), "answers to another query");
    let echo = serve(|query| Some(query.into()));
    assert_eq!(failure(run(dns(), echo, LONG).await), "answers, but not with DNS");
}

#[tokio::test]
async fn each_query_has_an_id_of_its_own() {
    let (sender, ids) = std::sync::mpsc::channel();
    let address = serve(move |query| {
        sender.send([query[0], query[1]]).unwrap();
        Some(as_answer(query, 0))
    });
    for _ in 0..8 {
        assert_eq!(run(Kind::Dns(Dns::default()), address, LONG).await, Outcome::Up);
    }
    let ids: std::collections::BTreeSet<_> = ids.try_iter().collect();
    assert!(ids.len() >= 6, "{ids:?}");
}
