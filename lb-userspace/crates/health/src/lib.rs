//! Whether backends can serve: checks ([`check`]) as services configure them ([`Policy`]), and their results.
//!
//! Checks only report what they saw of a backend ([`Seen`]); the engine makes owners of it, as it does
//! of what the operator wants.
//!
//! The path of a result: [`prober`] probes a backend when its deadline comes, [`fsm`] makes a state of the results,
//! and the daemon passes the states to the engine as a [`View`], beside the desired state, which they never change.
//! Then `reconcile::choose` selects the owners of the ring: backends that are up, then those that are held back,
//! then backups; in panic all that can be reached. Soft down takes a backend out of the ring. Hard down makes its
//! entry unusable as well, and its flows move.
//!
//! After a start, the state that the maps have of a backend (out of its ring, or unusable) holds until a check has
//! a result.
//!
//! It knows how backends are reached and what answers mean, and nothing of maps, rings or the daemon.
//!
//! [`check`]: lb_model::check
//! [`Policy`]: lb_model::policy::Policy
//! [`Seen`]: lb_model::seen::Seen
//! [`View`]: lb_model::seen::View

pub mod assign;
pub(crate) mod damping;
pub mod fsm;
pub mod probe;
pub mod prober;
pub mod vip;
