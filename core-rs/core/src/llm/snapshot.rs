//! The prefix cache in a file, so that a restart does not read system prompts again.
//!
//! Layout, little-endian: a header of 96 bytes (magic, version, identity of the model, layout of the
//! pages, number of nodes, checksum of the table, checksum of the header), a table with one record
//! a node (parent, tokens, checksum of its page), then the pages. A node stands behind its parent;
//! pinned and recently used ones come first, so that a smaller pool takes the best part.
//!
//! Everything is checksummed with xxh3 and checked before it is used. A file that is cut, foreign
//! or damaged is ignored with a reason, never read wrongly: pages are read into the pool first and
//! checked there, so a file that changes meanwhile does no harm. Files are written beside their
//! place and renamed.

use std::collections::HashMap;
use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::PathBuf;

use xxhash_rust::xxh3::xxh3_64;

use crate::llm::kv::{KvPages, KvShape, PAGE_TOKENS, PageId};
use crate::llm::prefix::{Entry, NodeId, PrefixCache};
use crate::{Error, Result};

const MAGIC: [u8; 8] = *b"QBTC-KV\0";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 96;
/// Parent, number of tokens, pinned, unused; tokens; checksum.
const RECORD_BYTES: usize = 16 + 4 * PAGE_TOKENS + 8;
const NO_PARENT: u32 = u32::MAX;

/// Where the cache is kept between runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotConfig {
    /// The file.
    pub path: PathBuf,
    /// What the pages depend on: the model file's SHA-256, mixed with whatever else changes a bit
    /// of them.
    pub identity: [u8; 32],
    /// Largest file, bytes.
    pub bytes_max: u64,
}

/// What a written file holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Saved {
    /// Pages, of [`PAGE_TOKENS`] tokens at most.
    pub pages: usize,
    /// Size of the file, bytes.
    pub bytes: u64,
}

/// What became of the file of the run before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Restored {
    /// No file was asked for, or there is none.
    Nothing,
    /// So many pages are cached.
    Pages(usize),
    /// The file is not usable; the cache starts empty. Why:
    Ignored(String),
}

fn header(identity: &[u8; 32], shape: &KvShape, nodes: usize, table: u64) -> [u8; HEADER_BYTES] {
    let mut bytes = [0; HEADER_BYTES];
    bytes[..8].copy_from_slice(&MAGIC);
    let numbers = [
        VERSION,
        PAGE_TOKENS as u32,
        shape.layers as u32,
        shape.kv_heads as u32,
        shape.head_dim as u32,
        nodes as u32,
    ];
    for (at, number) in numbers.into_iter().enumerate() {
        bytes[8 + 4 * at..][..4].copy_from_slice(&number.to_le_bytes());
    }
    bytes[32..64].copy_from_slice(identity);
    bytes[64..72].copy_from_slice(&table.to_le_bytes());
    let checksum = xxh3_64(&bytes[..HEADER_BYTES - 8]);
    bytes[HEADER_BYTES - 8..].copy_from_slice(&checksum.to_le_bytes());
    bytes
}

/// A file being written, some pages at a time. It holds its pages until it is finished or dropped
/// with [`Writer::release`].
#[derive(Debug)]
pub struct Writer {
    config: SnapshotConfig,
    temporary: PathBuf,
    file: File,
    entries: Vec<Entry>,
    /// Where in the file each node written so far is.
    places: HashMap<NodeId, u32>,
    table: Vec<u8>,
    written: usize,
}

impl Writer {
    /// Begin a file with the best part of `prefix`.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be made.
    pub fn new(config: &SnapshotConfig, kv: &mut KvPages, prefix: &PrefixCache) -> Result<Self> {
        let page = (kv.shape().page_bytes() + RECORD_BYTES) as u64;
        let pages_max = config.bytes_max.saturating_sub(HEADER_BYTES as u64) / page;
        let entries = prefix.entries(pages_max as usize);
        let temporary = config.path.with_extension(format!("{}.tmp", std::process::id()));
        let make = || {
            if let Some(folder) = config.path.parent() {
                std::fs::create_dir_all(folder)?;
            }
            let mut file = File::create(&temporary)?;
            let begin = HEADER_BYTES + entries.len() * RECORD_BYTES;
            file.seek(SeekFrom::Start(begin as u64))?;
            Ok(file)
        };
        let file = make().map_err(|source| Error::Io { path: temporary.clone(), source })?;
        for entry in &entries {
            kv.retain(entry.page);
        }
        let table = Vec::with_capacity(entries.len() * RECORD_BYTES);
        let places = HashMap::with_capacity(entries.len());
        Ok(Self { config: config.clone(), temporary, file, entries, places, table, written: 0 })
    }

