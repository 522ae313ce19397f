//! Virtual routers as a model: each state with each event, whole stories, what is tracked, and nodes on
//! bad links.

mod common;
mod groups;
mod listening;
mod orders;
mod pairs;
mod properties;
mod stories;
mod tracks;
mod world;
