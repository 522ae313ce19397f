//! How the balancer comes to a machine: the Debian package, systemd, and what containers are made of.

mod manifests;
mod package;
mod systemd;