    /// Write up to `pages_max` pages. Returns what the file holds once it is whole and in place.
    ///
    /// # Errors
    /// [`Error::Io`] if the disk refuses.
    pub fn advance(&mut self, kv: &mut KvPages, pages_max: usize) -> Result<Option<Saved>> {
        let end = self.entries.len().min(self.written.saturating_add(pages_max));
        let result = self.write(kv, end);
        result.map_err(|source| Error::Io { path: self.config.path.clone(), source })
    }

    fn write(&mut self, kv: &mut KvPages, end: usize) -> std::io::Result<Option<Saved>> {
        while self.written < end {
            let entry = &self.entries[self.written];
            let bytes = kv.bytes(entry.page);
            self.file.write_all(bytes)?;
            // A node stands behind its parent, so the parent is among those written.
            let parent = match entry.parent {
                NodeId::ROOT => Some(NO_PARENT),
                parent => self.places.get(&parent).copied(),
            };
            let parent = parent.ok_or_else(|| std::io::Error::other("a node without parent"))?;
            let numbers = [parent, entry.tokens.len() as u32, u32::from(entry.pinned), 0];
            let tokens = entry.tokens.iter().copied();
            let padded = tokens.chain(std::iter::repeat(0)).take(PAGE_TOKENS);
            for number in numbers.into_iter().chain(padded) {
                self.table.extend(number.to_le_bytes());
            }
            self.table.extend(xxh3_64(bytes).to_le_bytes());
            self.places.insert(entry.node, self.written as u32);
            self.written += 1;
        }
        if self.written < self.entries.len() {
            return Ok(None);
        }
        let bytes = self.file.stream_position()?;
        self.file.seek(SeekFrom::Start(0))?;
        let table = xxh3_64(&self.table);
        let header = header(&self.config.identity, kv.shape(), self.written, table);
        self.file.write_all(&header)?;
        self.file.write_all(&self.table)?;
        self.file.flush()?;
        std::fs::rename(&self.temporary, &self.config.path)?;
        Ok(Some(Saved { pages: self.written, bytes }))
    }

    /// The pages it holds.
    pub fn pages(&self) -> impl Iterator<Item = PageId> {
        self.entries.iter().map(|entry| entry.page)
    }

    /// Let go of the pages, and of the file if it is not finished.
    pub fn release(self, kv: &mut KvPages) {
        for entry in &self.entries {
            kv.release(entry.page);
        }
        // After the rename there is nothing at the temporary place.
        let _ = std::fs::remove_file(&self.temporary);
    }
}

/// Fill an empty cache from the file of an earlier run.
pub fn restore(config: &SnapshotConfig, kv: &mut KvPages, prefix: &mut PrefixCache) -> Restored {
    match read(config, kv, prefix) {
        Ok(0) => Restored::Nothing,
        Ok(pages) => Restored::Pages(pages),
        Err(reason) => {
            prefix.evict(kv, usize::MAX);
            Restored::Ignored(format!("{}: {reason}", config.path.display()))
        }
    }
}

type Unusable = std::result::Result<usize, String>;

