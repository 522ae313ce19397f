//! The chapter of `test kernels`.

use anyhow::Result;
use serde::Deserialize;
use serde_json::Value;

use super::{Page, table::Table, typed};

#[derive(Deserialize)]
struct Report {
    kvm: bool,
    states: u64,
    kernels: Vec<Kernel>,
}

#[derive(Deserialize)]
struct Kernel {
    kernel: String,
    passed: bool,
    seconds: f64,
}

/// Writes it.
pub fn render(results: &Value, page: &mut Page) -> Result<()> {
    let report: Report = typed(results)?;
    let speed = if report.kvm { "with KVM" } else { "without KVM, which takes its time" };
    page.say(&format!(
        "In a virtual machine for each kernel ({speed}): the loaded program against the core, verdict, bytes and \
         tables, in {} of the 30 random states that `cargo xtask test datapath` has; a node and a pair with \
         requests through the VIP, a drain and a failover, an egress by a frame of the program, and an \
         answer that a packet is too big, on veth pairs and on virtio NICs, in native mode; on veth pairs also \
         frames that the driver loses; and generic mode over packets that were merged.",
        report.states
    ));
    let mut table = Table::new(["kernel", "tests", "minutes"]);
    for Kernel { kernel, passed, seconds } in report.kernels {
        let passed = if passed { "passed" } else { "FAILED" };
        table.row([kernel, passed.to_owned(), format!("{:.0}", seconds / 60.0)]);
    }
    table.write(&mut page.text);
    Ok(())
}
