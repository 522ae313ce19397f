//! The thread of the virtual routers against the kernel: two nodes and a client on a link, each in a
//! network namespace of its own.

mod addresses;
mod many;
mod takeover;
mod testbed;
mod tracking;
mod virtual_mac;
