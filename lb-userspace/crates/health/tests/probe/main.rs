//! Probes of checks, sent to real sockets on the loopback interface: of servers that answer as
//! they should, and of all the kinds that don't.

mod exec;
mod http;
mod kit;
mod limits;
mod tls;
mod udp;
