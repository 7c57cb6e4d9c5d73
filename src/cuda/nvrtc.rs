//! [`Nvrtc`]: NVIDIA's run-time compiler. Shared by the build script and the library, so that
//! both find the same compiler and call it with the same options.

// A C library, opened and called by hand: cudarc's bindings panic where it is missing.
#![allow(unsafe_code)]

use super::search;
use super::target::Target;
use libloading::Library;
use std::ffi::{CStr, CString, OsString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::time::SystemTime;
use std::{fmt, fs, ptr};

/// A file's name and text.
#[derive(Debug, Clone, Copy)]
pub struct Source<'a> {
    /// As in `#include "name"`.
    pub name: &'a str,
    /// CUDA C++.
    pub text: &'a str,
}

/// What tells one NVRTC from another, its patches included.
#[derive(Debug, Hash)]
pub struct Identity {
    /// Major and minor.
    pub version: (u32, u32),
    /// Its file's length and when it was written, where the file is known.
    pub file: Option<(u64, SystemTime)>,
}

/// What compiling gives.
#[derive(Debug)]
pub struct Compiled {
    /// What was asked for: a cubin, or PTX.
    pub image: Vec<u8>,
    /// PTX for the same compute capability, without a final NUL: a cubin is made of it.
    pub ptx: Vec<u8>,
    /// Warnings, and for a cubin the resources of each kernel.
    pub log: String,
}

/// The first version that compiles the kernels: those before do not know `barrier.cluster.arrive`
/// with `.release`, though they list compute capability 9.0.
const FIRST_VERSION: (u32, u32) = (12, 0);

/// The compiler, opened.
pub struct Nvrtc {
    functions: Functions,
    path: PathBuf,
    version: (u32, u32),
    // Closing either would leave the function pointers dangling.
    _library: Library,
    _builtins: Option<Library>,
}

/// An `nvrtcProgram`.
type Handle = *mut c_void;
/// An array of C strings.
type Strings = *const *const c_char;

/// The functions' table and how it is filled: each returns an `nvrtcResult`, 0 for success.
macro_rules! functions {
    ($($field:ident = $symbol:literal ($($argument:ty),*);)*) => {
        struct Functions {
            $($field: unsafe extern "C" fn($($argument),*) -> c_int,)*
        }

        impl Functions {
            fn load(library: &Library) -> Result<Self, String> {
                Ok(Self {
                    // SAFETY: the types are those of nvrtc.h, unchanged since CUDA 11.
                    $($field: *unsafe { library.get($symbol) }.map_err(|error| reason(&error))?,)*
                })
            }
        }
    };
}

functions! {
    version = b"nvrtcVersion" (*mut c_int, *mut c_int);
    architecture_count = b"nvrtcGetNumSupportedArchs" (*mut c_int);
    architectures = b"nvrtcGetSupportedArchs" (*mut c_int);
    create = b"nvrtcCreateProgram" (*mut Handle, *const c_char, *const c_char, c_int, Strings, Strings);
    compile = b"nvrtcCompileProgram" (Handle, c_int, Strings);
    destroy = b"nvrtcDestroyProgram" (*mut Handle);
    log_size = b"nvrtcGetProgramLogSize" (Handle, *mut usize);
    log = b"nvrtcGetProgramLog" (Handle, *mut c_char);
    ptx_size = b"nvrtcGetPTXSize" (Handle, *mut usize);
    ptx = b"nvrtcGetPTX" (Handle, *mut c_char);
    cubin_size = b"nvrtcGetCUBINSize" (Handle, *mut usize);
    cubin = b"nvrtcGetCUBIN" (Handle, *mut c_char);
}

impl Nvrtc {
    /// Opens the first NVRTC that the search finds and that is new enough; `variable` reads the
    /// environment.
    ///
    /// # Errors
    /// None could be opened: what was tried.
    pub fn open(variable: impl Fn(&str) -> Option<OsString>) -> Result<Self, String> {
        open_first(variable, Self::open_file)
    }

