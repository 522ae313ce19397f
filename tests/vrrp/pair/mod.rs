//! Two `lbd` that stand for each other, and real clients who are to notice nothing of what befalls
//! them.

mod agreement;
mod clients;
mod faults;
mod lease;
mod partition;
mod preemption;
mod rolling;
mod serving;
