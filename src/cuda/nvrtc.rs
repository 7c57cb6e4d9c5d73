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
use std::{fs, ptr};

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
    /// Its file's length and when it was written, where the loader was given a file.
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

/// The compiler, opened.
pub struct Nvrtc {
    functions: Functions,
    path: PathBuf,
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
    /// Opens the first NVRTC that the search finds; `variable` reads the environment.
    ///
    /// # Errors
    /// None could be opened: what was tried.
    pub fn open(variable: impl Fn(&str) -> Option<OsString>) -> Result<Self, String> {
        let explicit = variable(search::EXPLICIT).filter(|value| !value.is_empty());
        let mut tried = Vec::new();
        for path in search::candidates(variable) {
            match Self::open_file(&path) {
                Ok(nvrtc) => return Ok(nvrtc),
                // That the loader knows none of its names is what "none found" says.
                Err(error) if is_bare(&path) && error.contains("No such file") => {}
                Err(error) => tried.push(error),
            }
        }
        let place = explicit.map_or("found".into(), |value| {
            format!("at {}={}", search::EXPLICIT, value.to_string_lossy())
        });
        let tried: String = tried.iter().map(|error| format!("; {error}")).collect();
        Err(format!("no NVRTC {place}{tried}"))
    }

    fn open_file(path: &Path) -> Result<Self, String> {
        // First, and by its path: see `search::builtins`.
        let builtins = search::builtins(path).and_then(|path| open_library(&path).ok());
        let library = open_library(path)?;
        let functions = Functions::load(&library)?;
        Ok(Self { functions, path: path.into(), _library: library, _builtins: builtins })
    }

    /// The library's file, or its bare name where the loader found it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Major and minor.
    ///
    /// # Errors
    /// NVRTC's own.
    pub fn version(&self) -> Result<(u32, u32), String> {
        let (mut major, mut minor) = (0, 0);
        // SAFETY: two integers to write to.
        check("nvrtcVersion", unsafe { (self.functions.version)(&mut major, &mut minor) })?;
        Ok((major.unsigned_abs(), minor.unsigned_abs()))
    }

    /// Which NVRTC it is.
    ///
    /// # Errors
    /// NVRTC's own.
    pub fn identity(&self) -> Result<Identity, String> {
        let file = fs::metadata(&self.path);
        let file = file.and_then(|file| Ok((file.len(), file.modified()?))).ok();
        Ok(Identity { version: self.version()?, file })
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
    /// NVRTC's log, where the source does not compile.
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
        outcome.map_err(|error| format!("{error}\n{log}"))?;
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
