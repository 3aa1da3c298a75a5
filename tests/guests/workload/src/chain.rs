//! The hash chain over all applied operations: a number that identifies the history of a state.
//!
//! The hash is not cryptographic. It detects lost, repeated, reordered and altered operations, but
//! does not resist an attacker.

/// The chain before the first operation.
pub const CHAIN_START: u64 = 0x4b65_6d61_7269_0001;

/// The finalizer of SplitMix64: each input bit affects each output bit.
const fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// A 64-bit hash of an operation's logged payload: FNV-1a, mixed with the length.
pub fn payload_hash(payload: &[u8]) -> u64 {
    let hash = payload.iter().fold(0xcbf2_9ce4_8422_2325u64, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    mix(hash ^ (payload.len() as u64).rotate_left(48))
}

/// The chain after an operation is applied to a state with `chain`. `op` is the operation's wire
/// code; `client` and `seq` identify the request.
pub fn chain_after(chain: u64, client: u32, seq: u64, op: u8, payload_hash: u64) -> u64 {
    let who = u64::from(client) | (u64::from(op) << 32);
    let step = mix(chain ^ 0x9e37_79b9_7f4a_7c15).wrapping_add(mix(who.wrapping_add(0x51)));
    let step = mix(step).wrapping_add(mix(seq.wrapping_add(0xa3)));
    mix(step ^ payload_hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_input_matters() {
        let base = chain_after(CHAIN_START, 1, 2, 3, payload_hash(b"x"));
        assert_ne!(base, chain_after(base, 1, 2, 3, payload_hash(b"x")));
        assert_ne!(base, chain_after(CHAIN_START, 2, 2, 3, payload_hash(b"x")));
        assert_ne!(base, chain_after(CHAIN_START, 1, 3, 3, payload_hash(b"x")));
        assert_ne!(base, chain_after(CHAIN_START, 1, 2, 4, payload_hash(b"x")));
        assert_ne!(base, chain_after(CHAIN_START, 1, 2, 3, payload_hash(b"y")));
    }

    #[test]
    fn order_matters() {
        let one_two = chain_after(chain_after(CHAIN_START, 1, 1, 1, 0), 2, 1, 1, 0);
        let two_one = chain_after(chain_after(CHAIN_START, 2, 1, 1, 0), 1, 1, 1, 0);
        assert_ne!(one_two, two_one);
    }

    #[test]
    fn length_matters_even_for_zeros() {
        assert_ne!(payload_hash(&[0; 3]), payload_hash(&[0; 4]));
    }
}
