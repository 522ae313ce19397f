//! The desired state of the balancer, and the vocabulary of the parts that plan, write and read its maps.
//!
//! - The desired state: [`desired`], with [`policy`] and [`check`]; how it is changed
//!   ([`edit`], [`overrides`]), compared ([`diff`], by the [`keys`] of configurations) and judged ([`rules`]); what a
//!   change would do ([`plan`]) and why it is not done ([`refusal`]).
//! - The identity of backends: [`backend_address`].
//! - Virtual routers and their states: [`router`].
//! - The rules of rings: [`maglev`], [`ring`].
//! - The entries of the maps and their sources: [`entry`], [`flow`], [`hop`], [`seen`].
//!
//! It knows nothing of maps, sockets and files, and of no other crate of the user side; any of them may use it. The
//! clocks are read in [`time`] alone.

pub mod backend_address;
pub mod check;
pub mod defaults;
pub mod desired;
pub mod diff;
pub mod edit;
pub mod entry;
pub mod flow;
pub mod hop;
pub mod keys;
pub mod log;
pub mod maglev;
pub mod overrides;
pub mod plan;
pub mod policy;
pub mod prefix;
pub mod refusal;
pub mod ring;
pub mod router;
pub mod rules;
pub mod seen;
pub mod settings;
pub mod time;
pub mod units;
