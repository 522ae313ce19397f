//! datapath

pub mod decap;
