//! What the kernel side and the user side of the balancer must agree on, and the pure core of the
//! data plane.
//!
//! Nothing here does I/O: the same source is compiled for the kernel (by `lb-ebpf`), for the
//! daemon and for the tests, which compare the two on the same packets. The walk of a packet is
//! [`forward::decide`]; the layout of every map is in [`abi`]; every way in which a packet can end
//! is in [`verdict`].
#![no_std]
#![deny(unsafe_code)]

pub mod abi;
pub mod capture;
pub mod choice;
pub mod decap;
pub mod deliver;
pub mod fast_path;
pub mod forward;
pub mod fragment;
pub mod gso;
pub mod hash;
pub mod icmp_error;
#[cfg(feature = "model")]
pub mod model;
pub mod nat;
pub mod nat_connections;
pub mod packet;
mod pinning;
#[cfg(feature = "user")]
#[expect(unsafe_code, reason = "aya::Pod is an unsafe trait; zerocopy has proved what it asks for")]
mod pod;
pub mod quoted;
pub mod return_route;
pub mod returns;
pub mod rewrite;
pub mod second_choice;
pub mod service_index;
pub mod shared;
pub mod steer;
pub mod tables;
pub mod token_bucket;
pub mod tx_errors;
pub mod unfinished;
pub mod verdict;
pub mod wide;
