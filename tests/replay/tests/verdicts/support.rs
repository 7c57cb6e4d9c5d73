//! Copies of public cases to break, and NumPy files byte by byte.

use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// A public case's folder, e.g. `pytorch/relu_f32`.
pub fn public_case(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("cases").join(case)
}

/// A copy of a public case that tests may edit.
pub struct Copy {
    // Removes the folder when dropped.
    _parent: TempDir,
    /// The case's folder, named as the public one.
    pub folder: PathBuf,
}

impl Copy {
    /// Copies `case`, e.g. `pytorch/relu_f32`.
    pub fn of(case: &str) -> Self {
        let parent = tempfile::tempdir().unwrap();
        let source = public_case(case);
        let folder = parent.path().join(source.file_name().unwrap());
        fs::create_dir(&folder).unwrap();
        for entry in fs::read_dir(&source).unwrap() {
            let file = entry.unwrap().path();
            fs::copy(&file, folder.join(file.file_name().unwrap())).unwrap();
        }
        Copy { _parent: parent, folder }
    }

    /// Removes a file.
    pub fn remove(&self, file: &str) {
        fs::remove_file(self.folder.join(file)).unwrap();
    }

    /// Writes a file.
    pub fn write(&self, file: &str, contents: impl AsRef<[u8]>) {
        fs::write(self.folder.join(file), contents).unwrap();
    }

    /// Replaces text in `meta.json`, which must contain it.
    pub fn edit_meta(&self, old: &str, new: &str) {
        let meta = self.folder.join("meta.json");
        let text = fs::read_to_string(&meta).unwrap();
        assert!(text.contains(old), "meta.json has no {old}");
        fs::write(meta, text.replacen(old, new, 1)).unwrap();
    }
}

/// The bytes of an `.npy` file.
pub fn npy(descr: &str, fortran_order: bool, shape: &[usize], data: &[u8]) -> Vec<u8> {
    let order = if fortran_order { "True" } else { "False" };
    let extents: String = shape.iter().map(|extent| format!("{extent},")).collect();
    let mut header =
        format!("{{'descr': '{descr}', 'fortran_order': {order}, 'shape': ({extents}), }}");
    while (10 + header.len() + 1) % 64 != 0 {
        header.push(' ');
    }
    header.push('\n');
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.bytes());
    bytes.extend(data);
    bytes
}

/// The bytes of an `.npy` file of little-endian f64.
pub fn npy_f64(values: &ndarray::ArrayD<f64>) -> Vec<u8> {
    let data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    npy("<f8", false, values.shape(), &data)
}
