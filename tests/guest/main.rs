//! What a host's own kernel must not run, or does not have: only `cargo xtask test kernels` runs it, in a virtual machine for
//! each kernel, and no other suite does. Without the variable that the virtual machine's script sets it refuses.

mod bond;
mod e1000;
mod generic;
mod serving;
mod tunnels;

use std::env;

use anyhow::{Result, ensure};

/// The variable that `xtask/src/kernels.rs` sets in a virtual machine alone.
const VARIABLE: &str = "LB_DISPOSABLE_KERNEL";

fn is_disposable() -> Result<()> {
    ensure!(
        env::var(VARIABLE).is_ok(),
        "generic XDP behind GRO can panic a kernel of 6.9 or later: `cargo xtask test kernels` runs this in a virtual \
         machine, and nothing may run it on a host's own kernel"
    );
    Ok(())
}
