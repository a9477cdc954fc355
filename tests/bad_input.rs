//! Goal: no message, however bad, ends the daemon, is taken for a picture, or changes how the next one is read.
//! Method: a table of bad messages, made by families, each with the reason that it must be refused for; after each one a good frame
//! of each encoding must decode to the same bytes as before. All of it on a thread with a stack of 256 KiB.

mod heap;

use flate2::Compression;
use flate2::write::ZlibEncoder;
use heap::peak_heap;
use image::codecs::jpeg::JpegEncoder;
use image::codecs::png::PngEncoder;
use image::{ExtendedColorType, ImageEncoder};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::time::{Duration, Instant};
use undrift::decode::{Limits, Message, Reject, decode};
use undrift::frame::{Frame, FrameSeq};
use undrift::model::ImageShape;
use undrift::wire::{ControlError, LabelError, Terms, parse_control, parse_label};

const LIMITS: Limits = Limits { payload_bytes_max: 1 << 20, pixels_max: 1 << 22, dimension_max: 4096 };
const SHAPE: ImageShape = ImageShape { channels: 1, height: 32, width: 32 };
const CLASSES: usize = 10;
const STACK_BYTES: usize = 256 * 1024;

enum Input {
    Frame { camera: String, headers: Vec<(String, String)>, payload: Vec<u8> },
    Label(Vec<u8>),
    Control { verb: String, payload: Vec<u8> },
    Terms { headers: Vec<(String, String)> },
}

struct Case {
    name: String,
    reason: &'static str,
    input: Input,
}

fn frame(name: impl Into<String>, reason: &'static str, payload: impl Into<Vec<u8>>) -> Case {
    with_headers(name, reason, &[], payload)
}

fn with_headers(name: impl Into<String>, reason: &'static str, headers: &[(&str, &str)], payload: impl Into<Vec<u8>>) -> Case {
    let headers = headers.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
    Case { name: name.into(), reason, input: Input::Frame { camera: "cam-1".to_owned(), headers, payload: payload.into() } }
}

fn enveloped(name: impl Into<String>, reason: &'static str, payload: impl Into<Vec<u8>>) -> Case {
    with_headers(name, reason, &[("content-type", "application/msgpack")], payload)
}

/// A label or control message is refused for `reason`, counted apart from those of frames.
fn refusal(input: &Input) -> Result<(), &'static str> {
    match input {
        Input::Frame { camera, headers, payload } => decode_as(camera, headers, payload).map(drop).map_err(|reject| reject.reason()),
        Input::Label(payload) => parse_label(payload, CLASSES).map(drop).map_err(|error| error.reason()),
        Input::Control { verb, payload } => parse_control(verb, payload).map(drop).map_err(|error| error.reason()),
        // The next decision is the third, and it is a second past 1970.
        Input::Terms { headers } => Terms::parse(headers).and_then(|terms| terms.check(3, 1_000_000_000)).map_err(|error| error.reason()),
    }
}

fn decode_as(camera: &str, headers: &[(String, String)], payload: &[u8]) -> Result<Frame, Reject> {
    let message = Message { subject_camera: camera, headers, payload, sequence: FrameSeq(1), broker_time_ns: None };
    decode(&message, &LIMITS, SHAPE, CLASSES)
}

fn pixels(channels: usize) -> Vec<u8> {
    (0..channels * 1024).map(|i| (i * 7 % 251) as u8).collect()
}

fn jpeg(color: ExtendedColorType, pixels: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    JpegEncoder::new_with_quality(&mut bytes, 90).write_image(pixels, 32, 32, color).expect("a JPEG");
    bytes
}

fn png(color: ExtendedColorType, pixels: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    PngEncoder::new(&mut bytes).write_image(pixels, 32, 32, color).expect("a PNG");
    bytes
}

fn grey_jpeg() -> Vec<u8> {
    jpeg(ExtendedColorType::L8, &pixels(1))
}

fn grey_png() -> Vec<u8> {
    png(ExtendedColorType::L8, &pixels(1))
}

/// `bytes` with those from `at` on replaced.
fn patched(bytes: &[u8], at: usize, patch: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[at..at + patch.len()].copy_from_slice(patch);
    bytes
}

/// Where the content of the JPEG's SOF0 segment begins: precision, height, width, components.
fn frame_header_of(jpeg: &[u8]) -> usize {
    jpeg.windows(2).position(|pair| pair == [0xFF, 0xC0]).expect("a frame header") + 4
}

fn chunk(kind: &[u8; 4], content: &[u8]) -> Vec<u8> {
    let mut crc = flate2::Crc::new();
    crc.update(kind);
    crc.update(content);
    let length = u32::try_from(content.len()).expect("a short chunk").to_be_bytes();
    [length.as_slice(), kind, content, &crc.sum().to_be_bytes()].concat()
}

fn png_of(chunks: &[Vec<u8>]) -> Vec<u8> {
    [b"\x89PNG\r\n\x1a\n".to_vec(), chunks.concat()].concat()
}

fn image_header(width: u32, height: u32, depth: u8, color: u8) -> Vec<u8> {
    chunk(b"IHDR", &[width.to_be_bytes().as_slice(), &height.to_be_bytes(), &[depth, color, 0, 0, 0]].concat())
}

