//! The program that the engine drives: one target, which the variable `LB_FUZZ_TARGET` names.
#![no_main]

libfuzzer_sys::fuzz_target!(init: lb_fuzz::begin(), |input: &[u8]| {
    lb_fuzz::run(input);
});
