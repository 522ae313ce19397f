//! The requests to `lbd` and its answers, as JSON over HTTP on a Unix socket: the types, the paths and the client. The
//! daemon fills them; `lbctl`, metrics, dashboard and other programs read them.
//!
//! It knows the model and nothing of the daemon: no maps, no sockets of the kernel, no state. Fields are added with a
//! default, so that programs of different versions understand each other.

pub mod check_status;
pub mod client;
pub mod event;
pub mod log;
pub mod paths;
pub mod peers;
pub mod requests;
pub mod routers;
pub mod status;
