//! Time on the device, by events in its stream.

use std::sync::Arc;
use std::time::{Duration, Instant};
use warpnorm::cuda::cudarc::driver::sys::CUevent_flags;
use warpnorm::cuda::cudarc::driver::{CudaEvent, CudaStream, DriverError};
use warpnorm::{Error, Result};

/// The driver's errors as the crate's.
pub fn driver<T>(what: &str, outcome: std::result::Result<T, DriverError>) -> Result<T> {
    outcome.map_err(|error| Error::system(what, error))
}

/// Two events around the work of a stream.
pub struct Stopwatch {
    stream: Arc<CudaStream>,
    start: CudaEvent,
    end: CudaEvent,
}

impl Stopwatch {
    pub fn new(stream: Arc<CudaStream>) -> Result<Self> {
        let event = || {
            let event = stream.context().new_event(Some(CUevent_flags::CU_EVENT_DEFAULT));
            driver("creating an event", event)
        };
        let (start, end) = (event()?, event()?);
        Ok(Stopwatch { stream, start, end })
    }

    /// From the start of the first call to the end of the last, calls following each other as fast
    /// as they can be enqueued.
    pub fn time(&self, calls: u64, call: &mut dyn FnMut(u64) -> Result<()>) -> Result<Duration> {
        driver("timing", self.start.record(&self.stream))?;
        for index in 0..calls {
            call(index)?;
        }
        driver("timing", self.end.record(&self.stream))?;
        let milliseconds = driver("timing", self.start.elapsed_ms(&self.end))?;
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
