//! Good inputs: every kind that is accepted gives the frame that it should. Bad ones are in `tests/bad_input.rs`.

use super::*;
use crate::frame::ClassIndex;
use image::codecs::jpeg::JpegEncoder;
use image::codecs::png::PngEncoder;
use image::{ExtendedColorType, ImageEncoder};
use serde_json::json;

const LIMITS: Limits = Limits { payload_bytes_max: 1 << 23, pixels_max: 1 << 24, dimension_max: 8192 };
const GREY: ImageShape = ImageShape { channels: 1, height: 32, width: 32 };
const RGB: ImageShape = ImageShape { channels: 3, height: 32, width: 32 };

fn color(channels: usize) -> ExtendedColorType {
    if channels == 1 { ExtendedColorType::L8 } else { ExtendedColorType::Rgb8 }
}

/// A smooth image, so that JPEG keeps it to a few levels.
fn smooth(channels: usize, height: usize, width: usize) -> Vec<u8> {
    let value = |i: usize| (40 + 4 * (i / channels % width) + 2 * (i / channels / width) + 10 * (i % channels)) as u8;
    (0..channels * height * width).map(value).collect()
}

fn png(pixels: &[u8], channels: usize, height: u32, width: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    PngEncoder::new(&mut bytes).write_image(pixels, width, height, color(channels)).expect("a PNG");
    bytes
}

fn jpeg(pixels: &[u8], channels: usize, height: u32, width: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    JpegEncoder::new_with_quality(&mut bytes, 100).write_image(pixels, width, height, color(channels)).expect("a JPEG");
    bytes
}

fn headers(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect()
}

fn frame(payload: &[u8], pairs: &[(&str, &str)], shape: ImageShape) -> Frame {
    let headers = headers(pairs);
    let message = Message { subject_camera: "cam-1", headers: &headers, payload, sequence: FrameSeq(7), broker_time_ns: Some(5) };
    decode(&message, &LIMITS, shape, 10).expect("a good message")
}

/// A MessagePack map of `fields` and the image.
fn envelope(fields: serde_json::Value, image: &[u8]) -> Vec<u8> {
    #[derive(serde::Serialize)]
    struct Envelope<'a> {
        #[serde(flatten)]
        fields: serde_json::Value,
        #[serde(with = "serde_bytes")]
        image: &'a [u8],
    }
    rmp_serde::to_vec_named(&Envelope { fields, image }).expect("a map")
}

const MSGPACK: &[(&str, &str)] = &[("Content-Type", "application/msgpack")];

/// (H, W, C) pixels in the other channels, by the documented rule.
fn converted(pixels: &[u8], from: usize, to: usize) -> Vec<u8> {
    let luma = |p: &[u8]| (0.299 * f64::from(p[0]) + 0.587 * f64::from(p[1]) + 0.114 * f64::from(p[2])).round() as u8;
    match (from, to) {
        (1, 3) => pixels.iter().flat_map(|&p| [p, p, p]).collect(),
        (3, 1) => pixels.chunks(3).map(luma).collect(),
        _ => pixels.to_vec(),
    }
}

fn assert_near(got: &[u8], expected: &[u8], tolerance: u8, what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}");
    let worst = got.iter().zip(expected).map(|(a, b)| a.abs_diff(*b)).max();
    assert!(worst <= Some(tolerance), "{what}: {worst:?} levels off");
}

/// Name, payload, headers, and by how many levels the pixels may differ.
type Case = (&'static str, Vec<u8>, &'static [(&'static str, &'static str)], u8);

#[test]
fn grey_and_rgb_of_every_encoding_fit_both_bundles() {
    for (from, shape) in [(1, GREY), (1, RGB), (3, GREY), (3, RGB)] {
        let pixels = smooth(from, 32, 32);
        let (png, jpeg) = (png(&pixels, from, 32, 32), jpeg(&pixels, from, 32, 32));
        let raw = if from == 1 { "gray8" } else { "rgb8" };
        let cases: [Case; 7] = [
            ("png", png.clone(), &[], 0),
            ("declared png", png.clone(), &[("content-type", "image/png; x=y")], 0),
            ("undeclared png", png.clone(), &[("Content-Type", "application/octet-stream")], 0),
            // Quality 100, chroma at full or half resolution: a few levels.
            ("jpeg", jpeg.clone(), &[], 5),
            ("png in an envelope", envelope(json!({ "v": 1, "encoding": "png" }), &png), MSGPACK, 0),
            ("jpeg in an envelope", envelope(json!({ "v": 1, "encoding": "jpeg", "height": 32, "width": 32 }), &jpeg), MSGPACK, 5),
            ("raw in an envelope", envelope(json!({ "v": 1, "encoding": raw, "height": 32, "width": 32 }), &pixels), MSGPACK, 0),
        ];
        let expected = converted(&pixels, from, shape.channels);
        for (name, payload, headers, tolerance) in cases {
            let frame = frame(&payload, headers, shape);
            assert_eq!((frame.image.channels(), frame.image.height(), frame.image.width()), (shape.channels, 32, 32));
            assert_near(frame.image.pixels(), &expected, tolerance, &format!("{name}, {from} to {} channels", shape.channels));
            assert_eq!(frame.payload_hash, *blake3::hash(&payload).as_bytes());
        }
    }
}

