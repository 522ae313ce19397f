//! The state file: any bytes are a clear error, or a state that is equal when it was written and read
//! again.

use lb_daemon::state_file::{self, State};
use lb_model::{overrides::Overrides, rules, settings::Limits};

/// Takes the bytes of a file.
pub fn run(bytes: &[u8]) {
    let state = match state_file::parse(bytes) {
        Ok(state) => state,
        Err(reason) => {
            assert!(!reason.is_empty(), "the error has no text");
            return;
        }
    };
    let text = state_file::text(&state).expect("a state can be written");
    let again = state_file::parse(&text).expect("what was written is read");
    assert_eq!(again, state);
    put_in_force(&state);
}

/// Applies a state, as the daemon does.
fn put_in_force(state: &State) {
    let desired = state.overrides.apply(&state.configured);
    let _ = rules::violations(&desired, &Limits::default());
    let overrides = Overrides::between(&state.configured, &desired);
    let same = overrides.apply(&state.configured);
    assert_eq!(same, desired, "what is in force, as changes of what is configured");
}
