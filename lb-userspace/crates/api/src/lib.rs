//! What `lbd` answers, as JSON: the types that the daemon fills and that `lbctl`, metrics, dashboard and other programs
//! read.
//!
//! It knows the model and nothing of who answers: no maps, no sockets of the kernel, no state. Fields are added with a
//! default, so that programs of different versions understand each other.

pub mod check_status;
pub mod log;
pub mod peers;
pub mod routers;
pub mod status;
