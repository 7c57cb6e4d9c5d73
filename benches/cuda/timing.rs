//! Time on the device, by events in its stream.

use std::sync::Arc;
use std::time::{Duration, Instant};
use warpnorm::cuda::cudarc::driver::sys::{self, CUevent, CUevent_flags, CUresult};
use warpnorm::cuda::cudarc::driver::{CudaEvent, CudaStream, DriverError};
use warpnorm::{Error, Result};

/// The driver's errors as the crate's.
pub fn driver<T>(what: &str, outcome: std::result::Result<T, DriverError>) -> Result<T> {
    outcome.map_err(|error| Error::system(what, error))
}

/// Writes the milliseconds between two events that have come to pass.
type ElapsedTime = unsafe extern "C" fn(*mut f32, CUevent, CUevent) -> CUresult;

/// `cuEventElapsedTime` as every driver of CUDA 12 and 13 has it: cudarc, of a CUDA 13, calls its
/// second version, which those older than 12.8 lack, and panics there.
#[allow(unsafe_code, reason = "a C function looked up by its name")]
fn elapsed_time() -> Result<ElapsedTime> {
    // SAFETY: the driver is loaded: there are a stream and events. The type is the function's.
    let found = unsafe { sys::culib().get::<ElapsedTime>("cuEventElapsedTime") };
    found.map(|function| *function).map_err(|error| Error::system("timing", error))
}

/// Two events around the work of a stream.
pub struct Stopwatch {
    stream: Arc<CudaStream>,
    start: CudaEvent,
    end: CudaEvent,
    elapsed_time: ElapsedTime,
}

impl Stopwatch {
    pub fn new(stream: Arc<CudaStream>) -> Result<Self> {
        let event = || {
            let event = stream.context().new_event(Some(CUevent_flags::CU_EVENT_DEFAULT));
            driver("creating an event", event)
        };
        let (start, end) = (event()?, event()?);
        Ok(Stopwatch { stream, start, end, elapsed_time: elapsed_time()? })
    }

    /// From the start of the first call to the end of the last, calls following each other as fast
    /// as they can be enqueued.
    pub fn time(&self, calls: u64, call: &mut dyn FnMut(u64) -> Result<()>) -> Result<Duration> {
        driver("timing", self.start.record(&self.stream))?;
        for index in 0..calls {
            call(index)?;
        }
        driver("timing", self.end.record(&self.stream))?;
        driver("timing", self.end.synchronize())?;
        let mut milliseconds = 0.0;
        // SAFETY: both events are alive, of one context, and have come to pass.
        #[allow(unsafe_code, reason = "a function of the driver")]
        let outcome = unsafe {
            (self.elapsed_time)(&mut milliseconds, self.start.cu_event(), self.end.cu_event())
        };
        driver("timing", outcome.result())?;
        Ok(Duration::from_secs_f64(f64::from(milliseconds) / 1e3))
    }

    /// What a call takes until it is enqueued, nanoseconds: the median of some bursts, short enough
    /// for the stream's queue.
    pub fn host_time(&self, call: &mut dyn FnMut(u64) -> Result<()>) -> Result<f64> {
        const BURST: u32 = 100;
        let mut bursts = Vec::new();
        for _ in 0..9 {
            driver("waiting", self.stream.synchronize())?;
            let start = Instant::now();
            for index in 0..BURST {
                call(index.into())?;
            }
            bursts.push(start.elapsed().as_secs_f64() * 1e9 / f64::from(BURST));
        }
        driver("waiting", self.stream.synchronize())?;
        Ok(super::sampling::median(&mut bursts))
    }
}
