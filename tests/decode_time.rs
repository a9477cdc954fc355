//! Goal: how long a picture takes to decode is bounded by the limits, whoever made it.
//! Method: pictures made to be slow, at the limits that ship. Measured is the time that the thread had a processor, which other
//! processes lengthen little.
//! Bound: nothing is passed over more often than there may be scans, and no byte costs more than the largest table of codes that
//! so few bytes can ask for. Per coefficient and byte it allows three times what was measured on a busy machine of 2 cores.

use flate2::Compression;
use flate2::write::DeflateEncoder;
use std::io::Write;
use std::time::Duration;
use undrift::decode::{Limits, Message, Reject, decode};
use undrift::frame::{Frame, FrameSeq};
use undrift::model::ImageShape;

/// Those of the configurations that ship.
const LIMITS: Limits = Limits { payload_bytes_max: 8 << 20, pixels_max: 1 << 24, dimension_max: 8192 };
const SHAPE: ImageShape = ImageShape { channels: 1, height: 32, width: 32 };
const SCANS_MAX: usize = 64;
/// Measured: 1.0 ns for each coefficient of one component that a scan visits and leaves as it is.
const COEFFICIENT_TIME: Duration = Duration::from_nanos(3);
/// Measured: 150 ns, in blocks of deflate of 12 bytes that bring codes and nothing else.
const BYTE_TIME: Duration = Duration::from_nanos(450);
/// Of the largest square picture.
const SIDE: u16 = 4096;
/// 8 x 8 pixels of it.
const BLOCKS: usize = 512 * 512;

/// What the limits let any picture take.
fn bound() -> Duration {
    let visits = u32::try_from(SCANS_MAX * LIMITS.pixels_max).expect("2^30");
    COEFFICIENT_TIME * visits + BYTE_TIME * u32::try_from(LIMITS.payload_bytes_max).expect("2^23")
}

/// Decodes, and gives the time that this thread had a processor.
fn timed(payload: &[u8]) -> (Result<Frame, Reject>, Duration) {
    let message = Message { subject_camera: "cam1", headers: &[], payload, sequence: FrameSeq(1), broker_time_ns: None };
    let before = processor_time();
    let decoded = decode(&message, &LIMITS, SHAPE, 10);
    (decoded, processor_time() - before)
}

fn processor_time() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux counts the time of threads");
    let nanoseconds = text.split(' ').next().and_then(|field| field.parse().ok());
    Duration::from_nanos(nanoseconds.expect("the first field is the time on a processor, in nanoseconds"))
}

fn segment(marker: u8, content: &[u8]) -> Vec<u8> {
    let length = u16::try_from(content.len() + 2).expect("short").to_be_bytes();
    [&[0xFF, marker], length.as_slice(), content].concat()
}

/// A table of Huffman codes for coefficients (`class` 1) or means (0): one code of each length, 0 and 10 and so on.
fn codes(class: u8, symbols: &[u8]) -> Vec<u8> {
    let mut counts = [0; 16];
    counts[..symbols.len()].fill(1);
    segment(0xC4, &[&[class << 4], counts.as_slice(), symbols].concat())
}

/// The bits of a scan, highest first, filled up with ones.
fn scan_data(bits: &str) -> Vec<u8> {
    let byte = |bits: &[u8]| (0..8).fold(0, |byte, n| byte << 1 | u8::from(bits.get(n) != Some(&b'0')));
    let stuffed = |byte| if byte == 0xFF { vec![0xFF, 0] } else { vec![byte] };
    bits.as_bytes().chunks(8).map(byte).flat_map(stuffed).collect()
}

/// A scan of `components`, of the coefficients `first` to `last`.
fn scan(components: &[u8], [first, last]: [u8; 2], precision: u8, bits: &str) -> Vec<u8> {
    let listed: Vec<u8> = components.iter().flat_map(|&component| [component, 0]).collect();
    let count = u8::try_from(components.len()).expect("three at most");
    [segment(0xDA, &[&[count], listed.as_slice(), &[first, last, precision]].concat()), scan_data(bits)].concat()
}

/// A progressive colour JPEG of the largest size, of `scans` scans, with `more` behind them.
fn jpeg(scans: usize, more: &[u8]) -> Vec<u8> {
    let [high, low] = SIDE.to_be_bytes();
    // 0: a run of 2^14 blocks that end, and as many more as the next 14 bits say; 10: a coefficient of 1 or -1.
    let tables = [segment(0xDB, &[[0].as_slice(), &[1; 64]].concat()), codes(0, &[0]), codes(1, &[0xE0, 0x01])].concat();
    let header = segment(0xC2, &[8, high, low, high, low, 3, 1, 0x11, 0, 2, 0x11, 0, 3, 0x11, 0]);
    let means = scan(&[1, 2, 3], [0, 0], 0, &"0".repeat(3 * BLOCKS));
    // A decoder passes over blocks that are all zeros.
    let ones = scan(&[1], [1, 1], 0, &"101".repeat(BLOCKS));
    // Visits each of the other coefficients, and changes none.
    let refinement = scan(&[1], [2, 63], 0x10, &"011111111111111".repeat(BLOCKS.div_ceil(0x7FFF)));
    [&[0xFF, 0xD8], tables.as_slice(), &header, &means, &ones, &refinement.repeat(scans - 2), more, &[0xFF, 0xD9]].concat()
}