fn read(config: &SnapshotConfig, kv: &mut KvPages, prefix: &mut PrefixCache) -> Unusable {
    let mut file = match File::open(&config.path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(0),
        file => file.map_err(|error| error.to_string())?,
    };
    let length = file.metadata().map_err(|error| error.to_string())?.len();
    let (nodes, table) = read_table(&mut file, length, config, kv.shape())?;
    let pages = nodes.min(kv.capacity()).min(prefix.pages_max());
    let mut known: Vec<NodeId> = Vec::with_capacity(pages);
    for record in table.chunks_exact(RECORD_BYTES).take(pages) {
        let word = |at: usize| {
            u32::from_le_bytes([
                record[4 * at],
                record[4 * at + 1],
                record[4 * at + 2],
                record[4 * at + 3],
            ])
        };
        let tokens: Vec<u32> = (0..PAGE_TOKENS).map(|at| word(4 + at)).collect();
        let count = word(1) as usize;
        let parent = match word(0) {
            NO_PARENT => NodeId::ROOT,
            parent => *known.get(parent as usize).ok_or("a node stands before its parent")?,
        };
        if !(1..=PAGE_TOKENS).contains(&count) || !prefix.may_have_children(parent) {
            return Err("a node has an impossible size".to_owned());
        }
        let page = kv.allocate().ok_or("the pool is not empty")?;
        let checked = file.read_exact(kv.bytes_mut(page)).map_err(|error| error.to_string());
        let sum = u64::from(word(4 + PAGE_TOKENS)) | u64::from(word(5 + PAGE_TOKENS)) << 32;
        let checked = checked.and_then(|()| {
            if xxh3_64(kv.bytes(page)) == sum {
                Ok(())
            } else {
                Err("a page does not match its checksum".to_owned())
            }
        });
        if checked.is_ok() {
            let (node, other) = prefix.insert(kv, parent, &tokens[..count], page, word(2) == 1);
            known.push(node);
            kv.release(other.unwrap_or(page));
        } else {
            kv.release(page);
        }
        checked?;
    }
    // The first ones were used last.
    for &node in known.iter().rev() {
        prefix.touch(node);
    }
    Ok(pages)
}

