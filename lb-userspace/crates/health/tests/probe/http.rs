//! HTTP, by servers that do and that don't know it.

use std::{
    io::Write as _,
    net::{Shutdown, SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use lb_health::probe::Outcome;
use lb_model::check::{Http, Kind};

use crate::kit::{
    LONG, SHORT, answering, answering_for_ever, failure, nobody, peak_bytes, read_request, refusal,
    run, serve,
};

/// What a probe may hold at a time: 16 KiB of headers and 64 KiB of a body, each once more for a
/// buffer that grows, and change.
const MOST_BYTES: usize = 256 << 10;

const INCOMPLETE: &str = "closed the connection before its answer was complete";

fn get() -> Kind {
    Kind::Http(Http::default())
}

fn with_body(pattern: &str) -> Kind {
    Kind::Http(Http { body: Some(pattern.into()), ..Http::default() })
}

async fn outcome_of(kind: Kind, address: SocketAddr) -> Outcome {
    run(kind, address, LONG).await
}

#[tokio::test]
async fn a_request_is_as_configured_and_asks_to_close() {
    let (sender, requests) = mpsc::channel();
    let address = serve(move |mut stream| {
        sender.send(read_request(&mut stream)).unwrap();
        let _ = stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n");
    });
    assert_eq!(outcome_of(get(), address).await, Outcome::Up);
    let version = env!("CARGO_PKG_VERSION");
    let expected = format!(
        "GET / HTTP/1.1\r\nhost: {address}\r\nuser-agent: lb-health/{version}\r\naccept: */*\r\nconnection: close\r\n\r\n"
    );
    assert_eq!(requests.recv().unwrap(), expected);
    let http = Http {
        method: "HEAD".into(),
        path: "/healthz?deep=1".into(),
        host: Some("www.example.com".into()),
        ..Http::default()
    };
    assert_eq!(outcome_of(Kind::Http(http), address).await, Outcome::Up);
    let request = requests.recv().unwrap();
    assert!(
        request.starts_with("HEAD /healthz?deep=1 HTTP/1.1\r\nhost: www.example.com\r\n"),
        "{request}"
    );
}

#[tokio::test]
async fn only_a_status_in_the_ranges_is_good() {
    let ranges = |status| Kind::Http(Http { status, ..Http::default() });
    let teapot = answering("HTTP/1.0 418 whatever it is called\r\n\r\n");
    assert_eq!(failure(outcome_of(get(), teapot).await), "status 418 I'm a teapot");
    assert_eq!(outcome_of(ranges(vec![200..=299, 418..=418]), teapot).await, Outcome::Up);
    let busy = answering("HTTP/1.1 503 our secret\r\ncontent-length: 0\r\n\r\n");
    assert_eq!(failure(outcome_of(get(), busy).await), "status 503 Service Unavailable");
    let odd = answering("HTTP/1.1 599 Odd\r\n\r\n");
    assert_eq!(failure(outcome_of(get(), odd).await), "status 599");
    let switching = answering("HTTP/1.1 101 Switching Protocols\r\n\r\n");
    assert!(!matches!(outcome_of(get(), switching).await, Outcome::Unknown { .. }));
}

#[tokio::test]
async fn a_redirect_is_a_status_and_is_not_followed() {
    let asked_for = Arc::new(AtomicU64::new(0));
    let count = asked_for.clone();
    let address = serve(move |mut stream| {
        count.fetch_add(1, Ordering::SeqCst);
        read_request(&mut stream);
        let _ = stream.write_all(b"HTTP/1.1 302 Found\r\nlocation: /\r\ncontent-length: 0\r\n\r\n");
    });
    assert_eq!(outcome_of(get(), address).await, Outcome::Up);
    let strict = Kind::Http(Http { status: vec![200..=299], ..Http::default() });
    assert_eq!(failure(outcome_of(strict, address).await), "status 302 Found");
    assert_eq!(asked_for.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_body_is_searched_across_its_parts() {
    let address = serve(|mut stream| {
        read_request(&mut stream);
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n");
        for byte in "x".repeat(60_000).bytes().chain(*b"healthy") {
            let _ = stream.write_all(&[b'1', b'\r', b'\n', byte, b'\r', b'\n']);
        }
        let _ = stream.write_all(b"0\r\n\r\n");
    });
    assert_eq!(outcome_of(with_body("xxhealthy"), address).await, Outcome::Up);
    assert_eq!(
        failure(outcome_of(with_body("unwell"), address).await),
        "status 200 OK, but the body does not contain `unwell`"
    );
}

#[tokio::test]
async fn a_pattern_after_64_kib_is_not_found() {
    let page =
        |length: usize| answering(format!("HTTP/1.1 200 OK\r\n\r\n{}healthy", "x".repeat(length)));
    assert_eq!(outcome_of(with_body("healthy"), page((64 << 10) - 7)).await, Outcome::Up);
    let reason = failure(outcome_of(with_body("healthy"), page((64 << 10) - 6)).await);
    assert!(reason.contains("does not contain"), "{reason}");
}

#[tokio::test]
async fn a_server_that_accepts_and_never_answers_fails_in_time() {
    let address = serve(|mut stream| {
        read_request(&mut stream);
        let _ = std::io::Read::read(&mut stream, &mut [0]);
    });
    let before = Instant::now();
    let reason = failure(run(get(), address, SHORT).await);
    assert_eq!(reason, "connects, but no answer within 200ms");
    assert!(before.elapsed() >= SHORT);
}

/// Writes one byte after the other, slowly.
fn dripping(first: &'static [u8], byte: &'static [u8]) -> SocketAddr {
    serve(move |mut stream| {
        read_request(&mut stream);
        let _ = stream.write_all(first);
        while stream.write_all(byte).is_ok() {
            std::thread::sleep(SHORT / 10);
        }
    })
}

#[tokio::test]
async fn a_server_that_answers_byte_by_byte_has_no_more_time() {
    let head = dripping(b"HTTP/1.1 200 OK\r\nx: ", b"x");
    assert_eq!(failure(run(get(), head, SHORT).await), "connects, but no answer within 200ms");
    let body = dripping(b"HTTP/1.1 200 OK\r\n\r\n", b"x");
    assert_eq!(
        failure(run(with_body("y"), body, SHORT).await),
        "status 200 OK, but the body did not come within 200ms"
    );
    assert_eq!(run(get(), body, SHORT).await, Outcome::Up);
}

#[tokio::test]
async fn of_a_gigabyte_no_more_is_read_than_is_looked_at() {
    let sent = Arc::new(AtomicU64::new(0));
    let count = sent.clone();
    let address = serve(move |mut stream| {
        read_request(&mut stream);
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1073741824\r\n\r\n");
        let block = [b'x'; 65_536];
        for _ in 0..16_384 {
            if stream.write_all(&block).is_err() {
                return;
            }
            count.fetch_add(block.len() as u64, Ordering::SeqCst);
        }
    });
    for kind in [get(), with_body("healthy")] {
        let (outcome, bytes) = peak_bytes(outcome_of(kind.clone(), address)).await;
        assert_eq!(matches!(outcome, Outcome::Up), kind == get(), "{outcome:?}");
        assert!(bytes < MOST_BYTES, "{bytes} bytes held");
    }
    // What the sockets' buffers took in, twice; far from a gigabyte.
    assert!(sent.load(Ordering::SeqCst) < 128 << 20, "{sent:?} bytes sent");
}

#[tokio::test]
async fn endless_heads_are_given_up() {
    for (first, then) in [
        (&b"HTTP/1.1 200 OK\r\n"[..], &b"x-header: some words of a header\r\n"[..]),
        (b"HTTP/1.1 200 OK\r\nx: ", b"yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy"),
        (b"HTTP/1.1 200 ", b"OKOKOKOKOKOKOKOKOKOKOKOKOKOKOKOKOKOKOKOKOKOKOKOKOK"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (b"", b"HTTP/1.1 103 Early Hints\r\nlink: </style.css>\r\n\r\n"),
        (b"", b"\r\n"),
    ] {
        let address = answering_for_ever(first, then);
        let (outcome, bytes) = peak_bytes(outcome_of(get(), address)).await;
        let reason = failure(outcome);
        assert!(reason.contains("larger than 16 KiB"), "{}: {reason}", then.escape_ascii());
        assert!(bytes < MOST_BYTES, "{bytes} bytes held");
    }
}

#[tokio::test]
async fn interim_answers_come_before_the_answer() {
    let interim = "HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n".repeat(20);
    let address = answering(interim + "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
    assert_eq!(outcome_of(with_body("ok"), address).await, Outcome::Up);
}

#[tokio::test]
async fn what_is_not_http_fails() {
    for garbage in [
        &b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n"[..],
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
        b"<html>it works</html>\r\n\r\n",
        b"HTTP/1.1 20 OK\r\n\r\n",
        b"HTTP/3.7 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: abc\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999999999999999\r\n\r\n",
    ] {
        let reason = failure(outcome_of(get(), answering(garbage)).await);
        assert!(
            reason.starts_with("answers, but not with HTTP"),
            "{}: {reason}",
            garbage.escape_ascii()
        );
        assert!(!reason.contains(char::is_control), "{reason:?}");
    }
}

#[tokio::test]
async fn a_connection_that_is_closed_too_soon_fails() {
    let at_once = serve(drop::<TcpStream>);
    let reason = failure(outcome_of(get(), at_once).await);
    assert!([INCOMPLETE, "connection reset"].contains(&&*reason), "{reason}");
    assert_eq!(failure(outcome_of(get(), answering("")).await), INCOMPLETE);
    assert_eq!(failure(outcome_of(get(), answering("HTTP/1.1 200 OK\r\nx")).await), INCOMPLETE);
    let half_closed = serve(|mut stream| {
        let _ = stream.shutdown(Shutdown::Write);
        read_request(&mut stream);
    });
    assert_eq!(failure(outcome_of(get(), half_closed).await), INCOMPLETE);
}

#[tokio::test]
async fn a_body_that_is_not_as_announced_fails_unless_it_has_the_pattern() {
    let short = || answering("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhealthy");
    assert_eq!(outcome_of(get(), short()).await, Outcome::Up);
    assert_eq!(outcome_of(with_body("healthy"), short()).await, Outcome::Up);
    assert_eq!(failure(outcome_of(with_body("unwell"), short()).await), INCOMPLETE);
    let long = answering("HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nhealthy");
    assert!(failure(outcome_of(with_body("healthy"), long).await).contains("does not contain"));
}

#[tokio::test]
async fn chunks_that_are_none_fail() {
    for chunks in [
        &b"xyz\r\nhealthy\r\n"[..],
        b"-1\r\nhealthy\r\n",
        b"ffffffffffffffffffff\r\nhealthy\r\n",
        b"2\r\nhealthy\r\n",
        b"",
        b"7",
    ] {
        let mut answer = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n".to_vec();
        answer.extend(chunks);
        failure(outcome_of(with_body("healthy"), answering(answer)).await);
    }
    // Extensions and trailers without an end.
    for (first, then) in [("1;", "e=f;"), ("0\r\n", "x: y\r\n")] {
        let first = format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{first}");
        let address = answering_for_ever(first.leak().as_bytes(), then.as_bytes());
        let (outcome, bytes) = peak_bytes(outcome_of(with_body("healthy"), address)).await;
        failure(outcome);
        assert!(bytes < MOST_BYTES, "{bytes} bytes held");
    }
}

#[tokio::test]
async fn no_answer_whatever_makes_it_panic_or_wait() {
    let good = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ntransfer-encoding: chunked\r\n\r\n7\r\nhealthy\r\n0\r\n\r\n";
    // A generator of our own, so that a failure is found again.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 33) as usize % below
    };
    for _ in 0..300 {
        let mut answer = good.to_vec();
        for _ in 0..=random(4) {
            let at = random(answer.len());
            match random(3) {
                0 => answer[at] = random(256) as u8,
                1 => drop(answer.drain(at..)),
                _ => answer.insert(at, random(256) as u8),
            }
            if answer.is_empty() {
                break;
            }
        }
        let outcome = outcome_of(with_body("healthy"), answering(answer.clone())).await;
        assert!(
            !matches!(outcome, Outcome::Unknown { .. }),
            "{}: {outcome:?}",
            answer.escape_ascii()
        );
    }
}

#[tokio::test]
async fn where_nobody_listens_the_connection_is_refused() {
    assert_eq!(refusal(outcome_of(get(), nobody()).await), "connection refused");
    assert_eq!(refusal(outcome_of(Kind::Tcp, nobody()).await), "connection refused");
}

#[tokio::test]
async fn an_answer_at_the_last_moment_counts() {
    let address = serve(|mut stream| {
        read_request(&mut stream);
        std::thread::sleep(Duration::from_millis(300));
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n");
    });
    assert_eq!(run(get(), address, Duration::from_secs(3)).await, Outcome::Up);
}
