//! Uploads through the balancer: random bytes, of which the receiving host returns the length and a hash.

use std::{
    hash::{DefaultHasher, Hasher as _},
    io::{Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

use crate::{datapath::generate::Random, lab::Lab};

/// Where uploads are taken.
pub const PORT: u16 = 9000;

/// Takes uploads to `address` on every web host, for as long as the process lives.
///
/// # Errors
///
/// The address is none of a host's, or is in use.
pub fn take(lab: &Lab, address: SocketAddr) -> Result<()> {
    for web in &lab.webs {
        let listener = web.host.namespace.enter(|| TcpListener::bind(address))?;
        let listener = listener.with_context(|| format!("listen on {address}"))?;
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                thread::spawn(move || answer(stream));
            }
        });
    }
    Ok(())
}

fn answer(mut stream: TcpStream) {
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes);
    let _ = writeln!(stream, "{}", summary(&bytes));
}

fn summary(bytes: &[u8]) -> String {
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    format!("{} {}", bytes.len(), hasher.finish())
}

/// Sends so many bytes from the client, of which all must arrive. Each step may take so long.
///
/// # Errors
///
/// They do not arrive, or are others.
pub fn send(
    lab: &Lab,
    address: SocketAddr,
    bytes: usize,
    seed: u64,
    patience: Duration,
) -> Result<()> {
    let mut random = Random(seed);
    let bytes: Vec<u8> = (0..bytes / 8).flat_map(|_| random.next().to_le_bytes()).collect();
    let open = || TcpStream::connect_timeout(&address, patience);
    let mut stream = lab.client.namespace.enter(open)?.context("connect")?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    stream.write_all(&bytes).context("upload")?;
    stream.shutdown(Shutdown::Write).context("end the upload")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).context("read the answer")?;
    ensure!(answer.trim() == summary(&bytes), "{answer}");
    Ok(())
}
