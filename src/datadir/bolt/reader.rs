//! Reads a bbolt file that may be damaged or hostile: every number is checked before it is used.
//!
//! Memory is bounded by one page for each level of the tree. Time is bounded because keys must ascend strictly over a
//! whole walk, so that no page is gone through twice, and because a tree deeper than 32 levels is refused.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::page::{
    BUCKET_HEADER, BoltError, ELEMENT, ELEMENT_BUCKET, FLAG_BRANCH, FLAG_LEAF, META, Meta, PAGE_HEADER, PageHeader,
    bad, u32_at, u64_at,
};

/// A bbolt tree has a fanout of at least two below the root, so this is enough for any file.
const MAX_DEPTH: usize = 32;
/// The largest page with its overflow that is read into memory: the largest value that etcd can hold, by far.
const MAX_NODE: u64 = 256 << 20;
/// The same for a branch, of which one for each level is held in memory: etcd's are a page or two.
const MAX_BRANCH: u64 = 4 << 20;
/// The memory of a page up to this size is used again for the next.
const KEEP: usize = 1 << 20;

/// A key and its value.
pub type Pair<'b> = (&'b [u8], &'b [u8]);
/// A key and its value, copied.
pub type OwnedPair = (Vec<u8>, Vec<u8>);
/// A key, its value, and the page it stands on.
type Found<'b> = (&'b [u8], Element<'b>, u64);

/// Bytes at positions: a file, or a slice in tests.
pub trait ReadAt {
    /// The length in bytes.
    fn length(&self) -> io::Result<u64>;
    /// Fills `buffer` from `offset`.
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
}

impl ReadAt for File {
    fn length(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        FileExt::read_exact_at(self, buffer, offset)
    }
}

impl ReadAt for &[u8] {
    fn length(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let end = || io::Error::from(io::ErrorKind::UnexpectedEof);
        let start = usize::try_from(offset).map_err(|_| end())?;
        let stop = start.checked_add(buffer.len()).ok_or_else(end)?;
        buffer.copy_from_slice(self.get(start..stop).ok_or_else(end)?);
        Ok(())
    }
}

/// A bbolt file opened for reading, as of its newest valid meta page.
#[derive(Debug)]
pub struct BoltReader<S> {
    source: S,
    meta: Meta,
}

/// A top-level bucket.
#[derive(Clone, Debug)]
pub struct Bucket {
    root: Root,
}

#[derive(Clone, Debug)]
enum Root {
    Page(u64),
    /// The page's bytes, with the page that held the bucket for messages.
    Inline(Vec<u8>, u64),
}

impl<S: ReadAt> BoltReader<S> {
    /// Finds the newest valid meta page and checks that the file is as long as it says.
    pub fn open(source: S) -> Result<BoltReader<S>, BoltError> {
        let length = source.length().map_err(BoltError::Io)?;
        let meta = newest_meta(&source, length)?;
        let needs = meta.pages.checked_mul(u64::from(meta.page_size)).ok_or(BoltError::NoMeta)?;
        if needs > length {
            return Err(BoltError::Truncated { has: length, needs });
        }
        Ok(BoltReader { source, meta })
    }

    /// The meta page in use.
    pub fn meta(&self) -> &Meta {
        &self.meta
    }

    /// A top-level bucket, or `None` if there is none of this name.
    pub fn bucket(&self, name: &str) -> Result<Option<Bucket>, BoltError> {
        let mut cursor = self.cursor_at(self.page(self.meta.root, Vec::new())?);
        if !cursor.seek(name.as_bytes())? {
            return Ok(None);
        }
        match cursor.next_element()? {
            Some((key, value, page)) if key == name.as_bytes() => match value {
                Element::Bucket(value) => Ok(Some(bucket_of(value, page)?)),
                Element::Value(_) => Err(bad(page, "a value where a bucket belongs")),
            },
            _ => Ok(None),
        }
    }

    /// The names of all top-level buckets, in order.
    pub fn bucket_names(&self) -> Result<Vec<String>, BoltError> {
        let mut names = Vec::new();
        let mut cursor = self.cursor_at(self.page(self.meta.root, Vec::new())?);
        while let Some((key, _, page)) = cursor.next_element()? {
            if names.len() == 1000 {
                return Err(bad(page, "more than a thousand buckets"));
            }
            names.push(String::from_utf8_lossy(key).into_owned());
        }
        Ok(names)
    }

