//! The corruptions against the reference libraries, and the properties that hold for all of them.
//!
//! `tests/reference/corruptions.py` wrote the fixtures. Exact cases feed both sides the same random input, from a generator that both can
//! compute; statistical cases let each side draw for itself.

use flate2::read::GzDecoder;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::error::Error;
use std::io::Read;
use undrift::frame::Image;
use undrift::lab::contact_sheet::contact_sheet;
use undrift::lab::corruptions::digital::ElasticDraws;
use undrift::lab::corruptions::raster::Raster;
use undrift::lab::corruptions::{Corruption, Draws, Severity, Table, blur, corrupt, digital, noise, spatter, weather};

const SEED: u64 = 7;

#[derive(Deserialize)]
struct Fixture {
    side: usize,
    stride: usize,
    repeats: u32,
    images: BTreeMap<String, Vec<u8>>,
    exact: Vec<ExactCase>,
    statistics: Vec<StatisticalCase>,
}

#[derive(Deserialize)]
struct ExactCase {
    corruption: String,
    table: String,
    severity: u8,
    image: String,
    bytes: Vec<u8>,
}

#[derive(Deserialize)]
struct StatisticalCase {
    corruption: String,
    table: String,
    severity: u8,
    means: [f64; 3],
    deviations: [f64; 3],
}

impl Fixture {
    fn load() -> Result<Self, Box<dyn Error>> {
        let mut json = Vec::new();
        GzDecoder::new(include_bytes!("reference/fixtures/corruptions.json.gz").as_slice()).read_to_end(&mut json)?;
        Ok(serde_json::from_slice(&json)?)
    }

    fn image(&self, name: &str) -> Image {
        let pixels = self.images[name].clone();
        Image::new(pixels.len() / (self.side * self.side), self.side, self.side, pixels)
    }
}

fn table(name: &str) -> Table {
    if name == "tiny" { Table::Tiny } else { Table::Cifar }
}

/// The generator that the Python script calls `Shared`.
struct Shared(u32);

impl Shared {
    fn uniform(&mut self, low: f64, high: f64) -> f64 {
        self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        low + (high - low) * f64::from(self.0 >> 8) / f64::from(1 << 24)
    }

    fn unit(&mut self) -> f64 {
        self.uniform(-1.0, 1.0)
    }

    fn normal(&mut self, mean: f64, deviation: f64) -> f64 {
        mean + deviation * ((0..12).map(|_| self.uniform(0.0, 1.0)).sum::<f64>() - 6.0)
    }

    fn below(&mut self, bound: usize) -> usize {
        let share = self.uniform(0.0, 1.0);
        let size = f64::from(u32::try_from(bound).expect("bounds of the tests are small"));
        (1..bound).rev().find(|&index| f64::from(u32::try_from(index).expect("below the bound")) <= share * size).unwrap_or(0)
    }
}