/// The bits of a deflate stream, lowest first, filled up with zeros.
fn deflate_data(bits: &str) -> Vec<u8> {
    let byte = |bits: &[u8]| bits.iter().rev().fold(0, |byte, &bit| byte << 1 | u8::from(bit == b'1'));
    bits.as_bytes().chunks(8).map(byte).collect()
}

/// A block of deflate (RFC 1951, 3.2.7) with codes for a zero byte and for its end, which comes at once.
fn empty_block() -> String {
    // Not the last, with codes of its own: 257 for bytes, one for distances, 18 for the lengths of codes, in the order 16, 17, 18, ...
    let head = ["0", "01", "00000", "00000", "0111"].concat();
    let lengths: String = (0..18).map(|n| if n == 2 || n == 17 { "100" } else { "000" }).collect();
    // 1, then 138 and 117 zeros, 1, and 1 for the distance; then the code of the end.
    head + &lengths + "0" + "11111111" + "10101011" + "0" + "0" + "1"
}

/// Rows of an interlaced colour picture of the largest size, filtered by Paeth: the order and the filter that cost most.
fn filtered_rows() -> Vec<u8> {
    let side = usize::from(SIDE);
    // Of each pass: first row and column, and the distances between them.
    let passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)];
    let mut rows = Vec::new();
    for (top, left, down, right) in passes {
        let (height, width) = ((side - top).div_ceil(down), (side - left).div_ceil(right));
        for y in 0..height {
            rows.push(4);
            rows.extend((0..3 * width).map(|x| ((x * 7) ^ y) as u8 & 3));
        }
    }
    rows
}

fn chunk(kind: &[u8; 4], content: &[u8]) -> Vec<u8> {
    let mut crc = flate2::Crc::new();
    crc.update(kind);
    crc.update(content);
    let length = u32::try_from(content.len()).expect("a short chunk").to_be_bytes();
    [length.as_slice(), kind, content, &crc.sum().to_be_bytes()].concat()
}

/// A PNG of the largest size, with `blocks` empty blocks of deflate before its rows, and its first `chunks` bytes in chunks of their own.
fn png(blocks: usize, chunks: usize) -> Vec<u8> {
    let rows = filtered_rows();
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(&rows).expect("memory");
    let checksum = rows.iter().fold((1u32, 0u32), |(a, b), &byte| ((a + u32::from(byte)) % 65521, (a + u32::from(byte) + b) % 65521));
    // A stored block without content ends on the border of a byte.
    let blocks = [deflate_data(&(empty_block().repeat(blocks) + "000")), vec![0, 0, 0xFF, 0xFF]].concat();
    let end = (checksum.1 << 16 | checksum.0).to_be_bytes();
    let data = [[0x78, 1].as_slice(), &blocks, &encoder.finish().expect("memory"), &end].concat();
    let (single, rest) = data.split_at(chunks);
    let single: Vec<u8> = single.iter().flat_map(|&byte| chunk(b"IDAT", &[byte])).collect();
    let side = u32::from(SIDE).to_be_bytes();
    let header = [side.as_slice(), &side, &[8, 2, 0, 0, 1]].concat();
    [b"\x89PNG\r\n\x1a\n".to_vec(), chunk(b"IHDR", &header), single, chunk(b"IDAT", rest), chunk(b"IEND", &[])].concat()
}

#[test]
fn the_slowest_pictures_that_are_let_in_decode_within_the_bound() {
    let bound = bound();
    println!("bound {bound:?}");
    let plain = jpeg(2, &[]);
    let tables = codes(1, &[0xE0, 0x01]);
    let tables = tables.repeat((LIMITS.payload_bytes_max - plain.len()) / tables.len());
    let cases = [
        ("JPEG of two scans", plain),
        ("JPEG with as many scans as there may be", jpeg(SCANS_MAX, &[])),
        ("JPEG of tables", jpeg(2, &tables)),
        ("PNG", png(0, 0)),
        ("PNG with 600,000 blocks of codes", png(600_000, 0)),
        ("PNG with 200,000 chunks of a byte", png(0, 200_000)),
    ];
    for (name, payload) in cases {
        let (decoded, time) = timed(&payload);
        println!("{name}: {} bytes, {:.3} s", payload.len(), time.as_secs_f64());
        assert!(decoded.is_ok(), "{name}: {decoded:?}");
        assert!(time <= bound, "{name} took {time:?}; the limits let it take {bound:?}");
    }
}

#[test]
fn what_would_go_beyond_the_bound_is_refused_unread() {
    for scans in [SCANS_MAX + 1, 3000] {
        let payload = jpeg(scans, &[]);
        let (decoded, time) = timed(&payload);
        println!("{scans} scans: {} bytes, {:.3} s", payload.len(), time.as_secs_f64());
        assert!(time <= bound() / 100, "{scans} scans took {time:?}");
        assert_eq!(decoded.err().map(|reject| reject.to_string()), Some(format!("the JPEG has more than {SCANS_MAX} scans")));
    }
}
