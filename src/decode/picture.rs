//! JPEG and PNG to pixels, whole and undamaged or not at all.
//!
//! Decoders are made to show something of any file; here a wrong picture is worse than none. So the container is walked first,
//! without memory of its own: kind, size, bit depth and channels come from it, and that the file is complete. Only then does a
//! decoder run, in its strict mode and with limits set. This is why the JPEG decoder under `image` is used directly: `image` runs it
//! leniently, and fills what is missing with grey.
//! Known gap: rows that are missing before a restart marker, or before the last scan, of a JPEG that is otherwise complete.

use super::{Codec, Limits, Reject};
use crate::frame::Image;
use crate::wire::excerpt;
use image::ImageDecoder;
use image::codecs::png::PngDecoder;
use std::io::Cursor;
use std::panic::UnwindSafe;
use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

const JPEG_MAGIC: &[u8] = &[0xFF, 0xD8, 0xFF];
const PNG_MAGIC: &[u8] = b"\x89PNG\r\n\x1a\n";
/// Progressive files have about ten; each costs a pass over all coefficients.
const SCANS_MAX: usize = 64;
/// Set bits, as they are written in a scan. No code word of a scan consists of ones alone (ITU T.81, annex C), and scans are padded
/// with ones.
const ONES: [u8; 16] = [0xFF, 0, 0xFF, 0, 0xFF, 0, 0xFF, 0, 0xFF, 0, 0xFF, 0, 0xFF, 0, 0xFF, 0];
const JPEG_END: [u8; 2] = [0xFF, 0xD9];
/// Room for a PNG decoder's tables, lines and profile, beside the pixels.
const PNG_WORK_BYTES_MAX: usize = 4 << 20;

/// What the container says of the picture.
#[derive(Clone, Copy)]
struct Outline {
    codec: Codec,
    channels: usize,
    height: usize,
    width: usize,
    /// Where the picture ends; only zeros follow.
    end: usize,
}

/// Decodes a picture; its first bytes tell the codec, which must be `declared` where that is known.
pub(super) fn decode_picture(bytes: &[u8], declared: Option<Codec>, limits: &Limits) -> Result<Image, Reject> {
    let codec = sniff(bytes)?;
    if let Some(declared) = declared.filter(|&declared| declared != codec) {
        return Err(Reject::Declared { declared: declared.to_string(), found: codec });
    }
    let outline = match codec {
        Codec::Jpeg => jpeg_outline(bytes, limits)?,
        Codec::Png => png_outline(bytes, limits)?,
    };
    let pixels = decode_pixels(bytes, outline)?;
    Ok(Image::new(outline.channels, outline.height, outline.width, pixels))
}

/// Runs the codec's decoder.
fn decode_pixels(bytes: &[u8], outline: Outline) -> Result<Vec<u8>, Reject> {
    caught(outline, || match outline.codec {
        Codec::Jpeg => decode_jpeg(bytes, outline),
        Codec::Png => decode_png(bytes, outline),
    })
}

/// The pixels that `decoder` gives, where it gives as many as the outline says. This is the only place where a panic is caught: decoders
/// are the one foreign code that works through hostile bytes, they keep nothing between calls, and one picture must not end the
/// service.
fn caught(outline: Outline, decoder: impl FnOnce() -> Result<Vec<u8>, String> + UnwindSafe) -> Result<Vec<u8>, Reject> {
    let codec = outline.codec;
    let decoded = std::panic::catch_unwind(decoder);
    let pixels = decoded.map_err(|_| Reject::Decoder { codec })?.map_err(|error| Reject::Corrupt { codec, error: excerpt(&error) })?;
    let expected = outline.channels * outline.height * outline.width;
    if pixels.len() != expected {
        return Err(Reject::Corrupt { codec, error: format!("{} bytes were decoded, not {expected}", pixels.len()) });
    }
    Ok(pixels)
}

/// Decodes with ones before the end marker. A decoder goes on with zeros where a scan ends before the picture does, and makes up the
/// rest; behind the ones it fails instead.
fn decode_jpeg(bytes: &[u8], outline: Outline) -> Result<Vec<u8>, String> {
    let bytes = [&bytes[..outline.end - JPEG_END.len()], &ONES, &JPEG_END].concat();
    let colors = if outline.channels == 1 { ColorSpace::Luma } else { ColorSpace::RGB };
    let options = DecoderOptions::default()
        .set_strict_mode(true)
        .set_max_width(outline.width)
        .set_max_height(outline.height)
        .jpeg_set_max_scans(SCANS_MAX)
        .jpeg_set_out_colorspace(colors);
    JpegDecoder::new_with_options(ZCursor::new(&bytes), options).decode().map_err(|error| error.to_string())
}

