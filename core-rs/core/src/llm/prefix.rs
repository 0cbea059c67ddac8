//! The prefix cache: keys and values of token sequences seen before, shared by all requests.
//!
//! A radix tree over blocks of [`PAGE_TOKENS`] tokens. A node is one page; a node with fewer tokens
//! is the end of a sequence, and a leaf. Whole blocks are shared by reference. Of the last, partly
//! equal block the equal tokens are reused too, by copying its page: a copy costs less than
//! reading one token again, and a chat's next turn always ends inside a block.
//!
//! Pages of the cache are never written: a request that goes on inside a block has a page of its own.
//!
//! Bounds: pages nobody else holds are evicted least recently used first, pinned ones last; at most
//! `pinned_max` pages are pinned.

use std::collections::BinaryHeap;

use crate::llm::TokenId;
use crate::llm::kv::{KvPages, PAGE_TOKENS, PageId};

/// A node of the tree. It stays valid while someone else holds its page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(u32);

impl NodeId {
    /// The empty prefix.
    pub const ROOT: Self = Self(0);
}

#[derive(Debug)]
struct Node {
    parent: NodeId,
    children: Vec<NodeId>,
    /// Tokens of its page, at most [`PAGE_TOKENS`]; none for the root and for vacant nodes.
    tokens: Vec<TokenId>,
    page: PageId,
    /// When it was last used, in uses of the tree; never later than its parent.
    used: u64,
    pinned: bool,
}

/// What the cache has of a sequence. The caller holds all pages named here.
#[derive(Debug)]
pub struct Match {
    /// The last node whose block is wholly equal.
    pub node: NodeId,
    /// Pages of the wholly equal blocks.
    pub pages: Vec<PageId>,
    /// A page whose first tokens are equal, and how many: to be copied, then released.
    pub partial: Option<(PageId, usize)>,
}

impl Match {
    /// Number of tokens found.
    pub fn tokens(&self) -> usize {
        self.pages.len() * PAGE_TOKENS + self.partial.map_or(0, |(_, tokens)| tokens)
    }
}

/// A page of the cache, as a snapshot stores it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The node itself.
    pub node: NodeId,
    /// The node before it.
    pub parent: NodeId,
    /// Its tokens.
    pub tokens: Vec<TokenId>,
    /// Its page.
    pub page: PageId,
    /// Whether it is pinned.
    pub pinned: bool,
}

/// The tree.
#[derive(Debug)]
pub struct PrefixCache {
    nodes: Vec<Node>,
    vacant: Vec<NodeId>,
    uses: u64,
    pages: usize,
    pages_max: usize,
    pinned: usize,
    pinned_max: usize,
}

impl PrefixCache {
    /// An empty cache that keeps at most `pages_max` pages beyond those requests hold, and pins at
    /// most `pinned_max`.
    pub fn new(pages_max: usize, pinned_max: usize) -> Self {
        let root = Node {
            parent: NodeId::ROOT,
            children: Vec::new(),
            tokens: Vec::new(),
            page: PageId(u32::MAX),
            used: 0,
            pinned: false,
        };
        let (vacant, nodes) = (Vec::new(), vec![root]);
        Self { nodes, vacant, uses: 0, pages: 0, pages_max, pinned: 0, pinned_max }
    }

    /// Pages the cache holds.
    pub fn pages(&self) -> usize {
        self.pages
    }

    /// Of these, pinned ones.
    pub fn pinned(&self) -> usize {
        self.pinned
    }

    fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.0 as usize]
    }

    fn node_mut(&mut self, id: NodeId) -> &mut Node {
        &mut self.nodes[id.0 as usize]
    }

    /// Bound of the pages the cache keeps beyond those requests hold.
    pub fn pages_max(&self) -> usize {
        self.pages_max
    }

    /// Whether a block may follow this node.
    pub fn may_have_children(&self, id: NodeId) -> bool {
        id == NodeId::ROOT || self.node(id).tokens.len() == PAGE_TOKENS
    }

    /// Make a node and those before it the most recently used.
    pub fn touch(&mut self, mut id: NodeId) {
        self.uses += 1;
        while id != NodeId::ROOT {
            let uses = self.uses;
            let node = self.node_mut(id);
            node.used = uses;
            id = node.parent;
        }
    }

    /// The child that shares most tokens with `tokens`, and how many.
    fn nearest(&self, parent: NodeId, tokens: &[TokenId]) -> Option<(NodeId, usize)> {
        let mut best: Option<(NodeId, usize)> = None;
        for &child in &self.node(parent).children {
            let common = common_prefix(&self.node(child).tokens, tokens);
            if common > best.map_or(0, |(_, most)| most) {
                best = Some((child, common));
                if common == PAGE_TOKENS {
                    break;
                }
            }
        }
        best
    }

    fn walk(&self, tokens: &[TokenId], mut visit: impl FnMut(NodeId)) -> Option<(NodeId, usize)> {
        let mut node = NodeId::ROOT;
        let mut rest = tokens;
        loop {
            let (child, common) = self.nearest(node, rest)?;
            if common < PAGE_TOKENS {
                return Some((child, common));
            }
            visit(child);
            node = child;
            rest = &rest[PAGE_TOKENS..];
        }
    }

    /// How many leading tokens of `tokens` are cached.
    pub fn measure(&self, tokens: &[TokenId]) -> usize {
        let mut blocks = 0;
        let partial = self.walk(tokens, |_| blocks += 1);
        blocks * PAGE_TOKENS + partial.map_or(0, |(_, common)| common)
    }

    /// Whether all of `tokens`, at most a block, are cached behind `parent`.
    pub fn knows(&self, parent: NodeId, tokens: &[TokenId]) -> bool {
        self.nearest(parent, tokens).is_some_and(|(_, common)| common == tokens.len())
    }

    /// Find the longest cached prefix of `tokens` and take hold of its pages.
    pub fn find(&mut self, kv: &mut KvPages, tokens: &[TokenId]) -> Match {
        let mut path = Vec::new();
        let partial = self.walk(tokens, |node| path.push(node));
        let node = path.last().copied().unwrap_or(NodeId::ROOT);
        let pages: Vec<PageId> = path.iter().map(|&node| self.node(node).page).collect();
        let partial = partial.map(|(child, common)| (child, self.node(child).page, common));
        self.touch(partial.map_or(node, |(child, ..)| child));
        let partial = partial.map(|(_, page, common)| (page, common));
        for &page in pages.iter().chain(partial.iter().map(|(page, _)| page)) {
            kv.retain(page);
        }
        Match { node, pages, partial }
    }

    /// Add a block of tokens behind `parent`, with its page. Returns its node and, if the same
    /// block was known with another page, that page: the caller now holds it instead of its own.
    ///
    /// # Panics
    /// If the block is empty or longer than a page, or `parent` is not a whole block.
    pub fn insert(
        &mut self,
        kv: &mut KvPages,
        parent: NodeId,
        tokens: &[TokenId],
        page: PageId,
        pin: bool,
    ) -> (NodeId, Option<PageId>) {
        assert!(!tokens.is_empty() && tokens.len() <= PAGE_TOKENS, "a block fits a page");
        assert!(self.may_have_children(parent), "only whole blocks have children");
        let whole = tokens.len() == PAGE_TOKENS;
        let (node, other) = match self.nearest(parent, tokens) {
            // Known, perhaps with more tokens.
            Some((child, common)) if common == tokens.len() => {
                let known = self.node(child).page;
                let other = (whole && known != page).then_some(known);
                if let Some(known) = other {
                    kv.retain(known);
                    kv.release(page);
                }
                (child, other)
            }
            // Known in part, and nothing else follows there: the longer block takes its place.
            Some((child, common)) if common == self.node(child).tokens.len() => {
                kv.retain(page);
                let node = self.node_mut(child);
                node.tokens = tokens.to_vec();
                let before = std::mem::replace(&mut node.page, page);
                kv.release(before);
                (child, None)
            }
            _ => (self.add(kv, parent, tokens, page), None),
        };
        self.touch(node);
        if pin {
            self.pin(node);
        }
        (node, other)
    }

    /// Pin a node and what it stands behind: a snapshot keeps pinned nodes before all others, and
    /// each behind its parent.
    pub fn pin(&mut self, mut id: NodeId) {
        while id != NodeId::ROOT && !self.node(id).pinned {
            self.node_mut(id).pinned = true;
            self.pinned += 1;
            id = self.node(id).parent;
        }
        self.bound_pins();
    }

    /// The node so many steps above one.
    pub fn above(&self, mut id: NodeId, steps: usize) -> NodeId {
        for _ in 0..steps {
            id = self.node(id).parent;
        }
        id
    }

    fn add(
        &mut self,
        kv: &mut KvPages,
        parent: NodeId,
        tokens: &[TokenId],
        page: PageId,
    ) -> NodeId {
        kv.retain(page);
        let node = Node {
            parent,
            children: Vec::new(),
            tokens: tokens.to_vec(),
            page,
            used: 0,
            pinned: false,
        };
        let id = if let Some(id) = self.vacant.pop() {
            *self.node_mut(id) = node;
            id
        } else {
            self.nodes.push(node);
            NodeId(self.nodes.len() as u32 - 1)
        };
        self.node_mut(parent).children.push(id);
        self.pages += 1;
        id
    }

    fn remove(&mut self, kv: &mut KvPages, id: NodeId) {
        let node = self.node_mut(id);
        debug_assert!(node.children.is_empty(), "Invariant: only leaves are removed");
        node.tokens = Vec::new();
        let (parent, page) = (node.parent, node.page);
        self.pinned -= usize::from(std::mem::take(&mut self.node_mut(id).pinned));
        self.node_mut(parent).children.retain(|&child| child != id);
        self.vacant.push(id);
        self.pages -= 1;
        kv.release(page);
    }

    /// Pins beyond the bound are undone, the least recently used and deepest first.
    fn bound_pins(&mut self) {
        while self.pinned > self.pinned_max {
            let oldest = (1..self.nodes.len())
                .map(|index| NodeId(index as u32))
                .filter(|&id| {
                    let node = self.node(id);
                    node.pinned && !node.children.iter().any(|&child| self.node(child).pinned)
                })
                .min_by_key(|&id| self.node(id).used);
            let Some(id) = oldest else { return };
            self.node_mut(id).pinned = false;
            self.pinned -= 1;
        }
    }

    /// Pages that could be freed: those nobody else holds.
    pub fn idle(&self, kv: &KvPages) -> usize {
        self.nodes
            .iter()
            .filter(|node| !node.tokens.is_empty() && kv.references(node.page) == 1)
            .count()
    }

    /// Free up to `count` pages. Returns how many were freed.
    pub fn evict(&mut self, kv: &mut KvPages, count: usize) -> usize {
        if count == 0 {
            return 0;
        }
        let mut heap = BinaryHeap::new();
        for index in 1..self.nodes.len() {
            self.offer(kv, NodeId(index as u32), &mut heap);
        }
        let mut freed = 0;
        while freed < count {
            let Some(std::cmp::Reverse((_, _, id))) = heap.pop() else { break };
            let parent = self.node(id).parent;
            self.remove(kv, id);
            freed += 1;
            self.offer(kv, parent, &mut heap);
        }
        freed
    }

    /// Put `id` among those to evict if it is a leaf that nobody else holds.
    fn offer(
        &self,
        kv: &KvPages,
        id: NodeId,
        heap: &mut BinaryHeap<std::cmp::Reverse<(bool, u64, NodeId)>>,
    ) {
        let node = self.node(id);
        if id != NodeId::ROOT
            && !node.tokens.is_empty()
            && node.children.is_empty()
            && kv.references(node.page) == 1
        {
            heap.push(std::cmp::Reverse((node.pinned, node.used, id)));
        }
    }

    /// Evict what exceeds the bound of the cache.
    pub fn bound(&mut self, kv: &mut KvPages) {
        if self.pages > self.pages_max {
            self.evict(kv, self.pages - self.pages_max);
        }
    }

    /// The pages worth keeping first: pinned ones, then the most recently used; every node behind
    /// its parent; at most `pages_max`.
    pub fn entries(&self, pages_max: usize) -> Vec<Entry> {
        let mut order: Vec<(bool, u64, usize, NodeId)> = Vec::with_capacity(self.pages);
        let mut stack: Vec<(NodeId, usize)> = vec![(NodeId::ROOT, 0)];
        while let Some((id, depth)) = stack.pop() {
            let node = self.node(id);
            if id != NodeId::ROOT {
                order.push((!node.pinned, u64::MAX - node.used, depth, id));
            }
            stack.extend(node.children.iter().map(|&child| (child, depth + 1)));
        }
        order.sort_unstable();
        order.truncate(pages_max);
        order
            .into_iter()
            .map(|(.., id)| {
                let node = self.node(id);
                Entry {
                    node: id,
                    parent: node.parent,
                    tokens: node.tokens.clone(),
                    page: node.page,
                    pinned: node.pinned,
                }
            })
            .collect()
    }
}

