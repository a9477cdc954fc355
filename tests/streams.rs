//! What each stream promises, on small pictures and plans.

use clap::ValueEnum;
use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use undrift::frame::{ClassIndex, Image};
use undrift::lab::corruptions::{Corruption, Draws, HeldOut, Severity, Table, corrupt};
use undrift::lab::dataset::{Labelled, pad};
use undrift::lab::streams::{
    Calibration, CalibrationError, Layer, Plan, PlanError, PlannedFrame, Playback, Request, Scene, Stream, StreamFrame, Walk,
};
use undrift::noise::NoiseKey;

const SEED: u64 = 3;
const SIDE: usize = 32;
const CLASSES: u32 = 10;
const TARGET: f64 = 0.5;

/// Six pictures of each class: a bright shape with a dark seam on black, which differs from class to class.
fn images() -> Vec<Labelled> {
    let picture = |n: u32| {
        let (class, shade) = (n % CLASSES, 150 + 15 * (n / CLASSES));
        let value =
            |y: u32, x: u32| match (y.abs_diff(14) <= 5 + class % 5 && x.abs_diff(14) <= 4 + class, (x + y).is_multiple_of(class + 5)) {
                (true, false) => shade,
                (true, true) => shade / 2,
                (false, _) => 0,
            };
        let pixels = (0..28).flat_map(|y| (0..28).map(move |x| u8::try_from(value(y, x)).expect("shades are bytes")));
        Labelled { image: Image::new(1, 28, 28, pixels.collect()), label: ClassIndex(class) }
    };
    (0..6 * CLASSES).map(picture).collect()
}

fn severity(value: u8) -> Severity {
    Severity::try_from(value).expect("1 to 5")
}

/// A source that loses the same share of accuracy with each step of a corruption, more of it by some than by others.
fn toy_accuracy(scene: &Scene) -> f64 {
    let loss = |layer: &Layer| match *layer {
        Layer::Corruption(corruption, severity) => f64::from(severity.get()) * (0.04 + 0.01 * f64::from(corruption as u8 % 8)),
        _ => 0.0,
    };
    (0.9 - scene.layers.iter().map(loss).sum::<f64>()).max(0.1)
}

fn toy_calibration() -> Calibration {
    Calibration::measure(|scene| Ok::<_, Infallible>(toy_accuracy(scene))).unwrap_or_else(|never| match never {})
}

fn plan(stream: Stream, frames: usize) -> Plan {
    let calibration = toy_calibration();
    let walk = Some(Walk { calibration: &calibration, source_accuracy: TARGET });
    let request = Request { frames, severity: severity(5), seed: SEED, visits: 20, walk };
    Plan::new(stream, &request, &images()).expect("images and a calibration are given")
}

/// Domains in order, with their frames: neighbours of one domain are one.
fn stretches(plan: &Plan) -> Vec<(&str, usize)> {
    let of_one_domain = plan.frames.chunk_by(|one, next| one.scene.domain == next.scene.domain);
    of_one_domain.map(|frames| (frames[0].scene.domain.as_str(), frames.len())).collect()
}

fn domain_counts(frames: &[PlannedFrame]) -> BTreeMap<&str, usize> {
    let mut counts = BTreeMap::new();
    frames.iter().for_each(|frame| *counts.entry(frame.scene.domain.as_str()).or_default() += 1);
    counts
}

fn labels(plan: &Plan) -> Vec<u32> {
    let images = images();
    plan.frames.iter().map(|frame| images[frame.image].label.0).collect()
}

fn names(corruptions: &[Corruption]) -> Vec<&'static str> {
    std::iter::once("clean").chain(corruptions.iter().map(|corruption| corruption.name())).collect()
}

fn ratio(part: usize, whole: usize) -> f64 {
    f64::from(u32::try_from(part).expect("small counts")) / f64::from(u32::try_from(whole).expect("small counts"))
}