/// A corruption with shared random input, in the order in which the script draws it.
fn with_shared_draws(image: &Image, case: &ExactCase, corruption: Corruption) -> Result<Image, Box<dyn Error>> {
    let severity = Severity::try_from(case.severity)?;
    let (constants, index) = (table(&case.table).constants(), severity.index());
    let mut shared = Shared(u32::from(case.severity));
    let needs_colour = matches!(corruption, Corruption::Frost | Corruption::Spatter | Corruption::Saturate);
    let clean = if needs_colour { Raster::from(image).to_rgb() } else { Raster::from(image) };
    let result = match corruption {
        Corruption::GaussianNoise => clean.map(|value| value + shared.normal(0.0, constants.gaussian_noise[index])),
        Corruption::SpeckleNoise => clean.map(|value| value + value * shared.normal(0.0, constants.speckle_noise[index])),
        Corruption::GlassBlur => {
            let glass = constants.glass_blur[index];
            let reach = glass.max_delta.cast_signed();
            blur::glass_blur(&clean, glass, || shared.below(2 * glass.max_delta).cast_signed() - reach)
        }
        Corruption::MotionBlur => blur::motion_blur(&clean, constants.motion_blur[index], shared.uniform(-45.0, 45.0)),
        Corruption::Fog => {
            let fog = constants.fog[index];
            weather::fog(&clean, fog.density, &weather::plasma_fractal(image.width(), fog.decay, || shared.unit()))
        }
        Corruption::Frost => {
            let texture = &weather::frost_textures(table(&case.table))[shared.below(weather::FROST_TEXTURES)];
            let corner = [shared.below(texture.height() - image.height()), shared.below(texture.width() - image.width())];
            weather::frost(&clean, constants.frost[index], texture, corner)
        }
        Corruption::Snow => {
            let snow = constants.snow[index];
            let layer = clean.layer(|| shared.normal(snow.mean, snow.deviation));
            weather::snow(&clean, snow, &layer, shared.uniform(-135.0, -45.0))
        }
        Corruption::Spatter => {
            let drops = constants.spatter[index];
            spatter::spatter(&clean, drops, &clean.layer(|| shared.normal(drops.mean, drops.deviation)))
        }
        Corruption::ElasticTransform => {
            let shifts = [(); 3].map(|()| [shared.unit(), shared.unit()]);
            let (across, down) = (clean.layer(|| shared.unit()), clean.layer(|| shared.unit()));
            digital::elastic_transform(&clean, constants.elastic_transform[index], &ElasticDraws { shifts, across, down })
        }
        _ => return Ok(corrupt(image, corruption, severity, table(&case.table), &mut Draws::new(SEED, 0))),
    };
    let shown = result.map(|value| value.clamp(0.0, 1.0));
    Ok(if image.channels() == 1 { shown.luma().to_image() } else { shown.to_image() })
}

/// Largest difference that is allowed for one byte, and on average over the bytes of a case, in levels of 255.
///
/// Both sides truncate to whole levels. Where they compute the same numbers but for rounding (`f32` there, `f64` here), a value near a
/// whole level may fall to either side: one level, seldom.
fn tolerance(corruption: Corruption, table: &str) -> (u8, f64) {
    match corruption {
        // The quantisation tables are equal, but a coefficient about halfway between two levels may round the other way, which moves its
        // 8 x 8 block: at quality 50, by up to 11. The decoders differ by 1 in grey and by 3 in colour.
        Corruption::JpegCompression => (12, 1.5),
        // The larger textures are stored as JPEG, at a mean error below 3 levels, and enter with a weight of up to 0.55.
        Corruption::Frost if table == "tiny" => (12, 2.0),
        _ => (1, 0.1),
    }
}

#[test]
fn corruptions_equal_the_reference_on_the_same_random_input() -> Result<(), Box<dyn Error>> {
    // Goal: constants, formulas, borders and orders are those of the reference. Method: every 23rd byte of each case.
    let fixture = Fixture::load()?;
    let mut worst: BTreeMap<(Corruption, &str, &str), (u8, f64)> = BTreeMap::new();
    let mut compared = 0;
    for case in &fixture.exact {
        let corruption: Corruption = case.corruption.parse()?;
        let corrupted = with_shared_draws(&fixture.image(&case.image), case, corruption)?;
        let got: Vec<u8> = corrupted.pixels().iter().copied().step_by(fixture.stride).collect();
        assert_eq!(got.len(), case.bytes.len(), "bytes of {corruption}");
        let differences: Vec<u8> = got.iter().zip(&case.bytes).map(|(got, expected)| got.abs_diff(*expected)).collect();
        let mean = differences.iter().copied().map(f64::from).sum::<f64>() / f64::from(u32::try_from(differences.len())?);
        let largest = differences.iter().copied().max().unwrap_or(0);
        compared += differences.len();
        let entry = worst.entry((corruption, &case.table, &case.image)).or_default();
        *entry = (entry.0.max(largest), entry.1.max(mean));
    }
    println!("{compared} bytes of {} cases compared", fixture.exact.len());
    worst.iter().for_each(|((corruption, table, image), (largest, mean))| {
        println!("{corruption:18} {table:6} {image:5} largest {largest:3} mean {mean:.3}")
    });
    for ((corruption, table, image), (largest, mean)) in worst {
        let limit = tolerance(corruption, table);
        assert!(
            largest <= limit.0 && mean <= limit.1,
            "{corruption} {table} {image}: off by {largest}, on average {mean}; limit {limit:?}"
        );
    }
    Ok(())
}

