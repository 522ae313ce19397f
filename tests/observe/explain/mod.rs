//! What the balancer says that it does with a packet is what it does; what it captures is what came
//! and went.

mod agreement;
mod captures;
mod testbed;
