//! The grammar of `lbd`.

use std::path::PathBuf;

use clap::Parser;

use crate::config;

/// Loads the balancer's program, keeps its maps as the configuration and lbctl want them, and
/// serves lbctl. Forwarding goes on when it ends; `lbctl detach` ends that.
#[derive(Debug, Parser)]
#[command(name = "lbd", version)]
pub struct Lbd {
    /// The configuration.
    #[arg(long, default_value = config::DEFAULT_FILE)]
    pub config: PathBuf,
    /// Tell every mistake in a configuration, and exit: 0 for none, 2 for some.
    #[arg(long, value_name = "FILE", conflicts_with = "force")]
    pub check: Option<PathBuf>,
    /// Replace a foreign XDP program on an interface.
    #[arg(long)]
    pub force: bool,
}
