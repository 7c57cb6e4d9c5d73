//! Every kernel, run by the emulator with its checker on: the checks that a GPU has to pass too.

#[cfg(emulated)]
mod emulated {
    use conformance::{Subject, checks};
    use emulator::{Buffer, Emulator, Slice, SliceMut};
    use libtest_mimic::Trial;
    use warpnorm::Scalar;
    use warpnorm::cuda::Device;

    /// A device of its own for every case: they run side by side.
    struct Emulated;

    impl Subject for Emulated {
        type Launcher = Emulator;

        fn device(&self, seed: u64) -> Device<Emulator> {
            Device::new(Emulator::with_seed(seed))
        }

        fn part<T: Scalar>(buffer: &Buffer<T>, start: usize) -> Slice<'_, T> {
            buffer.slice_range(start..)
        }

        fn part_mut<T: Scalar>(buffer: &mut Buffer<T>, start: usize) -> SliceMut<'_, T> {
            buffer.slice_range_mut(start..)
        }
    }

    pub fn trials() -> Vec<Trial> {
        let trial = |check: conformance::Check<Emulated>| {
            Trial::test(check.name, move || {
                (check.run)(&Emulated);
                Ok(())
            })
        };
        checks().into_iter().map(trial).collect()
    }
}

#[cfg(emulated)]
fn main() -> std::process::ExitCode {
    let arguments = libtest_mimic::Arguments::from_args();
    libtest_mimic::run(&arguments, emulated::trials()).exit_code()
}

#[cfg(not(emulated))]
fn main() {
    println!("no emulator for this platform: no kernel was run");
}