fn decode_png(bytes: &[u8], outline: Outline) -> Result<Vec<u8>, String> {
    let mut limits = image::Limits::no_limits();
    limits.max_alloc = u64::try_from(4 * outline.height * outline.width + bytes.len() + PNG_WORK_BYTES_MAX).ok();
    let decoder = PngDecoder::with_limits(Cursor::new(bytes), limits).map_err(|error| error.to_string())?;
    let mut pixels = vec![0; outline.channels * outline.height * outline.width];
    if usize::try_from(decoder.total_bytes()) != Ok(pixels.len()) {
        return Err(format!("{} bytes of pixels, not {}", decoder.total_bytes(), pixels.len()));
    }
    decoder.read_image(&mut pixels).map_err(|error| error.to_string())?;
    Ok(pixels)
}

fn sniff(bytes: &[u8]) -> Result<Codec, Reject> {
    for (codec, magic) in [(Codec::Jpeg, JPEG_MAGIC), (Codec::Png, PNG_MAGIC)] {
        if bytes.starts_with(magic) {
            return Ok(codec);
        }
        if magic.starts_with(bytes) {
            return Err(Reject::Truncated { codec, got: bytes.len() });
        }
    }
    let start = &bytes[..bytes.len().min(8)];
    Err(Reject::Format { found: start.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ") })
}

/// Walks the segments of a JPEG (ITU T.81, annex B) to its end marker.
fn jpeg_outline(bytes: &[u8], limits: &Limits) -> Result<Outline, Reject> {
    let mut walk = Walk { codec: Codec::Jpeg, bytes, at: 2 };
    let (mut outline, mut scans) = (None, 0);
    loop {
        let marker = walk.marker()?;
        match marker {
            0xC0..=0xC2 if outline.is_some() => return Err(walk.corrupt("two frame headers")),
            0xC0..=0xC2 => outline = Some(frame_header(walk.segment()?, limits)?),
            0xC3 | 0xC5..=0xC7 | 0xC9..=0xCB | 0xCD..=0xCF => {
                return Err(Reject::Kind { codec: Codec::Jpeg, found: "lossless, hierarchical or arithmetic" });
            }
            0xDA => {
                walk.segment()?;
                walk.scan()?;
                scans += 1;
            }
            0xD9 => break,
            0x00..=0x01 | 0xD0..=0xD8 => return Err(walk.corrupt("a marker where none belongs")),
            _ => drop(walk.segment()?),
        }
        if scans > SCANS_MAX {
            return Err(Reject::Scans { limit: SCANS_MAX });
        }
    }
    let header = outline.ok_or_else(|| walk.corrupt("no frame header"))?;
    Ok(Outline { end: walk.end()?, ..header })
}

/// Precision, height, width and number of components of a JPEG's SOF segment.
fn frame_header(segment: &[u8], limits: &Limits) -> Result<Outline, Reject> {
    let codec = Codec::Jpeg;
    let [precision, y1, y0, x1, x0, components, ..] = *segment else {
        return Err(Reject::Corrupt { codec, error: "a short frame header".to_owned() });
    };
    if precision != 8 {
        return Err(Reject::BitDepth { codec, got: precision });
    }
    let [height, width] = [[y1, y0], [x1, x0]].map(|side| usize::from(u16::from_be_bytes(side)));
    limits.pixels(height, width)?;
    let channels = match components {
        1 => 1,
        3 => 3,
        4 => return Err(Reject::Channels { codec, found: "four components (CMYK)" }),
        _ => return Err(Reject::Channels { codec, found: "neither one nor three components" }),
    };
    Ok(Outline { codec, channels, height, width, end: 0 })
}

/// Walks the chunks of a PNG to its end chunk. Checksums are left to the decoder.
fn png_outline(bytes: &[u8], limits: &Limits) -> Result<Outline, Reject> {
    let mut walk = Walk { codec: Codec::Png, bytes, at: PNG_MAGIC.len() };
    let (kind, header) = walk.chunk()?;
    if kind != *b"IHDR" {
        return Err(walk.corrupt("the first chunk is not IHDR"));
    }
    let outline = image_header(header, limits)?;
    loop {
        match &walk.chunk()?.0 {
            b"IEND" => break,
            b"tRNS" => return Err(Reject::Channels { codec: Codec::Png, found: "transparency" }),
            b"acTL" => return Err(Reject::Kind { codec: Codec::Png, found: "animated" }),
            _ => {}
        }
    }
    Ok(Outline { end: walk.end()?, ..outline })
}

/// Size, bit depth and color type of a PNG's IHDR chunk.
fn image_header(header: &[u8], limits: &Limits) -> Result<Outline, Reject> {
    let codec = Codec::Png;
    let [w3, w2, w1, w0, h3, h2, h1, h0, depth, color, _, _, _] = *header else {
        return Err(Reject::Corrupt { codec, error: "IHDR is not 13 bytes long".to_owned() });
    };
    let [width, height] = [[w3, w2, w1, w0], [h3, h2, h1, h0]].map(big_endian);
    limits.pixels(height, width)?;
    let channels = match color {
        0 => 1,
        // A palette without transparency expands to RGB.
        2 | 3 => 3,
        4 | 6 => return Err(Reject::Channels { codec, found: "an alpha channel" }),
        _ => return Err(Reject::Channels { codec, found: "no known color type" }),
    };
    if depth != 8 {
        return Err(Reject::BitDepth { codec, got: depth });
    }
    Ok(Outline { codec, channels, height, width, end: 0 })
}

/// What an address cannot hold is beyond every limit.
fn big_endian(bytes: [u8; 4]) -> usize {
    usize::try_from(u32::from_be_bytes(bytes)).unwrap_or(usize::MAX)
}

/// A position in a container.
struct Walk<'a> {
    codec: Codec,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Walk<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], Reject> {
        let end = self.at.checked_add(count).filter(|&end| end <= self.bytes.len());
        let end = end.ok_or(Reject::Truncated { codec: self.codec, got: self.bytes.len() })?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, Reject> {
        Ok(self.take(1)?[0])
    }

    fn corrupt(&self, what: &str) -> Reject {
        Reject::Corrupt { codec: self.codec, error: format!("{what}, before byte {}", self.at) }
    }

    /// The code of the JPEG marker that must come here; 0xFF may be repeated before it.
    fn marker(&mut self) -> Result<u8, Reject> {
        if self.byte()? != 0xFF {
            return Err(self.corrupt("no marker"));
        }
        loop {
            match self.byte()? {
                0xFF => {}
                code => return Ok(code),
            }
        }
    }

    /// The content of a JPEG segment, after its length, which counts itself.
    fn segment(&mut self) -> Result<&'a [u8], Reject> {
        let length = usize::from(u16::from_be_bytes([self.byte()?, self.byte()?]));
        let length = length.checked_sub(2).ok_or_else(|| self.corrupt("a segment shorter than its length"))?;
        self.take(length)
    }

    /// Goes to the marker that ends a JPEG's entropy-coded data: any but stuffed zeros, fill bytes and restarts.
    fn scan(&mut self) -> Result<(), Reject> {
        let is_end = |pair: &[u8]| pair[0] == 0xFF && !matches!(pair[1], 0x00 | 0xD0..=0xD7 | 0xFF);
        let length = self.bytes[self.at..].windows(2).position(is_end);
        self.take(length.unwrap_or(usize::MAX)).map(drop)
    }

    /// Kind and content of the next PNG chunk.
    fn chunk(&mut self) -> Result<([u8; 4], &'a [u8]), Reject> {
        let head = self.take(8)?;
        let length = big_endian([head[0], head[1], head[2], head[3]]);
        let content = self.take(length)?;
        self.take(4)?;
        Ok(([head[4], head[5], head[6], head[7]], content))
    }

    /// The end of the picture. Nothing but zeros may follow: capture drivers hand out buffers longer than the picture, and anything
    /// else is a second file that a sender could hide behind the first.
    fn end(&self) -> Result<usize, Reject> {
        let rest = &self.bytes[self.at..];
        let is_padding = rest.iter().all(|&byte| byte == 0);
        is_padding.then_some(self.at).ok_or(Reject::Trailing { codec: self.codec, got: rest.len() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::ExtendedColorType;
    use image::ImageEncoder;
    use image::codecs::png::PngEncoder;

    #[test]
    fn a_decoder_that_panics_costs_its_picture_and_nothing_else() {
        let mut png = Vec::new();
        PngEncoder::new(&mut png).write_image(&[7; 12], 4, 3, ExtendedColorType::L8).expect("a PNG");
        let limits = Limits { payload_bytes_max: 1 << 20, pixels_max: 64, dimension_max: 8 };
        let good = || decode_picture(&png, None, &limits).expect("a picture");
        let (before, outline) = (good(), png_outline(&png, &limits).expect("a PNG"));
        for codec in [Codec::Png, Codec::Jpeg] {
            let reject = caught(Outline { codec, ..outline }, || panic!("index out of bounds")).expect_err("no picture");
            assert_eq!((reject.reason(), reject.to_string()), ("decoder", format!("the decoder of {codec} failed on this picture")));
            assert_eq!(good(), before);
        }
    }

    #[test]
    fn what_a_decoder_gives_is_used_whole_or_not_at_all() {
        let outline = Outline { codec: Codec::Jpeg, channels: 3, height: 2, width: 2, end: 0 };
        assert_eq!(caught(outline, || Ok(vec![1; 12])).expect("as many as there must be"), [1; 12]);
        for decoder in [|| Ok(vec![1; 11]), || Ok(vec![1; 13]), || Err("x".repeat(1000))] {
            let reject = caught(outline, decoder).expect_err("no picture");
            assert!(reject.reason() == "corrupt" && reject.to_string().len() < 256, "{reject}");
        }
    }
}
