//! The control of the maps: from the desired state to the content of the maps.
//!
//! [`reconcile`] plans the difference, as a pure function whose order keeps flows where they are. [`engine`] holds what
//! is desired and what was written, applies plans through a [`lb_datapath::DataPlane`], and ends what has run out: base
//! owners, pins, drains, ramps. Nothing else writes maps.
//!
//! Time comes as an argument, and reachability, health and the records of peers come as values. It knows nothing of
//! configuration files, requests, sockets or the user that requests a change.

pub mod engine;
pub mod reconcile;