/// Number of equal leading tokens.
pub fn common_prefix(left: &[TokenId], right: &[TokenId]) -> usize {
    left.iter().zip(right).take_while(|(left, right)| left == right).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::llm::scripted::{Scripted, prompt};

    fn pool(pages: usize) -> KvPages {
        use crate::llm::forward::Forward;
        let shape = Scripted::new(crate::llm::scripted::Style::Chaotic).shape().kv;
        KvPages::new(shape, Scripted::pool(pages)).unwrap()
    }

    /// Cache a sequence as a request does that ends at once.
    fn add(cache: &mut PrefixCache, kv: &mut KvPages, tokens: &[TokenId], pinned: usize) {
        let mut node = NodeId::ROOT;
        for (index, block) in tokens.chunks(PAGE_TOKENS).enumerate() {
            let page = kv.allocate().unwrap();
            let pin = index * PAGE_TOKENS + block.len() <= pinned;
            let (next, other) = cache.insert(kv, node, block, page, pin);
            kv.release(other.unwrap_or(page));
            node = next;
        }
    }

    #[test]
    fn the_longest_common_prefix_is_found_to_the_token() {
        let (mut kv, mut cache) = (pool(20), PrefixCache::new(20, 20));
        let tokens = prompt(1, 100);
        add(&mut cache, &mut kv, &tokens, 0);
        for length in [0, 1, 31, 32, 33, 64, 99, 100] {
            let mut other = tokens[..length].to_vec();
            other.push(9999);
            assert_eq!(cache.measure(&other), length);
            let found = cache.find(&mut kv, &other);
            assert_eq!(found.tokens(), length);
            assert_eq!(found.pages.len(), length / PAGE_TOKENS);
            for page in found.pages.iter().chain(found.partial.iter().map(|(page, _)| page)) {
                assert_eq!(kv.references(*page), 2);
                kv.release(*page);
            }
        }
        assert_eq!(kv.free(), 16);
    }

    #[test]
    fn equal_sequences_share_their_pages_and_longer_ends_replace_shorter_ones() {
        let (mut kv, mut cache) = (pool(20), PrefixCache::new(20, 20));
        let tokens = prompt(1, 100);
        add(&mut cache, &mut kv, &tokens[..70], 0);
        assert_eq!(cache.pages(), 3);
        add(&mut cache, &mut kv, &tokens, 0);
        assert_eq!(cache.pages(), 4);
        add(&mut cache, &mut kv, &tokens[..80], 0);
        assert_eq!((cache.pages(), kv.free()), (4, 16));
        assert_eq!(cache.measure(&tokens), 100);
    }

    #[test]
    fn the_least_recently_used_goes_first_and_pins_go_last() {
        let (mut kv, mut cache) = (pool(20), PrefixCache::new(20, 20));
        let [pinned, old, new] = [prompt(1, 64), prompt(2, 64), prompt(3, 64)];
        for (tokens, pins) in [(&pinned, 64), (&new, 0), (&old, 0)] {
            add(&mut cache, &mut kv, tokens, pins);
        }
        let found = cache.find(&mut kv, &new);
        assert_eq!(cache.evict(&mut kv, 3), 3);
        assert_eq!((cache.measure(&old), cache.measure(&pinned)), (0, 32));
        assert_eq!(cache.evict(&mut kv, 3), 1, "pages in use stay");
        for page in found.pages {
            kv.release(page);
        }
        assert_eq!(cache.measure(&new), 64);
    }

    #[test]
    fn pins_are_bounded_and_the_oldest_are_undone() {
        let (mut kv, mut cache) = (pool(20), PrefixCache::new(20, 3));
        add(&mut cache, &mut kv, &prompt(1, 64), 64);
        add(&mut cache, &mut kv, &prompt(2, 64), 64);
        assert_eq!(cache.pinned(), 3);
        assert_eq!(cache.evict(&mut kv, 1), 1);
        assert_eq!(cache.measure(&prompt(1, 64)), 32);
        assert_eq!(cache.measure(&prompt(2, 64)), 64);
    }

    #[test]
    fn entries_come_parents_first_and_pinned_ones_before_newer_ones() {
        let (mut kv, mut cache) = (pool(20), PrefixCache::new(20, 20));
        add(&mut cache, &mut kv, &prompt(1, 70), 64);
        add(&mut cache, &mut kv, &prompt(2, 96), 0);
        let entries = cache.entries(4);
        assert_eq!(entries.len(), 4);
        assert!(entries[0].pinned && entries[1].pinned && !entries[2].pinned);
        assert_eq!(entries[2].tokens, prompt(2, 96)[..32]);
        for (index, entry) in entries.iter().enumerate() {
            let known = entries[..index].iter().any(|before| before.node == entry.parent);
            assert!(entry.parent == NodeId::ROOT || known);
        }
    }
}
