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
    task::{Context, Poll},
    time::{Duration, Instant},
};

use anyhow::Result;
use axum::http::{HeaderValue, header};
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;

use super::{
    admission::Admission,
    limiter::{Connection, Permit},
};

/// For a handshake of TLS.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// For the head of a request, and for the time between two.
const HEAD: Duration = Duration::from_secs(10);
const HEAD_BYTES: usize = 16 << 10;
/// Fields of a head.
const FIELDS: usize = 64;
/// Requests of a connection.
const REQUESTS: u32 = 1_000;

/// Serves a connection to the listener at `listener` until it ends or has to go.
pub(super) async fn serve(
    stream: TcpStream,
    permit: Permit,
    listener: IpAddr,
    admission: Arc<Admission>,
    tls: Option<TlsAcceptor>,
) {
    let connection = &permit.connection;
    tokio::select! {
        ended = run(stream, connection, listener, admission, tls) => if let Err(error) = ended {
            tracing::debug!(client = %connection.peer, "HTTP connection ended: {error:#}");
        },
        () = connection.goes() => tracing::debug!(client = %connection.peer, "HTTP connection closed for others"),
    }
}

async fn run(
    stream: TcpStream,
    connection: &Arc<Connection>,
    listener: IpAddr,
    admission: Arc<Admission>,
    tls: Option<TlsAcceptor>,
) -> Result<()> {
    // An answer is written at once.
    let _ = stream.set_nodelay(true);
    let stream = Watched { stream, connection: Arc::clone(connection) };
    match tls {
        None => serve_http(stream, connection, listener, &admission).await,
        Some(tls) => {
            let stream = timeout(HANDSHAKE, tls.accept(stream)).await??;
            serve_http(stream, connection, listener, &admission).await
        }
    }
}

async fn serve_http(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    connection: &Arc<Connection>,
    listener: IpAddr,
    admission: &Admission,
) -> Result<()> {
    let count = AtomicU32::new(0);
    let service = service_fn(async |request| {
        let mut answer = admission.answer(request, connection, listener).await;
        if count.fetch_add(1, Relaxed) + 1 >= REQUESTS {
            answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        Ok::<_, Infallible>(answer)
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

/// A connection that records whether its client reads.
struct Watched {
    stream: TcpStream,
    connection: Arc<Connection>,
}

impl Watched {
    fn note_write(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        self.connection.reads(written.is_ready(), Instant::now());
        written
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
        self.note_write(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.note_write(written)
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