    fn open_file(path: &Path) -> Result<Self, String> {
        // First, and by its path: see `search::builtins`.
        let builtins = search::builtins(path).and_then(|path| open_library(&path).ok());
        let library = open_library(path)?;
        let functions = Functions::load(&library)?;
        // What the loader was given is a link, mostly, or only a name.
        let path = file_of(functions.version as usize).unwrap_or_else(|| path.into());
        let version = functions.version()?;
        check_version(version).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(Self { functions, path, version, _library: library, _builtins: builtins })
    }

    /// The library's file; where the system does not tell which that is, the name by which the
    /// loader found it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Which NVRTC it is.
    pub fn identity(&self) -> Identity {
        let file = fs::metadata(&self.path);
        let file = file.and_then(|file| Ok((file.len(), file.modified()?))).ok();
        Identity { version: self.version, file }
    }

    /// The compute capabilities that it compiles for.
    ///
    /// # Errors
    /// NVRTC's own.
    pub fn capabilities(&self) -> Result<Vec<u32>, String> {
        let mut count = 0;
        // SAFETY: an integer to write to.
        let code = unsafe { (self.functions.architecture_count)(&mut count) };
        check("nvrtcGetNumSupportedArchs", code)?;
        let mut capabilities: Vec<c_int> = vec![0; count.unsigned_abs() as usize];
        // SAFETY: as many integers as it has just said.
        let code = unsafe { (self.functions.architectures)(capabilities.as_mut_ptr()) };
        check("nvrtcGetSupportedArchs", code)?;
        Ok(capabilities.into_iter().map(c_int::unsigned_abs).collect())
    }

    /// Compiles one file, which may include any of `headers`. Threads may do so at the same time.
    ///
    /// # Errors
    /// Which NVRTC, and its log, where the source does not compile.
    pub fn compile(
        &self,
        source: Source<'_>,
        headers: &[Source<'_>],
        target: Target,
    ) -> Result<Compiled, String> {
        let program = Program::new(&self.functions, source, headers)?;
        let outcome = program.compile(&options(target));
        let log = program.text(self.functions.log_size, self.functions.log)?;
        let log = String::from_utf8_lossy(strip_nul(&log)).into_owned();
        outcome.map_err(|error| format!("{error} ({self})\n{log}"))?;
        let ptx = program.text(self.functions.ptx_size, self.functions.ptx)?;
        let ptx = strip_nul(&ptx).to_vec();
        let image = if target.is_ptx() {
            ptx.clone()
        } else {
            program.text(self.functions.cubin_size, self.functions.cubin)?
        };
        Ok(Compiled { image, ptx, log })
    }
}

/// `NVRTC 12.9, /usr/local/cuda/lib64/libnvrtc.so.12.9.86`
impl fmt::Display for Nvrtc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (major, minor) = self.version;
        write!(f, "NVRTC {major}.{minor}, {}", self.path.display())
    }
}

impl Functions {
    /// Major and minor.
    fn version(&self) -> Result<(u32, u32), String> {
        let (mut major, mut minor) = (0, 0);
        // SAFETY: two integers to write to.
        check("nvrtcVersion", unsafe { (self.version)(&mut major, &mut minor) })?;
        Ok((major.unsigned_abs(), minor.unsigned_abs()))
    }
}

/// The first of the search's candidates that `open` takes.
fn open_first<T>(
    variable: impl Fn(&str) -> Option<OsString>,
    open: impl Fn(&Path) -> Result<T, String>,
) -> Result<T, String> {
    let explicit = variable(search::EXPLICIT).filter(|value| !value.is_empty());
    let mut tried = Vec::new();
    for path in search::candidates(variable) {
        match open(&path) {
            Ok(opened) => return Ok(opened),
            // That the loader knows none of its names is what "none found" says.
            Err(error) if is_bare(&path) && error.contains("No such file") => {}
            // Links beside each other lead to one file.
            Err(error) if tried.contains(&error) => {}
            Err(error) => tried.push(error),
        }
    }
    let place = explicit.map_or("found".into(), |value| {
        format!("at {}={}", search::EXPLICIT, value.to_string_lossy())
    });
    let tried: String = tried.iter().map(|error| format!("; {error}")).collect();
    Err(format!("no NVRTC {place}{tried}"))
}