fn image_data(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).expect("memory");
    chunk(b"IDAT", &encoder.finish().expect("memory"))
}

/// A MessagePack map of `fields`, and of the image where there is one.
fn envelope(fields: Value, image: Option<&[u8]>) -> Vec<u8> {
    #[derive(serde::Serialize)]
    struct Envelope<'a> {
        #[serde(flatten)]
        fields: Value,
        #[serde(with = "serde_bytes", skip_serializing_if = "Option::is_none")]
        image: Option<&'a [u8]>,
    }
    rmp_serde::to_vec_named(&Envelope { fields, image }).expect("a map")
}

fn gray8(change: impl FnOnce(&mut Value)) -> Vec<u8> {
    let mut fields = json!({ "v": 1, "encoding": "gray8", "height": 32, "width": 32 });
    change(&mut fields);
    envelope(fields, Some(&[7; 1024]))
}

fn truncations() -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, bytes) in [("JPEG", grey_jpeg()), ("PNG", grey_png()), ("RGB JPEG", jpeg(ExtendedColorType::Rgb8, &pixels(3)))] {
        let offsets: BTreeSet<usize> = (1..20).chain((1..20).map(|i| i * bytes.len() / 20)).chain(bytes.len() - 8..bytes.len()).collect();
        cases.extend(offsets.iter().map(|&at| frame(format!("{name} cut after {at} bytes"), "truncated", &bytes[..at])));
        let packed = name.rsplit(' ').next().unwrap_or_default().to_lowercase();
        let fields = json!({ "v": 1, "encoding": packed });
        cases.push(enveloped(format!("{name} cut in an envelope"), "truncated", envelope(fields, Some(&bytes[..bytes.len() / 2]))));
    }
    cases
}

fn damaged_jpegs() -> Vec<Case> {
    let good = grey_jpeg();
    let header = frame_header_of(&good);
    let end = good.len() - 2;
    let scan = good.windows(2).position(|pair| pair == [0xFF, 0xDA]).expect("a scan");
    let insert = |at: usize, bytes: &[u8]| [&good[..at], bytes, &good[at..]].concat();
    vec![
        frame("JPEG whose scan is cut and closed", "corrupt", [&good[..scan + 60], &[0xFF, 0xD9]].concat()),
        frame("JPEG without its scan", "corrupt", [&good[..scan], &[0xFF, 0xD9]].concat()),
        frame("JPEG of markers only", "corrupt", [0xFF, 0xD8, 0xFF, 0xD9]),
        frame("JPEG with a twice as high header", "corrupt", patched(&good, header + 1, &[0, 64])),
        frame("JPEG with two frame headers", "corrupt", insert(scan, &good[header - 4..header + 9])),
        frame("JPEG with a segment of length 0", "corrupt", insert(2, &[0xFF, 0xE5, 0, 0])),
        frame("JPEG with a segment of length 1", "corrupt", insert(2, &[0xFF, 0xE5, 0, 1])),
        frame("JPEG with a segment beyond the end", "truncated", insert(2, &[0xFF, 0xE5, 0xFF, 0xFF])),
        frame("JPEG with a restart in its header", "corrupt", insert(2, &[0xFF, 0xD0])),
        frame("JPEG with a second start", "corrupt", insert(2, &[0xFF, 0xD8])),
        frame("JPEG with junk between segments", "corrupt", insert(scan, b"junk")),
        frame("JPEG with a short frame header", "corrupt", insert(2, &[0xFF, 0xC0, 0, 4, 8, 0])),
        frame("JPEG with 65 scans", "corrupt", insert(end, &good[scan..end].repeat(64))),
        frame("JPEG with a second JPEG behind it", "trailing", good.repeat(2)),
        frame("JPEG with a text behind it", "trailing", insert(good.len(), b"<?php")),
        frame("JPEG of 12 bits", "bit_depth", patched(&good, header, &[12])),
        frame("JPEG of 16 bits", "bit_depth", patched(&good, header, &[16])),
        frame("JPEG of 0 bits", "bit_depth", patched(&good, header, &[0])),
        frame("JPEG of no components", "channels", patched(&good, header + 5, &[0])),
        frame("JPEG of 2 components", "channels", patched(&good, header + 5, &[2])),
        frame("JPEG of CMYK", "channels", patched(&good, header + 5, &[4])),
        frame("JPEG of 255 components", "channels", patched(&good, header + 5, &[255])),
        frame("JPEG that says 3 components and has 1", "corrupt", patched(&good, header + 5, &[3])),
        frame("JPEG without quantization tables", "corrupt", without_segments(&good, 0xDB)),
        frame("JPEG without Huffman tables", "corrupt", without_segments(&good, 0xC4)),
    ]
}

fn without_segments(jpeg: &[u8], code: u8) -> Vec<u8> {
    let (mut kept, mut at) = (jpeg[..2].to_vec(), 2);
    while jpeg[at + 1] != 0xDA {
        let end = at + 2 + usize::from(u16::from_be_bytes([jpeg[at + 2], jpeg[at + 3]]));
        if jpeg[at + 1] != code {
            kept.extend(&jpeg[at..end]);
        }
        at = end;
    }
    kept.extend(&jpeg[at..]);
    kept
}