#[test]
fn equal_requests_give_equal_frames_in_any_order_of_drawing() {
    // Goal: frame i is a function of the request. Method: every stream and table, drawn forwards from one plan and backwards from another;
    // another seed gives other frames.
    println!("seed {SEED}");
    let images = images();
    let calibration = toy_calibration();
    let walk = Some(Walk { calibration: &calibration, source_accuracy: TARGET });
    for &stream in Stream::value_variants() {
        for table in [Table::Cifar, Table::Tiny] {
            let plan = |seed| {
                let request = Request { frames: 21, severity: severity(4), seed, visits: 2, walk };
                Plan::new(stream, &request, &images).expect("images and a calibration are given")
            };
            let (first, second, other) = (plan(SEED), plan(SEED), plan(SEED + 1));
            let playback = |plan| Playback { plan, images: &images, table, side: SIDE };
            let forwards: Vec<StreamFrame> = playback(&first).frames().collect();
            let mut backwards: Vec<StreamFrame> = (0..21).rev().map(|index| playback(&second).frame(index)).collect();
            backwards.reverse();
            assert!(forwards == backwards, "{} {table:?}", stream.name());
            assert!(forwards != playback(&other).frames().collect::<Vec<_>>(), "{} {table:?}", stream.name());
        }
    }
}

#[test]
fn as_many_frames_are_planned_as_are_asked_for() {
    // Goal: no frame is lost to rounding. Method: lengths that no count of domains divides, down to none.
    for &stream in Stream::value_variants() {
        for frames in [0, 1, 7, 333, 1001] {
            assert_eq!(plan(stream, frames).frames.len(), frames, "{}", stream.name());
        }
    }
}

#[test]
fn continual_frames_are_drawn_as_the_published_figures_need_them() {
    // Goal: figures can be repeated. Method: each frame against its definition: image by keyed draw, corruption by the draws of its index.
    let images = images();
    let plan = plan(Stream::Continual, 67);
    let choice = NoiseKey::from_seed(SEED, "stream", 0);
    let order: Vec<_> = std::iter::once(None).chain(Corruption::STANDARD.iter().copied().map(Some)).collect();
    for (i, frame) in (0u32..).zip(Playback { plan: &plan, images: &images, table: Table::Tiny, side: SIDE }.frames()) {
        // 67 frames are 16 domains of 4, and 3 frames more, for the first three.
        let domain = order[usize::try_from(if i < 15 { i / 5 } else { (i - 3) / 4 }).expect("small")];
        let chosen = &images[usize::try_from(choice.uniform_below(i, 60)).expect("small")];
        let clean = pad(&chosen.image, SIDE);
        let draw = |corruption| corrupt(&clean, corruption, severity(5), Table::Tiny, &mut Draws::new(SEED, u64::from(i)));
        assert!(frame.image == domain.map_or(clean.clone(), draw), "frame {i}");
        assert_eq!((frame.label, frame.domain.as_str()), (chosen.label, domain.map_or("clean", Corruption::name)));
    }
}

