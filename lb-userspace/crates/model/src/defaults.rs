//! The default paths and names.

/// Where `lbd` looks for its configuration.
pub const CONFIG: &str = "/etc/lb/lb.toml";
/// Where links and maps are pinned by default.
pub const PIN_DIR: &str = "/sys/fs/bpf/lb";
/// Where `lbd` listens for `lbctl` by default.
pub const SOCKET: &str = "/run/lb/lbd.sock";
/// Where changes by `lbctl` are kept by default.
pub const STATE_FILE: &str = "/var/lib/lb/state.json";
/// Where the seed is kept, unless the configuration names another file, or keeps the state elsewhere.
pub const SEED_FILE: &str = "/var/lib/lb/seed";
/// The group that may use the socket by default.
pub const GROUP: &str = "lb";