fn jpeg_kinds() -> Vec<Case> {
    let good = grey_jpeg();
    let header = frame_header_of(&good);
    let kinds = [0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF];
    kinds.map(|code| frame(format!("JPEG of kind SOF{}", code - 0xC0), "format", patched(&good, header - 3, &[code]))).into()
}

fn dimensions() -> Vec<Case> {
    let jpeg = grey_jpeg();
    let header = frame_header_of(&jpeg);
    let mut cases = Vec::new();
    for (height, width) in [(0, 32), (32, 0), (0, 0), (65535, 65535), (4097, 1), (1, 4097), (4096, 4096), (32768, 32), (65535, 1)] {
        let size: [u8; 4] = [u16::to_be_bytes(height), u16::to_be_bytes(width)].concat().try_into().expect("four bytes");
        cases.push(frame(format!("JPEG of {height} x {width}"), "dimensions", patched(&jpeg, header + 1, &size)));
        let png = png_of(&[image_header(width.into(), height.into(), 8, 0), image_data(&[0; 33]), chunk(b"IEND", &[])]);
        cases.push(frame(format!("PNG of {height} x {width}"), "dimensions", png));
    }
    for bit in 4..8 {
        let (high, wide) = (patched(&jpeg, header + 1, &[1 << bit]), patched(&jpeg, header + 3, &[1 << bit]));
        cases.push(frame(format!("JPEG with bit {} of the height set", bit + 8), "dimensions", high));
        cases.push(frame(format!("JPEG with bit {} of the width set", bit + 8), "dimensions", wide));
    }
    for (height, width) in [(u32::MAX, u32::MAX), (1 << 31, 2), (1, 1 << 31), (65536, 65536)] {
        let png = png_of(&[image_header(width, height, 8, 0), image_data(&[0; 33]), chunk(b"IEND", &[])]);
        cases.push(frame(format!("PNG of {height} x {width}"), "dimensions", png));
    }
    cases
}

fn damaged_pngs() -> Vec<Case> {
    let good = grey_png();
    let end = chunk(b"IEND", &[]);
    let head = || image_header(2, 2, 8, 0);
    let data = || image_data(&[0, 1, 2, 0, 3, 4]);
    let with = |kind: &[u8; 4], content: &[u8]| png_of(&[head(), chunk(kind, content), data(), end.clone()]);
    vec![
        frame("PNG with a text behind it", "trailing", [good.as_slice(), b"<script>"].concat()),
        frame("PNG with a second PNG behind it", "trailing", good.repeat(2)),
        frame("PNG without data", "corrupt", png_of(&[head(), end.clone()])),
        frame("PNG without a header", "corrupt", png_of(&[data(), end.clone()])),
        frame("PNG with a short header", "corrupt", png_of(&[chunk(b"IHDR", &[0; 12]), data(), end.clone()])),
        frame("PNG with a row missing", "corrupt", png_of(&[head(), image_data(&[0, 1, 2]), end.clone()])),
        frame("PNG with an unknown filter", "corrupt", png_of(&[head(), image_data(&[9, 1, 2, 0, 3, 4]), end.clone()])),
        frame("PNG whose data is not deflated", "corrupt", png_of(&[head(), chunk(b"IDAT", b"not zlib"), end.clone()])),
        frame("PNG with a bit of the header's checksum flipped", "corrupt", patched(&good, 29, &[good[29] ^ 1])),
        frame("PNG with a bit of the width flipped", "corrupt", patched(&good, 19, &[good[19] ^ 1])),
        frame("PNG with an unknown critical chunk", "corrupt", with(b"ABCD", &[1])),
        frame("PNG with a chunk of 2 GiB", "truncated", png_of(&[head(), patched(&chunk(b"teXt", &[]), 0, &[0x7F, 0xFF, 0xFF, 0xFF])])),
        frame("PNG with a chunk of 4 GiB", "truncated", png_of(&[head(), patched(&chunk(b"teXt", &[]), 0, &[0xFF; 4])])),
        frame("PNG with two headers", "corrupt", png_of(&[head(), head(), data(), end.clone()])),
        frame("PNG with an unknown compression", "corrupt", png_of(&[custom_header(1, 0, 0), data(), end.clone()])),
        frame("PNG with an unknown interlace", "corrupt", png_of(&[custom_header(0, 0, 2), data(), end.clone()])),
        frame("PNG with a transparent grey", "channels", with(b"tRNS", &[0, 1])),
        frame("animated PNG", "format", with(b"acTL", &[0, 0, 0, 1, 0, 0, 0, 0])),
        frame("palette PNG with transparency", "channels", palette_png(true, 8)),
        frame("palette PNG of 4 bits", "bit_depth", palette_png(false, 4)),
        frame("palette PNG without a palette", "corrupt", png_of(&[image_header(2, 2, 8, 3), data(), end.clone()])),
        frame("PNG of 1 bit", "bit_depth", png_of(&[image_header(2, 2, 1, 0), image_data(&[0; 4]), end.clone()])),
        frame("PNG of 2 bits", "bit_depth", png_of(&[image_header(2, 2, 2, 0), image_data(&[0; 4]), end.clone()])),
        frame("PNG of 16 bits", "bit_depth", png(ExtendedColorType::L16, &pixels(2))),
        frame("PNG of 16 bits RGB", "bit_depth", png(ExtendedColorType::Rgb16, &pixels(6))),
        frame("PNG of grey and alpha", "channels", png(ExtendedColorType::La8, &pixels(2))),
        frame("PNG of RGB and alpha", "channels", png(ExtendedColorType::Rgba8, &pixels(4))),
        frame("PNG of RGB and alpha in 16 bits", "channels", png(ExtendedColorType::Rgba16, &pixels(8))),
        frame("PNG of color type 1", "channels", png_of(&[image_header(2, 2, 8, 1), data(), end.clone()])),
        frame("PNG of color type 7", "channels", png_of(&[image_header(2, 2, 8, 7), data(), end.clone()])),
    ]
}

