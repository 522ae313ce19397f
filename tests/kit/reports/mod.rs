//! The results of the commands that measure, one file for each: the types that a command writes as JSON into its
//! record ([`crate::record`]) and that the documents are made of, and the tables that it prints.

pub mod advertisements;
pub mod attack;
pub mod datapath;
pub mod failover;
pub mod health;
pub mod http;
pub mod instructions;
pub mod metrics;
pub mod scale;
pub mod soak;
pub mod vrrp;
