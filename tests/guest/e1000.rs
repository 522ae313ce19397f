//! The balancer on a network card whose driver has no XDP, as QEMU's e1000. `LB_NICS` names it, and the virtio NIC that it is
//! joined with.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result, ensure};
use kit::{
    balancer::{Balancer, Service},
    can_run_lab,
    command::{command, run},
    http::Connection,
    lab::{INTERFACE, Lab, Options},
    nics,
    uploads::{self, PORT},
    ways::Way,
};

use super::is_disposable;

/// A virtual machine without help of the processor is slow.
const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes of an upload.
const UPLOAD: usize = 2 << 20;

#[test]
fn an_e1000_gets_tc_by_itself_and_serves_downloads_and_uploads() -> Result<()> {
    is_disposable()?;
    if !can_run_lab() {
        return Ok(());
    }
    run(command("modprobe").arg("e1000"))?;
    let nics = nics::of_this_machine()?;
    ensure!(nics.len() == 1, "{} names {} pairs of NICs, and not one", nics::VARIABLE, nics.len());
    let lab = Lab::new(&Options { nics, attach: "auto", ..Options::default() })?;
    let mut ethtool = lab.balancer.namespace.command("ethtool");
    let driver = run(ethtool.args(["-i", INTERFACE]))?;
    ensure!(driver.contains("driver: e1000"), "{driver}");
    let ways = [Way::DsrV4, Way::DsrV6];
    let pages = ways.map(|way| way.service(&lab));
    let uploads = ways.map(|way| Service {
        name: format!("uploads-{}", way.name()),
        port: PORT,
        ..way.service(&lab)
    });
    let services = [pages, uploads].concat();
    let balancer = Balancer::start(&lab, &services)?;
    let status = balancer.status()?;
    let interface = &status.interfaces[0];
    ensure!(interface.attached && interface.mode == "tc", "{interface:?}");
    for way in ways {
        let address = SocketAddr::new(way.vip(), PORT);
        uploads::take(&lab, address)?;
        for seed in 0..6 {
            let page = Connection::open(&lab.client.namespace, way.target(), PATIENCE)
                .and_then(|mut connection| connection.get("/")?.ok())
                .with_context(|| format!("request {seed} by {}", way.name()))?;
            ensure!(page.text().starts_with("web"), "{}", page.text());
            uploads::send(&lab, address, UPLOAD, seed, PATIENCE)
                .with_context(|| format!("{seed} to {address}"))?;
        }
    }
    let forwarded: u64 = balancer
        .status()?
        .services
        .values()
        .flat_map(|service| service.backends.values())
        .map(|backend| backend.sent.packets)
        .sum();
    ensure!(forwarded as usize > 12 * UPLOAD / 1_448, "{forwarded} packets");
    Ok(())
}