    /// The value of a key.
    pub fn get(&self, bucket: &Bucket, key: &[u8]) -> Result<Option<Vec<u8>>, BoltError> {
        let mut cursor = self.cursor(bucket)?;
        if !cursor.seek(key)? {
            return Ok(None);
        }
        Ok(cursor.next()?.filter(|(found, _)| *found == key).map(|(_, value)| value.to_owned()))
    }

    /// A walk over a bucket from its first key.
    pub fn cursor(&self, bucket: &Bucket) -> Result<Cursor<'_, S>, BoltError> {
        let node = match &bucket.root {
            Root::Page(page) => self.page(*page, Vec::new())?,
            Root::Inline(bytes, holder) => Node::parse(bytes.clone(), *holder, None)?,
        };
        Ok(self.cursor_at(node))
    }

    /// The greatest key of a bucket and its value.
    pub fn last(&self, bucket: &Bucket) -> Result<Option<OwnedPair>, BoltError> {
        let mut node = match &bucket.root {
            Root::Page(page) => self.page(*page, Vec::new())?,
            Root::Inline(bytes, holder) => Node::parse(bytes.clone(), *holder, None)?,
        };
        for _ in 0..MAX_DEPTH {
            let Some(last) = node.count.checked_sub(1) else { return Ok(None) };
            if node.is_leaf {
                let Element::Value(value) = node.value(last)? else { return Err(bad(node.id, "a nested bucket")) };
                return Ok(Some((node.key(last)?.to_owned(), value.to_owned())));
            }
            node = self.page(node.child(last)?, Vec::new())?;
        }
        Err(bad(node.id, "the tree is too deep"))
    }

    fn cursor_at(&self, root: Node) -> Cursor<'_, S> {
        Cursor {
            reader: self,
            stack: vec![Frame { node: root, next: 0, below: None }],
            spare: Vec::new(),
            last_key: None,
        }
    }

    /// Reads a page with its overflow, into memory that is used again.
    fn page(&self, id: u64, mut bytes: Vec<u8>) -> Result<Node, BoltError> {
        let size = u64::from(self.meta.page_size);
        if id < 2 || id >= self.meta.pages {
            return Err(bad(id, "outside of the file"));
        }
        // Below `pages * page_size`, which was computed without overflow.
        let offset = id * size;
        let first = size as usize;
        bytes.resize(first, 0);
        self.source.read_exact_at(&mut bytes, offset).map_err(BoltError::Io)?;
        let header = PageHeader::decode(&bytes).ok_or_else(|| bad(id, "no header"))?;
        let span = u64::from(header.overflow) + 1;
        if span > self.meta.pages - id {
            return Err(bad(id, "its overflow is outside of the file"));
        }
        let length = span * size;
        if length > MAX_NODE || (header.flags != FLAG_LEAF && length > MAX_BRANCH) {
            return Err(bad(id, "it is larger than anything etcd writes"));
        }
        if span > 1 {
            bytes.resize(length as usize, 0);
            self.source
                .read_exact_at(bytes.get_mut(first..).unwrap_or_default(), offset + size)
                .map_err(BoltError::Io)?;
        }
        Node::parse(bytes, id, Some(id))
    }
}

/// The newest valid meta page. Page 1 stands at the page size, which is looked for if page 0 is broken.
fn newest_meta(source: &impl ReadAt, length: u64) -> Result<Meta, BoltError> {
    let meta_at = |offset: u64| {
        let mut bytes = [0; META];
        let start = offset + PAGE_HEADER as u64;
        if start + META as u64 > length {
            return Ok(None);
        }
        source.read_exact_at(&mut bytes, start).map_err(BoltError::Io)?;
        Ok(Meta::decode(&bytes))
    };
    let Some(first) = meta_at(0)? else {
        for shift in 10..=24 {
            let size = 1u64 << shift;
            if let Some(meta) = meta_at(size)?.filter(|meta| u64::from(meta.page_size) == size) {
                return Ok(meta);
            }
        }
        return Err(BoltError::NoMeta);
    };
    let second = meta_at(u64::from(first.page_size))?.filter(|meta| meta.page_size == first.page_size);
    Ok(second.filter(|second| second.txid > first.txid).unwrap_or(first))
}

