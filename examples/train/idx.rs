//! Images and labels in the IDX format of MNIST, gzip-compressed or not.

use flate2::bufread::MultiGzDecoder;
use ndarray::{Array3, Axis};
use std::fs::File;
use std::io::{self, BufRead, BufReader, ErrorKind, Read};
use std::path::Path;

/// A file that is missing or is not what it should be.
#[derive(Debug, thiserror::Error)]
#[error("{file}: expected {expected}, found {found}")]
pub struct DataError {
    file: String,
    expected: String,
    found: String,
}

impl DataError {
    fn new(file: &str, expected: impl ToString, found: impl ToString) -> Self {
        DataError {
            file: file.to_owned(),
            expected: expected.to_string(),
            found: found.to_string(),
        }
    }
}

/// Images and what they show, split into a part to learn from and a part to be tested on.
#[derive(Debug)]
pub struct Dataset {
    pub train: Split,
    pub test: Split,
    /// Labels are below this.
    pub classes: usize,
}

/// `[count, height, width]`, and as many labels.
#[derive(Debug)]
pub struct Split {
    pub images: Array3<u8>,
    pub labels: Vec<u8>,
}

impl Split {
    /// Height and width of an image.
    pub fn size(&self) -> (usize, usize) {
        let (_, height, width) = self.images.dim();
        (height, width)
    }
}

/// The name of a pair of files, and the digits that this example carries under that name.
struct Part {
    images: &'static str,
    labels: &'static str,
    carried_images: &'static [u8],
    carried_labels: &'static [u8],
}

macro_rules! carried {
    ($name:literal) => {
        include_bytes!(concat!("../../data/digits/", $name, ".gz"))
    };
}

const TRAIN: Part = Part {
    images: "train-images-idx3-ubyte",
    labels: "train-labels-idx1-ubyte",
    carried_images: carried!("train-images-idx3-ubyte"),
    carried_labels: carried!("train-labels-idx1-ubyte"),
};

const TEST: Part = Part {
    images: "t10k-images-idx3-ubyte",
    labels: "t10k-labels-idx1-ubyte",
    carried_images: carried!("t10k-images-idx3-ubyte"),
    carried_labels: carried!("t10k-labels-idx1-ubyte"),
};

/// The 8x8 digits that this example carries (`data/digits`).
pub fn carried_digits() -> Result<Dataset, DataError> {
    let read = |part: Part| {
        let images = read_images(part.images, part.carried_images)?;
        let labels = read_labels(part.labels, part.carried_labels)?;
        pair(images, labels)
    };
    join(read(TRAIN)?, read(TEST)?)
}

/// The four files of MNIST's names in `directory`, each with or without `.gz`.
pub fn load(directory: &Path) -> Result<Dataset, DataError> {
    if !directory.is_dir() {
        let found = if directory.exists() { "a file" } else { "nothing" };
        return Err(DataError::new(&directory.display().to_string(), "a directory", found));
    }
    let read = |part: Part| {
        let (name, file) = open(directory, part.images)?;
        let images = read_images(&name, file)?;
        let (name, file) = open(directory, part.labels)?;
        let labels = read_labels(&name, file)?;
        pair(images, labels)
    };
    join(read(TRAIN)?, read(TEST)?)
}

fn open(directory: &Path, name: &str) -> Result<(String, BufReader<File>), DataError> {
    for candidate in [name.to_owned(), format!("{name}.gz")] {
        let path = directory.join(candidate);
        let shown = path.display().to_string();
        match File::open(&path) {
            Ok(file) => return Ok((shown, BufReader::new(file))),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(DataError::new(&shown, "a readable file", error)),
        }
    }
    let shown = directory.join(name).display().to_string();
    Err(DataError::new(&shown, "this file, or the same with .gz", "neither"))
}

/// A file's contents and the name that errors call it by.
struct Named<T> {
    name: String,
    contents: T,
}

fn read_images(name: &str, file: impl BufRead) -> Result<Named<Array3<u8>>, DataError> {
    let (extents, pixels) = read_idx::<3>(name, file)?;
    let [count, height, width] = extents;
    if pixels.is_empty() {
        let found = format!("{count} images of {height}x{width}");
        return Err(DataError::new(name, "at least one image of at least 1x1", found));
    }
    let images =
        Array3::from_shape_vec(extents, pixels).expect("as many pixels as the extents say");
    Ok(Named { name: name.to_owned(), contents: images })
}

