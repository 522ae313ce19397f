//! One connection, from its first byte to its last.

use std::{
    convert::Infallible,
    io,
    net::IpAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use axum::http::{HeaderValue, header};
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::TlsAcceptor;

use super::{
    crowd::{Guest, Place},
    gate::Gate,
};

/// For a handshake of TLS.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// For the head of a request, and for the time between two.
const HEAD: Duration = Duration::from_secs(10);
/// Bytes of a head.
const HEAD_BYTES: usize = 16 << 10;
/// Fields of a head.
const FIELDS: usize = 64;
/// Requests of a connection.
const REQUESTS: u32 = 1_000;

/// Serves a connection to the listener at `listener` until it ends or has to go.
pub(super) async fn serve(
    stream: TcpStream,
    place: Place,
    listener: IpAddr,
    gate: Arc<Gate>,
    tls: Option<TlsAcceptor>,
) {
    let guest = Arc::clone(&place.guest);
    tokio::select! {
        () = talk(stream, &guest, listener, gate, tls) => {}
        () = place.guest.goes() => tracing::debug!(client = %guest.peer, "HTTP connection closed for others"),
    }
}

async fn talk(
    stream: TcpStream,
    guest: &Arc<Guest>,
    listener: IpAddr,
    gate: Arc<Gate>,
    tls: Option<TlsAcceptor>,
) {
    // An answer is written at once.
    let _ = stream.set_nodelay(true);
    let stream = Watched { stream, guest: Arc::clone(guest) };
    let ended = match tls {
        None => speak(stream, guest, listener, gate).await,
        Some(tls) => match tokio::time::timeout(HANDSHAKE, tls.accept(stream)).await {
            Ok(Ok(stream)) => speak(stream, guest, listener, gate).await,
            Ok(Err(error)) => Err(error.into()),
            Err(late) => Err(late.into()),
        },
    };
    if let Err(error) = ended {
        tracing::debug!(client = %guest.peer, "HTTP connection ended: {error:#}");
    }
}

async fn speak(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    guest: &Arc<Guest>,
    listener: IpAddr,
    gate: Arc<Gate>,
) -> anyhow::Result<()> {
    let count = Arc::new(AtomicU32::new(0));
    let service = service_fn(|request| {
        let (gate, guest, count) = (Arc::clone(&gate), Arc::clone(guest), Arc::clone(&count));
        async move {
            let mut answer = gate.answer(request, &guest, listener).await;
            if count.fetch_add(1, Relaxed) + 1 >= REQUESTS {
                let close = HeaderValue::from_static("close");
                answer.headers_mut().insert(header::CONNECTION, close);
            }
            Ok::<_, Infallible>(answer)
        }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_header_size(HEAD_BYTES)
        .max_buf_size(HEAD_BYTES)
        .max_headers(FIELDS)
        .serve_connection(TokioIo::new(stream), service)
        .await?;
    Ok(())
}

/// A connection that tells whether its client reads what is written.
struct Watched {
    stream: TcpStream,
    guest: Arc<Guest>,
}

impl Watched {
    fn told(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        self.guest.reads(written.is_ready(), Instant::now());
        Poll::Ready(ready!(written))
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.told(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.told(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