fn bucket_of(value: &[u8], page: u64) -> Result<Bucket, BoltError> {
    let root = u64_at(value, 0).ok_or_else(|| bad(page, "a bucket without a header"))?;
    let root = match value.get(BUCKET_HEADER..) {
        Some(inline) if root == 0 => Root::Inline(inline.to_owned(), page),
        Some(_) => Root::Page(root),
        None => return Err(bad(page, "a bucket without a header")),
    };
    Ok(Bucket { root })
}

/// A walk over a bucket in key order.
pub struct Cursor<'r, S> {
    reader: &'r BoltReader<S>,
    stack: Vec<Frame>,
    /// The memory of a page that was left.
    spare: Vec<u8>,
    last_key: Option<Vec<u8>>,
}

struct Frame {
    node: Node,
    next: usize,
    /// Keys of this page are below this one: the key of the next child in the parent.
    below: Option<Vec<u8>>,
}

enum Element<'n> {
    Value(&'n [u8]),
    Bucket(&'n [u8]),
}

impl<S: ReadAt> Cursor<'_, S> {
    /// The next key and value; `None` after the last.
    #[expect(clippy::should_implement_trait, reason = "what it gives borrows from the cursor")]
    pub fn next(&mut self) -> Result<Option<Pair<'_>>, BoltError> {
        match self.next_element()? {
            None => Ok(None),
            Some((key, Element::Value(value), _)) => Ok(Some((key, value))),
            Some((_, Element::Bucket(_), page)) => Err(bad(page, "a nested bucket")),
        }
    }

    /// Moves to the first key that is not below `key`; false if the tree is empty. Only on a fresh cursor.
    pub fn seek(&mut self, key: &[u8]) -> Result<bool, BoltError> {
        loop {
            let depth = self.stack.len();
            let Some(top) = self.stack.last_mut() else { return Ok(false) };
            if top.node.count == 0 {
                return Ok(false);
            }
            let at = top.node.first_above(key)?;
            if top.node.is_leaf {
                let exact = at.checked_sub(1).filter(|before| top.node.key(*before).is_ok_and(|found| found == key));
                top.next = exact.unwrap_or(at);
                return Ok(true);
            }
            top.next = at.saturating_sub(1);
            if depth >= MAX_DEPTH {
                return Err(bad(top.node.id, "the tree is too deep"));
            }
            self.descend()?;
        }
    }

    /// Pushes the child that the topmost branch points to next.
    fn descend(&mut self) -> Result<(), BoltError> {
        let depth = self.stack.len();
        let Some(top) = self.stack.last_mut() else { return Ok(()) };
        let (id, at) = (top.node.id, top.next);
        if depth >= MAX_DEPTH {
            return Err(bad(id, "the tree is too deep"));
        }
        let child = top.node.child(at)?;
        let above = top.node.key(at)?.to_owned();
        let below = if at + 1 < top.node.count { Some(top.node.key(at + 1)?.to_owned()) } else { top.below.clone() };
        top.next = at + 1;
        let node = self.reader.page(child, std::mem::take(&mut self.spare))?;
        if node.count == 0 {
            return Err(bad(child, "it is empty"));
        }
        if node.key(0)? < above.as_slice() {
            return Err(bad(child, "its first key is below what its parent says"));
        }
        if below.as_deref().is_some_and(|below| node.key(node.count - 1).is_ok_and(|last| last >= below)) {
            return Err(bad(child, "its last key is above what its parent says"));
        }
        self.stack.push(Frame { node, next: 0, below });
        Ok(())
    }

    fn next_element(&mut self) -> Result<Option<Found<'_>>, BoltError> {
        loop {
            let Some(top) = self.stack.last() else { return Ok(None) };
            if top.next >= top.node.count {
                let left = self.stack.pop().map(|frame| frame.node.bytes).unwrap_or_default();
                // One huge value must not keep its memory for the rest of the walk.
                self.spare = if left.capacity() > KEEP { Vec::new() } else { left };
                continue;
            }
            if top.node.is_leaf {
                break;
            }
            self.descend()?;
        }
        let Some(top) = self.stack.last_mut() else { return Ok(None) };
        let at = top.next;
        top.next += 1;
        let key = top.node.key(at)?;
        if self.last_key.as_deref().is_some_and(|last| key <= last) {
            return Err(bad(top.node.id, "its keys do not ascend"));
        }
        let last_key = self.last_key.get_or_insert_default();
        last_key.clear();
        last_key.extend_from_slice(key);
        Ok(Some((key, top.node.value(at)?, top.node.id)))
    }
}