fn read_labels(name: &str, file: impl BufRead) -> Result<Named<Vec<u8>>, DataError> {
    let ([_], labels) = read_idx(name, file)?;
    Ok(Named { name: name.to_owned(), contents: labels })
}

/// The extents in the header, and as many unsigned bytes as they multiply to.
fn read_idx<const RANK: usize>(
    name: &str,
    mut file: impl BufRead,
) -> Result<([usize; RANK], Vec<u8>), DataError> {
    const GZIP: &[u8] = &[0x1f, 0x8b];
    let start = file.fill_buf().map_err(|error| DataError::new(name, "a readable file", error))?;
    if start.starts_with(GZIP) {
        parse_idx(name, MultiGzDecoder::new(file))
    } else {
        parse_idx(name, file)
    }
}

fn parse_idx<const RANK: usize>(
    name: &str,
    mut file: impl Read,
) -> Result<([usize; RANK], Vec<u8>), DataError> {
    const UNSIGNED_BYTES: u8 = 8;
    let header_len = 4 + 4 * RANK;
    let header = read_at_most(name, &mut file, header_len)?;
    if header.len() < header_len {
        let found = format!("{} bytes", header.len());
        return Err(DataError::new(name, format!("an IDX header of {header_len} bytes"), found));
    }
    let magic = [0, 0, UNSIGNED_BYTES, RANK as u8];
    if header[..4] != magic {
        let expected = format!("the magic number {} (unsigned bytes, rank {RANK})", hex(&magic));
        return Err(DataError::new(name, expected, hex(&header[..4])));
    }
    let extents: [usize; RANK] = std::array::from_fn(|axis| {
        let at = 4 + 4 * axis;
        u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]) as usize
    });
    let len = extents.iter().try_fold(1usize, |product, &extent| product.checked_mul(extent));
    let Some(len) = len.filter(|&len| len < isize::MAX as usize) else {
        let found = format!("extents {extents:?}");
        return Err(DataError::new(name, "extents that fit in memory", found));
    };
    let values = read_at_most(name, &mut file, len + 1)?;
    if values.len() != len {
        let more = if values.len() > len { "more" } else { &values.len().to_string() };
        let expected = format!("{len} bytes after the header (extents {extents:?})");
        return Err(DataError::new(name, expected, more));
    }
    Ok((extents, values))
}

fn read_at_most(name: &str, file: &mut impl Read, len: usize) -> Result<Vec<u8>, DataError> {
    let mut bytes = Vec::new();
    match file.take(len as u64).read_to_end(&mut bytes) {
        Ok(_) => Ok(bytes),
        Err(error) => Err(DataError::new(name, expected_of(&error), error)),
    }
}

/// Errors of the decompressor come as these kinds, those of the disk as others.
fn expected_of(error: &io::Error) -> &'static str {
    match error.kind() {
        ErrorKind::InvalidData | ErrorKind::InvalidInput | ErrorKind::UnexpectedEof => {
            "an intact gzip stream"
        }
        _ => "a readable file",
    }
}

fn hex(bytes: &[u8]) -> String {
    let digits: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    digits.join(" ")
}

fn pair(images: Named<Array3<u8>>, labels: Named<Vec<u8>>) -> Result<Named<Split>, DataError> {
    let (count, found) = (images.contents.len_of(Axis(0)), labels.contents.len());
    if count != found {
        let expected = format!("{count} labels, as many as images in {}", images.name);
        return Err(DataError::new(&labels.name, expected, found));
    }
    let split = Split { images: images.contents, labels: labels.contents };
    Ok(Named { name: images.name, contents: split })
}