fn check_version(version: (u32, u32)) -> Result<(), String> {
    if version >= FIRST_VERSION {
        return Ok(());
    }
    let ((major, minor), (first, update)) = (version, FIRST_VERSION);
    Err(format!("too old: it is NVRTC {major}.{minor}, {first}.{update} or newer is needed"))
}

/// The file of the library that has the function at `address`, where the system tells.
fn file_of(address: usize) -> Option<PathBuf> {
    mapped(&fs::read_to_string("/proc/self/maps").ok()?, address)
}

/// The same, of lines such as `7f2c1000-7f2c9000 r-xp 00001000 08:02 173521  /lib/libnvrtc.so.12`.
fn mapped(maps: &str, address: usize) -> Option<PathBuf> {
    let hexadecimal = |digits: &str| usize::from_str_radix(digits, 16).ok();
    let holds = |line: &&str| {
        let (start, end) = line.split(' ').next()?.split_once('-')?;
        Some((hexadecimal(start)?..hexadecimal(end)?).contains(&address))
    };
    let line = maps.lines().find(|line| holds(line) == Some(true))?;
    line.find('/').map(|start| PathBuf::from(&line[start..]))
}

/// NVRTC's options. No `-lineinfo`, which puts the build's paths into the image.
pub fn options(target: Target) -> Vec<String> {
    let mut options = vec![
        format!("--gpu-architecture={target}"),
        "--std=c++17".into(),
        // Functions of the headers need no `__device__`.
        "-default-device".into(),
        // Kernels say `fmaf` where they mean it: what the emulator computes is then what a GPU
        // does, and an error term is never taken of a product that was not rounded.
        "--fmad=false".into(),
    ];
    if !target.is_ptx() {
        options.push("--ptxas-options=-v".into());
        options.push("--ptxas-options=--warn-on-spills".into());
    }
    options
}

fn open_library(path: &Path) -> Result<Library, String> {
    // SAFETY: NVIDIA's libraries do nothing of note when they are loaded.
    unsafe { Library::new(path) }.map_err(|error| reason(&error))
}

/// Whether the loader is to search for it.
fn is_bare(path: &Path) -> bool {
    path.components().count() == 1
}

/// The loader's own words, which name the file.
fn reason(error: &libloading::Error) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string)
}

/// A program between creation and destruction.
struct Program<'a> {
    functions: &'a Functions,
    handle: Handle,
}

impl<'a> Program<'a> {
    fn new(
        functions: &'a Functions,
        source: Source<'_>,
        headers: &[Source<'_>],
    ) -> Result<Self, String> {
        let name = c_string(source.name)?;
        let text = c_string(source.text)?;
        let header_names = CStrings::new(headers.iter().map(|header| header.name))?;
        let header_texts = CStrings::new(headers.iter().map(|header| header.text))?;
        let mut handle = ptr::null_mut();
        // SAFETY: NUL-terminated strings, two arrays of `len` of them; NVRTC copies them all.
        let code = unsafe {
            (functions.create)(
                &mut handle,
                text.as_ptr(),
                name.as_ptr(),
                header_names.len(),
                header_texts.as_ptr(),
                header_names.as_ptr(),
            )
        };
        check("nvrtcCreateProgram", code)?;
        Ok(Self { functions, handle })
    }

    fn compile(&self, options: &[String]) -> Result<(), String> {
        let options = CStrings::new(options.iter().map(String::as_str))?;
        // SAFETY: a live program, an array of `len` NUL-terminated strings.
        let code =
            unsafe { (self.functions.compile)(self.handle, options.len(), options.as_ptr()) };
        check("nvrtcCompileProgram", code)
    }

    /// One of the program's outputs, by the pair of functions that give its size and itself.
    fn text(
        &self,
        size: unsafe extern "C" fn(Handle, *mut usize) -> c_int,
        copy: unsafe extern "C" fn(Handle, *mut c_char) -> c_int,
    ) -> Result<Vec<u8>, String> {
        let mut bytes = 0;
        // SAFETY: a live program, an integer to write to.
        check("the size of an output of NVRTC", unsafe { size(self.handle, &mut bytes) })?;
        let mut text = vec![0; bytes];
        // SAFETY: as many bytes to write to as it has just said.
        check("an output of NVRTC", unsafe { copy(self.handle, text.as_mut_ptr().cast()) })?;
        Ok(text)
    }
}

impl Drop for Program<'_> {
    fn drop(&mut self) {
        // SAFETY: created by `new`, destroyed here only.
        unsafe { (self.functions.destroy)(&mut self.handle) };
    }
}

