//! The Merkle tree of RFC 6962 §2.1, in the names of that section.

use ringfence_model::digest::Hasher;

/// A node's hash.
pub type Hash = [u8; 32];

/// `MTH({d(0)}) = SHA-256(0x00 || d(0))`.
#[must_use]
pub fn leaf_hash(entry: &[u8]) -> Hash {
    let mut hasher = Hasher::new();
    hasher.update(&[0]);
    hasher.update(entry);
    *hasher.finish().raw()
}

/// `SHA-256(0x01 || left || right)`.
#[must_use]
pub fn node_hash(left: &Hash, right: &Hash) -> Hash {
    let mut hasher = Hasher::new();
    hasher.update(&[1]);
    hasher.update(left);
    hasher.update(right);
    *hasher.finish().raw()
}

/// The hash of the empty tree.
#[must_use]
pub fn empty_root() -> Hash {
    *Hasher::new().finish().raw()
}

/// The root over hashes of equal, whole subtrees. Their number need not be a power of two.
#[must_use]
pub fn root_of(hashes: &[Hash]) -> Hash {
    fold(peaks(hashes)).unwrap_or_else(empty_root)
}

/// Roots of the largest whole subtrees over `hashes`, left to right: one for each bit set in their number.
fn peaks(hashes: &[Hash]) -> Vec<Hash> {
    let mut peaks = Vec::new();
    let mut rest = hashes;
    while !rest.is_empty() {
        let size = 1usize << rest.len().ilog2();
        let (whole, tail) = rest.split_at(size);
        let mut level = whole.to_vec();
        while level.len() > 1 {
            level = level
                .chunks(2)
                .filter_map(|pair| match pair {
                    [left, right] => Some(node_hash(left, right)),
                    _ => None,
                })
                .collect();
        }
        peaks.extend(level);
        rest = tail;
    }
    peaks
}

fn fold(peaks: Vec<Hash>) -> Option<Hash> {
    peaks.into_iter().rev().reduce(|right, left| node_hash(&left, &right))
}

/// The right edge of a tree, one list of hashes for each level of tiles: enough to append and to give the root.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Edge {
    /// `levels[l]` holds the hashes of the unfinished tile at level `l`, fewer than 256.
    levels: Vec<Vec<Hash>>,
    size: u64,
}

/// Hashes in a whole tile.
pub const TILE_WIDTH: usize = 256;

/// A tile that an append finished.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WholeTile {
    /// Its level; 0 holds leaf hashes.
    pub level: usize,
    /// Its number at that level.
    pub number: u64,
    /// Its 256 hashes.
    pub hashes: Vec<Hash>,
}

impl Edge {
    /// Takes up the edge of a tree of `size` leaves, whose unfinished tiles `read` gives by level, number, width.
    ///
    /// # Errors
    /// Whatever `read` gives.
    pub fn load<E>(size: u64, mut read: impl FnMut(usize, u64, usize) -> Result<Vec<Hash>, E>) -> Result<Self, E> {
        let mut levels = Vec::new();
        let mut count = size;
        while count > 0 {
            let level = levels.len();
            let width = usize::try_from(count % TILE_WIDTH as u64).unwrap_or(0);
            levels.push(if width == 0 { Vec::new() } else { read(level, count / TILE_WIDTH as u64, width)? });
            count /= TILE_WIDTH as u64;
        }
        Ok(Self { levels, size })
    }

    /// Leaves in the tree.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// The unfinished tiles: level, number, hashes.
    pub fn unfinished(&self) -> impl Iterator<Item = (usize, u64, &[Hash])> {
        let size = self.size;
        self.levels.iter().enumerate().filter(|(_, hashes)| !hashes.is_empty()).map(move |(level, hashes)| {
            let above = u32::try_from(level + 1).unwrap_or(u32::MAX).saturating_mul(8);
            (level, size.checked_shr(above).unwrap_or(0), hashes.as_slice())
        })
    }

