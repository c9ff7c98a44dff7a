//! Maps with hashes that cost little: states are many, and none of them is chosen by an enemy.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// A map by [`Fingerprint`].
pub type Map<K, V> = HashMap<K, V, BuildHasherDefault<Fingerprint>>;

/// A hash of a number.
pub fn hash(number: u128) -> u64 {
    let mut fingerprint = Fingerprint::default();
    fingerprint.write_u64(number as u64);
    fingerprint.write_u64((number >> 64) as u64);
    fingerprint.finish()
}

/// Multiply to 128 bits and fold.
pub struct Fingerprint(u64);

impl Default for Fingerprint {
    fn default() -> Self {
        Self(0x243f_6a88_85a3_08d3)
    }
}

fn folded(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    (product as u64) ^ (product >> 64) as u64
}

impl Hasher for Fingerprint {
    fn finish(&self) -> u64 {
        folded(self.0 ^ 0x1319_8a2e_0370_7344, 0xa409_3822_299f_31d1)
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u8(&mut self, value: u8) {
        self.write_u64(u64::from(value));
    }

    fn write_u16(&mut self, value: u16) {
        self.write_u64(u64::from(value));
    }

    fn write_isize(&mut self, value: isize) {
        self.write_u64(value as u64);
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = folded(self.0.rotate_left(23) ^ value, 0x9e37_79b9_7f4a_7c15).wrapping_add(0x082e_fa98_ec4e_6c89);
    }
}
