//! Services with several VIPs or ports, over the lab's VIPs, and clients that use one source port for several destinations.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    ops::Range,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    http::{Connection, Response},
    lab::{Lab, VIPS_V4, VIPS_V6},
    nginx::PORTS,
    ways::Way,
};

/// The prefix that has the lab's IPv4 VIPs, and that of the IPv6 VIPs.
pub const PREFIXES: [&str; 2] = ["10.0.0.100/30", "fd00::100/127"];

const PATIENCE: Duration = Duration::from_secs(5);

/// The table of a service over so many web hosts, by this way; VIPs and ports are as configurations have them.
#[must_use]
pub fn table(lab: &Lab, name: &str, extent: (&str, &str), way: Way, hosts: usize) -> String {
    table_by(way.mode(), lab, name, extent, way, hosts)
}

/// The same in mode `nat`.
#[must_use]
pub fn table_of_nat(lab: &Lab, name: &str, extent: (&str, &str), way: Way, hosts: usize) -> String {
    table_by("nat", lab, name, extent, way, hosts)
}

fn table_by(
    mode: &str,
    lab: &Lab,
    name: &str,
    (vips, ports): (&str, &str),
    way: Way,
    hosts: usize,
) -> String {
    let backend = |web| format!("[[service.backend]]\naddress = \"{}\"\n", way.backend(web));
    let backends: String = lab.webs.iter().take(hosts).map(backend).collect();
    format!(
        "\n[[service]]\nname = \"{name}\"\nvip = \"{vips}\"\nport = {ports}\nprotocol = \"tcp\"\n\
         mode = \"{mode}\"\nidle_timeout = \"20s\"\n[service.check]\ntype = \"http\"\npath = \"/health\"\n\
         port = 80\ninterval = \"200ms\"\n{backends}"
    )
}

/// The destinations of a family at which nginx listens.
#[must_use]
pub fn destinations(v6: bool) -> Vec<SocketAddr> {
    let vips: Vec<IpAddr> = match v6 {
        false => VIPS_V4.map(IpAddr::from).to_vec(),
        true => VIPS_V6.map(IpAddr::from).to_vec(),
    };
    vips.iter().flat_map(|vip| PORTS.map(|port| SocketAddr::new(*vip, port))).collect()
}

/// Connections from each of some source ports to each of some destinations, with the hosts that have answered.
#[derive(Debug)]
pub struct Connections(BTreeMap<(u16, SocketAddr), (Connection, String)>);

impl Connections {
    /// Opens them, one after the other.
    ///
    /// # Errors
    ///
    /// If one is not answered.
    pub fn open(lab: &Lab, ports: Range<u16>, destinations: &[SocketAddr]) -> Result<Self> {
        let mut all = BTreeMap::new();
        for port in ports {
            for to in destinations {
                let open = || Connection::open_here_from(port, *to, PATIENCE);
                let mut connection = lab.client.namespace.enter(open)??;
                let host = host(&mut connection).with_context(|| format!("{port} > {to}"))?;
                all.insert((port, *to), (connection, host));
            }
        }
        Ok(Self(all))
    }

    /// Each is answered by the host that it was opened to.
    ///
    /// # Errors
    ///
    /// If one is not.
    pub fn go_on(&mut self) -> Result<()> {
        for ((port, to), (connection, known)) in &mut self.0 {
            let host = host(connection).with_context(|| format!("{port} > {to} at {known}"))?;
            ensure!(host == *known, "{port} > {to} was at {known}, and is at {host}");
        }
        Ok(())
    }

    /// Source port, destination and host of each.
    pub fn iter(&self) -> impl Iterator<Item = (u16, SocketAddr, &str)> {
        self.0.iter().map(|((port, to), (_, host))| (*port, *to, host.as_str()))
    }
}

fn host(connection: &mut Connection) -> Result<String> {
    Ok(connection.get("/").and_then(Response::ok)?.text().trim().to_owned())
}
