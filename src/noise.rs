//! Noise as a keyed function: nothing else in the core is random.
//!
//! Philox4x32-10 (Salmon et al., SC 2011) turns (key, counter) into four words; Box-Muller turns them into standard normal
//! values. A frame's key comes from BLAKE3 over a secret, the stream and the payload, so that a camera cannot compute the
//! noise that its frame will meet.
//! Invariants: the value of element i of draw n of a key does not depend on how many draws are made, in which order, or on
//! how many threads. All arithmetic is integer, or f32 with one stated rounding for each operation (explicit fused
//! multiply-adds, own polynomials), so that a GPU gives the same bits, and so do vectors of any width.

use crate::frame::FrameSeq;
use pulp::{Arch, Simd, WithSimd};

/// Quads of values that are computed side by side.
const LANES: usize = 16;

/// Key of the noise of one frame, or of one purpose in the lab.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoiseKey {
    philox: [u32; 2],
    /// Upper half of the counter: two more words of the key's hash.
    counter: [u32; 2],
}

/// 256 secret bits. Never logged, stored in a checkpoint, or sent.
#[derive(Clone)]
pub struct NoiseSecret([u8; 32]);

impl std::fmt::Debug for NoiseSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("NoiseSecret(..)")
    }
}

impl NoiseSecret {
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// For the lab, where runs are repeated by their seed.
    pub fn from_seed(seed: u64) -> Self {
        Self(blake3::derive_key("undrift lab noise 1", &seed.to_le_bytes()))
    }

    /// Name of the secret that may be shown: it says whether two secrets are the same, not what they are.
    pub fn id(&self) -> String {
        blake3::Hash::from_bytes(blake3::derive_key("undrift noise key id 1", &self.0)).to_hex()[..16].to_owned()
    }

    /// The key of the frame with this sequence and payload in this incarnation of the stream.
    pub fn frame_key(&self, incarnation: &str, sequence: FrameSeq, payload_hash: &[u8; 32]) -> NoiseKey {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        hasher.update(&(incarnation.len() as u64).to_le_bytes());
        hasher.update(incarnation.as_bytes());
        hasher.update(&sequence.0.to_le_bytes());
        hasher.update(payload_hash);
        NoiseKey::from_hash(hasher.finalize().as_bytes())
    }
}

