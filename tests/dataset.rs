//! Data sets in idx files: what is written is read back, and what is damaged is refused.

use std::error::Error;
use undrift::frame::{ClassIndex, Image};
use undrift::lab::dataset::{self, DatasetError, Labelled, Split};

fn small_dataset() -> Vec<Labelled> {
    (0..3).map(|label| Labelled { image: Image::new(1, 2, 3, vec![label * 10; 6]), label: ClassIndex(u32::from(label)) }).collect()
}

fn written(examples: &[Labelled]) -> Result<(Vec<u8>, Vec<u8>), DatasetError> {
    let (mut images, mut labels) = (Vec::new(), Vec::new());
    dataset::write_pair(examples, &mut images, &mut labels)?;
    Ok((images, labels))
}

#[test]
fn a_written_data_set_is_read_back() -> Result<(), Box<dyn Error>> {
    // Goal: samples can be shipped. Method: write and read in memory.
    let (images, labels) = written(&small_dataset())?;
    assert_eq!(dataset::read_pair(images.as_slice(), labels.as_slice())?, small_dataset());
    Ok(())
}

#[test]
fn damaged_data_sets_are_refused_with_a_reason() -> Result<(), Box<dyn Error>> {
    // Goal: no wrong pairs and no panic. Method: files cut short at each length, swapped, of other counts, and missing.
    let (images, labels) = written(&small_dataset())?;
    for length in 0..images.len() {
        let cut = dataset::read_pair(&images[..length], labels.as_slice());
        assert!(matches!(cut, Err(DatasetError::Damaged { .. })), "{length} bytes of {}: {cut:?}", images.len());
    }
    assert!(matches!(dataset::read_pair(labels.as_slice(), images.as_slice()), Err(DatasetError::Magic { .. })));
    let (_, fewer) = written(&small_dataset()[..2])?;
    assert!(matches!(dataset::read_pair(images.as_slice(), fewer.as_slice()), Err(DatasetError::CountMismatch { images: 3, labels: 2 })));
    let mut mixed = small_dataset();
    mixed[1].image = Image::new(1, 3, 2, vec![0; 6]);
    assert!(matches!(written(&mixed), Err(DatasetError::MixedShapes { index: 1 })));
    let missing = dataset::load(&std::env::temp_dir().join("no data set here"), Split::Test);
    assert!(missing.is_err_and(|error| error.to_string().contains("dataset-fashion-mnist")));
    Ok(())
}

#[test]
fn fashion_mnist_is_complete_where_it_is_installed() -> Result<(), Box<dyn Error>> {
    // Goal: the real files read. Method: counts, and ten classes of equal size; says so where the package is missing.
    let folder = std::path::Path::new("/usr/share/datasets/fashion-mnist");
    if !folder.exists() {
        println!("NOT CHECKED: {} is missing; install the Debian package dataset-fashion-mnist", folder.display());
        return Ok(());
    }
    for (split, count) in [(Split::Train, 60_000), (Split::Test, 10_000)] {
        let examples = dataset::load(folder, split)?;
        assert_eq!(examples.len(), count);
        assert_eq!(examples.iter().filter(|example| example.label == ClassIndex(9)).count(), count / 10);
        assert_eq!((examples[0].image.height(), examples[0].image.width()), (28, 28));
    }
    Ok(())
}

#[test]
fn padding_keeps_the_image_in_the_middle() {
    // Goal: 28 -> 32 as the classifier expects it. Method: a small image with known bytes.
    let padded = dataset::pad(&Image::new(1, 1, 2, vec![5, 6]), 4);
    assert_eq!(padded.pixels(), [0, 0, 0, 0, 0, 5, 6, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
}