/// A leaf or branch page whose elements were all found to lie within it, with ascending keys.
#[derive(Debug)]
struct Node {
    bytes: Vec<u8>,
    id: u64,
    is_leaf: bool,
    count: usize,
}

impl Node {
    /// Checks a page. `expect_id` is the number it must carry; inline pages carry 0.
    fn parse(bytes: Vec<u8>, id: u64, expect_id: Option<u64>) -> Result<Node, BoltError> {
        let header = PageHeader::decode(&bytes).ok_or_else(|| bad(id, "no header"))?;
        if header.id != expect_id.unwrap_or(0) {
            return Err(bad(id, "it carries another page's number"));
        }
        let is_leaf = match header.flags {
            FLAG_LEAF => true,
            FLAG_BRANCH if expect_id.is_some() => false,
            _ => return Err(bad(id, "it is neither a leaf nor a branch")),
        };
        let node = Node { bytes, id, is_leaf, count: usize::from(header.count) };
        let mut previous: Option<&[u8]> = None;
        for at in 0..node.count {
            let key = node.key(at)?;
            if key.is_empty() || previous.is_some_and(|previous| key <= previous) {
                return Err(bad(id, "its keys do not ascend"));
            }
            previous = Some(key);
            if is_leaf {
                node.value(at)?;
            }
        }
        if node.count == 0 && !is_leaf {
            return Err(bad(id, "a branch without children"));
        }
        Ok(node)
    }

    fn field(&self, at: usize, offset: usize) -> Result<usize, BoltError> {
        let value = u32_at(&self.bytes, PAGE_HEADER + at * ELEMENT + offset);
        value.map(|v| v as usize).ok_or_else(|| bad(self.id, "its elements are outside of it"))
    }

    fn range(&self, start: usize, length: usize) -> Result<&[u8], BoltError> {
        let bytes = start.checked_add(length).and_then(|end| self.bytes.get(start..end));
        bytes.ok_or_else(|| bad(self.id, "an element is outside of it"))
    }

    /// Where an element's key stands; a leaf's value follows it.
    fn key_at(&self, at: usize) -> Result<(usize, usize), BoltError> {
        let offset = if self.is_leaf { 4 } else { 0 };
        let position = self.field(at, offset)?;
        Ok((PAGE_HEADER + at * ELEMENT + position, self.field(at, offset + 4)?))
    }

    fn key(&self, at: usize) -> Result<&[u8], BoltError> {
        let (start, length) = self.key_at(at)?;
        self.range(start, length)
    }

    fn value(&self, at: usize) -> Result<Element<'_>, BoltError> {
        let (start, length) = self.key_at(at)?;
        let value = self.range(start + length, self.field(at, 12)?)?;
        let bucket = self.field(at, 0)? as u32 & ELEMENT_BUCKET != 0;
        Ok(if bucket { Element::Bucket(value) } else { Element::Value(value) })
    }

    fn child(&self, at: usize) -> Result<u64, BoltError> {
        u64_at(&self.bytes, PAGE_HEADER + at * ELEMENT + 8).ok_or_else(|| bad(self.id, "no child"))
    }

    /// The index of the first key above `key`.
    fn first_above(&self, key: &[u8]) -> Result<usize, BoltError> {
        let (mut low, mut high) = (0, self.count);
        while low < high {
            let middle = low + (high - low) / 2;
            if self.key(middle)? <= key { low = middle + 1 } else { high = middle }
        }
        Ok(low)
    }
}
