//! The interfaces of `lbd`: the HTTP listener, the Unix socket, the log; admission, answers with and
//! without credentials, and the cost of a flood for others.

mod client;
mod files;
mod flood;
mod logs;
mod looking;
mod secrets;
mod user;

use std::time::Duration;

use anyhow::Result;
use kit::{
    balancer::Balancer,
    lab::{Lab, Options},
    ways::Way,
};

const WAY: Way = Way::DsrV4;
const PORT: u16 = 9105;
const PATIENCE: Duration = Duration::from_secs(10);

/// A lab with one web host, and `lbd` with more tables in its configuration; it is not started.
fn testbed(more: impl FnOnce(&Lab) -> String) -> Result<(Lab, Balancer)> {
    let lab = Lab::new(&Options { webs: 1, ..Options::default() })?;
    let balancer = Balancer::on(&lab, &lab.balancer, &[WAY.service(&lab)], &more(&lab))?;
    Ok((lab, balancer))
}