/// C strings, and the array of pointers to them that C wants.
struct CStrings {
    pointers: Vec<*const c_char>,
    _strings: Vec<CString>,
}

impl CStrings {
    fn new<'a>(strings: impl Iterator<Item = &'a str>) -> Result<Self, String> {
        let strings = strings.map(c_string).collect::<Result<Vec<_>, _>>()?;
        // The strings' bytes stay where they are when the vector moves.
        Ok(Self { pointers: strings.iter().map(|s| s.as_ptr()).collect(), _strings: strings })
    }

    fn len(&self) -> c_int {
        self.pointers.len() as c_int
    }

    fn as_ptr(&self) -> Strings {
        self.pointers.as_ptr()
    }
}

fn c_string(text: &str) -> Result<CString, String> {
    CString::new(text).map_err(|_| "a kernel source holds a NUL".into())
}

/// What precedes the first NUL, of which NVRTC puts one at a text's end.
fn strip_nul(text: &[u8]) -> &[u8] {
    CStr::from_bytes_until_nul(text).map_or(text, CStr::to_bytes)
}

fn check(what: &str, code: c_int) -> Result<(), String> {
    match code {
        0 => Ok(()),
        6 => Err("the source does not compile".into()),
        code => Err(format!("{what} failed with nvrtcResult {code}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn before_cuda_12_it_is_too_old() {
        for version in [(12, 0), (12, 9), (13, 0)] {
            assert_eq!(check_version(version), Ok(()));
        }
        let refusal = check_version((11, 8)).unwrap_err();
        assert_eq!(refusal, "too old: it is NVRTC 11.8, 12.0 or newer is needed");
    }

    /// A toolkit of CUDA 11 before the wheel that the remedy has people install.
    #[test]
    fn what_is_too_old_does_not_end_the_search() {
        let root = tempfile::tempdir().unwrap();
        let old = root.path().join("toolkit/lib64/libnvrtc.so.11.2");
        let link = root.path().join("toolkit/lib64/libnvrtc.so");
        let wheel = "venv/lib/python3.12/site-packages/nvidia/cuda_nvrtc/lib/libnvrtc.so.12";
        let wheel = root.path().join(wheel);
        let variable = |name: &str| match name {
            "CUDA_HOME" => Some(root.path().join("toolkit").into_os_string()),
            "VIRTUAL_ENV" => Some(root.path().join("venv").into_os_string()),
            _ => None,
        };
        let open = |path: &Path| match path {
            path if path == wheel => Ok("12.9"),
            path if path == old || path == link => Err("toolkit: too old".to_owned()),
            path => Err(format!("{}: No such file", path.display())),
        };
        for file in [&old, &link] {
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, "").unwrap();
        }
        let error = open_first(variable, open).unwrap_err();
        assert!(error.starts_with("no NVRTC found; toolkit: too old"), "{error}");
        assert_eq!(error.matches("too old").count(), 1, "{error}");
        fs::create_dir_all(wheel.parent().unwrap()).unwrap();
        fs::write(&wheel, "").unwrap();
        assert_eq!(open_first(variable, open), Ok("12.9"));
    }

    #[test]
    fn the_file_of_a_function_is_found() {
        let maps = "1000-3000 r--p 00000000 08:02 17 /lib/libother.so\n\
            3000-5000 r-xp 00001000 08:02 18                  /a folder/libnvrtc.so.12.9.86\n\
            5000-6000 rw-p 00000000 00:00 0\n";
        assert_eq!(mapped(maps, 0x3000), Some("/a folder/libnvrtc.so.12.9.86".into()));
        assert_eq!(mapped(maps, 0x2fff), Some("/lib/libother.so".into()));
        assert_eq!(mapped(maps, 0x5000), None);
        assert_eq!(mapped(maps, 0x6000), None);
        if cfg!(target_os = "linux") {
            let own = std::env::current_exe().unwrap();
            assert_eq!(file_of(check_version as *const () as usize), Some(own));
        }
    }
}
