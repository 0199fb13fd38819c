//! Writes a bbolt file in one pass, in key order, without ever going back except for the two meta pages.
//!
//! A leaf is filled until the next element would not fit and then appended to the file; its first key and page number
//! go to the branch above, which is appended when it is full, and so on. What is held in memory is one unfinished page
//! for each level of the tree and the write buffer, whatever the number of keys. There is no freelist page, because
//! no page is free.

use std::io;
use std::path::Path;

use thiserror::Error;

use super::page::{
    BUCKET_HEADER, ELEMENT, ELEMENT_BUCKET, FLAG_BRANCH, FLAG_LEAF, FLAG_META, INLINE_PART, MAX_ELEMENTS, MAX_KEY,
    MAX_VALUE, Meta, NO_FREELIST, PAGE_HEADER, PAGE_SIZE, PageHeader,
};
use crate::disk::{Disk, DiskFile};

/// Leaves are filled up to this size, with overflow pages. Larger than a page, because values of about a KiB would
/// leave a fifth of each page empty; small enough that etcd, which rewrites a leaf as a whole, does not notice.
const LEAF_FILL: usize = 4 * PAGE_SIZE;
/// Branches are filled up to this size, but always have at least two children.
const BRANCH_FILL: usize = PAGE_SIZE;
/// What is gathered before it is handed to the disk.
const BUFFER: usize = 1 << 20;
/// The first page after the meta pages.
const FIRST_PAGE: u64 = 2;

/// Why a bbolt file could not be written.
#[derive(Debug, Error)]
pub enum BoltWriteError {
    /// A key is empty or too long, or a value too long.
    #[error("a key of {key} bytes with a value of {value} bytes does not fit")]
    Size {
        /// Bytes of the key.
        key: usize,
        /// Bytes of the value.
        value: usize,
    },
    /// Keys must come in strictly ascending order.
    #[error("a key is not above the one before")]
    NotAscending,
    /// The same bucket was begun twice.
    #[error("bucket {0} was written twice")]
    DuplicateBucket(String),
    /// The disk failed.
    #[error("write the bbolt file")]
    Io(#[source] io::Error),
}

/// A bbolt file being written.
pub struct BoltWriter {
    sink: Sink,
    buckets: Vec<(Vec<u8>, Vec<u8>)>,
}

impl BoltWriter {
    /// Creates the file at `path`, which must not exist, readable by its owner only.
    pub fn create(disk: &dyn Disk, path: &Path) -> Result<BoltWriter, BoltWriteError> {
        let file = disk.create(path, 0o600).map_err(BoltWriteError::Io)?;
        let sink = Sink { file, buffer: Vec::with_capacity(BUFFER + LEAF_FILL), written: 0, pages: FIRST_PAGE };
        Ok(BoltWriter { sink, buckets: Vec::new() })
    }

    /// Adds a key, above all before it, whose value is the concatenation of `value`, to an unfinished bucket.
    /// Several buckets may be unfinished at a time.
    pub fn put(&mut self, bucket: &mut BucketTree, key: &[u8], value: &[&[u8]]) -> Result<(), BoltWriteError> {
        bucket.put(&mut self.sink, key, value, 0)
    }

    /// Ends a bucket and gives it its name. A small one becomes inline, as bbolt would write it.
    pub fn end_bucket(&mut self, name: &str, mut bucket: BucketTree) -> Result<(), BoltWriteError> {
        if self.buckets.iter().any(|(known, _)| known == name.as_bytes()) {
            return Err(BoltWriteError::DuplicateBucket(name.to_owned()));
        }
        let mut value = vec![0; BUCKET_HEADER];
        if bucket.levels.is_empty() && bucket.leaf.size() <= PAGE_SIZE / INLINE_PART {
            bucket.leaf.encode(0, 0, &mut value);
        } else {
            let root = bucket.root(&mut self.sink)?;
            value[..8].copy_from_slice(&root.to_le_bytes());
        }
        self.buckets.push((name.as_bytes().to_owned(), value));
        Ok(())
    }

    /// Bytes of finished pages, meta pages excluded.
    pub fn bytes(&self) -> u64 {
        (self.sink.pages - FIRST_PAGE) * PAGE_SIZE as u64
    }

    /// Bytes already handed to the disk.
    pub fn bytes_flushed(&self) -> u64 {
        self.sink.written
    }

