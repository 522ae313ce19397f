//! The control of the maps: from the desired state to the content of the maps.
//!
//! [`reconcile`] plans the difference, as a pure function whose order keeps flows where they are. [`engine`] has the
//! desired and the written state, applies plans through a [`lb_plane::DataPlane`], and ends expired state: base
//! owners, pins, drains, ramps. Nothing else writes maps.
//!
//! Time comes as an argument, and reachability, health and the records of peers come as values. It does not depend on
//! configuration files, requests, sockets or the user that requests a change.

pub mod engine;
pub mod reconcile;
