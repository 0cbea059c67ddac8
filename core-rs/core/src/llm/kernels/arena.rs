//! Memory for weights: few large mappings, in huge pages where the system gives them, so that a
//! pass over a hundred megabytes does not wait for page tables.

use std::sync::Arc;

use memmap2::MmapMut;

use crate::{Error, Result};

/// Bytes of a mapping, unless one matrix needs more.
const CHUNK_BYTES: usize = 64 << 20;

/// Every piece begins on a cache line.
const ALIGNMENT_BYTES: usize = 64;

/// Hands out pieces of large mappings. A piece keeps its mapping alive.
#[derive(Debug, Default)]
pub struct Arena {
    current: Option<(Arc<Chunk>, usize)>,
}

#[derive(Debug)]
struct Chunk {
    first: *mut u8,
    /// Unmapped when the last piece is gone.
    _memory: MmapMut,
}

// SAFETY: a chunk is plain memory; pieces of it do not overlap.
unsafe impl Send for Chunk {}
// SAFETY: as above.
unsafe impl Sync for Chunk {}

/// Memory of its own within a chunk.
#[derive(Debug)]
pub(super) struct Piece {
    chunk: Arc<Chunk>,
    offset: usize,
    len: usize,
}

impl Arena {
    /// `len` zero bytes, on a cache line.
    pub(super) fn piece(&mut self, len: usize) -> Result<Piece> {
        let size = len.next_multiple_of(ALIGNMENT_BYTES);
        let (chunk, offset) = match self.current.take() {
            Some((chunk, offset)) if offset + size <= CHUNK_BYTES => (chunk, offset),
            _ => (Arc::new(Chunk::new(size.max(CHUNK_BYTES))?), 0),
        };
        self.current = Some((Arc::clone(&chunk), offset + size));
        Ok(Piece { chunk, offset, len })
    }
}

impl Chunk {
    fn new(bytes: usize) -> Result<Self> {
        let mut memory = MmapMut::map_anon(bytes)
            .map_err(|source| Error::input("weights", format!("no memory: {source}")))?;
        // A wish: without huge pages everything works, more slowly.
        #[cfg(target_os = "linux")]
        drop(memory.advise(memmap2::Advice::HugePage));
        Ok(Self { first: memory.as_mut_ptr(), _memory: memory })
    }
}

impl Piece {
    pub(super) fn bytes(&self) -> &[u8] {
        // SAFETY: within the mapping, by `Arena::piece`; written only through `bytes_mut`.
        unsafe { std::slice::from_raw_parts(self.chunk.first.add(self.offset), self.len) }
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: within the mapping, by `Arena::piece`, and no other piece overlaps this one.
        unsafe { std::slice::from_raw_parts_mut(self.chunk.first.add(self.offset), self.len) }
    }
}