    /// Writes the bucket of buckets and the meta pages, makes the file durable and gives its length.
    pub fn finish(mut self) -> Result<u64, BoltWriteError> {
        self.buckets.sort();
        let mut tree = BucketTree::new();
        for (name, value) in &self.buckets {
            tree.put(&mut self.sink, name, &[value], ELEMENT_BUCKET)?;
        }
        let root = tree.root(&mut self.sink)?;
        self.sink.flush()?;
        let mut head = vec![0; 2 * PAGE_SIZE];
        for (txid, page) in head.chunks_exact_mut(PAGE_SIZE).enumerate() {
            let txid = txid as u64;
            let header = PageHeader { id: txid, flags: FLAG_META, count: 0, overflow: 0 };
            let meta = Meta { page_size: PAGE_SIZE as u32, root, freelist: NO_FREELIST, pages: self.sink.pages, txid };
            let meta = meta.encode();
            page[..PAGE_HEADER].copy_from_slice(&header.encode());
            page[PAGE_HEADER..PAGE_HEADER + meta.len()].copy_from_slice(&meta);
        }
        self.sink.file.write_at(&head, 0).map_err(BoltWriteError::Io)?;
        self.sink.file.sync().map_err(BoltWriteError::Io)?;
        Ok(self.sink.pages * PAGE_SIZE as u64)
    }
}

/// A bucket being written: its unfinished leaf, and an unfinished branch for each level above.
pub struct BucketTree {
    leaf: Node,
    levels: Vec<Node>,
    last_key: Vec<u8>,
}

impl Default for BucketTree {
    fn default() -> Self {
        BucketTree::new()
    }
}

impl BucketTree {
    /// An empty bucket.
    pub fn new() -> BucketTree {
        BucketTree { leaf: Node::leaf(), levels: Vec::new(), last_key: Vec::new() }
    }

    fn put(&mut self, sink: &mut Sink, key: &[u8], value: &[&[u8]], flags: u32) -> Result<(), BoltWriteError> {
        let value_size = value.iter().map(|part| part.len()).sum::<usize>();
        if key.is_empty() || key.len() > MAX_KEY || value_size > MAX_VALUE {
            return Err(BoltWriteError::Size { key: key.len(), value: value_size });
        }
        // An empty last key is that of the first call: keys are never empty.
        if key <= self.last_key.as_slice() {
            return Err(BoltWriteError::NotAscending);
        }
        self.last_key.clear();
        self.last_key.extend_from_slice(key);
        if !self.leaf.fits(key.len() + value_size) {
            self.flush_leaf(sink)?;
        }
        self.leaf.push(u64::from(flags), key, value);
        Ok(())
    }

    fn flush_leaf(&mut self, sink: &mut Sink) -> Result<(), BoltWriteError> {
        let page = sink.append(&self.leaf)?;
        let key = std::mem::take(&mut self.leaf.first_key);
        self.leaf.clear();
        self.add_child(sink, 0, &key, page)
    }

    /// Adds a finished page to the branch at `level`, first finishing those that it does not fit into.
    fn add_child(&mut self, sink: &mut Sink, level: usize, key: &[u8], page: u64) -> Result<(), BoltWriteError> {
        if self.levels.len() == level {
            self.levels.push(Node::branch());
        }
        if !self.levels[level].fits(key.len()) {
            let full = sink.append(&self.levels[level])?;
            let first_key = std::mem::take(&mut self.levels[level].first_key);
            self.levels[level].clear();
            self.add_child(sink, level + 1, &first_key, full)?;
        }
        self.levels[level].push(page, key, &[]);
        Ok(())
    }

    /// Finishes all levels and gives the root page.
    fn root(&mut self, sink: &mut Sink) -> Result<u64, BoltWriteError> {
        if self.levels.is_empty() {
            return sink.append(&self.leaf);
        }
        if self.leaf.count() > 0 {
            self.flush_leaf(sink)?;
        }
        let mut level = 0;
        loop {
            let node = &self.levels[level];
            let top = level + 1 == self.levels.len();
            // A lone child of the topmost branch is the root itself.
            if top && node.count() == 1 {
                return Ok(node.elements[0].0);
            }
            let page = sink.append(node)?;
            if top {
                return Ok(page);
            }
            let key = std::mem::take(&mut self.levels[level].first_key);
            self.add_child(sink, level + 1, &key, page)?;
            level += 1;
        }
    }
}

/// An unfinished page. Its buffers are reused for the next one, so that a key costs no allocation.
struct Node {
    flags: u16,
    fill: usize,
    least: usize,
    /// Element flags (leaf) or child page (branch), bytes of the key, bytes of the value.
    elements: Vec<(u64, u32, u32)>,
    data: Vec<u8>,
    first_key: Vec<u8>,
}

impl Node {
    fn leaf() -> Node {
        let (elements, data) = (Vec::new(), Vec::new());
        Node { flags: FLAG_LEAF, fill: LEAF_FILL, least: 1, elements, data, first_key: Vec::new() }
    }

