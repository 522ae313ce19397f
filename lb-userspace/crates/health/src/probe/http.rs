//! An HTTP/1.1 request (RFC 9110, RFC 9112), with TLS or without, and what its answer must be.
//!
//! hyper reads and writes; here are the limits. An answer's head may have 16 KiB, interim answers
//! (1xx) included; of a body at most 64 KiB are read, and none if the check has no pattern for it.

use std::{
    error::Error as _,
    io,
    net::{IpAddr, SocketAddr},
    path::Path,
    pin::pin,
    sync::Arc,
    time::Duration,
};

use http_body_util::{BodyExt as _, Empty};
use hyper::{
    Request, StatusCode,
    body::{Bytes, Incoming},
    client::conn::http1,
    header,
};
use hyper_util::rt::TokioIo;
use lb_model::units::format_duration;
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{Instant, timeout_at},
};
use tokio_rustls::TlsConnector;

use super::{
    Probe, Route, check, here,
    limit::{Allowance, Limited},
    own_address,
    reason::{ProbeError, quoted},
    tcp, through, tls, vip, within,
};

/// Bytes of an answer's head, and of the interim answers before it.
const HEAD: usize = 16 << 10;
/// Bytes of a body that are looked at.
const BODY: usize = 64 << 10;
/// Bytes on the wire that hold them: a chunk may have one byte, and take six.
const BODY_ON_WIRE: usize = 8 * BODY;

const AGENT: &str = concat!("lb-health/", env!("CARGO_PKG_VERSION"));

/// A connection of whichever kind, so that hyper and rustls are compiled once.
trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}

/// How far a probe came, for the error text when its time is over.
#[derive(Clone, Copy)]
enum Stage {
    Handshake,
    Head,
    Body(StatusCode),
}

impl Stage {
    fn late(self, timeout: Duration) -> ProbeError {
        let timeout = format_duration(timeout);
        ProbeError::failed(match self {
            Self::Handshake => format!("connects, but no TLS handshake within {timeout}"),
            Self::Head => format!("connects, but no answer within {timeout}"),
            Self::Body(status) => {
                format!("{}, but the body did not come within {timeout}", words(status))
            }
        })
    }
}

/// Sends a request to a backend, and checks its answer.
pub(super) async fn run(
    probe: &Probe,
    http: &check::Http,
    tls: Option<(&check::Tls, &tls::Cache)>,
    network: &vip::Network,
    deadline: Instant,
) -> Result<(), ProbeError> {
    let address = match &probe.route {
        Route::Backend => probe.target.backend,
        Route::Vip(path) => path.vip.into(),
        Route::Here(vip) => (*vip).into(),
    };
    let default_port = if tls.is_some() { 443 } else { 80 };
    let request = request(http, address.ip, probe.port, default_port)?;
    let secure = match tls {
        Some((tls, cache)) => {
            let config = cache.config(tls, deadline).await.map_err(ProbeError::unknown)?;
            Some((config, server_name(tls, http, address.ip)?))
        }
        None => None,
    };
    let own = tcp::connect(own_address(probe), network);
    let wire: Box<dyn Wire> = match &probe.route {
        Route::Backend => Box::new(within(deadline, probe.timeout, own).await?),
        Route::Here(vip) => {
            let at = SocketAddr::new(*vip, probe.port);
            Box::new(here::connect(at, probe.timeout, deadline).await?)
        }
        Route::Vip(path) => {
            let answer = network.connect(path, probe.port);
            let own = async { own.await.map(drop) };
            Box::new(through::run(path, probe.timeout, deadline, answer, own).await?)
        }
    };
    let ca_file = tls.and_then(|(tls, _)| tls.ca_file.as_deref());
    let mut stage = Stage::Head;
    let answer = async {
        let wire = match secure {
            Some((config, name)) => {
                stage = Stage::Handshake;
                let wire = handshake(wire, config, name, ca_file).await?;
                stage = Stage::Head;
                wire
            }
            None => wire,
        };
        exchange(wire, request, http, &mut stage).await
    };
    match timeout_at(deadline, answer).await {
        Ok(answer) => answer,
        Err(_) => Err(stage.late(probe.timeout)),
    }
}

fn request(
    http: &check::Http,
    address: IpAddr,
    port: u16,
    default_port: u16,
) -> Result<Request<Empty<Bytes>>, ProbeError> {
    let host = http.host.clone().unwrap_or_else(|| authority(address, port, default_port));
    Request::builder()
        .method(http.method.as_str())
        .uri(http.path.as_str())
        .header(header::HOST, host)
        .header(header::USER_AGENT, AGENT)
        .header(header::ACCEPT, "*/*")
        .header(header::CONNECTION, "close")
        .body(Empty::new())
        .map_err(|error| {
            ProbeError::unknown(format!("the request of the check can't be sent: {error}"))
        })
}

/// RFC 9110 7.2: the scheme's own port is left out, an IPv6 address stands in brackets.
fn authority(address: IpAddr, port: u16, default_port: u16) -> String {
    match address {
        _ if port != default_port => SocketAddr::new(address, port).to_string(),
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("[{address}]"),
    }
}

