//! The probes of the tests, and the servers that they probe.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use lb_health::{
    probe::{self, Failure, Outcome, Probe, Route, tls},
    vip,
};
use lb_model::{
    check::Kind,
    desired::{Protocol, ServiceKey},
    seen::BackendKey,
};

/// What a peer that is too slow is given: short, so that the tests are.
pub const SHORT: Duration = Duration::from_millis(200);

/// What everyone else is given: longer than a loaded machine takes.
pub const LONG: Duration = Duration::from_secs(20);

pub fn make_probe(kind: Kind, address: SocketAddr, timeout: Duration) -> Probe {
    let service = ServiceKey::new(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 100)), 80, Protocol::Tcp);
    Probe {
        service: "web".into(),
        target: BackendKey { service, backend: address.ip().into() },
        kind,
        port: address.port(),
        route: Route::Backend,
        timeout,
    }
}

pub async fn run(kind: Kind, address: SocketAddr, timeout: Duration) -> Outcome {
    let started = Instant::now();
    let make_probe = make_probe(kind, address, timeout);
    let outcome = probe::run(&make_probe, &vip::Network::new(), &tls::Cache::new()).await;
    // A loaded machine may stop this thread for a while; what is wrong takes for ever.
    assert!(started.elapsed() < timeout + Duration::from_secs(5), "{:?}", started.elapsed());
    outcome
}

/// The reason of an answer that is wrong.
pub fn failure(outcome: Outcome) -> String {
    match outcome {
        Outcome::Failed { how: Failure::Wrong, reason } => reason,
        other => panic!("{other:?}"),
    }
}

/// The reason of a refusal.
pub fn refusal(outcome: Outcome) -> String {
    match outcome {
        Outcome::Failed { how: Failure::Refusal, reason } => reason,
        other => panic!("{other:?}"),
    }
}

/// Why a probe could not be sent.
pub fn unknown(outcome: Outcome) -> String {
    match outcome {
        Outcome::Unknown { reason } => reason,
        other => panic!("{other:?}"),
    }
}

/// Serves each connection in a thread of its own.
pub fn serve(handler: impl Fn(TcpStream) + Clone + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (stream, handler) = (stream.unwrap(), handler.clone());
            thread::spawn(move || handler(stream));
        }
    });
    address
}

/// Reads a request's head; then gives these bytes, and no more.
pub fn answering(bytes: impl Into<Vec<u8>>) -> SocketAddr {
    let bytes = bytes.into();
    serve(move |mut stream| {
        read_request(&mut stream);
        let _ = stream.write_all(&bytes);
        let _ = stream.shutdown(Shutdown::Write);
        let _ = stream.read_to_end(&mut Vec::new());
    })
}

/// Reads a request's head; then gives these bytes for ever, or until the client is gone.
pub fn answering_for_ever(first: &'static [u8], then: &'static [u8]) -> SocketAddr {
    serve(move |mut stream| {
        read_request(&mut stream);
        let _ = stream.write_all(first);
        while stream.write_all(then).is_ok() {}
    })
}

pub fn read_request(stream: &mut TcpStream) -> String {
    let mut request = Vec::new();
    let mut byte = [0];
    while !request.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|read| read == 1) {
        request.push(byte[0]);
    }
    String::from_utf8(request).unwrap()
}

/// An address that nothing listens at.
pub fn nobody() -> SocketAddr {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap()
}

thread_local! {
    static LIVE: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

/// The system's allocator, which counts for each thread: servers have their own.
struct Counting;

fn count(bytes: isize) {
    let live = LIVE.get() + bytes;
    LIVE.set(live);
    PEAK.set(PEAK.get().max(live));
}

// SAFETY: all is passed on to the system's allocator as it came; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size().cast_signed());
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-layout.size().cast_signed());
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The most bytes that this thread held at a time during `future`, beyond those it had before.
pub async fn peak_bytes<T>(future: impl Future<Output = T>) -> (T, usize) {
    let before = LIVE.get();
    PEAK.set(before);
    let outcome = future.await;
    (outcome, (PEAK.get() - before).try_into().unwrap())
}
