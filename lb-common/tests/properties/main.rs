//! What the pure core promises, as tables, stories and properties; frames are built and read by
//! etherparse, an independent library.

mod decap;
mod deliver;
mod fast_path;
mod forward;
mod fragment;
mod frames;
mod hash;
mod icmp;
mod icmp_error;
mod model;
mod nat;
mod nat_connections;
mod parse;
mod quic;
mod rewrite;
mod second_choice;
mod soft_down;
mod steer;
mod stories;
mod udp;
