//! The layout of a bbolt page and of the meta pages. Source: bbolt `internal/common/{page,meta,inode}.go`.

use std::io;

use thiserror::Error;

/// Bytes of a page as we write it. A reader takes the size from the meta page, so this suits hosts with larger pages.
pub const PAGE_SIZE: usize = 4096;
/// Bytes of a page's header: id u64, flags u16, count u16, overflow u32.
pub const PAGE_HEADER: usize = 16;
/// Bytes of a leaf element (flags u32, pos u32, key size u32, value size u32) and of a branch element (pos u32, key
/// size u32, child u64).
pub const ELEMENT: usize = 16;
/// Bytes of a bucket's header in its parent's leaf: root page u64, sequence u64. Root 0: an inline page follows.
pub const BUCKET_HEADER: usize = 16;
/// Bytes of a meta structure, checksum included.
pub const META: usize = 64;
/// The most elements of a page: its count is a u16, and bbolt takes 0xFFFF for something else in a freelist.
pub const MAX_ELEMENTS: usize = 0xFFFE;
/// The longest key.
pub const MAX_KEY: usize = 32_768;
/// The longest value.
pub const MAX_VALUE: usize = (1 << 31) - 2;
/// An inline bucket is at most this part of a page.
pub const INLINE_PART: usize = 4;

/// A page of a tree's inner levels.
pub const FLAG_BRANCH: u16 = 0x01;
/// A page with keys and values.
pub const FLAG_LEAF: u16 = 0x02;
/// Page 0 or 1.
pub const FLAG_META: u16 = 0x04;
/// A leaf element that holds a bucket.
pub const ELEMENT_BUCKET: u32 = 0x01;

const MAGIC: u32 = 0xED0C_DAED;
const VERSION: u32 = 2;
/// In a meta page: no freelist is stored, it is rebuilt by a scan. etcd always writes so.
pub const NO_FREELIST: u64 = u64::MAX;

/// Why a file is not a sound bbolt file, or could not be read.
#[derive(Debug, Error)]
pub enum BoltError {
    /// Neither meta page is valid.
    #[error("both meta pages are broken")]
    NoMeta,
    /// The file is shorter than the meta page says.
    #[error("the file has {has} bytes and needs {needs}")]
    Truncated {
        /// Its length.
        has: u64,
        /// Pages below the high-water mark, in bytes.
        needs: u64,
    },
    /// A page contradicts the format.
    #[error("page {page} is broken: {reason}")]
    BadPage {
        /// Its number.
        page: u64,
        /// What is wrong.
        reason: &'static str,
    },
    /// The file could not be read.
    #[error("read the bbolt file")]
    Io(#[source] io::Error),
}

/// Shorthand for [`BoltError::BadPage`].
pub(super) fn bad(page: u64, reason: &'static str) -> BoltError {
    BoltError::BadPage { page, reason }
}

/// The content of a meta page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Meta {
    /// Bytes of a page.
    pub page_size: u32,
    /// Root page of the bucket of buckets.
    pub root: u64,
    /// First page of the freelist, or [`NO_FREELIST`].
    pub freelist: u64,
    /// The high-water mark: every page in use is below.
    pub pages: u64,
    /// The transaction that wrote it; the higher valid one of the two counts.
    pub txid: u64,
}

impl Meta {
    /// The meta structure with its checksum.
    pub fn encode(&self) -> [u8; META] {
        let mut out = [0; META];
        let words = [
            u64::from(MAGIC) | u64::from(VERSION) << 32,
            u64::from(self.page_size),
            self.root,
            0,
            self.freelist,
            self.pages,
            self.txid,
        ];
        for (slot, word) in out.chunks_exact_mut(8).zip(words) {
            slot.copy_from_slice(&word.to_le_bytes());
        }
        let sum = fnv1a(&out[..META - 8]);
        out[META - 8..].copy_from_slice(&sum.to_le_bytes());
        out
    }

    /// The meta structure at the start of `bytes`; `None` if magic, version, checksum or page size are wrong.
    pub fn decode(bytes: &[u8]) -> Option<Meta> {
        let bytes = bytes.get(..META)?;
        let (body, sum) = bytes.split_at(META - 8);
        if u64_at(sum, 0)? != fnv1a(body) || u32_at(body, 0)? != MAGIC || u32_at(body, 4)? != VERSION {
            return None;
        }
        let page_size = u32_at(body, 8)?;
        if !page_size.is_power_of_two() || !(1024..=1 << 24).contains(&page_size) {
            return None;
        }
        Some(Meta {
            page_size,
            root: u64_at(body, 16)?,
            freelist: u64_at(body, 32)?,
            pages: u64_at(body, 40)?,
            txid: u64_at(body, 48)?,
        })
    }
}

/// A page's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageHeader {
    /// The page's own number.
    pub id: u64,
    /// One of the `FLAG_` values.
    pub flags: u16,
    /// Elements.
    pub count: u16,
    /// Further pages that belong to this one.
    pub overflow: u32,
}

impl PageHeader {
    /// The header's bytes.
    pub fn encode(&self) -> [u8; PAGE_HEADER] {
        let mut out = [0; PAGE_HEADER];
        out[..8].copy_from_slice(&self.id.to_le_bytes());
        out[8..10].copy_from_slice(&self.flags.to_le_bytes());
        out[10..12].copy_from_slice(&self.count.to_le_bytes());
        out[12..].copy_from_slice(&self.overflow.to_le_bytes());
        out
    }

    /// The header at the start of `bytes`.
    pub fn decode(bytes: &[u8]) -> Option<PageHeader> {
        let word = u32_at(bytes, 8)?;
        Some(PageHeader {
            id: u64_at(bytes, 0)?,
            flags: (word & 0xFFFF) as u16,
            count: (word >> 16) as u16,
            overflow: u32_at(bytes, 12)?,
        })
    }
}

/// FNV-1a, 64 bits.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xCBF2_9CE4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01B3))
}

/// The little-endian u32 at `at`.
pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let end = at.checked_add(4)?;
    Some(u32::from_le_bytes(bytes.get(at..end)?.try_into().ok()?))
}

/// The little-endian u64 at `at`.
pub(super) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    let end = at.checked_add(8)?;
    Some(u64::from_le_bytes(bytes.get(at..end)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_meta_survives_and_any_flipped_bit_is_noticed() {
        let meta = Meta { page_size: 4096, root: 7, freelist: NO_FREELIST, pages: 9, txid: 1 };
        let bytes = meta.encode();
        assert_eq!(Meta::decode(&bytes), Some(meta));
        for bit in 0..META * 8 {
            let mut broken = bytes;
            broken[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Meta::decode(&broken), None, "bit {bit}");
        }
        assert_eq!(Meta::decode(&bytes[..META - 1]), None);
    }

    #[test]
    fn a_page_header_survives() {
        let header = PageHeader { id: 1 << 40, flags: FLAG_LEAF, count: 65_534, overflow: 1 << 20 };
        assert_eq!(PageHeader::decode(&header.encode()), Some(header));
    }
}
