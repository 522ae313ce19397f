//! Nodes that stand in for each other: virtual routers on real links, keepalived as a peer, the flow sync, and
//! pairs of `lbd` under real clients.

mod interop;
mod pair;
mod router;
mod sync;
mod wire;