#[test]
fn domains_come_in_order_and_in_equal_shares() {
    // Goal: a domain's accuracy is over its share of the frames. Method: stretches of the streams that go from domain to domain.
    let held_out = |of: &[HeldOut]| std::iter::once("clean").chain(of.iter().map(|one| one.name())).collect::<Vec<_>>();
    let standard = names(Corruption::STANDARD);
    let [a, b, c, d] = ["speckle_noise", "gaussian_blur", "spatter", "saturate"];
    let sets: [&[&str]; 16] = [
        &["clean"],
        &[a],
        &[b],
        &[a, b],
        &[c],
        &[a, c],
        &[b, c],
        &[a, b, c],
        &[d],
        &[a, d],
        &[b, d],
        &[a, b, d],
        &[c, d],
        &[a, c, d],
        &[b, c, d],
        &[a, b, c, d],
    ];
    let sets = sets.map(|set| set.join("+"));
    let cases = [
        (Stream::Continual, standard.clone()),
        (Stream::Correlated, standard.clone()),
        (Stream::LabelShift, standard.clone()),
        (Stream::Gradual, standard.clone()),
        (Stream::Recurring, standard.repeat(20)),
        (Stream::Separate, names(&Corruption::ALL)),
        (Stream::Extra, names(Corruption::EXTRA)),
        (Stream::ExtraSets, sets.iter().map(String::as_str).collect()),
        (Stream::HeldOut, held_out(HeldOut::FIRST)),
        (Stream::HeldOutAgain, held_out(HeldOut::AGAIN)),
        (Stream::HeldOutThird, held_out(HeldOut::THIRD)),
        (Stream::HeldOutFourth, held_out(HeldOut::FOURTH)),
        (Stream::HeldOutFifth, held_out(HeldOut::FIFTH)),
        (Stream::HeldOutSixth, held_out(HeldOut::SIXTH)),
        (Stream::HeldOutSeventh, held_out(HeldOut::SEVENTH)),
    ];
    for (stream, expected) in cases {
        let plan = plan(stream, 5003);
        let (domains, counts): (Vec<_>, Vec<_>) = stretches(&plan).into_iter().unzip();
        assert_eq!(domains, expected, "{}", stream.name());
        let (least, most) = (5003 / expected.len(), 5003_usize.div_ceil(expected.len()));
        // In `recurring`, frames are parted twice: by visits, then by domains.
        let slack = usize::from(stream == Stream::Recurring);
        assert!(counts.iter().all(|count| (least - slack..=most + slack).contains(count)), "{}: {counts:?}", stream.name());
    }
}

#[test]
fn a_fresh_start_is_asked_for_at_each_domain_of_separate_alone() {
    // Goal: adaptation is reset where the protocol says so, nowhere else. Method: indices of fresh starts in every stream.
    for &stream in Stream::NAMED.iter() {
        let plan = plan(stream, 400);
        let starts: Vec<_> = (0..400).filter(|&index| plan.frames[index].is_fresh_start).collect();
        let expected = if stream == Stream::Separate { (0..20).map(|domain| 20 * domain).collect() } else { Vec::new() };
        assert_eq!(starts, expected, "{}", stream.name());
    }
}

#[test]
fn gradual_severities_rise_to_the_one_asked_for_and_fall() {
    // Goal: no jump within a corruption. Method: severities of each corruption, repetitions removed, for two peaks.
    for (peak, expected) in [(5, vec![1, 2, 3, 4, 5, 4, 3, 2, 1]), (2, vec![1, 2, 1])] {
        let request = Request { frames: 16 * 20, severity: severity(peak), seed: SEED, visits: 1, walk: None };
        let plan = Plan::new(Stream::Gradual, &request, &images()).expect("there are images");
        for frames in plan.frames.chunk_by(|one, next| one.scene.domain == next.scene.domain).skip(1) {
            let severity = |frame: &PlannedFrame| match frame.scene.layers[..] {
                [Layer::Corruption(_, severity)] => severity.get(),
                _ => 0,
            };
            let mut severities: Vec<_> = frames.iter().map(severity).collect();
            severities.dedup();
            assert_eq!(severities, expected, "{}", frames[0].scene.domain);
        }
    }
}

#[test]
fn mixed_has_the_domains_of_continual_in_no_order() {
    // Goal: only the order differs. Method: equal counts; and of neighbours, about 15 of 16 are of two domains.
    let (mixed, continual) = (plan(Stream::Mixed, 1603), plan(Stream::Continual, 1603));
    assert_eq!(domain_counts(&mixed.frames), domain_counts(&continual.frames));
    // The share of changes has a standard error of 0.006; five of them are allowed.
    let changes = stretches(&mixed).len();
    assert!((ratio(changes, 1603) - 15.0 / 16.0).abs() < 0.03, "{changes} changes");
}

