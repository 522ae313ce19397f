//! The interfaces for operators: metrics, the dashboard, `lbctl`'s views, explanations and captures,
//! `lbctl doctor`, and the listeners of `lbd`.

mod dashboard;
mod doctor;
mod doors;
mod explain;
mod metrics;
mod top;