impl NoiseKey {
    /// Key for one purpose of the lab, such as the noise of training step `index`.
    pub fn from_seed(seed: u64, purpose: &str, index: u64) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("undrift lab key 1");
        hasher.update(&seed.to_le_bytes());
        hasher.update(&index.to_le_bytes());
        hasher.update(purpose.as_bytes());
        Self::from_hash(hasher.finalize().as_bytes())
    }

    /// Key and upper half of the counter, for a kernel that makes the same noise.
    pub fn philox_words(&self) -> [u32; 4] {
        [self.philox[0], self.philox[1], self.counter[0], self.counter[1]]
    }

    fn from_hash(hash: &[u8; 32]) -> Self {
        let word = |i: usize| u32::from_le_bytes([hash[4 * i], hash[4 * i + 1], hash[4 * i + 2], hash[4 * i + 3]]);
        Self { philox: [word(0), word(1)], counter: [word(2), word(3)] }
    }

    #[inline(always)]
    fn words(&self, draw: u32, quad: u32) -> [u32; 4] {
        philox4x32_10([quad, draw, self.counter[0], self.counter[1]], self.philox)
    }

    /// Fills `noise` with standard normal values of `draw`; element i comes from counter (draw, i / 4).
    pub fn fill_normal(&self, draw: u32, noise: &mut [f32]) {
        Arch::new().dispatch(FillNormal { key: self, draw, noise });
    }

    /// The same, and beside it x_t = signal x_start + spread noise, while the noise is at hand.
    ///
    /// # Panics
    /// When the slices differ in length: a bug of the caller.
    pub fn fill_noised(&self, draw: u32, noise: &mut [f32], x_start: &[f32], (signal, spread): (f32, f32), x_t: &mut [f32]) {
        assert_eq!(x_start.len(), noise.len(), "length of the noise");
        assert_eq!(x_start.len(), x_t.len(), "length of x_t");
        Arch::new().dispatch(FillNoised { key: self, draw, noise, x_start, signal, spread, x_t });
    }

    /// Values of the quads of all lanes. Each lane runs the scalar functions below, which have no branch; step by step for all
    /// lanes, so that the compiler makes vectors of them.
    #[inline(always)]
    fn normal_block<S: Simd>(&self, simd: S, draw: u32, quads: &[u32; LANES]) -> [f32; 4 * LANES] {
        let mut words = [[0u32; LANES]; 4];
        for (lane, &quad) in quads.iter().enumerate() {
            for (words, word) in words.iter_mut().zip(self.words(draw, quad)) {
                words[lane] = word;
            }
        }
        let mut normals = [[0f32; LANES]; 4];
        for (normals, words) in normals.as_chunks_mut::<2>().0.iter_mut().zip(words.as_chunks::<2>().0) {
            for lane in 0..LANES {
                [normals[0][lane], normals[1][lane]] = normal_pair(words[0][lane], words[1][lane]);
            }
        }
        let mut block = [0f32; 4 * LANES];
        let normals = normals.each_ref().map(|normals| S::as_simd_f32s(normals).0);
        for (i, vectors) in S::as_mut_simd_f32s(&mut block).0.as_chunks_mut::<4>().0.iter_mut().enumerate() {
            *vectors = simd.interleave_shfl_f32s(normals.map(|normals| normals[i]));
        }
        block
    }

    /// Uniform in 0..limit (multiply-shift; the bias is under limit / 2^32).
    pub fn uniform_below(&self, draw: u32, limit: u32) -> u32 {
        // Quads from 2^31 on are never reached by `fill_normal`: a frame has fewer elements.
        let word = self.words(draw, 1 << 31)[0];
        ((u64::from(word) * u64::from(limit)) >> 32) as u32
    }
}

struct FillNormal<'a> {
    key: &'a NoiseKey,
    draw: u32,
    noise: &'a mut [f32],
}

impl WithSimd for FillNormal<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let mut quads = quads_of_lanes(simd);
        for values in self.noise.chunks_mut(4 * LANES) {
            let block = self.key.normal_block(simd, self.draw, &quads);
            match values.as_mut_array() {
                Some(whole) => *whole = block,
                None => values.copy_from_slice(&block[..values.len()]),
            }
            quads.iter_mut().for_each(|quad| *quad += LANES as u32);
        }
    }
}

struct FillNoised<'a> {
    key: &'a NoiseKey,
    draw: u32,
    noise: &'a mut [f32],
    x_start: &'a [f32],
    signal: f32,
    spread: f32,
    x_t: &'a mut [f32],
}

impl WithSimd for FillNoised<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let mut quads = quads_of_lanes(simd);
        let blocks = self.noise.chunks_mut(4 * LANES).zip(self.x_t.chunks_mut(4 * LANES)).zip(self.x_start.chunks(4 * LANES));
        for ((noise, x_t), x_start) in blocks {
            let block = self.key.normal_block(simd, self.draw, &quads);
            for (((noise, x_t), x_start), value) in noise.iter_mut().zip(x_t).zip(x_start).zip(block) {
                *noise = value;
                *x_t = self.spread.mul_add(value, self.signal * x_start);
            }
            quads.iter_mut().for_each(|quad| *quad += LANES as u32);
        }
    }
}

/// The quad of the first block that each lane makes: as pulp's interleaving, whose order is its own, puts them in order.
#[inline(always)]
fn quads_of_lanes<S: Simd>(simd: S) -> [u32; LANES] {
    let mut elements: [f32; 4 * LANES] = std::array::from_fn(|element| element as f32);
    for vectors in S::as_mut_simd_f32s(&mut elements).0.as_chunks_mut::<4>().0 {
        *vectors = simd.deinterleave_shfl_f32s(*vectors);
    }
    // Of four vectors the first has the first element of each quad.
    std::array::from_fn(|lane| elements[lane / S::F32_LANES * 4 * S::F32_LANES + lane % S::F32_LANES] as u32 / 4)
}