#[test]
fn correlated_frames_are_those_of_continual_in_long_runs_of_one_class() {
    // Goal: the order is all that differs, and it is far from chance. Method: images of each domain, and the mean length of runs.
    let (correlated, continual) = (plan(Stream::Correlated, 3200), plan(Stream::Continual, 3200));
    for (runs, random) in correlated.frames.chunks(200).zip(continual.frames.chunks(200)) {
        let sorted = |frames: &[PlannedFrame]| {
            let mut images: Vec<_> = frames.iter().map(|frame| frame.image).collect();
            images.sort_unstable();
            images
        };
        assert_eq!(sorted(runs), sorted(random));
        assert_eq!(runs[0].scene.domain, random[0].scene.domain);
    }
    let mean_run = |plan: &Plan| ratio(3200, labels(plan).chunk_by(|one, next| one == next).count());
    // By chance, a run of ten classes is 1.1 frames long.
    assert!(mean_run(&continual) < 1.3, "{}", mean_run(&continual));
    assert!(mean_run(&correlated) > 4.0, "{}", mean_run(&correlated));
}

#[test]
fn single_is_continual_for_windows_of_one_frame() {
    // Goal: the two protocols compare on equal frames. Method: equal plans; only the window differs.
    assert_eq!(plan(Stream::Single, 333), plan(Stream::Continual, 333));
    assert_eq!((Stream::Single.window(), Stream::Continual.window()), (Some(1), None));
}

#[test]
fn ccc_changes_one_severity_at_a_time_and_keeps_the_source_accuracy_near_its_target() {
    // Goal: what differs between stretches is the corruption, not how hard it is. Method: a toy source; single severities, as the other
    // streams have them, lie far from the target.
    let plan = plan(Stream::Ccc, 20_001);
    let scenes: Vec<&Scene> =
        plan.frames.chunk_by(|one, next| one.scene.layers == next.scene.layers).map(|frames| &*frames[0].scene).collect();
    let strengths = |scene: &Scene| -> BTreeMap<Corruption, i16> {
        let strength = |layer: &Layer| match *layer {
            Layer::Corruption(corruption, severity) => (corruption, i16::from(severity.get())),
            _ => unreachable!("ccc is made of the standard corruptions"),
        };
        scene.layers.iter().map(strength).collect()
    };
    for pair in scenes.windows(2) {
        let (before, after) = (strengths(pair[0]), strengths(pair[1]));
        let both: BTreeSet<_> = before.keys().chain(after.keys()).collect();
        let strength = |of: &BTreeMap<Corruption, i16>, corruption| of.get(corruption).copied().unwrap_or(0);
        let moved: i16 = both.iter().map(|corruption| (strength(&before, corruption) - strength(&after, corruption)).abs()).sum();
        assert_eq!(moved, 1, "{pair:?}");
        assert!(after.len() <= 2, "{after:?}");
    }
    let deviations: Vec<f64> = scenes.iter().map(|scene| (toy_accuracy(scene) - TARGET).abs()).collect();
    let mean = deviations.iter().sum::<f64>() / f64::from(u32::try_from(scenes.len()).expect("few"));
    assert!(mean < 0.07, "mean distance from the target {mean}");
    assert!(deviations.iter().all(|&deviation| deviation < 0.3), "{deviations:?}");
    assert!(scenes.iter().flat_map(|scene| strengths(scene).into_keys()).collect::<BTreeSet<_>>().len() > 10);
}

#[test]
fn ccc_without_a_whole_calibration_is_refused() {
    // Goal: no walk on guesses. Method: none given; a stored table comes back; one that lacks an entry or is out of range does not.
    let request = Request { frames: 10, severity: severity(5), seed: SEED, visits: 1, walk: None };
    assert_eq!(Plan::new(Stream::Ccc, &request, &images()), Err(PlanError::Uncalibrated));
    assert_eq!(Plan::new(Stream::Clean, &request, &[]), Err(PlanError::NoImages));
    // Powers of two, which text holds exactly.
    let accuracy = |scene: &Scene| Ok::<_, Infallible>(if scene.layers.is_empty() { 1.0 } else { 0.25 });
    let calibration = Calibration::measure(accuracy).unwrap_or_else(|never| match never {});
    let json = serde_json::to_string(&calibration).expect("a table of numbers");
    assert!(serde_json::from_str::<Calibration>(&json).expect("what was written") == calibration);
    let mut table: BTreeMap<String, f64> = serde_json::from_str(&json).expect("names and numbers");
    table.insert("fog:3".to_owned(), 1.5);
    let out_of_range = CalibrationError::Range { scene: "fog:3".to_owned(), value: 1.5 };
    assert_eq!(Calibration::try_from(table.clone()), Err(out_of_range));
    table.remove("fog:3");
    assert_eq!(Calibration::try_from(table), Err(CalibrationError::Missing { scene: "fog:3".to_owned() }));
}