fn join(train: Named<Split>, test: Named<Split>) -> Result<Dataset, DataError> {
    let show = |(height, width)| format!("images of {height}x{width}");
    let (size, found) = (train.contents.size(), test.contents.size());
    if size != found {
        let expected = format!("{} as in {}", show(size), train.name);
        return Err(DataError::new(&test.name, expected, show(found)));
    }
    let (train, test) = (train.contents, test.contents);
    let labels = train.labels.iter().chain(&test.labels);
    let classes = 1 + labels.copied().max().map_or(0, usize::from);
    Ok(Dataset { train, test, classes })
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::{Compression, write::GzEncoder};
    use std::io::Write;

    fn idx(rank: u8, extents: &[u32], values: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0, 0, 8, rank];
        bytes.extend(extents.iter().flat_map(|extent| extent.to_be_bytes()));
        bytes.extend(values);
        bytes
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn images_error(bytes: &[u8]) -> String {
        read_images("images", bytes).err().unwrap().to_string()
    }

    #[test]
    fn reads_any_size_compressed_or_not() {
        let plain = idx(3, &[2, 1, 3], &[1, 2, 3, 4, 5, 6]);
        for bytes in [plain.clone(), gzip(&plain)] {
            let images = read_images("images", &bytes[..]).unwrap().contents;
            assert_eq!(images, ndarray::arr3(&[[[1, 2, 3]], [[4, 5, 6]]]));
        }
    }

    #[test]
    fn the_carried_digits_are_whole() {
        let digits = carried_digits().unwrap();
        assert_eq!(digits.train.images.dim(), (1347, 8, 8));
        assert_eq!(digits.test.images.dim(), (450, 8, 8));
        assert_eq!(digits.classes, 10);
        assert_eq!(digits.train.images.iter().max(), Some(&16));
    }

    #[test]
    fn an_error_names_the_file_what_was_expected_and_what_was_found() {
        assert_eq!(images_error(&[]), "images: expected an IDX header of 16 bytes, found 0 bytes");
        assert_eq!(
            images_error(&idx(1, &[2, 0, 0], &[1, 2])),
            "images: expected the magic number 00 00 08 03 (unsigned bytes, rank 3), \
             found 00 00 08 01"
        );
        assert_eq!(
            images_error(&idx(3, &[2, 1, 1], &[7])),
            "images: expected 2 bytes after the header (extents [2, 1, 1]), found 1"
        );
        assert_eq!(
            images_error(&idx(3, &[2, 1, 1], &[7, 7, 7])),
            "images: expected 2 bytes after the header (extents [2, 1, 1]), found more"
        );
        assert_eq!(
            images_error(&idx(3, &[0, 1, 1], &[])),
            "images: expected at least one image of at least 1x1, found 0 images of 1x1"
        );
        let huge = images_error(&idx(3, &[u32::MAX; 3], &[]));
        assert!(huge.starts_with("images: expected extents that fit in memory"), "{huge}");
    }

    #[test]
    fn a_damaged_gzip_stream_is_told_from_a_short_file() {
        let whole = gzip(&idx(3, &[2, 8, 8], &(0..128).collect::<Vec<u8>>()));
        let cut = images_error(&whole[..whole.len() / 2]);
        assert!(cut.starts_with("images: expected an intact gzip stream"), "{cut}");
        let mut flipped = whole;
        flipped[40] ^= 0x10;
        let message = images_error(&flipped);
        assert!(message.starts_with("images: expected"), "{message}");
    }

    #[test]
    fn parts_must_fit_each_other() {
        let images = |name, size: u32| {
            let pixels = vec![0; (2 * size * size) as usize];
            read_images(name, &idx(3, &[2, size, size], &pixels)[..]).unwrap()
        };
        let labels = |count: u32| {
            read_labels("labels", &idx(1, &[count], &vec![1; count as usize])[..]).unwrap()
        };
        let error = pair(images("images", 4), labels(3)).err().unwrap();
        assert_eq!(
            error.to_string(),
            "labels: expected 2 labels, as many as images in images, found 3"
        );

        let train = pair(images("train", 4), labels(2)).unwrap();
        let test = pair(images("test", 5), labels(2)).unwrap();
        let error = join(train, test).err().unwrap();
        assert_eq!(
            error.to_string(),
            "test: expected images of 4x4 as in train, found images of 5x5"
        );
    }

    #[test]
    fn a_missing_directory_or_file_is_named() {
        let error = load(Path::new("no/such/place")).err().unwrap();
        assert_eq!(error.to_string(), "no/such/place: expected a directory, found nothing");
        let error = load(Path::new(env!("CARGO_MANIFEST_DIR"))).err().unwrap().to_string();
        assert!(error.contains("train-images-idx3-ubyte"), "{error}");
        assert!(
            error.ends_with("expected this file, or the same with .gz, found neither"),
            "{error}"
        );
    }
}