fn custom_header(compression: u8, filter: u8, interlace: u8) -> Vec<u8> {
    chunk(b"IHDR", &[0, 0, 0, 2, 0, 0, 0, 2, 8, 0, compression, filter, interlace])
}

fn palette_png(is_transparent: bool, depth: u8) -> Vec<u8> {
    let transparency = if is_transparent { chunk(b"tRNS", &[0]) } else { Vec::new() };
    let palette = chunk(b"PLTE", &[255, 0, 0, 0, 0, 255]);
    png_of(&[image_header(2, 2, depth, 3), palette, transparency, image_data(&[0, 0, 1, 0, 1, 0]), chunk(b"IEND", &[])])
}

fn foreign_formats() -> Vec<Case> {
    let heads: [(&str, &[u8]); 20] = [
        ("GIF", b"GIF89a\x20\0\x20\0\x80\0\0"),
        ("BMP", b"BM\x46\0\0\0\0\0\0\0\x36\0\0\0"),
        ("WebP", b"RIFF\x24\0\0\0WEBPVP8 "),
        ("little-endian TIFF", b"II*\0\x08\0\0\0"),
        ("big-endian TIFF", b"MM\0*\0\0\0\x08"),
        ("SVG", b"<svg xmlns=\"http://www.w3.org/2000/svg\"/>"),
        ("XML", b"<?xml version=\"1.0\"?>"),
        ("HEIC", b"\0\0\0\x18ftypheic\0\0\0\0"),
        ("AVIF", b"\0\0\0\x1cftypavif\0\0\0\0"),
        ("JPEG XL", b"\xFF\x0A\0\0"),
        ("JPEG 2000", b"\0\0\0\x0cjP  \r\n\x87\n"),
        ("JPEG-LS", b"\xFF\xD8\xFE\xF7"),
        ("PDF", b"%PDF-1.7"),
        ("ZIP", b"PK\x03\x04"),
        ("gzip", b"\x1f\x8b\x08\0"),
        ("text", b"hello, camera"),
        ("JSON", b"{\"image\": \"\"}"),
        ("PGM", b"P5 32 32 255\n"),
        ("zeros", &[0; 64]),
        ("PNG with line ends converted", b"\x89PNG\n\x1a\n\0\0\0\rIHDR"),
    ];
    let mut cases: Vec<Case> = heads.iter().map(|&(name, bytes)| frame(name, "format", bytes)).collect();
    cases.push(frame("nothing", "empty", []));
    cases.push(frame("one byte", "format", [1]));
    cases.push(frame("JPEG behind a space", "format", [b" ".as_slice(), &grey_jpeg()].concat()));
    cases.push(frame("payload over the limit", "too_large", vec![0; LIMITS.payload_bytes_max + 1]));
    cases.push(frame("JPEG over the limit", "too_large", [grey_jpeg(), vec![0; LIMITS.payload_bytes_max]].concat()));
    cases
}

fn envelope_fields() -> Vec<Case> {
    let set = |key: &'static str, value: Value| gray8(|fields| fields[key] = value);
    let mut cases = Vec::new();
    for (key, values) in [
        ("v", vec![json!(0), json!(2), json!(-1), json!("1"), json!(null), json!(1.5)]),
        ("encoding", vec![json!("nv12"), json!(""), json!("JPEG"), json!(null), json!(3), json!(["gray8"]), json!("g".repeat(300))]),
        ("height", vec![json!(-1), json!(3.5), json!("32"), json!(u64::MAX.to_string())]),
        ("frame_id", vec![json!(""), json!("x".repeat(129)), json!("a\nb"), json!("caf\u{e9}"), json!(5)]),
        ("capture_time_ns", vec![json!(-1), json!(i64::MIN), json!(u64::MAX), json!("now"), json!(1.5)]),
        ("label", vec![json!(-1), json!("3"), json!(1.0), json!([1])]),
        ("domain", vec![json!(""), json!("x".repeat(65)), json!("\u{7}"), json!({ "a": 1 })]),
        ("camera", vec![json!(5), json!(["cam-1"])]),
        ("meta", vec![json!(1), json!({ "deep": [[[[]]]] })]),
        ("Label", vec![json!(1)]),
    ] {
        cases.extend(values.into_iter().map(|value| {
            let shown: String = value.to_string().chars().take(24).collect();
            enveloped(format!("envelope with {key} {shown}"), "envelope", set(key, value))
        }));
    }
    for missing in ["v", "encoding", "height", "width"] {
        let remove = |fields: &mut Value| drop(fields.as_object_mut().map(|map| map.remove(missing)));
        cases.push(enveloped(format!("envelope without {missing}"), "envelope", gray8(remove)));
    }
    for camera in ["", "cam-2", "CAM-1", "a b", "cam-1.x"] {
        cases.push(enveloped(format!("envelope of camera {camera:?}"), "camera", set("camera", json!(camera))));
    }
    for label in [10, 255, u64::from(u32::MAX) + 1, u64::MAX] {
        cases.push(enveloped(format!("envelope of label {label}"), "label", set("label", json!(label))));
    }
    cases
}

