//! The control plane, over maps in memory: requests, signals and commands in, answers out.

mod cli;
mod common;
mod config;
mod daemon;
mod fakes;
mod handover;
mod history;
mod operations;
mod pair;
mod storage;
mod validation;
