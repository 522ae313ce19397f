//! What thousands of probes cost and leave behind, and what happens when this process has
//! nothing left.

use std::{
    fs,
    net::{Ipv4Addr, Ipv6Addr, TcpListener},
    process::Command,
};

use lb_health::{
    probe::{self, Outcome, tls},
    vip,
};
use lb_model::check::{Dns, Exec, Http, Kind, Udp};
use tokio::net::TcpSocket;

use crate::kit::{LONG, SHORT, failure, make_probe, run, serve, unknown};

const TIME_WAIT: &str = "06";

/// Connections in a state of TCP that have this port at one end.
fn connections(state: &str, port: u16) -> usize {
    let table = fs::read_to_string("/proc/net/tcp").unwrap();
    let port = format!(":{port:04X}");
    let rows = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    rows.filter(|row| row[3] == state && (row[1].ends_with(&port) || row[2].ends_with(&port)))
        .count()
}

#[tokio::test]
async fn a_thousand_connections_leave_nothing_in_time_wait() {
    let address = serve(drop);
    for _ in 0..1_000 {
        assert_eq!(run(Kind::Tcp, address, LONG).await, Outcome::Up);
    }
    assert_eq!(connections(TIME_WAIT, address.port()), 0);
}

#[tokio::test]
async fn ipv6_is_asked_too() {
    let listener = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).unwrap();
    assert_eq!(run(Kind::Tcp, listener.local_addr().unwrap(), LONG).await, Outcome::Up);
}

#[tokio::test]
async fn a_full_queue_of_connections_is_not_the_silence_of_a_host() {
    // Linux drops a SYN when as many connections as this wait to be accepted.
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let listener = socket.listen(0).unwrap();
    let address = listener.local_addr().unwrap();
    let _waiting = std::net::TcpStream::connect(address).unwrap();
    let reason = failure(run(Kind::Tcp, address, SHORT).await);
    assert!(reason.starts_with("no answer within 200ms; its host is alive"), "{reason}");
}

#[test]
fn a_question_that_waits_is_small() {
    let make_probe = make_probe(Kind::Tcp, (Ipv4Addr::LOCALHOST, 80).into(), LONG);
    let (network, tls) = (vip::Network::new(), tls::Cache::new());
    let size = size_of_val(&probe::run(&make_probe, &network, &tls));
    assert!(size <= 4_096, "{size} bytes");
}

/// Runs in a process of its own, which the test below starts with few descriptors.
#[test]
fn without_descriptors() {
    if std::env::var_os("LBT_WITHOUT_DESCRIPTORS").is_none() {
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let address = serve(drop);
    runtime.block_on(async {
        // Commands need a signal handler of the runtime's, which takes a descriptor once.
        let exec = || Kind::Exec(Exec { command: vec!["/bin/true".into()] });
        assert_eq!(run(exec(), address, LONG).await, Outcome::Up);
        let kinds = || {
            [
                Kind::Tcp,
                Kind::Http(Http::default()),
                Kind::Udp(Udp::default()),
                Kind::Dns(Dns::default()),
                exec(),
            ]
        };
        let mut all = Vec::new();
        while let Ok(file) = fs::File::open("/dev/null") {
            all.push(file);
        }
        for kind in kinds() {
            let name = kind.name();
            let reason = unknown(run(kind, address, LONG).await);
            println!("{name}: {reason}");
        }
        drop(all);
        assert_eq!(run(Kind::Tcp, address, LONG).await, Outcome::Up);
    });
    println!("all unknown");
}

#[test]
fn without_file_descriptors_nothing_is_said_of_the_backend() {
    let output = Command::new("sh")
        .args(["-c", "ulimit -n 64; exec \"$0\" \"$@\""])
        .arg(std::env::current_exe().unwrap())
        .args(["limits::without_descriptors", "--exact", "--nocapture"])
        .env("LBT_WITHOUT_DESCRIPTORS", "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("all unknown"), "{output:?}");
    assert!(text.contains("tcp: no file descriptor left"), "{text}");
    assert!(text.contains("exec: exec: /bin/true: Too many open files"), "{text}");
}
