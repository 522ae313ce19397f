//! What the XDP programs share.
#![no_std]

pub mod frame;
pub mod pull;