fn envelope_images() -> Vec<Case> {
    let shape = |encoding: &str, height: u64, width: u64| json!({ "v": 1, "encoding": encoding, "height": height, "width": width });
    let floats = |value: f32| [[0.5; 1023].as_slice(), &[value]].concat().iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>();
    let mut cases = Vec::new();
    for (encoding, length) in
        [("gray8", 1023), ("gray8", 1025), ("gray8", 3072), ("rgb8", 1024), ("rgb8", 3071), ("gray_f32", 4095), ("gray_f32", 1024)]
    {
        let payload = envelope(shape(encoding, 32, 32), Some(&vec![1; length]));
        cases.push(enveloped(format!("{encoding} of {length} bytes"), "length", payload));
    }
    for (height, width) in
        [(0, 32), (32, 0), (1 << 32, 1 << 32), (u64::MAX, 2), (u64::MAX, u64::MAX), (4097, 1), (4096, 4096), (1 << 63, 2)]
    {
        let payload = envelope(shape("gray8", height, width), Some(&[1; 64]));
        cases.push(enveloped(format!("gray8 of {height} x {width}"), "dimensions", payload));
    }
    for value in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        cases.push(enveloped(
            format!("a float of {value} ({:08x})", value.to_bits()),
            "not_finite",
            envelope(shape("gray_f32", 32, 32), Some(&floats(value))),
        ));
    }
    for value in [-0.001, 1.001, f32::MAX, f32::MIN, -f32::MIN_POSITIVE] {
        cases.push(enveloped(format!("a float of {value:e}"), "range", envelope(shape("gray_f32", 32, 32), Some(&floats(value)))));
    }
    let (jpeg, png) = (grey_jpeg(), grey_png());
    cases.extend([
        enveloped("envelope without an image", "envelope", envelope(shape("gray8", 32, 32), None)),
        enveloped("envelope with an empty image", "empty", envelope(shape("gray8", 32, 32), Some(&[]))),
        enveloped("envelope that calls a PNG a JPEG", "content_type", envelope(json!({ "v": 1, "encoding": "jpeg" }), Some(&png))),
        enveloped("envelope that calls a JPEG a PNG", "content_type", envelope(json!({ "v": 1, "encoding": "png" }), Some(&jpeg))),
        enveloped("envelope with text for a JPEG", "format", envelope(json!({ "v": 1, "encoding": "jpeg" }), Some(b"text"))),
        enveloped("envelope with another height than its PNG", "envelope", envelope(shape("png", 31, 32), Some(&png))),
        enveloped("envelope with another width than its JPEG", "envelope", envelope(shape("jpeg", 32, 33), Some(&jpeg))),
    ]);
    cases
}

fn envelope_bytes() -> Vec<Case> {
    let good = gray8(|_| {});
    let text = |key: &str| [&[0xA0 | u8::try_from(key.len()).expect("short")], key.as_bytes()].concat();
    let bomb = |head: &[u8]| [vec![0x82], text("v"), vec![1], text("image"), head.to_vec()].concat();
    let deep = |key: &str, marker: u8| [vec![0x81], text(key), vec![marker; 10_000]].concat();
    let mut cases: Vec<Case> = [
        ("array32 of 4 Gi", [0xDD, 0xFF, 0xFF, 0xFF, 0xFF]),
        ("map32 of 4 Gi", [0xDF, 0xFF, 0xFF, 0xFF, 0xFF]),
        ("str32 of 4 GiB", [0xDB, 0xFF, 0xFF, 0xFF, 0xFF]),
        ("bin32 of 4 GiB", [0xC6, 0xFF, 0xFF, 0xFF, 0xFF]),
        ("ext32 of 4 GiB", [0xC9, 0xFF, 0xFF, 0xFF, 0xFF]),
    ]
    .iter()
    .flat_map(|(name, head)| {
        [enveloped(format!("{name} alone"), "envelope", *head), enveloped(format!("{name} as image"), "envelope", bomb(head))]
    })
    .collect();
    for at in (1..good.len()).step_by(good.len() / 12) {
        cases.push(enveloped(format!("envelope cut after {at} bytes"), "envelope", &good[..at]));
    }
    cases.extend([
        enveloped("10,000 nested arrays", "envelope", vec![0x91; 10_000]),
        enveloped("10,000 nested maps", "envelope", vec![0x81; 10_000]),
        enveloped("10,000 arrays under v", "envelope", deep("v", 0x91)),
        enveloped("10,000 arrays under an unknown key", "envelope", deep("x", 0x91)),
        enveloped("10,000 maps under image", "envelope", deep("image", 0x81)),
        enveloped("10,000 arrays behind the envelope", "envelope", [good.clone(), vec![0x91; 10_000]].concat()),
        enveloped("envelope with a byte behind it", "envelope", [good.as_slice(), &[0xC0]].concat()),
        enveloped("envelope with a reserved byte behind it", "envelope", [good.as_slice(), &[0xC1]].concat()),
        enveloped("two envelopes", "envelope", good.repeat(2)),
        enveloped("envelope with a key twice", "envelope", [&[good[0] + 1], &good[1..], &text("v"), &[1]].concat()),
        enveloped("envelope as an array", "envelope", [0x93, 1, 0xC0, 0xC0]),
        enveloped("envelope that is a number", "envelope", [1]),
        enveloped("envelope that is a reserved byte", "envelope", [0xC1]),
        enveloped("envelope that is an empty map", "envelope", [0x80]),
        enveloped("envelope with a key that is no UTF-8", "envelope", [0x81, 0xA1, 0xFF, 1]),
        enveloped("envelope in JSON", "envelope", *b"{\"v\": 1}"),
        enveloped("envelope that is a JPEG", "envelope", grey_jpeg()),
        enveloped("empty envelope", "empty", []),
        frame("envelope that is not declared", "format", good),
    ]);
    cases
}