fn read_table(
    file: &mut File,
    length: u64,
    config: &SnapshotConfig,
    shape: &KvShape,
) -> std::result::Result<(usize, Vec<u8>), String> {
    let mut bytes = [0; HEADER_BYTES];
    file.read_exact(&mut bytes).map_err(|_| "it is shorter than a header")?;
    if bytes[..8] != MAGIC {
        return Err("it is not a snapshot of this program".to_owned());
    }
    let sum = bytes.last_chunk().map_or(0, |sum| u64::from_le_bytes(*sum));
    if xxh3_64(&bytes[..HEADER_BYTES - 8]) != sum {
        return Err("its header does not match its checksum".to_owned());
    }
    let nodes = u32::from_le_bytes([bytes[28], bytes[29], bytes[30], bytes[31]]) as usize;
    let mut table_sum = [0; 8];
    table_sum.copy_from_slice(&bytes[64..72]);
    let table_sum = u64::from_le_bytes(table_sum);
    if bytes != header(&config.identity, shape, nodes, table_sum) {
        return Err("it is of another version, model or page layout".to_owned());
    }
    let expected = HEADER_BYTES as u64 + nodes as u64 * (RECORD_BYTES + shape.page_bytes()) as u64;
    if length != expected {
        return Err(format!("it has {length} bytes instead of {expected}"));
    }
    let mut table = vec![0; nodes * RECORD_BYTES];
    file.read_exact(&mut table).map_err(|error| error.to_string())?;
    if xxh3_64(&table) != table_sum {
        return Err("its table does not match its checksum".to_owned());
    }
    Ok((nodes, table))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::llm::forward::Forward;
    use crate::llm::scripted::{Scripted, Style, prompt};

    fn pool(pages: usize) -> KvPages {
        let shape = Scripted::new(Style::Chaotic).shape().kv;
        KvPages::new(shape, Scripted::pool(pages)).unwrap()
    }

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let folder = std::env::temp_dir();
            Self(folder.join(format!("qbtc-snapshot-{name}-{}", std::process::id())))
        }

        fn config(&self) -> SnapshotConfig {
            SnapshotConfig { path: self.0.join("cache"), identity: [3; 32], bytes_max: 1 << 20 }
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    /// A pool and cache with two sequences, one of them pinned, saved.
    fn saved(config: &SnapshotConfig) -> Saved {
        let (mut kv, mut cache) = (pool(20), PrefixCache::new(20, 20));
        for seed in [1, 2] {
            let mut node = NodeId::ROOT;
            for block in prompt(seed, 80).chunks(PAGE_TOKENS) {
                let page = kv.allocate().unwrap();
                kv.bytes_mut(page).fill(seed as u8 * 16 + block.len() as u8);
                let (next, other) = cache.insert(&mut kv, node, block, page, seed == 1);
                kv.release(other.unwrap_or(page));
                node = next;
            }
        }
        let mut writer = Writer::new(config, &mut kv, &cache).unwrap();
        let saved = loop {
            if let Some(saved) = writer.advance(&mut kv, 2).unwrap() {
                break saved;
            }
        };
        writer.release(&mut kv);
        assert_eq!(kv.free() + cache.pages(), 20);
        saved
    }

    #[test]
    fn what_was_saved_is_restored_to_the_byte() {
        let folder = Folder::new("whole");
        let config = folder.config();
        let saved = saved(&config);
        assert_eq!(saved.pages, 6);
        assert_eq!(saved.bytes, std::fs::metadata(&config.path).unwrap().len());
        let (mut kv, mut cache) = (pool(20), PrefixCache::new(20, 20));
        assert_eq!(restore(&config, &mut kv, &mut cache), Restored::Pages(6));
        assert_eq!((kv.free(), cache.pinned()), (14, 3));
        for seed in [1, 2] {
            let found = cache.find(&mut kv, &prompt(seed, 80));
            assert_eq!(found.tokens(), 80);
            let bytes = kv.bytes(found.partial.unwrap().0);
            assert!(bytes.iter().all(|&byte| byte == seed as u8 * 16 + 16));
        }
        assert_eq!(std::fs::read_dir(&folder.0).unwrap().count(), 1, "no temporary file is left");
    }

    #[test]
    fn a_smaller_pool_and_a_smaller_file_take_the_pinned_part() {
        let folder = Folder::new("small");
        let mut config = folder.config();
        saved(&config);
        let (mut kv, mut cache) = (pool(3), PrefixCache::new(20, 20));
        assert_eq!(restore(&config, &mut kv, &mut cache), Restored::Pages(3));
        assert_eq!(cache.measure(&prompt(1, 80)), 80);
        config.bytes_max = 3000;
        let saved = saved(&config);
        assert!(saved.pages < 6 && saved.bytes <= 3000);
    }

    #[test]
    fn every_cut_and_every_changed_byte_is_noticed() {
        let folder = Folder::new("damage");
        let config = folder.config();
        saved(&config);
        let whole = std::fs::read(&config.path).unwrap();
        let (mut kv, mut cache) = (pool(20), PrefixCache::new(20, 20));
        let mut ignored = |bytes: &[u8]| {
            std::fs::write(&config.path, bytes).unwrap();
            let restored = restore(&config, &mut kv, &mut cache);
            assert_eq!((kv.free(), cache.pages()), (20, 0));
            matches!(restored, Restored::Ignored(_))
        };
        for length in (0..whole.len()).step_by(61).chain([whole.len() - 1]) {
            assert!(ignored(&whole[..length]), "cut to {length}");
        }
        let table = HEADER_BYTES + 6 * RECORD_BYTES;
        for at in (0..table).step_by(3).chain((table..whole.len()).step_by(97)) {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x10;
            assert!(ignored(&bytes), "byte {at}");
        }
        let mut longer = whole.clone();
        longer.push(0);
        assert!(ignored(&longer));
    }

    #[test]
    fn a_file_of_another_model_or_none_is_not_read() {
        let folder = Folder::new("foreign");
        let mut config = folder.config();
        let (mut kv, mut cache) = (pool(20), PrefixCache::new(20, 20));
        assert_eq!(restore(&config, &mut kv, &mut cache), Restored::Nothing);
        saved(&config);
        config.identity = [4; 32];
        let Restored::Ignored(reason) = restore(&config, &mut kv, &mut cache) else {
            panic!("it was read")
        };
        assert!(reason.contains("another version, model or page layout"), "{reason}");
        config.path = folder.0.clone();
        assert!(matches!(restore(&config, &mut kv, &mut cache), Restored::Ignored(_)));
    }
}