    /// Appends a leaf; gives the tiles that this finished, lowest first.
    pub fn append(&mut self, leaf: Hash) -> Vec<WholeTile> {
        let mut finished = Vec::new();
        let mut hash = leaf;
        self.size += 1;
        for level in 0.. {
            if self.levels.len() == level {
                self.levels.push(Vec::new());
            }
            let Some(hashes) = self.levels.get_mut(level) else { break };
            hashes.push(hash);
            if hashes.len() < TILE_WIDTH {
                break;
            }
            let hashes = std::mem::take(hashes);
            hash = root_of(&hashes);
            let above = u32::try_from(level + 1).unwrap_or(u32::MAX).saturating_mul(8);
            let number = self.size.checked_shr(above).unwrap_or(0).saturating_sub(1);
            finished.push(WholeTile { level, number, hashes });
        }
        finished
    }

    /// The root of the whole tree.
    #[must_use]
    pub fn root(&self) -> Hash {
        let all: Vec<Hash> = self.levels.iter().rev().flat_map(|hashes| peaks(hashes)).collect();
        fold(all).unwrap_or_else(empty_root)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(hash: &Hash) -> String {
        ringfence_model::Digest::from_raw(*hash).hex()
    }

    /// The definition, straight from RFC 6962 §2.1.
    fn mth(leaves: &[Vec<u8>]) -> Hash {
        match leaves {
            [] => empty_root(),
            [one] => leaf_hash(one),
            many => {
                let mut k = 1;
                while k * 2 < many.len() {
                    k *= 2;
                }
                node_hash(&mth(&many[..k]), &mth(&many[k..]))
            }
        }
    }

    /// Vectors: the reference tree of the certificate-transparency implementations.
    #[test]
    fn gives_the_reference_roots() {
        let leaves: Vec<Vec<u8>> =
            ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"]
                .iter()
                .map(|h| (0..h.len() / 2).map(|i| u8::from_str_radix(&h[2 * i..2 * i + 2], 16).unwrap()).collect())
                .collect();
        let mut edge = Edge::default();
        assert_eq!(hex(&edge.root()), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
        for (leaf, want) in leaves.iter().zip([
            "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
            "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
            "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
            "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
            "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
            "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
            "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
            "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
        ]) {
            edge.append(leaf_hash(leaf));
            assert_eq!(hex(&edge.root()), want);
        }
    }

    #[test]
    fn the_edge_agrees_with_the_definition_across_tiles() {
        let leaves: Vec<Vec<u8>> = (0..600u32).map(|n| n.to_be_bytes().to_vec()).collect();
        let mut edge = Edge::default();
        let mut tiles = std::collections::BTreeMap::new();
        for (at, leaf) in leaves.iter().enumerate() {
            for tile in edge.append(leaf_hash(leaf)) {
                tiles.insert((tile.level, tile.number), tile.hashes);
            }
            if at % 37 == 0 || at == 255 || at == 511 || at == 599 {
                assert_eq!(edge.root(), mth(&leaves[..=at]), "size {}", at + 1);
            }
        }
        assert_eq!(tiles.keys().copied().collect::<Vec<_>>(), [(0, 0), (0, 1)]);
        let unfinished: Vec<_> = edge.unfinished().map(|(l, n, h)| (l, n, h.to_vec())).collect();
        assert_eq!(unfinished.iter().map(|(l, n, h)| (*l, *n, h.len())).collect::<Vec<_>>(), [(0, 2, 88), (1, 0, 2)]);
        let again = Edge::load(600, |level, number, width| {
            let (_, _, hashes) = unfinished.iter().find(|(l, n, _)| (*l, *n) == (level, number)).ok_or(())?;
            assert_eq!(hashes.len(), width);
            Ok::<_, ()>(hashes.clone())
        })
        .unwrap();
        assert_eq!(again, edge);
    }
}
