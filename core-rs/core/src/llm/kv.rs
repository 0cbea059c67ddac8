//! Keys and values in pages: fixed memory, reference-counted, so that sequences share prefixes.
#![expect(unsafe_code, reason = "pages are raw memory that kernels read and write as f16")]

use crate::{Error, Result};

/// Tokens of one page.
pub const PAGE_TOKENS: usize = 32;

/// A page of the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PageId(pub u32);

/// Sizes that give the layout of a page.
///
/// A page holds, for each layer and each key/value head in this order, first the keys
/// `(head_dim, PAGE_TOKENS)` (dimension-major, so that a vector register scores 16 tokens), then
/// the values `(PAGE_TOKENS, head_dim)`, all f16 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvShape {
    /// Transformer layers.
    pub layers: usize,
    /// Heads of keys and values.
    pub kv_heads: usize,
    /// Numbers of one head.
    pub head_dim: usize,
}

impl KvShape {
    /// f16 numbers of one head's keys in one page; its values take as many.
    pub const fn head_len(&self) -> usize {
        self.head_dim * PAGE_TOKENS
    }

    /// f16 numbers of one page.
    pub const fn page_len(&self) -> usize {
        self.layers * self.kv_heads * 2 * self.head_len()
    }

    /// Bytes of one page.
    pub const fn page_bytes(&self) -> usize {
        self.page_len() * size_of::<u16>()
    }

    /// Where a head's keys begin in a page, in numbers; its values follow `head_len` later.
    pub const fn keys_at(&self, layer: usize, head: usize) -> usize {
        (layer * self.kv_heads + head) * 2 * self.head_len()
    }
}

/// The pool: a bounded number of pages in one mapping, committed by the system as they are used.
#[derive(Debug)]
pub struct KvPages {
    shape: KvShape,
    memory: memmap2::MmapMut,
    references: Vec<u32>,
    free: Vec<PageId>,
}

impl KvPages {
    /// A pool of as many pages as fit into `bytes_max`.
    ///
    /// # Errors
    /// [`Error::Input`] if not even one page fits or the memory is refused.
    pub fn new(shape: KvShape, bytes_max: usize) -> Result<Self> {
        let pages = (bytes_max / shape.page_bytes().max(1)).min(u32::MAX as usize);
        if pages == 0 {
            return Err(Error::input(
                "kv_bytes_max",
                format!("{bytes_max} bytes hold no page of {} bytes", shape.page_bytes()),
            ));
        }
        let memory = memmap2::MmapMut::map_anon(pages * shape.page_bytes())
            .map_err(|source| Error::input("kv_bytes_max", format!("no memory: {source}")))?;
        // A wish: attention jumps through the pool, and with small pages of the system every jump
        // waits for a page table.
        #[cfg(target_os = "linux")]
        drop(memory.advise(memmap2::Advice::HugePage));
        let free = (0..pages as u32).rev().map(PageId).collect();
        Ok(Self { shape, memory, references: vec![0; pages], free })
    }

    /// Layout of a page.
    pub fn shape(&self) -> &KvShape {
        &self.shape
    }

    /// Pages of the pool.
    pub fn capacity(&self) -> usize {
        self.references.len()
    }

    /// Pages nobody holds.
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// A page with one reference; its content is whatever was there.
    pub fn allocate(&mut self) -> Option<PageId> {
        let page = self.free.pop()?;
        self.references[page.0 as usize] = 1;
        Some(page)
    }

    /// One more holder.
    ///
    /// # Panics
    /// If nobody holds the page.
    pub fn retain(&mut self, page: PageId) {
        let count = &mut self.references[page.0 as usize];
        assert!(*count > 0, "retained a free page");
        *count += 1;
    }

    /// One holder less; the last one gives the page back.
    ///
    /// # Panics
    /// If nobody holds the page.
    pub fn release(&mut self, page: PageId) {
        let count = &mut self.references[page.0 as usize];
        assert!(*count > 0, "released a free page");
        *count -= 1;
        if *count == 0 {
            self.free.push(page);
        }
    }

    /// Holders of a page.
    pub fn references(&self, page: PageId) -> u32 {
        self.references[page.0 as usize]
    }

    /// Copy a page, all of it.
    ///
    /// # Panics
    /// If the destination is shared.
    pub fn copy(&mut self, from: PageId, to: PageId) {
        assert_eq!(self.references(to), 1, "a shared page is read-only");
        let bytes = self.shape.page_bytes();
        let start = from.0 as usize * bytes;
        self.memory.copy_within(start..start + bytes, to.0 as usize * bytes);
    }

    /// A page's bytes.
    pub fn bytes(&self, page: PageId) -> &[u8] {
        let bytes = self.shape.page_bytes();
        &self.memory[page.0 as usize * bytes..][..bytes]
    }

    /// A page's bytes, to be filled (a snapshot).
    pub fn bytes_mut(&mut self, page: PageId) -> &mut [u8] {
        let bytes = self.shape.page_bytes();
        &mut self.memory[page.0 as usize * bytes..][..bytes]
    }

    /// First number of a page, for kernels.
    ///
    /// # Panics
    /// If the page is not of this pool.
    pub fn page(&self, page: PageId) -> *const u16 {
        assert!((page.0 as usize) < self.capacity(), "a page of this pool");
        // SAFETY: inside the mapping by the assertion above; pages are whole.
        unsafe { self.memory.as_ptr().add(page.0 as usize * self.shape.page_bytes()).cast() }
    }

    /// First number of a page, for kernels that append.
    ///
    /// # Panics
    /// If the page is not of this pool.
    pub fn page_mut(&mut self, page: PageId) -> *mut u16 {
        assert!((page.0 as usize) < self.capacity(), "a page of this pool");
        // SAFETY: inside the mapping by the assertion above; pages are whole.
        unsafe { self.memory.as_mut_ptr().add(page.0 as usize * self.shape.page_bytes()).cast() }
    }
}
