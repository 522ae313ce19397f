//! Two `lbd` as a pair, and real clients, which are to notice nothing of what befalls
//! them.

mod agreement;
mod clients;
mod faults;
mod lease;
mod partition;
mod preemption;
mod rolling;
mod serving;
mod wide;
