//! Keys of longest-prefix tries (`BPF_MAP_TYPE_LPM_TRIE`).

use aya_ebpf::btf_maps::lpm_trie::Key;

/// A key of a trie, whose data is of whole words. The kernel wants them behind the 32 bits of the key's length, and the
/// verifier wants what is stored at once to be aligned: so the length is the second half of a word.
#[repr(C)]
pub struct TrieKey<T> {
    length: u64,
    data: T,
}

impl<T> TrieKey<T> {
    /// The first `bits` bits of `data`.
    #[inline(always)]
    pub const fn new(bits: u32, data: T) -> Self {
        Self { length: (bits as u64) << 32, data }
    }

    /// As a lookup takes it.
    #[inline(always)]
    pub const fn get(&self) -> &Key<T> {
        let key = (&raw const *self).wrapping_byte_add(size_of::<u32>()).cast();
        // SAFETY: in memory the length's upper half is followed by the data, as in a key, which is packed.
        unsafe { &*key }
    }
}

/// An address as two words.
#[inline(always)]
pub fn halves(address: &[u8; 16]) -> [u64; 2] {
    let (upper, lower) = (address.first_chunk(), address.last_chunk());
    [upper, lower].map(|half| half.map_or(0, |half| u64::from_ne_bytes(*half)))
}