#[test]
fn random_corruptions_have_the_statistics_of_the_reference() -> Result<(), Box<dyn Error>> {
    // Goal: the drawn input has the distribution of the reference's. Method: mean difference, root mean square difference and share of
    // bytes changed, for each of many repeats; the means over the repeats agree within 5 standard errors, which all 330 comparisons pass by
    // chance with a probability above 0.9998, plus the rounding of a byte.
    println!("seed {SEED}");
    let fixture = Fixture::load()?;
    let image = fixture.image("rgb");
    let mut compared = 0;
    let mut failures = Vec::new();
    for case in &fixture.statistics {
        let (corruption, severity): (Corruption, _) = (case.corruption.parse()?, Severity::try_from(case.severity)?);
        let repeats = f64::from(fixture.repeats);
        let rows: Vec<[f64; 3]> = (0..u64::from(fixture.repeats))
            .map(|stream| differences(&image, &corrupt(&image, corruption, severity, table(&case.table), &mut Draws::new(SEED, stream))))
            .collect();
        for statistic in 0..3 {
            let mean = rows.iter().map(|row| row[statistic]).sum::<f64>() / repeats;
            let variance = rows.iter().map(|row| (row[statistic] - mean).powi(2)).sum::<f64>() / (repeats - 1.0);
            let slack = if statistic == 2 { 0.005 } else { 0.05 };
            let limit = 5.0 * ((variance + case.deviations[statistic].powi(2)) / repeats).sqrt() + slack;
            let expected = case.means[statistic];
            if (mean - expected).abs() > limit {
                failures.push(format!(
                    "{corruption} {} {}: statistic {statistic} {mean}, expected {expected} within {limit}",
                    case.table, case.severity
                ));
            }
            compared += 1;
        }
    }
    println!("{compared} statistics compared");
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    Ok(())
}

/// Mean difference, root mean square difference, share of bytes changed.
fn differences(clean: &Image, corrupted: &Image) -> [f64; 3] {
    let count = f64::from(u32::try_from(clean.pixels().len()).expect("test images are small"));
    let differences = || clean.pixels().iter().zip(corrupted.pixels()).map(|(&clean, &corrupted)| f64::from(corrupted) - f64::from(clean));
    let share = |selected: usize| f64::from(u32::try_from(selected).expect("test images are small")) / count;
    let square = differences().map(|difference| difference * difference).sum::<f64>() / count;
    [differences().sum::<f64>() / count, square.sqrt(), share(differences().filter(|&difference| difference != 0.0).count())]
}

#[test]
fn the_same_seed_gives_the_same_bytes_and_another_seed_others() -> Result<(), Box<dyn Error>> {
    // Goal: reproducible streams. Method: all corruptions, tables and both kinds of image, twice; deterministic ones ignore the seed.
    println!("seed {SEED}");
    let fixture = Fixture::load()?;
    let random = ["noise", "glass", "motion", "snow", "frost", "fog", "elastic", "spatter"];
    for image in ["grey", "rgb"].map(|name| fixture.image(name)) {
        for corruption in Corruption::ALL {
            for table in [Table::Cifar, Table::Tiny] {
                let severity = Severity::try_from(5)?;
                let draw = |seed| corrupt(&image, corruption, severity, table, &mut Draws::new(seed, 3));
                assert_eq!(draw(SEED), draw(SEED), "{corruption}");
                let is_random = random.iter().any(|part| corruption.name().contains(part));
                assert_eq!(draw(SEED) != draw(SEED + 1), is_random, "{corruption}");
            }
        }
    }
    Ok(())
}

