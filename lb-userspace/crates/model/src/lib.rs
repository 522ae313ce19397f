//! The vocabulary of the user side: units of configurations, limits of the data plane, and the rules by which rings
//! choose and keep owners.
//!
//! Everything here is a function of its arguments. It knows nothing of maps, sockets, files or clocks, and of no other
//! crate of the user side; any of them may use it.

pub mod check;
pub mod desired;
pub mod diff;
pub mod edit;
pub mod keys;
pub mod maglev;
pub mod overrides;
pub mod plan;
pub mod policy;
pub mod prefix;
pub mod refusal;
pub mod ring;
pub mod rules;
pub mod seen;
pub mod settings;
pub mod spec;
pub mod units;
