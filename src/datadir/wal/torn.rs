//! What speaks against a torn write where etcd would take a record for one. Pure.
//!
//! etcd cuts off more than that: it takes any length that points beyond the segment, and any record that does not fit and has
//! a sector of zeros, for the end, whatever follows. So two more things are damage. A length that is not that of the record's
//! own content: both stand in one write, and what is not zero of it has reached the disk. And a record behind which others go
//! on that were written only once it was durable ([`Followers`]).

use super::record::{Record, TYPE_CRC, TYPE_ENTRY, TYPE_STATE};

/// Whether a sector, or a part of one, was never written.
pub(super) fn zeros(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}

/// A record's fields before its data are no longer than this: two numbers, and the length of the data.
pub(super) const HEAD: u64 = 33;

/// What a record's beginning says of its length.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Head {
    /// It is so many bytes long.
    Of(u64),
    /// There is too little of it.
    Unknown,
    /// It is no record's.
    Bad,
}

/// etcd writes a record's kind, its checksum and, if there is any, its data, in this order (`record.pb.go`).
pub(super) fn head_of(bytes: &[u8]) -> Head {
    let mut rest = bytes;
    for (tag, last) in [(0x08, false), (0x10, false), (0x1a, true)] {
        match rest.split_first() {
            Some((found, after)) if *found == tag => rest = after,
            // A record without data ends here.
            Some((0, _)) if last => return Head::Of((bytes.len() - rest.len()) as u64),
            Some(_) => return Head::Bad,
            None => return Head::Unknown,
        }
        let Some(end) = rest.iter().position(|byte| byte & 0x80 == 0) else {
            return if rest.len() < 10 { Head::Unknown } else { Head::Bad };
        };
        let (number, after) = rest.split_at(end + 1);
        if number.len() > 10 {
            return Head::Bad;
        }
        rest = after;
        if last {
            let number = number.iter().rev().fold(0_u64, |value, byte| value.wrapping_shl(7) | u64::from(byte & 0x7f));
            return Head::Of(((bytes.len() - rest.len()) as u64).saturating_add(number));
        }
    }
    Head::Unknown
}

/// What stands behind a record that does not fit.
///
/// etcd writes entries and then a HardState, waits until they are durable, and only then writes anything more
/// (`wal.go`, `Save`). So of a machine that lost its power the last such batch may have holes, with whole records behind them;
/// but behind an entry and the HardState after it another record stands only if both had been durable.
pub(super) struct Followers {
    /// The checksum of the record before, which the next goes on from. That of the record that does not fit is not believed.
    crc: Option<u32>,
    entry: bool,
    state: bool,
}

pub(super) enum Followed {
    /// It follows, and tells nothing yet.
    On,
    /// It was written when what does not fit had been durable.
    Durable,
    /// It does not follow.
    Nothing,
}

impl Followers {
    /// Behind the record of these bytes.
    pub(super) fn behind(bytes: &[u8]) -> Followers {
        let entry = bytes.strip_prefix(&[0x08]).and_then(<[u8]>::first) == Some(&(TYPE_ENTRY as u8));
        Followers { crc: None, entry, state: false }
    }

    pub(super) fn take(&mut self, record: &Record<'_>) -> Followed {
        let fits = |crc| crc32c::crc32c_append(crc, record.data) == record.crc;
        if record.kind == TYPE_CRC || !self.crc.is_none_or(fits) {
            return Followed::Nothing;
        }
        // So it takes two that fit together.
        let fits = self.crc.replace(record.crc).is_some();
        if fits && self.state {
            return Followed::Durable;
        }
        match record.kind {
            TYPE_ENTRY => self.entry = true,
            TYPE_STATE => self.state = self.entry,
            _ => {}
        }
        Followed::On
    }
}