#[test]
fn known_seeds_keep_their_bytes() -> Result<(), Box<dyn Error>> {
    // Goal: a change of the generator or of the order of draws does not pass unseen. Method: the hash of all results.
    let fixture = Fixture::load()?;
    let image = fixture.image("rgb");
    let mut draws = Draws::new(SEED, 0);
    let drawn = [draws.uniform(0.0, 1.0), draws.normal(0.0, 1.0), draws.poisson(20.0)].map(|value| format!("{value:.12}"));
    assert_eq!(drawn, ["0.157796097021", "-1.383421720008", "23.000000000000"]);
    let noisy = noise::impulse_noise(&Raster::from(&image), 0.5, &mut Draws::new(SEED, 1)).to_image();
    assert_eq!(blake3::Hash::from(noisy.hash()).to_hex().as_str(), "ef92330b1a67d29e3a7114e0bb4b32f436bfe941f115853b2332a7fd7bf6b2a6");
    Ok(())
}

#[test]
fn any_size_from_16_pixels_is_corrupted_in_place() {
    // Goal: shape and channel count never change, and no index leaves the image. Method: small, odd, flat and large images, all
    // corruptions.
    println!("seed {SEED}");
    for (channels, height, width) in [(1, 16, 16), (3, 17, 29), (1, 28, 28), (3, 64, 64), (3, 16, 130)] {
        let ramp = (0..channels * height * width).map(|index| u8::try_from(index % 251).expect("below 251")).collect();
        for image in [Image::new(channels, height, width, ramp), Image::new(channels, height, width, vec![0; channels * height * width])] {
            for (corruption, severity) in
                Corruption::ALL.into_iter().flat_map(|corruption| Severity::ALL.map(|severity| (corruption, severity)))
            {
                for table in [Table::Cifar, Table::Tiny] {
                    let corrupted = corrupt(&image, corruption, severity, table, &mut Draws::new(SEED, 0));
                    assert_eq!((corrupted.channels(), corrupted.height(), corrupted.width()), (channels, height, width), "{corruption}");
                }
            }
        }
    }
}

#[test]
fn names_and_severities_are_read_back() -> Result<(), Box<dyn Error>> {
    // Goal: the border checks names and severities. Method: all names, and some that are wrong.
    for corruption in Corruption::ALL {
        assert_eq!(corruption.name().parse::<Corruption>()?, corruption);
    }
    assert_eq!((Corruption::STANDARD.len(), Corruption::EXTRA.len()), (15, 4));
    assert!("gaussian".parse::<Corruption>().is_err_and(|error| error.to_string().contains("gaussian_noise")));
    assert!(Severity::try_from(0).is_err() && Severity::try_from(6).is_err());
    Ok(())
}

#[test]
fn the_contact_sheet_shows_all_corruptions() -> Result<(), Box<dyn Error>> {
    // Goal: a picture to look at. Method: both fixture images; the file is left in the folder for test output.
    let fixture = Fixture::load()?;
    for (name, table) in [("cifar", Table::Cifar), ("tiny", Table::Tiny)] {
        let png = contact_sheet(&[fixture.image("grey"), fixture.image("rgb")], table, SEED);
        let sheet = image::load_from_memory(&png)?;
        assert_eq!((sheet.width(), sheet.height()), (2 * (104 + 10 * 34 + 2), 2 * (20 * 34 + 2)));
        std::fs::write(format!("{}/contact_sheet_{name}.png", env!("CARGO_TARGET_TMPDIR")), png)?;
    }
    Ok(())
}
