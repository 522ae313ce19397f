//! The balancer's packets and flows, for people: the reasons of its decisions ([`explain`]), the flows in its
//! tables ([`flows`]), and its decisions as a capture ([`capture`]).
//!
//! The maps are read through [`explain::View`] and [`flows::Source`]; nothing here opens or writes one, and nothing
//! here knows a kernel. The decision itself is the core's.

pub mod capture;
pub mod explain;
pub mod flows;
