//! The file formats against real etcd: what we write it serves, what it writes we read.

/// Makes a test for each etcd version out of functions that take one.
macro_rules! for_each_line {
    ($($test:ident => $check:ident),* $(,)?) => {
        mod line_3_5 { $(#[test] fn $test() { super::$check("3.5"); })* }
        mod line_3_6 { $(#[test] fn $test() { super::$check("3.6"); })* }
        mod line_3_7 { $(#[test] fn $test() { super::$check("3.7"); })* }
    };
}

mod damage;
mod log_tail;
pub mod read;
mod refused;
mod restored;
pub mod store;
mod written;
