//! The only user of aya, and of raw system calls about BPF: loads, attaches and pins the program,
//! and holds the maps.
//!
//! [`Xdp`] is the [`lb_plane::DataPlane`] in the kernel. [`objects`] are the programs, which this crate's build script
//! compiles with bpf-linker. It knows entries and slots, and nothing of what is desired of them, of health or of other
//! nodes.

mod attach;
mod bpffs;
mod capture;
mod clsact;
mod counters;
mod data_plane;
pub mod decap;
mod detach;
mod flow_reader;
mod folders;
pub mod kernel;
mod kernel_link;
mod layouts;
mod live_frames;
mod load;
mod loadable;
mod local_clients;
mod maps;
mod migrate;
mod mmap;
pub mod objects;
mod own_macs;
mod pin_log;
mod pin_names;
mod pinned;
mod port_blocks;
mod prepare;
pub mod probe;
mod program_log;
mod program_pins;
mod pull;
mod reverse_nat;
mod rings;
mod service_index;
mod struct_offsets;
mod sys;
mod tx_errors;
mod variants;
mod verify;
mod view;
mod wide_index;
mod xdp;

pub use detach::detach;
pub use flow_reader::{FlowReader, stand_back};
pub use live_frames::{LiveProgram, Served};
pub use loadable::load_program;
pub use local_clients::{cgroup_root, serves_local_clients};
pub use maps::pin_rings;
pub use migrate::Step;
pub use mmap::Mapped;
pub use prepare::prepare;
pub use pull::{is_possible as pulls_data, with_pull_data};
pub use reverse_nat::prefixes as reverse_prefixes;
pub use tx_errors::{TxError, TxErrors};
pub use wide_index::tries as service_tries;
pub use xdp::Xdp;