#[test]
fn label_shift_makes_each_class_frequent_once_and_rare_once() {
    // Goal: class frequencies move for every class. Method: shares in ten parts of the stream; a steady class has 0.1 in each.
    let shifting = labels(&plan(Stream::LabelShift, 10_000));
    for class in 0..CLASSES {
        let shares: Vec<f64> =
            shifting.chunks(1000).map(|part| ratio(part.iter().filter(|&&label| label == class).count(), 1000)).collect();
        let (least, most) = (shares.iter().copied().fold(1.0, f64::min), shares.iter().copied().fold(0.0, f64::max));
        assert!(most > 0.25 && least < 0.03, "class {class}: {shares:?}");
    }
}

#[test]
fn three_cameras_take_turns_through_their_own_day() {
    // Goal: at any time the cameras differ, and over the stream each sees the whole day. Method: domains of neighbouring frames, and
    // by camera over all frames; light rises and falls slowly, and nights are darkest.
    let plan = plan(Stream::Day, 2401);
    let cameras: Vec<_> = plan.frames.iter().map(|frame| frame.scene.camera.expect("day has cameras")).collect();
    assert_eq!(cameras[..3].iter().collect::<BTreeSet<_>>().len(), 3);
    assert!(cameras.windows(4).all(|four| four[0] == four[3] && four[0] != four[1]));
    assert!(plan.frames.windows(3).all(|three| domain_counts(three).len() > 1));
    let light = |frame: &PlannedFrame| {
        frame.scene.layers.iter().find_map(|layer| match layer {
            Layer::Light(share) => Some(*share),
            _ => None,
        })
    };
    for camera in 0..3 {
        let day: Vec<PlannedFrame> = plan.frames.iter().skip(camera).step_by(3).cloned().collect();
        let counts = domain_counts(&day);
        let expected = [("daylight", 7), ("dirty_lens", 4), ("morning_fog", 4), ("night", 9)];
        for (domain, hours) in expected {
            assert!((ratio(counts[domain], day.len()) - ratio(hours, 24)).abs() < 0.01, "camera {camera}: {counts:?}");
        }
        let lights: Vec<f64> = day.iter().map(|frame| light(frame).expect("there is always some light")).collect();
        assert!(lights.windows(2).all(|two| (two[0] - two[1]).abs() < 0.01));
        let darkest = lights.iter().copied().zip(&day).min_by(|one, other| one.0.total_cmp(&other.0)).expect("frames");
        assert!(darkest.0 < 0.4 && darkest.1.scene.domain == "night");
    }
}

#[test]
fn cameras_and_domains_reach_the_frames_of_the_pipeline() {
    // Goal: evaluation can tell cameras and domains apart. Method: frames of a stream with cameras and of one without.
    let images = images();
    for (stream, cameras) in [(Stream::Day, ["door", "yard"]), (Stream::Continual, ["lab", "lab"])] {
        let plan = plan(stream, 20);
        let playback = Playback { plan: &plan, images: &images, table: Table::Cifar, side: SIDE };
        for (index, camera) in (0u64..).zip(cameras) {
            let planned = &plan.frames[usize::try_from(index).expect("small")];
            let frame = playback.frame(usize::try_from(index).expect("small")).into_frame(index);
            assert_eq!((frame.camera.as_str(), frame.domain.as_ref()), (camera, Some(&planned.scene.domain)));
            assert_eq!(frame.label, Some(images[planned.image].label));
        }
    }
}

