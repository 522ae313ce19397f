//! What the kernel is to take, and is asked again for when a signal has come meanwhile.

use aya::programs::{self, ProgramError};

/// Has the kernel take a program. The verifier gives up when a signal comes meanwhile (`do_check()` in
/// kernel/bpf/verifier.c), and is then asked again, as often as libbpf does.
///
/// # Errors
///
/// If the kernel refuses it.
pub fn load_program(program: &mut impl Loadable) -> Result<(), ProgramError> {
    const ATTEMPTS: u8 = 5;
    for _ in 1..ATTEMPTS {
        match program.load() {
            Err(ProgramError::LoadError { io_error, .. })
                if io_error.raw_os_error() == Some(libc::EAGAIN) => {}
            done => return done,
        }
    }
    program.load()
}

/// A kind of program.
pub trait Loadable {
    /// Has the kernel take it.
    ///
    /// # Errors
    ///
    /// If the kernel refuses it, or was interrupted.
    fn load(&mut self) -> Result<(), ProgramError>;
}

impl Loadable for programs::Xdp {
    fn load(&mut self) -> Result<(), ProgramError> {
        self.load()
    }
}

impl Loadable for programs::SchedClassifier {
    fn load(&mut self) -> Result<(), ProgramError> {
        self.load()
    }
}