fn bad_headers() -> Vec<Case> {
    let good = grey_png();
    let long = "x".repeat(200);
    let mut cases = Vec::new();
    for (name, values) in [
        ("Frame-Id", vec!["", " ", "a\nb", "a\u{0}b", "caf\u{e9}", "\u{7f}", &long]),
        ("Domain", vec!["", "a\u{1b}[31m", "nebl\u{e9}", &long]),
        ("Label", vec!["", "-1", "+1", "1.0", "0x1", "one", "1 2", "\u{661}", "99999999999999999999999"]),
        (
            "Capture-Time",
            vec!["", "yesterday", "-1", "1.5", "2024-13-01T00:00:00Z", "2024-01-01", "2024-01-01T00:00:00", "1960-01-01T00:00:00Z"],
        ),
        ("Capture-Time", vec!["9223372036854775808", "3000-01-01T00:00:00Z", "2024-02-30T00:00:00Z", "1e9", &long]),
        ("Content-Type", vec!["", "text/plain", "image/gif", "image/", "application/json", "application/msgpackx", &long]),
    ] {
        for value in values {
            let shown: String = value.chars().take(24).collect();
            cases.push(with_headers(format!("{name} of {shown:?}"), "header", &[(name, value)], good.as_slice()));
        }
        let twice = [(name, "1"), (&*name.to_lowercase(), "1")];
        cases.push(with_headers(format!("{name} twice, of {}", cases.len()), "header", &twice, good.as_slice()));
    }
    for label in ["10", "255", "4294967296", "18446744073709551615"] {
        cases.push(with_headers(format!("Label of {label}"), "label", &[("LABEL", label)], good.as_slice()));
    }
    let names: Vec<String> = (0..65).map(|i| format!("X-{i}")).collect();
    let many: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "v")).collect();
    let huge = "v".repeat(16 * 1024);
    cases.push(with_headers("65 headers", "header", &many, good.as_slice()));
    cases.push(with_headers("a header of 16 KiB", "header", &[("X-Huge", &huge)], good.as_slice()));
    cases.push(with_headers("a name of 16 KiB", "header", &[(&huge, "v")], good.as_slice()));
    cases.push(with_headers("PNG declared a JPEG", "content_type", &[("Content-Type", "image/jpeg")], good.as_slice()));
    cases.push(with_headers("JPEG declared a PNG", "content_type", &[("CONTENT-TYPE", "Image/PNG")], grey_jpeg()));
    cases
}

fn bad_cameras() -> Vec<Case> {
    let long = "c".repeat(65);
    let cameras = ["", " ", "a b", "a.b", "*", ">", "a/b", "../etc", "caf\u{e9}", "a\nb", "a\u{0}", "$SYS", "{a=\"b\"}", &long];
    let case = |camera: &str| Case {
        name: format!("camera {camera:?}"),
        reason: "camera",
        input: Input::Frame { camera: camera.to_owned(), headers: Vec::new(), payload: grey_png() },
    };
    cameras.map(case).into()
}