/// Of two pictures, value by value.
fn correlation(a: &[f64], b: &[f64]) -> f64 {
    let mean = |values: &[f64]| values.iter().sum::<f64>() / ratio(values.len(), 1);
    let (mean_a, mean_b) = (mean(a), mean(b));
    let covariance = |a: &[f64], of_a: f64, b: &[f64], of_b: f64| a.iter().zip(b).map(|(a, b)| (a - of_a) * (b - of_b)).sum::<f64>();
    covariance(a, mean_a, b, mean_b) / (covariance(a, mean_a, a, mean_a) * covariance(b, mean_b, b, mean_b)).sqrt()
}

/// The picture that begins `lines` of SIDE pixels further down, and ends above.
fn rolled(picture: &[f64], lines: usize) -> Vec<f64> {
    let mut rolled = picture.to_vec();
    rolled.rotate_right(lines * picture.len() / SIDE);
    rolled
}

/// The picture whose lines each begin `lean` pixels further on than the one before, to the nearest, and go on in the next one; the buffer
/// is read in a circle.
fn leaning(picture: &[f64], channels: usize, lean: f64) -> Vec<f64> {
    let mut leaning = Vec::new();
    for (y, line) in (0..).zip(picture.chunks(SIDE * channels)) {
        let ahead = (lean * f64::from(y)).abs();
        // The nearest whole number of pixels, and its side.
        let pixels = (0..SIDE * SIDE).find(|&pixels| ratio(pixels, 1) + 0.5 > ahead).expect("leans less than all lines") * channels;
        let first = leaning.len();
        let from = if lean < 0.0 { picture.len() + first - pixels } else { first + pixels };
        leaning.extend((from..from + line.len()).map(|at| picture[at % picture.len()]));
    }
    leaning
}

/// The picture whose pixels each come from `scale` times as far from the middle, to the nearest.
fn scaled(picture: &[f64], channels: usize, scale: f64) -> Vec<f64> {
    let from = |to: usize| {
        let exact = scale * (ratio(to, 1) + 0.5 - ratio(SIDE, 2)) + ratio(SIDE, 2);
        (0..SIDE - 1).find(|&index| ratio(index, 1) + 1.0 > exact).unwrap_or(SIDE - 1)
    };
    let pixel = |y: usize, x: usize| (0..channels).map(move |channel| (from(y) * SIDE + from(x)) * channels + channel);
    (0..SIDE).flat_map(|y| (0..SIDE).flat_map(move |x| pixel(y, x))).map(|at| picture[at]).collect()
}

/// By how much each value is above the mean of its channel in its line.
fn levelled(picture: &[f64], channels: usize) -> Vec<f64> {
    let mean = |line: &[f64], channel| line.iter().skip(channel).step_by(channels).sum::<f64>() / ratio(SIDE, 1);
    let above = |line: &[f64]| (0..line.len()).map(|at| line[at] - mean(line, at % channels)).collect::<Vec<_>>();
    picture.chunks(SIDE * channels).flat_map(above).collect()
}

/// Levels of 0 to 255 that begin again at 0 where `black` takes them beyond.
fn raised(picture: &[f64], black: u8) -> Vec<f64> {
    picture.iter().map(|level| (level + f64::from(black)).rem_euclid(255.0)).collect()
}

/// By how much each value is above the mean of its channel in the 5 x 5 pixels about it.
fn edges(picture: &[f64], channels: usize) -> Vec<f64> {
    let near = |at: usize| at.saturating_sub(2)..SIDE.min(at + 3);
    let above = |(index, value): (usize, &f64)| {
        let (y, x, channel) = (index / channels / SIDE, index / channels % SIDE, index % channels);
        let about: Vec<f64> = near(y).flat_map(|y| near(x).map(move |x| picture[(y * SIDE + x) * channels + channel])).collect();
        (value - about.iter().sum::<f64>() / ratio(about.len(), 1)).max(0.0)
    };
    picture.iter().enumerate().map(above).collect()
}

