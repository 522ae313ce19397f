//! What the programs share.
#![no_std]

pub mod checksum;
pub mod fib;
pub mod frame;
pub mod pull;
pub mod skb;
