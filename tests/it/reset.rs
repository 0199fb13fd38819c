//! Resets on real etcd: what they keep that etcd's own `--force-new-cluster` loses, and what they refuse.

/// Makes a test for each etcd version out of functions that take one.
macro_rules! for_each_line {
    ($($test:ident => $check:ident),* $(,)?) => {
        mod line_3_5 { $(#[test] fn $test() { super::$check("3.5"); })* }
        mod line_3_6 { $(#[test] fn $test() { super::$check("3.6"); })* }
        mod line_3_7 { $(#[test] fn $test() { super::$check("3.7"); })* }
    };
}

mod agreed;
mod lossless;
pub mod pods;
mod promoted;
mod recover;