fn bad_labels() -> Vec<Case> {
    let cases: [(&str, Vec<u8>); 24] = [
        ("size", vec![]),
        ("size", vec![b' '; 4097]),
        ("format", b"   ".to_vec()),
        ("format", b"{".to_vec()),
        ("format", b"{}".to_vec()),
        ("format", b"3".to_vec()),
        ("format", br#"{"frame_id": "a"}"#.to_vec()),
        ("format", br#"{"label": 1}"#.to_vec()),
        ("format", br#"{"frame_id": "a", "label": -1}"#.to_vec()),
        ("format", br#"{"frame_id": "a", "label": 1.5}"#.to_vec()),
        ("format", br#"{"frame_id": "a", "label": "1"}"#.to_vec()),
        ("format", br#"{"frame_id": 1, "label": 1}"#.to_vec()),
        ("format", br#"{"frame_id": "a", "label": 1, "weight": 2}"#.to_vec()),
        ("format", br#"{"frame_id": "a", "label": 1, "label": 2}"#.to_vec()),
        ("format", br#"{"frame_id": "a", "label": 1} {}"#.to_vec()),
        ("format", br#"[{"frame_id": "a", "label": 1}]"#.to_vec()),
        ("format", [b"{\"x\":".to_vec(), vec![b'['; 4000]].concat()),
        ("format", vec![0x91; 4000]),
        ("format", vec![0xDF, 0xFF, 0xFF, 0xFF, 0xFF]),
        ("format", b"\x82\xa8frame_id\xdb\xff\xff\xff\xff".to_vec()),
        ("frame_id", br#"{"frame_id": "", "label": 1}"#.to_vec()),
        ("frame_id", format!(r#"{{"frame_id": "{}", "label": 1}}"#, "x".repeat(129)).into_bytes()),
        ("label", br#"{"frame_id": "a", "label": 10}"#.to_vec()),
        ("label", br#"{"frame_id": "a", "label": 18446744073709551615}"#.to_vec()),
    ];
    let case = |(i, (reason, payload)): (usize, (&'static str, Vec<u8>))| Case {
        name: format!("label message {i}: {}", String::from_utf8_lossy(&payload[..payload.len().min(40)])),
        reason,
        input: Input::Label(payload),
    };
    cases.into_iter().enumerate().map(case).collect()
}

fn bad_control() -> Vec<Case> {
    let long = "o".repeat(4097);
    let cases = [
        ("payload", "adapt", ""),
        ("payload", "adapt", "maybe"),
        ("payload", "adapt", "1"),
        ("payload", "adapt", "true"),
        ("payload", "adapt", "on off"),
        ("payload", "adapt", "{\"enabled\": true}"),
        ("payload", "status", "please"),
        ("payload", "checkpoint", "now"),
        ("payload", "reset", "1"),
        ("payload", "rollback", "-1"),
        ("payload", "rollback", "+1"),
        ("payload", "rollback", "last"),
        ("payload", "rollback", "1.5"),
        ("payload", "rollback", "18446744073709551616"),
        ("size", "adapt", &long),
        ("size", "status", &long),
        ("verb", "", ""),
        ("verb", "ADAPT", "on"),
        ("verb", "adapt ", "on"),
        ("verb", "adapt.on", ""),
        ("verb", "delete", ""),
        ("verb", "*", ""),
    ];
    let case = |(reason, verb, payload): &(&'static str, &str, &str)| Case {
        name: format!("control {verb:?} with {:?}", payload.chars().take(40).collect::<String>()),
        reason,
        input: Input::Control { verb: (*verb).to_owned(), payload: payload.as_bytes().to_vec() },
    };
    cases.iter().map(case).collect()
}

fn bad_terms() -> Vec<Case> {
    let cases: [(&'static str, &[(&str, &str)]); 16] = [
        ("header", &[("Decision", "")]),
        ("header", &[("Decision", "-1")]),
        ("header", &[("Decision", "+4")]),
        ("header", &[("Decision", "1.0")]),
        ("header", &[("Decision", "18446744073709551616")]),
        ("header", &[("Decision", "3"), ("decision", "3")]),
        ("header", &[("Expires", "")]),
        ("header", &[("Expires", "tomorrow")]),
        ("header", &[("Expires", "1969-12-31T23:59:59Z")]),
        ("header", &[("Expires", "9223372036854775808")]),
        ("header", &[("Expires", "2000000000"), ("EXPIRES", "2000000000")]),
        ("stale", &[("Decision", "0")]),
        ("stale", &[("Decision", "2")]),
        ("stale", &[("Decision", "4")]),
        ("expired", &[("Expires", "0")]),
        ("expired", &[("Decision", "3"), ("Expires", "1970-01-01T00:00:00.5Z")]),
    ];
    let case = |(reason, headers): &(&'static str, &[(&str, &str)])| Case {
        name: format!("terms {headers:?}"),
        reason,
        input: Input::Terms { headers: headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect() },
    };
    cases.iter().map(case).collect()
}

/// Headers and payload.
type Given = (Vec<(String, String)>, Vec<u8>);

/// A good frame of each encoding.
fn known_good() -> Vec<Given> {
    let msgpack = vec![("Content-Type".to_owned(), "application/msgpack".to_owned())];
    vec![(Vec::new(), grey_jpeg()), (Vec::new(), grey_png()), (msgpack, gray8(|_| {}))]
}

fn run_table() {
    let families = [truncations, damaged_jpegs, jpeg_kinds, dimensions, damaged_pngs, foreign_formats, envelope_fields, envelope_images];
    let more = [envelope_bytes, bad_headers, bad_cameras, bad_labels, bad_control, bad_terms];
    let cases: Vec<Case> = families.iter().chain(&more).flat_map(|family| family()).collect();
    let names: BTreeSet<&str> = cases.iter().map(|case| case.name.as_str()).collect();
    assert_eq!(names.len(), cases.len(), "cases with the same name");

    let good = known_good();
    let decode_good = || good.iter().map(|(headers, payload)| decode_as("cam-1", headers, payload).expect("a good frame"));
    let before: Vec<Frame> = decode_good().collect();
    let mut counts = BTreeMap::<&str, usize>::new();
    let mut failures = Vec::new();
    for case in &cases {
        let outcome = std::panic::catch_unwind(|| refusal(&case.input)).unwrap_or(Err("PANIC"));
        if outcome != Err(case.reason) {
            failures.push(format!("{}: expected {}, got {outcome:?}", case.name, case.reason));
        }
        *counts.entry(case.reason).or_default() += 1;
        for (frame, expected) in decode_good().zip(&before) {
            assert_eq!((&frame.image, frame.payload_hash), (&expected.image, expected.payload_hash), "after {}", case.name);
        }
    }
    println!("{} bad inputs: {counts:?}", cases.len());
    assert!(failures.is_empty(), "{} of {} cases:\n{}", failures.len(), cases.len(), failures.join("\n"));
    assert!(cases.len() >= 200, "{} cases", cases.len());
    let unused = |all: &[&'static str]| all.iter().filter(|reason| !counts.contains_key(**reason)).copied().collect::<Vec<_>>();
    // A decoder that panics, and a frame that ends the process, are bugs of the decoder's: no input is known.
    assert_eq!(unused(&Reject::ALL_REASONS), ["decoder", "deadly"]);
    assert_eq!((unused(&LabelError::ALL_REASONS), unused(&ControlError::ALL_REASONS)), (vec![], vec![]));
}

#[test]
fn every_bad_input_is_refused_for_its_reason_and_leaves_no_trace() {
    let table = std::thread::Builder::new().stack_size(STACK_BYTES).spawn(run_table).expect("a thread");
    if let Err(panic) = table.join() {
        std::panic::resume_unwind(panic);
    }
}

fn refusal_time(headers: &[(String, String)], payload: &[u8]) -> Duration {
    let started = Instant::now();
    let result = decode_as("cam-1", headers, payload);
    let time = started.elapsed();
    assert!(result.is_err());
    time
}

#[test]
fn a_header_of_65535_x_65535_costs_less_than_64_kib_and_a_millisecond() {
    let jpeg = grey_jpeg();
    let jpeg = patched(&jpeg, frame_header_of(&jpeg) + 1, &[0xFF; 4]);
    let png = png_of(&[image_header(65535, 65535, 8, 0), image_data(&[0; 1 << 20]), chunk(b"IEND", &[])]);
    let bomb = [0x82, 0xA1, b'v', 1, 0xA5, b'i', b'm', b'a', b'g', b'e', 0xC6, 0xFF, 0xFF, 0xFF, 0xFF];
    for (name, payload, headers) in [("JPEG", jpeg, vec![]), ("PNG", png, vec![]), ("bin32", bomb.to_vec(), known_good()[2].0.clone())] {
        let (result, peak) = peak_heap(|| decode_as("cam-1", &headers, &payload).map(drop));
        let mut times: Vec<Duration> = (0..1001).map(|_| refusal_time(&headers, &payload)).collect();
        times.sort_unstable();
        let median = times[times.len() / 2];
        println!("{name}: {peak} bytes at the peak, {median:?} the median of {}, {:?} the longest", times.len(), times[times.len() - 1]);
        assert!(result.is_err() && peak < 64 * 1024, "{name}: {result:?} with {peak} bytes");
        assert!(median < Duration::from_millis(1), "{name}: {median:?}");
    }
}

#[test]
fn a_png_that_unfolds_to_more_than_its_header_says_costs_what_its_header_says() {
    let bomb = png_of(&[image_header(32, 32, 8, 0), image_data(&vec![0; 64 << 20]), chunk(b"IEND", &[])]);
    let (result, peak) = peak_heap(|| decode_as("cam-1", &[], &bomb).map(drop));
    println!("{} bytes for 64 MiB: {peak} bytes at the peak, {result:?}", bomb.len());
    assert!(peak < 1 << 20, "{peak} bytes");
}

#[test]
fn the_heap_of_a_good_frame_is_bounded_by_its_pixels() {
    // 2048 x 2048, the most that the limits allow, plain: a few kilobytes that unfold to four megapixels.
    let (side, plain) = (2048, vec![9; 2048 * 2048]);
    let (mut jpeg, mut png) = (Vec::new(), Vec::new());
    JpegEncoder::new(&mut jpeg).write_image(&plain, side, side, ExtendedColorType::L8).expect("a JPEG");
    PngEncoder::new(&mut png).write_image(&plain, side, side, ExtendedColorType::L8).expect("a PNG");
    let bound = 12 * plain.len() + (16 << 20);
    for (name, payload) in [("JPEG", jpeg), ("PNG", png)] {
        let (result, peak) = peak_heap(|| decode_as("cam-1", &[], &payload).map(drop));
        println!("{name} of {} bytes: {peak} bytes at the peak", payload.len());
        assert!(result.is_ok() && peak < bound, "{name}: {result:?} with {peak} bytes");
    }
}
