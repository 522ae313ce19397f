//! How the balancer comes to a machine: the Debian package, systemd, what containers are made of, and the documents
//! that describe it.

mod documents;
mod manifests;
mod package;
mod systemd;
