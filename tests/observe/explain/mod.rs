//! `lbctl explain` agrees with the program's verdicts; `lbctl capture` agrees with the packets on the
//! wire.

mod agreement;
mod captures;
mod testbed;