/// The name that the certificate must be for: what is configured, the host without its port, or the
/// address.
fn server_name(
    tls: &check::Tls,
    http: &check::Http,
    address: IpAddr,
) -> Result<ServerName<'static>, ProbeError> {
    let name = match (&tls.server_name, &http.host) {
        (Some(name), _) => name,
        (None, Some(host)) => without_port(host),
        (None, None) => return Ok(ServerName::from(address)),
    };
    ServerName::try_from(name.to_owned()).map_err(|_| {
        ProbeError::unknown(format!(
            "`{name}` is no name of a server; set `server_name` in the check"
        ))
    })
}

fn without_port(host: &str) -> &str {
    if let Some(rest) = host.strip_prefix('[') {
        return rest.split(']').next().unwrap_or(rest);
    }
    match host.split_once(':') {
        // More colons: an IPv6 address without brackets.
        Some((name, port)) if !port.contains(':') => name,
        _ => host,
    }
}

async fn handshake(
    wire: Box<dyn Wire>,
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
    ca_file: Option<&Path>,
) -> Result<Box<dyn Wire>, ProbeError> {
    match TlsConnector::from(config).connect(name, wire).await {
        Ok(wire) => Ok(Box::new(wire)),
        Err(error) => Err(of_io(&error, ca_file).unwrap_or_else(|| match error.kind() {
            io::ErrorKind::UnexpectedEof => {
                ProbeError::failed("closed the connection in the TLS handshake")
            }
            _ => ProbeError::of_socket(&error),
        })),
    }
}

/// The reason in an error of a TLS connection, if it is TLS's.
fn of_io(error: &io::Error, ca_file: Option<&Path>) -> Option<ProbeError> {
    let error = error.get_ref()?.downcast_ref::<rustls::Error>()?;
    Some(ProbeError::failed(tls::words(error, ca_file)))
}

/// Sends the request and judges the answer.
async fn exchange(
    wire: Box<dyn Wire>,
    request: Request<Empty<Bytes>>,
    http: &check::Http,
    stage: &mut Stage,
) -> Result<(), ProbeError> {
    let allowance = Allowance::new(HEAD);
    let wire = TokioIo::new(Limited::new(wire, allowance.clone()));
    let probe_error = |error: hyper::Error| of_hyper(&error, &allowance);
    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(HEAD)
        .max_header_size(HEAD)
        .handshake(wire)
        .await
        .map_err(probe_error)?;
    let answer = async {
        let answer = sender.send_request(request).await.map_err(probe_error)?;
        let status = answer.status();
        if !http.status.iter().any(|range| range.contains(&status.as_u16())) {
            return Err(ProbeError::failed(words(status)));
        }
        let Some(pattern) = &http.body else { return Ok(()) };
        *stage = Stage::Body(status);
        allowance.set(BODY_ON_WIRE);
        if contains(answer.into_body(), pattern.as_bytes()).await.map_err(probe_error)? {
            return Ok(());
        }
        Err(ProbeError::failed(format!(
            "{}, but the body does not contain {}",
            words(status),
            quoted(pattern.as_bytes())
        )))
    };
    let mut answer = pin!(answer);
    tokio::select! {
        biased;
        answer = &mut answer => answer,
        // The connection is over; what it read is at hand. hyper does not pass the cause to the request.
        ended = connection => {
            let local = ended.err().and_then(|error| ProbeError::of_this_node(cause(&error)?));
            answer.await.map_err(|error| local.unwrap_or(error))
        }
    }
}

/// Whether the first [`BODY`] bytes have the pattern; reads no further than that, or than it.
async fn contains(mut body: Incoming, pattern: &[u8]) -> hyper::Result<bool> {
    let mut seen = Vec::new();
    if pattern.is_empty() {
        return Ok(true);
    }
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        let from = seen.len().saturating_sub(pattern.len() - 1);
        seen.extend_from_slice(&data[..data.len().min(BODY - seen.len())]);
        if seen[from..].windows(pattern.len()).any(|window| window == pattern) {
            return Ok(true);
        }
        if seen.len() == BODY {
            break;
        }
    }
    Ok(false)
}

/// A status with its registered name; a server's own words for it are not repeated.
fn words(status: StatusCode) -> String {
    match status.canonical_reason() {
        Some(reason) => format!("status {} {reason}", status.as_str()),
        None => format!("status {}", status.as_str()),
    }
}

fn of_hyper(error: &hyper::Error, allowance: &Allowance) -> ProbeError {
    if let Some(local) = cause(error).and_then(ProbeError::of_this_node) {
        return local;
    }
    if error.is_parse_too_large() || allowance.is_spent() {
        return ProbeError::failed("the answer's headers are larger than 16 KiB, or more than 100");
    }
    if error.is_parse_version_h2() {
        return ProbeError::failed("answers with HTTP/2, which is not asked for");
    }
    if error.is_parse() {
        return ProbeError::failed(format!("answers, but not with HTTP: {error}"));
    }
    if error.is_incomplete_message() || error.is_canceled() || error.is_closed() {
        return ProbeError::failed("closed the connection before its answer was complete");
    }
    if let Some(cause) = cause(error) {
        return of_io(cause, None).unwrap_or_else(|| match cause.kind() {
            io::ErrorKind::UnexpectedEof => {
                ProbeError::failed("closed the connection before its answer was complete")
            }
            _ => ProbeError::of_socket(cause),
        });
    }
    ProbeError::failed(error.to_string())
}