    fn branch() -> Node {
        Node { flags: FLAG_BRANCH, fill: BRANCH_FILL, least: 2, ..Node::leaf() }
    }

    fn count(&self) -> usize {
        self.elements.len()
    }

    fn size(&self) -> usize {
        PAGE_HEADER + self.count() * ELEMENT + self.data.len()
    }

    /// Whether an element with `data` bytes of key and value is to go to this page.
    fn fits(&self, data: usize) -> bool {
        self.count() < self.least || (self.size() + ELEMENT + data <= self.fill && self.count() < MAX_ELEMENTS)
    }

    fn push(&mut self, tag: u64, key: &[u8], value: &[&[u8]]) {
        if self.elements.is_empty() {
            self.first_key.extend_from_slice(key);
        }
        self.data.extend_from_slice(key);
        let before = self.data.len();
        for part in value {
            self.data.extend_from_slice(part);
        }
        // Both sizes were bounded by MAX_KEY and MAX_VALUE in `BucketTree::put`; a branch has no values.
        self.elements.push((tag, key.len() as u32, (self.data.len() - before) as u32));
    }

    fn clear(&mut self) {
        self.elements.clear();
        self.data.clear();
    }

    /// Appends the page's bytes, without padding, to `out`.
    fn encode(&self, id: u64, overflow: u32, out: &mut Vec<u8>) {
        let header = PageHeader { id, flags: self.flags, count: self.count() as u16, overflow };
        out.extend_from_slice(&header.encode());
        // An element's position counts from the element itself.
        let mut at = self.count() * ELEMENT;
        for (tag, key, value) in &self.elements {
            let mut element = [0; ELEMENT];
            let position = (at as u32).to_le_bytes();
            if self.flags == FLAG_LEAF {
                element[..4].copy_from_slice(&(*tag as u32).to_le_bytes());
                element[4..8].copy_from_slice(&position);
                element[8..12].copy_from_slice(&key.to_le_bytes());
                element[12..].copy_from_slice(&value.to_le_bytes());
            } else {
                element[..4].copy_from_slice(&position);
                element[4..8].copy_from_slice(&key.to_le_bytes());
                element[8..].copy_from_slice(&tag.to_le_bytes());
            }
            out.extend_from_slice(&element);
            at = at - ELEMENT + (*key + *value) as usize;
        }
        out.extend_from_slice(&self.data);
    }
}

/// The end of the file: numbers pages and hands them to the disk in large pieces.
struct Sink {
    file: Box<dyn DiskFile>,
    buffer: Vec<u8>,
    /// Bytes flushed, meta pages excluded.
    written: u64,
    /// The next page's number.
    pages: u64,
}

impl Sink {
    fn append(&mut self, node: &Node) -> Result<u64, BoltWriteError> {
        let id = self.pages;
        let pages = node.size().div_ceil(PAGE_SIZE);
        // At most MAX_VALUE + MAX_KEY + LEAF_FILL bytes, so well below 2^32 pages.
        node.encode(id, (pages - 1) as u32, &mut self.buffer);
        let padded = self.buffer.len().next_multiple_of(PAGE_SIZE);
        self.buffer.resize(padded, 0);
        self.pages += pages as u64;
        if self.buffer.len() >= BUFFER {
            self.flush()?;
        }
        Ok(id)
    }

    fn flush(&mut self) -> Result<(), BoltWriteError> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let offset = FIRST_PAGE * PAGE_SIZE as u64 + self.written;
        let length = self.buffer.len() as u64;
        self.file.write_at(&self.buffer, offset).map_err(BoltWriteError::Io)?;
        self.file.start_writeback(offset, length);
        self.written += length;
        self.buffer.clear();
        // One huge value must not keep its buffer for the rest of the run.
        self.buffer.shrink_to(BUFFER + LEAF_FILL);
        Ok(())
    }
}
