//! Randomness as an argument: a seeded generator the shell hands in.

/// xoshiro256**: good spread, no secrecy. Names need to be unique, not secret.
#[derive(Clone, Debug)]
pub struct Entropy {
    words: [u64; 4],
}

impl Entropy {
    /// The shell draws the seed from the operating system, tests name theirs.
    pub fn from_seed(seed: u64) -> Self {
        let mut mixed = seed;
        let words = std::array::from_fn(|_| {
            mixed = mixed.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = mixed;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        });
        Self { words }
    }

    /// From 256 bits of the operating system's randomness.
    pub fn from_bytes(seed: [u8; 32]) -> Self {
        let mut words = [0; 4];
        for (word, chunk) in words.iter_mut().zip(seed.chunks_exact(8)) {
            *word = chunk
                .iter()
                .fold(0, |value, byte| (value << 8) | u64::from(*byte));
        }
        if words == [0; 4] {
            return Self::from_seed(0);
        }
        Self { words }
    }

    pub fn next_u64(&mut self) -> u64 {
        let w = &mut self.words;
        let result = w[1].wrapping_mul(5).rotate_left(7).wrapping_mul(9);
        let shifted = w[1] << 17;
        w[2] ^= w[0];
        w[3] ^= w[1];
        w[1] ^= w[2];
        w[0] ^= w[3];
        w[2] ^= shifted;
        w[3] = w[3].rotate_left(45);
        result
    }

    /// Uniform enough below `bound`; 0 when `bound` is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        if bound == 0 {
            return 0;
        }
        ((u128::from(self.next_u64()) * u128::from(bound)) >> 64) as u64
    }

    /// Twelve letters and digits that cannot be mistaken for one another: 60 bits.
    pub(crate) fn word(&mut self) -> [u8; 12] {
        const ALPHABET: &[u8; 32] = b"abcdefghjkmnpqrstuvwxyz023456789";
        let mut bits = self.next_u64();
        std::array::from_fn(|_| {
            let letter = ALPHABET[(bits & 31) as usize];
            bits >>= 5;
            letter
        })
    }
}