/// Philox4x32-10: ten rounds of the bijection of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", section 3.
///
/// A word is the lower half of 64 bits: so a product needs no widening, and nothing is cut off before the end, which halves the
/// instructions of a vector's round. What the upper halves hold is never looked at.
#[inline(always)]
fn philox4x32_10(counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    const MULTIPLIERS: [u64; 2] = [0xD251_1F53, 0xCD9E_8D57];
    const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
    let mut words = counter.map(u64::from);
    for _ in 0..10 {
        let first = MULTIPLIERS[0] * (words[0] & 0xFFFF_FFFF);
        let second = MULTIPLIERS[1] * (words[2] & 0xFFFF_FFFF);
        words = [second >> 32 ^ words[1] ^ u64::from(key[0]), second, first >> 32 ^ words[3] ^ u64::from(key[1]), first];
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
    words.map(|word| word as u32)
}

/// Two independent standard normals of two words (Box and Muller).
#[inline(always)]
fn normal_pair(radius: u32, angle: u32) -> [f32; 2] {
    let radius = (-2.0 * ln(unit(radius))).sqrt();
    let (sine, cosine) = sine_cosine(angle);
    [radius * cosine, radius * sine]
}

/// The upper 23 bits as a value in (0, 1), exactly.
#[inline(always)]
fn unit(word: u32) -> f32 {
    ((word >> 9) as i32 as f32 + 0.5) * (1.0 / 8_388_608.0)
}

/// Natural logarithm of a normal positive f32 (polynomial of Cephes' `logf`).
#[inline(always)]
fn ln(x: f32) -> f32 {
    const POLYNOMIAL: [f32; 9] = [
        7.037_683_6e-2,
        -1.151_461e-1,
        1.167_699_9e-1,
        -1.242_014_1e-1,
        1.424_932_3e-1,
        -1.666_805_8e-1,
        2.000_071_5e-1,
        -2.499_999_4e-1,
        3.333_333e-1,
    ];
    let bits = x.to_bits();
    let raw_exponent = (bits >> 23) as i32 - 126;
    let raw_mantissa = f32::from_bits((bits & 0x007f_ffff) | 0x3f00_0000);
    let below = raw_mantissa < std::f32::consts::FRAC_1_SQRT_2;
    let exponent = (raw_exponent - i32::from(below)) as f32;
    let m = if below { raw_mantissa + raw_mantissa - 1.0 } else { raw_mantissa - 1.0 };
    let squared = m * m;
    let mut p = POLYNOMIAL[0];
    for coefficient in &POLYNOMIAL[1..] {
        p = p.mul_add(m, *coefficient);
    }
    let y = exponent.mul_add(-2.121_944_4e-4, p * m * squared);
    let y = (-0.5f32).mul_add(squared, y);
    exponent.mul_add(0.693_359_4, m + y)
}

/// (sin, cos) of 2 pi word / 2^32; the quadrant is taken from the word by integer arithmetic, exactly.
#[inline(always)]
fn sine_cosine(word: u32) -> (f32, f32) {
    let quadrant = word.wrapping_add(1 << 29) >> 30;
    let offset = word.wrapping_sub(quadrant << 30) as i32;
    // 2 pi / 2^26, for an offset of 24 significant bits.
    let x = (offset >> 6) as f32 * 9.362_676e-8;
    let squared = x * x;
    let p = (-1.951_529_6e-4f32).mul_add(squared, 8.332_161e-3).mul_add(squared, -1.666_665_5e-1);
    let sine = (p * squared).mul_add(x, x);
    let p = 2.443_315_7e-5f32.mul_add(squared, -1.388_731_6e-3).mul_add(squared, 4.166_664_6e-2);
    let cosine = (p * squared).mul_add(squared, (-0.5f32).mul_add(squared, 1.0));
    // By quadrant: (sine, cosine), (cosine, -sine), (-sine, -cosine), (-cosine, sine).
    let (first, second) = if quadrant & 1 == 0 { (sine, cosine) } else { (cosine, sine) };
    let with_sign = |value: f32, quadrant: u32| f32::from_bits(value.to_bits() ^ (quadrant & 2) << 30);
    (with_sign(first, quadrant), with_sign(second, quadrant + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn philox_gives_the_known_answers_of_random123() {
        let cases = [
            ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            ([!0; 4], [!0; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
            (
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0],
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ];
        for (counter, key, expected) in cases {
            assert_eq!(philox4x32_10(counter, key), expected);
        }
    }

    #[test]
    fn logarithm_sine_and_cosine_are_accurate() {
        for i in 0..200_000u32 {
            let word = i.wrapping_mul(2_654_435_761);
            let x = unit(word);
            let expected = f64::from(x).ln();
            assert!((f64::from(ln(x)) - expected).abs() <= 2e-7 * expected.abs().max(1e-2), "ln({x})");
            let angle = std::f64::consts::TAU * f64::from(word) / 4_294_967_296.0;
            let (sine, cosine) = sine_cosine(word);
            assert!((f64::from(sine) - angle.sin()).abs() < 4e-7, "sin of word {word}");
            assert!((f64::from(cosine) - angle.cos()).abs() < 4e-7, "cos of word {word}");
        }
    }

    #[test]
    fn normal_values_have_the_moments_of_the_standard_normal() {
        let mut noise = vec![0f32; 1_000_000];
        NoiseKey::from_seed(1, "moments", 0).fill_normal(0, &mut noise);
        let moment = |power: i32| noise.iter().map(|&v| f64::from(v).powi(power)).sum::<f64>() / noise.len() as f64;
        // Five standard errors of each moment for a million values.
        assert!(moment(1).abs() < 0.005, "mean {}", moment(1));
        assert!((moment(2) - 1.0).abs() < 0.0071, "variance {}", moment(2));
        assert!(moment(3).abs() < 0.02, "skewness {}", moment(3));
        assert!((moment(4) - 3.0).abs() < 0.05, "kurtosis {}", moment(4));
    }

    #[test]
    fn vectors_give_the_bits_of_the_scalar_definition() {
        // Goal: the same noise on every processor. Method: quad by quad, by the functions as they stand, at odd lengths.
        for length in [1, 63, 64, 1024, 4099] {
            let key = NoiseKey::from_seed(2, "lanes", 0);
            let mut noise = vec![0f32; length];
            key.fill_normal(3, &mut noise);
            for (i, value) in noise.iter().enumerate() {
                let words = key.words(3, u32::try_from(i / 4).expect("few"));
                let pair = i % 4 / 2 * 2;
                let expected = std::hint::black_box(normal_pair)(words[pair], words[pair + 1])[i % 2];
                assert_eq!(value.to_bits(), expected.to_bits(), "element {i} of {length}");
            }
        }
    }

    #[test]
    fn each_element_is_a_function_of_key_draw_and_position_alone() {
        let key = NoiseSecret::from_seed(7).frame_key("stream", FrameSeq(3), &[9; 32]);
        let (mut long, mut short) = (vec![0f32; 1001], vec![0f32; 10]);
        key.fill_normal(2, &mut long);
        key.fill_normal(2, &mut short);
        assert_eq!(long[..10], short[..]);
        let others = [
            NoiseSecret::from_seed(8).frame_key("stream", FrameSeq(3), &[9; 32]),
            NoiseSecret::from_seed(7).frame_key("streams", FrameSeq(3), &[9; 32]),
            NoiseSecret::from_seed(7).frame_key("stream", FrameSeq(4), &[9; 32]),
            NoiseSecret::from_seed(7).frame_key("stream", FrameSeq(3), &[8; 32]),
        ];
        for other in others {
            assert_ne!(key, other);
        }
    }
}