#[test]
fn floats_from_zero_to_one_become_bytes() {
    let bytes: Vec<u8> = (0..=255u8).cycle().take(1024).collect();
    let floats: Vec<u8> = bytes.iter().flat_map(|&byte| (f32::from(byte) / 255.0).to_le_bytes()).collect();
    let payload = envelope(json!({ "v": 1, "encoding": "gray_f32", "height": 32, "width": 32 }), &floats);
    assert_eq!(frame(&payload, MSGPACK, GREY).image.pixels(), bytes);
}

/// 8 x 16, grey, six scans, by libjpeg.
const PROGRESSIVE: &str = "\
    ffd8ffe000104a46494600010100000100010000ffdb00430006040506050406060506070706080a100a0a09090a140e0f0c1017141818171416161a1d25\
    1f1a1b231c1616202c20232627292a29191f2d302d283025282928ffc2000b080008001001011100ffc40015000101000000000000000000000000000005\
    06ffda0008010100000001624bffc40017100003010000000000000000000000000001041303ffda0008010100010502c1c3179c34ffc400141001000000\
    00000000000000000000000010ffda0008010100063f023fffc4001510010100000000000000000000000000004100ffda0008010100013f212088bfffda\
    0008010100000010bfffc4001810000301010000000000000000000000000011213151ffda0008010100013f104961edef0fffd9";

#[test]
fn a_progressive_jpeg_is_read() {
    let digits = PROGRESSIVE.as_bytes().chunks(2);
    let bytes: Vec<u8> = digits.map(|pair| u8::from_str_radix(&String::from_utf8_lossy(pair), 16).expect("hexadecimal")).collect();
    let image = frame(&bytes, &[], ImageShape { channels: 1, height: 8, width: 16 }).image;
    let got: Vec<u8> = image.pixels().iter().step_by(9).copied().collect();
    // What libjpeg decodes; two decoders may round their transforms differently.
    assert_near(&got, &[170, 178, 200, 133, 206, 93, 185, 73, 139, 114, 83, 139, 41, 149, 31], 2, "progressive");
}

#[test]
fn a_palette_without_transparency_is_read() {
    // 2 x 2, colors 0 1 / 1 0 of a palette of red and blue.
    let mut palette = b"\x89PNG\r\n\x1a\n".to_vec();
    let mut chunk = |kind: &[u8; 4], content: &[u8]| {
        palette.extend(u32::try_from(content.len()).expect("short").to_be_bytes());
        palette.extend(kind);
        palette.extend(content);
        let mut crc = flate2::Crc::new();
        crc.update(kind);
        crc.update(content);
        palette.extend(crc.sum().to_be_bytes());
    };
    chunk(b"IHDR", &[0, 0, 0, 2, 0, 0, 0, 2, 8, 3, 0, 0, 0]);
    chunk(b"PLTE", &[255, 0, 0, 0, 0, 255]);
    chunk(b"IDAT", &[0x78, 0x01, 0x01, 6, 0, 0xF9, 0xFF, 0, 0, 1, 0, 1, 0, 0x00, 0x0C, 0x00, 0x03]);
    chunk(b"IEND", &[]);
    let shape = ImageShape { channels: 3, height: 2, width: 2 };
    assert_eq!(frame(&palette, &[], shape).image.pixels(), [255, 0, 0, 0, 0, 255, 0, 0, 255, 255, 0, 0]);
}

#[test]
fn a_slightly_smaller_image_is_centred_in_zeros() {
    let pixels = smooth(1, 28, 28);
    let image = frame(&png(&pixels, 1, 28, 28), &[], GREY).image;
    for (i, row) in image.pixels().chunks(32).enumerate() {
        let expected = if (2..30).contains(&i) { &pixels[(i - 2) * 28..][..28] } else { &[0; 28] };
        assert_eq!((&row[..2], &row[2..30], &row[30..]), (&[0; 2][..], expected, &[0; 2][..]), "row {i}");
    }
    // One pixel less: the odd one goes to the lower right.
    let image = frame(&png(&[9; 31 * 32], 1, 31, 32), &[], GREY).image;
    assert_eq!((image.pixels()[0], image.pixels()[31 * 32]), (9, 0));
}

