//! The I/O that fills [`super::Facts`].
