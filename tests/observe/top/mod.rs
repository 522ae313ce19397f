//! The views of operators: `lbctl top` on a real terminal, `lbctl flows` over tables that are full, and
//! the progress of commands that take long.

mod flows;
mod plain;
mod screen;
mod testbed;
