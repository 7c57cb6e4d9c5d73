//! Every kernel, run by the emulator with its checker on: the checks that a GPU has to pass too.

#[cfg(emulated)]
mod emulated {
    use conformance::{Check, Subject, checks};
    use emulator::{
        Buffer, Emulator, Options, Slice, SliceMut, clustered_facts, cramped_facts, default_facts,
    };
    use libtest_mimic::Trial;
    use warpnorm::Scalar;
    use warpnorm::cuda::{Device, DeviceFacts, Tier};

    /// A device of its own for every case: they run side by side.
    #[derive(Clone, Copy)]
    struct Emulated {
        tier: Tier,
        facts: DeviceFacts,
        one_in: usize,
    }

    impl Subject for Emulated {
        type Launcher = Emulator;

        fn tier(&self) -> Tier {
            self.tier
        }

        fn one_in(&self) -> usize {
            self.one_in
        }

        fn device(&self, seed: u64) -> Device<Emulator> {
            let options =
                Options { seed, facts: self.facts, counters: false, ..Options::default() };
            Device::new(Emulator::new(options)).with_tier(Some(self.tier))
        }

        fn part<T: Scalar>(buffer: &Buffer<T>, start: usize) -> Slice<'_, T> {
            buffer.slice_range(start..)
        }

        fn part_mut<T: Scalar>(buffer: &mut Buffer<T>, start: usize) -> SliceMut<'_, T> {
            buffer.slice_range_mut(start..)
        }
    }

    fn trials_of(name: &str, subject: Emulated) -> impl Iterator<Item = Trial> + use<> {
        let name = name.to_owned();
        let wanted = move |check: &Check<_>| check.concerns(subject.tier);
        checks().into_iter().filter(wanted).map(move |check| {
            Trial::test(format!("{name}::{}", check.name), move || {
                (check.run)(&subject);
                Ok(())
            })
        })
    }

    pub fn trials() -> Vec<Trial> {
        let facts = default_facts();
        let streaming = Emulated { tier: Tier::Streaming, facts, one_in: 1 };
        let block = Emulated { tier: Tier::Block, facts, one_in: 1 };
        let grid = Emulated { tier: Tier::Grid, facts: cramped_facts(), one_in: 1 };
        // The same kernels: of the larger clusters, which take long, a share. Others are those of
        // `tests/cluster_sizes.rs`.
        let clusters = [(2, 1), (7, 3)].into_iter().flat_map(|(size, one_in)| {
            let facts = clustered_facts(size);
            trials_of(&format!("cluster_{size}"), Emulated { tier: Tier::Cluster, facts, one_in })
        });
        trials_of("streaming", streaming)
            .chain(trials_of("block", block))
            .chain(trials_of("grid", grid))
            .chain(clusters)
            .collect()
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
