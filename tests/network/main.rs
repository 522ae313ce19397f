//! Real hosts in network namespaces around one balancer, or several that serve a VIP at once: what clients,
//! backends and the kernel see of it.

mod attack;
mod commands;
mod datapath_lifecycle;
mod datapath_tc;
mod decap_follow;
mod decap_loader;
mod ecmp;
mod egress;
mod faults;
mod forwarding;
mod handover;
mod health;
mod health_vip;
mod lab;
mod lab_failover;
mod lifecycle;
mod local;
mod local_clients;
mod mtu;
mod names;
mod nat;
mod nat_connections;
mod nat_postgres;
mod nat_ranges;
mod netlink;
mod netns;
mod probe;
mod quic;
mod raw_ip;
mod rolling;
mod short;
mod tc;
mod tx_errors;
mod wide;
