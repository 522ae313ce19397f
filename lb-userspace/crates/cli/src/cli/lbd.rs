//! The grammar of `lbd`.

use std::path::PathBuf;

use clap::Parser;
use lb_model::defaults;

/// Loads the balancer's program, keeps its maps as the configuration and lbctl want them, and
/// serves lbctl. Forwarding goes on when it ends; `lbctl detach` ends that.
#[derive(Debug, Parser)]
#[command(name = "lbd", version)]
pub struct Lbd {
    /// The configuration.
    #[arg(long, default_value = defaults::CONFIG)]
    pub config: PathBuf,
    /// Print every mistake in a configuration, and exit: 0 for none, 2 for some, 1 if all that is wrong are
    /// files that it names.
    #[arg(long, value_name = "FILE", conflicts_with = "force")]
    pub check: Option<PathBuf>,
    /// Replace a foreign XDP program on an interface.
    #[arg(long)]
    pub force: bool,
    /// Do what takes root before lbd starts as another user, and exit: mount the BPF file system, make the
    /// folder of the pins, and pin what an earlier version has left there without.
    #[arg(long, value_name = "PIN_DIR", conflicts_with_all = ["force", "check"])]
    pub prepare: Option<PathBuf>,
    /// Take off the addresses that the virtual routers of an lbd have left that has ended, and exit. It reads how
    /// that ended from SERVICE_RESULT, EXIT_CODE and EXIT_STATUS, as systemd sets them for ExecStopPost: after a
    /// crash the addresses stay, for the next start goes on with them.
    #[arg(long, conflicts_with_all = ["force", "check", "prepare"])]
    pub release: bool,
}
