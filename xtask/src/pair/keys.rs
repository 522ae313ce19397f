//! Keys of the terminal, one by one, without the line's end.

use std::{
    io::{self, IsTerminal as _, Read as _},
    os::fd::AsFd as _,
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::termios::{self, LocalFlags, SetArg, Termios},
};

/// The terminal, which gives single keys until this is dropped.
pub struct Keys {
    before: Termios,
}

impl Keys {
    /// Listens, if there is a terminal to listen to.
    pub fn listen() -> Option<Self> {
        let input = io::stdin();
        if !input.is_terminal() {
            return None;
        }
        let before = termios::tcgetattr(&input).ok()?;
        let mut single = before.clone();
        // Ctrl-C stays what it is.
        single.local_flags.remove(LocalFlags::ICANON | LocalFlags::ECHO);
        termios::tcsetattr(&input, SetArg::TCSANOW, &single).ok()?;
        Some(Self { before })
    }

    /// The key that was pressed, if one was.
    pub fn pressed(&self) -> Option<char> {
        let input = io::stdin();
        let mut ready = [PollFd::new(input.as_fd(), PollFlags::POLLIN)];
        if poll(&mut ready, PollTimeout::ZERO).ok()? == 0 {
            return None;
        }
        let mut key = [0];
        let read = input.lock().read(&mut key).ok()?;
        (read == 1).then(|| char::from(key[0]).to_ascii_lowercase())
    }
}

impl Drop for Keys {
    fn drop(&mut self) {
        // A terminal that is gone needs nothing.
        let _ = termios::tcsetattr(io::stdin(), SetArg::TCSANOW, &self.before);
    }
}
