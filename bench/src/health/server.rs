//! The server behind all backends: takes every connection, and answers each request with 200.

use std::{
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    os::fd::AsRawFd as _,
    sync::Arc,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

/// The line that it prints when it listens.
pub const READY: &str = "listening";
/// Connections that are served at once; a check is never answered later than one that is slow.
const THREADS: usize = 16;
/// Connections that may wait to be taken; the kernel's limit is raised to it.
const BACKLOG: i32 = 65_535;
/// How long a request may take.
const PATIENCE: Duration = Duration::from_secs(1);

/// Serves until its input ends.
///
/// # Errors
///
/// If it can't listen.
pub fn serve(port: u16) -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).context("listen")?;
    // The standard library sets 128. A burst that finds the queue full waits a second for its
    // SYNs to be sent again, and the benchmark would measure that.
    // SAFETY: the descriptor is an open socket.
    let listens = unsafe { libc::listen(listener.as_raw_fd(), BACKLOG) };
    ensure!(listens == 0, "listen: {}", io::Error::last_os_error());
    let listener = Arc::new(listener);
    for _ in 0..THREADS {
        let listener = Arc::clone(&listener);
        thread::spawn(move || {
            loop {
                // A client that is gone has its result already.
                if let Ok((client, _)) = listener.accept() {
                    drop(answer(client));
                }
            }
        });
    }
    println!("{READY}");
    io::copy(&mut io::stdin(), &mut io::sink()).context("wait for the end of the input")?;
    Ok(())
}

fn answer(mut client: TcpStream) -> io::Result<()> {
    client.set_read_timeout(Some(PATIENCE))?;
    let mut request = [0; 4_096];
    let mut length = 0;
    while !request[..length].ends_with(b"\r\n\r\n") {
        match client.read(&mut request[length..])? {
            0 => return Ok(()),
            read => length += read,
        }
    }
    client.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\nok\n")
}