#[test]
fn other_sizes_are_resized() {
    for (height, width) in [(64, 64), (23, 32), (33, 28), (1, 1), (480, 640)] {
        let image = frame(&png(&vec![77; 3 * height * width], 3, height as u32, width as u32), &[], RGB).image;
        assert!(image.pixels().iter().all(|&value| value == 77), "a plain image of {height} x {width} stays plain");
    }
    // Half the size: the triangle of width 2 weighs two neighbours on each side 1 : 3 : 3 : 1.
    let columns: Vec<u8> = (0..64 * 64).map(|i| (4 * (i % 64)) as u8).collect();
    let image = frame(&png(&columns, 1, 64, 64), &[], GREY).image;
    assert_eq!(image.pixels()[1..4], [10, 18, 26], "columns 2j and 2j + 1 hold 8j and 8j + 4");
}

#[test]
fn headers_are_read_whatever_their_case() {
    let payload = png(&smooth(1, 32, 32), 1, 32, 32);
    let sent = [
        ("frame-id", "a b"),
        ("CAPTURE-TIME", "2024-05-06T07:08:09.000000010Z"),
        ("label", "9"),
        ("dOMAIN", "fog/3"),
        ("X-Other", "\u{1}"),
    ];
    let frame = frame(&payload, &sent, GREY);
    assert_eq!((frame.frame_id.as_str(), frame.capture_time_ns), ("a b", Some(1_714_979_289_000_000_010)));
    assert_eq!((frame.label, frame.domain.as_deref()), (Some(ClassIndex(9)), Some("fog/3")));
    assert_eq!((frame.camera.as_str(), frame.sequence, frame.broker_time_ns), ("cam-1", FrameSeq(7), Some(5)));
}

#[test]
fn without_headers_a_frame_is_named_by_camera_and_sequence() {
    let payload = png(&smooth(1, 32, 32), 1, 32, 32);
    let plain = frame(&payload, &[("Capture-Time", "12")], GREY);
    assert_eq!((plain.frame_id.as_str(), plain.capture_time_ns, plain.label), ("cam-1:7", Some(12), None));
}

#[test]
fn an_envelope_goes_before_the_headers() {
    let fields = json!({
        "v": 1, "encoding": "gray8", "height": 32, "width": 32,
        "camera": "cam-1", "frame_id": "inner", "capture_time_ns": 3, "label": 4, "domain": "in"
    });
    let mut pairs = MSGPACK.to_vec();
    pairs.extend([("Frame-Id", "outer"), ("Label", "5"), ("Capture-Time", "6"), ("Domain", "out")]);
    let inner = frame(&envelope(fields, &[0; 1024]), &pairs, GREY);
    assert_eq!((inner.frame_id.as_str(), inner.label, inner.capture_time_ns), ("inner", Some(ClassIndex(4)), Some(3)));
    let fields = json!({ "v": 1, "encoding": "gray8", "height": 32, "width": 32 });
    let outer = frame(&envelope(fields, &[0; 1024]), &pairs, GREY);
    assert_eq!((outer.frame_id.as_str(), outer.label, outer.domain.as_deref()), ("outer", Some(ClassIndex(5)), Some("out")));
}

#[test]
fn the_orientation_tag_of_exif_changes_nothing() {
    let plain = jpeg(&smooth(1, 32, 32), 1, 32, 32);
    let expected = frame(&plain, &[], GREY);
    for orientation in 1..=8 {
        // APP1 with a TIFF header and one entry: tag 0x0112, type SHORT, count 1.
        let mut exif = b"Exif\0\0MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0".to_vec();
        exif.extend([orientation, 0, 0, 0, 0, 0, 0]);
        let mut turned = plain[..2].to_vec();
        turned.extend([0xFF, 0xE1, 0, u8::try_from(exif.len() + 2).expect("short")]);
        turned.extend(exif);
        turned.extend(&plain[2..]);
        assert_eq!(frame(&turned, &[], GREY).image, expected.image, "orientation {orientation}");
    }
}

#[test]
fn zeros_after_the_picture_are_the_rest_of_a_buffer() {
    for payload in [png(&smooth(1, 32, 32), 1, 32, 32), jpeg(&smooth(1, 32, 32), 1, 32, 32)] {
        let mut padded = payload.clone();
        padded.resize(payload.len() + 500, 0);
        assert_eq!(frame(&padded, &[], GREY).image, frame(&payload, &[], GREY).image);
    }
}