#[test]
fn held_out_corruptions_show_and_leave_the_image_recognisable() {
    // Goal: hard, not hopeless. Method: mean change in levels of 255, and correlation with the clean image, of grey and RGB images; where
    // pixels, lines or tones are elsewhere or gone, of what is left of them.
    println!("seed {SEED}");
    for Labelled { image, .. } in images().iter().take(10) {
        let grey = pad(image, SIDE);
        let rgb = Image::new(3, SIDE, SIDE, grey.pixels().iter().flat_map(|&value| [value, value / 2, 255 - value]).collect());
        for clean in [grey, rgb] {
            for held_out in HeldOut::ALL {
                let corrupted = held_out.apply(&clean, &mut Draws::new(SEED, 0));
                assert_eq!((corrupted.channels(), corrupted.height(), corrupted.width()), (clean.channels(), SIDE, SIDE));
                let levels = |image: &Image| image.pixels().iter().map(|&level| f64::from(level)).collect::<Vec<f64>>();
                let (before, after) = (levels(&clean), levels(&corrupted));
                let change = before.iter().zip(&after).map(|(a, b)| (a - b).abs()).sum::<f64>() / ratio(before.len(), 1);
                assert!(change > 1.0, "{}: changed by {change}", held_out.name());
                let likeness = match held_out {
                    // Its lines are there, further down.
                    HeldOut::RollingPicture => (0..SIDE).map(|lines| correlation(&rolled(&before, lines), &after)).fold(0.0, f64::max),
                    // Its tones are there, further up.
                    HeldOut::Overflow => (0..255).map(|black| correlation(&raised(&before, black), &after)).fold(0.0, f64::max),
                    // Its edges are there, and nothing else.
                    HeldOut::LostLevel => correlation(&edges(&before, clean.channels()), &after),
                    // One burst may take most lines of a small shape; not every one does.
                    HeldOut::HeldLines => {
                        let likeness = |index| correlation(&before, &levels(&held_out.apply(&clean, &mut Draws::new(SEED, index))));
                        (0..10).map(likeness).sum::<f64>() / 10.0
                    }
                    // It is there, larger or smaller.
                    HeldOut::WrongZoom => {
                        let likeness = |step: i32| correlation(&scaled(&before, clean.channels(), 1.05_f64.powi(step)), &after);
                        (-15..=15).map(likeness).fold(0.0, f64::max)
                    }
                    // Its lines are there, each further on.
                    HeldOut::WrongPitch => {
                        let likeness = |step: i32| correlation(&leaning(&before, clean.channels(), 0.02 * f64::from(step)), &after);
                        (-50..=50).map(likeness).fold(0.0, f64::max)
                    }
                    // Its lines are there, each at a level of its own.
                    HeldOut::FloatingBlack => correlation(&levelled(&before, clean.channels()), &levelled(&after, clean.channels())),
                    _ => correlation(&before, &after),
                };
                assert!(likeness > 0.4, "{}: likeness {likeness}", held_out.name());
            }
        }
    }
}

#[test]
fn held_out_corruptions_take_images_of_any_size() {
    // Goal: no size makes them panic. Method: a single pixel, wide, high and odd images, grey and RGB; twice the same bytes.
    println!("seed {SEED}");
    for (channels, height, width) in [(1, 1, 1), (3, 1, 1), (1, 1, 40), (1, 40, 1), (3, 7, 50), (1, 61, 17)] {
        let clean = Image::new(channels, height, width, (0..=255).cycle().take(channels * height * width).collect());
        for held_out in HeldOut::ALL {
            let corrupted = held_out.apply(&clean, &mut Draws::new(SEED, 0));
            assert_eq!((corrupted.channels(), corrupted.height(), corrupted.width()), (channels, height, width), "{}", held_out.name());
            assert!(corrupted == held_out.apply(&clean, &mut Draws::new(SEED, 0)), "{}", held_out.name());
        }
    }
}

#[test]
fn each_name_stands_for_one_stream() {
    // Goal: no stream hides another. Method: every name is read back, and all differ.
    let streams = Stream::value_variants();
    streams.iter().for_each(|&stream| assert_eq!(Stream::from_str(stream.name(), false), Ok(stream)));
    assert_eq!(streams.iter().map(|stream| stream.name()).collect::<BTreeSet<_>>().len(), 20 + 19 + 42);
}