/// The error of the connection that is behind an error of hyper.
fn cause(error: &hyper::Error) -> Option<&io::Error> {
    let mut source = error.source();
    while let Some(cause) = source {
        if let Some(cause) = cause.downcast_ref() {
            return Some(cause);
        }
        source = cause.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use std::{
        pin::Pin,
        task::{Context, Poll},
    };

    use tokio::io::ReadBuf;

    use super::*;

    /// When a connection's link goes down.
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Down {
        Before,
        AfterTheRequest,
        InTheBody,
    }

    /// A connection whose link goes down.
    struct Broken {
        down: Down,
        requested: bool,
    }

    impl Broken {
        fn new(down: Down) -> Box<Self> {
            Box::new(Self { down, requested: false })
        }

        fn error() -> io::Error {
            io::Error::other(vip::Error::Local("send on eth0: network is down".into()))
        }
    }

    impl AsyncRead for Broken {
        fn poll_read(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
            buffer: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            if !self.requested {
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            if self.down == Down::InTheBody {
                buffer.put_slice(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf");
                self.down = Down::AfterTheRequest;
                return Poll::Ready(Ok(()));
            }
            Poll::Ready(Err(Self::error()))
        }
    }

    impl AsyncWrite for Broken {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            if self.down == Down::Before {
                return Poll::Ready(Err(Self::error()));
            }
            self.requested = true;
            Poll::Ready(Ok(bytes.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn link_that_goes_down_under_a_request_says_nothing_about_the_backend() {
        let http = check::Http { body: Some("ready".into()), ..check::Http::default() };
        let local = Err(ProbeError::unknown("send on eth0: network is down"));
        for down in [Down::Before, Down::AfterTheRequest, Down::InTheBody] {
            let request = request(&http, IpAddr::from([127, 0, 0, 1]), 80, 80).unwrap();
            let error = exchange(Broken::new(down), request, &http, &mut Stage::Head).await;
            assert_eq!(error, local, "{down:?}");
        }
        let tls = check::Tls { insecure: true, ..check::Tls::default() };
        let config = tls::Cache::default().config(&tls, Instant::now()).await.unwrap();
        for down in [Down::Before, Down::AfterTheRequest] {
            let name = ServerName::try_from("a.example").unwrap();
            let wire = handshake(Broken::new(down), Arc::clone(&config), name, None).await;
            assert_eq!(wire.map(drop), local, "{down:?}");
        }
    }

    #[test]
    fn the_host_is_the_address_without_the_schemes_own_port() {
        let v4: IpAddr = "10.0.0.1".parse().unwrap();
        let v6: IpAddr = "2001:db8::1".parse().unwrap();
        assert_eq!(authority(v4, 80, 80), "10.0.0.1");
        assert_eq!(authority(v4, 80, 443), "10.0.0.1:80");
        assert_eq!(authority(v6, 443, 443), "[2001:db8::1]");
        assert_eq!(authority(v6, 8443, 443), "[2001:db8::1]:8443");
    }

    #[test]
    fn the_certificate_is_for_the_configured_name_the_host_or_the_address() {
        let address: IpAddr = "10.0.0.1".parse().unwrap();
        let name = |server_name: Option<&str>, host: Option<&str>| {
            let tls =
                check::Tls { server_name: server_name.map(Into::into), ..check::Tls::default() };
            let http = check::Http { host: host.map(Into::into), ..check::Http::default() };
            server_name_text(&tls, &http, address)
        };
        assert_eq!(name(Some("a.example"), Some("b.example")).unwrap(), "a.example");
        assert_eq!(name(None, Some("b.example:8443")).unwrap(), "b.example");
        assert_eq!(name(None, Some("[2001:db8::1]:8443")).unwrap(), "2001:db8::1");
        assert_eq!(name(None, Some("2001:db8::1")).unwrap(), "2001:db8::1");
        assert_eq!(name(None, None).unwrap(), "10.0.0.1");
        assert!(matches!(name(Some("not a name"), None), Err(ProbeError::Unknown(_))));
    }

    fn server_name_text(
        tls: &check::Tls,
        http: &check::Http,
        address: IpAddr,
    ) -> Result<String, ProbeError> {
        server_name(tls, http, address).map(|name| name.to_str().into_owned())
    }

    #[test]
    fn a_request_that_cannot_be_written_is_unknown() {
        let address = IpAddr::from([127, 0, 0, 1]);
        let wrong = [
            check::Http { method: "G T".into(), ..check::Http::default() },
            check::Http { path: "/\u{1}".into(), ..check::Http::default() },
            check::Http { host: Some("a\r\nb".into()), ..check::Http::default() },
        ];
        for http in wrong {
            assert!(
                matches!(request(&http, address, 80, 80), Err(ProbeError::Unknown(_))),
                "{http:?}"
            );
        }
    }
}
