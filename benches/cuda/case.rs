//! A call's tensors, several times over, and the ways in which it is called.

use crate::calls::{self, Inputs, Tensors};
use crate::gpu::Gpu;
use crate::id::{Config, Pass};
use crate::sampling;
use crate::score::{self, Expected};
use crate::timing::driver;
use std::time::Duration;
use warpnorm::cuda::cudarc::driver::CudaGraph;
use warpnorm::cuda::cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use warpnorm::cuda::{Choice, Cuda};
use warpnorm::{Backend, Element, Error, Problem, Result};

type Workspace = <Cuda as Backend>::Workspace;

/// One problem on one device.
pub struct Case<'g, E: Element> {
    pub gpu: &'g Gpu,
    /// With what is said of plans, if anything is.
    cuda: Cuda,
    pub problem: Problem,
    pub inputs: Inputs<E>,
    /// They take turns, of which so many are over.
    pub sets: Vec<Tensors<Cuda, E>>,
    turn: u64,
    workspace: Workspace,
    /// Of training; and of inference, as long as the running statistics stay as they are.
    expected: [Option<Expected>; 2],
    checked: Vec<(Pass, f64)>,
    /// Of our last call that was looked at, for the first set.
    output: Option<(Pass, Vec<E>)>,
    /// What of cuDNN's has been compared, by mode.
    pub compared: Vec<(Pass, String)>,
    /// Of our calls on all sets.
    graph: Option<(Pass, Graph)>,
    has_run_forward: bool,
}

impl<'g, E: Element> Case<'g, E> {
    pub fn new(gpu: &'g Gpu, problem: Problem) -> Result<Self> {
        let inputs = Inputs::random(&problem);
        let first = Tensors::new(&gpu.cuda, &problem, &inputs)?;
        let count = sampling::sets(
            problem.forward_floor_bytes() as u64,
            calls::bytes(&problem),
            gpu.facts.l2_bytes,
            gpu.free_bytes()?,
        );
        let mut sets = vec![first];
        while sets.len() < count {
            sets.push(sets[0].duplicate(&gpu.cuda)?);
        }
        let workspace = gpu.cuda.workspace(&problem)?;
        gpu.cuda.synchronize()?;
        Ok(Case {
            gpu,
            cuda: gpu.cuda.clone(),
            problem,
            inputs,
            sets,
            turn: 0,
            workspace,
            expected: [None, None],
            checked: Vec::new(),
            output: None,
            compared: Vec::new(),
            graph: None,
            has_run_forward: false,
        })
    }

    /// Says what plans training passes get.
    pub fn force(&mut self, choice: Choice) -> Result<()> {
        self.cuda = self.gpu.cuda.clone().with_choice(choice);
        self.workspace = self.cuda.workspace(&self.problem)?;
        self.checked.clear();
        (self.output, self.graph) = (None, None);
        Ok(())
    }

    /// One call on one set.
    pub fn call(&mut self, pass: Pass, set: usize) -> Result<()> {
        let (problem, workspace) = (&self.problem, &mut self.workspace);
        let (tensors, cuda) = (&mut self.sets[set], &self.cuda);
        match pass {
            Pass::TrainForward => tensors.forward_train(cuda, problem, workspace),
            Pass::TrainBackward => tensors.backward_train(cuda, problem, workspace),
            Pass::Inference => tensors.inference(cuda, problem, workspace),
            Pass::Copy => {
                let (from, mut to) = (tensors.x.view(), tensors.y.view_mut());
                driver("copying", self.gpu.stream.memcpy_dtod(&from, &mut to))
            }
        }
    }

    /// What backward reads is there, for every set.
    pub fn prepare(&mut self, pass: Pass) -> Result<()> {
        if pass != Pass::TrainBackward || self.has_run_forward {
            return Ok(());
        }
        for set in 0..self.sets.len() {
            self.call(Pass::TrainForward, set)?;
        }
        self.has_run_forward = true;
        self.forget_inference();
        Ok(())
    }

    /// Training moves the running statistics.
    fn forget_inference(&mut self) {
        self.expected[1] = None;
        self.output.take_if(|(pass, _)| *pass == Pass::Inference);
    }

    pub fn expected(&mut self, pass: Pass) -> Result<&Expected> {
        let [of_training, of_inference] = &mut self.expected;
        if pass != Pass::Inference {
            return Ok(of_training.get_or_insert_with(|| Expected::of(&self.problem, &self.inputs)));
        }
        if of_inference.is_none() {
            let (cuda, tensors) = (&self.gpu.cuda, &self.sets[0]);
            let mean = cuda.download(&tensors.running_mean)?;
            let var = cuda.download(&tensors.running_var)?;
            *of_inference = Some(Expected::of_inference(&self.problem, &self.inputs, &mean, &var));
        }
        Ok(of_inference.as_ref().expect("just made"))
    }

    /// The error of an output of the first set.
    pub fn error_of(&mut self, pass: Pass, output: &[E]) -> Result<f64> {
        let problem = self.problem;
        let expected = self.expected(pass)?;
        Ok(match pass {
            Pass::TrainBackward => expected.dx_error(&problem, output),
            _ => expected.y_error(&problem, output),
        })
    }

    /// The largest error of a call, once; an error where it is too large.
    pub fn check(&mut self, pass: Pass) -> Result<Option<f64>> {
        if pass == Pass::Copy {
            return Ok(None);
        }
        if let Some((_, error)) = self.checked.iter().find(|(checked, _)| *checked == pass) {
            return Ok(Some(*error));
        }
        let output = self.ours(pass)?;
        let error = self.error_of(pass, &output)?;
        self.keep(pass, output);
        let bar = score::bar(self.problem.dtype());
        if error > bar {
            let reason = format!("an error of {error:.1e}, at most {bar:.1e} was expected");
            return Err(Error::system(format!("checking {pass} against the textbook"), reason));
        }
        self.checked.push((pass, error));
        Ok(Some(error))
    }

    /// What our call writes for the first set: what was kept of an earlier one, else of one made now.
    pub fn ours(&mut self, pass: Pass) -> Result<Vec<E>> {
        if let Some((_, output)) = self.output.take_if(|(of, _)| *of == pass) {
            return Ok(output);
        }
        self.prepare(pass)?;
        self.call(pass, 0)?;
        if pass != Pass::Inference {
            self.forget_inference();
        }
        self.fetch(pass)
    }

    pub fn keep(&mut self, pass: Pass, output: Vec<E>) {
        self.output = Some((pass, output));
    }

    /// What the last call, whoever made it, wrote for the first set.
    pub fn fetch(&self, pass: Pass) -> Result<Vec<E>> {
        let tensors = &self.sets[0];
        self.gpu.cuda.download(if pass == Pass::TrainBackward { &tensors.dx } else { &tensors.y })
    }

    /// Time of so many of our calls.
    pub fn time(&mut self, pass: Pass, config: Config, calls: u64) -> Result<Duration> {
        self.prepare(pass)?;
        if pass == Pass::TrainForward {
            self.forget_inference();
        }
        if config != Config::GpuGraph {
            return self.time_calls(config, calls, &mut |case, set| case.call(pass, set));
        }
        let (_, graph) = match self.graph.take_if(|(of, _)| *of == pass) {
            Some(captured) => captured,
            None => (pass, self.capture(&mut |case, set| case.call(pass, set))?),
        };
        let elapsed = graph.time(self.gpu, calls);
        self.graph = Some((pass, graph));
        elapsed
    }

    /// Time of so many calls of any kind, each on the set that it is given.
    pub fn time_calls(
        &mut self,
        config: Config,
        calls: u64,
        call: &mut dyn FnMut(&mut Self, usize) -> Result<()>,
    ) -> Result<Duration> {
        let sets = if config == Config::GpuInCache { 1 } else { self.sets.len() as u64 };
        // Goes on where the last one ended: the first sets again would be in the L2.
        let (gpu, first) = (self.gpu, self.turn);
        self.turn += calls;
        gpu.stopwatch.time(calls, &mut |index| call(self, ((first + index) % sets) as usize))
    }

    /// A call on each set in a graph: so that replays, too, come to no tensor that the L2 holds.
    pub fn capture(
        &mut self,
        call: &mut dyn FnMut(&mut Self, usize) -> Result<()>,
    ) -> Result<Graph> {
        let what = "capturing a graph";
        // Kernels are looked up before.
        call(self, 0)?;
        let count = self.sets.len();
        let stream = &self.gpu.stream;
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        driver(what, stream.begin_capture(mode))?;
        let outcome = (0..count).try_for_each(|set| call(self, set));
        let graph = driver(what, stream.end_capture(CUgraphInstantiate_flags(0)));
        outcome?;
        let graph = graph?.ok_or_else(|| Error::system(what, "nothing was captured"))?;
        let graph = Graph { graph, count: count as u64 };
        // The first replay sets it up on the device.
        graph.replay()?;
        Ok(graph)
    }
}

/// Captured calls.
pub struct Graph {
    graph: CudaGraph,
    count: u64,
}

impl Graph {
    fn replay(&self) -> Result<()> {
        driver("replaying a graph", self.graph.launch())
    }

    /// Time of so many calls, from replays of whole graphs.
    pub fn time(&self, gpu: &Gpu, calls: u64) -> Result<Duration> {
        let replays = calls.div_ceil(self.count);
        let elapsed = gpu.stopwatch.time(replays, &mut |_| self.replay())?;
        Ok(elapsed.mul_f64(calls as f64 / (replays * self.count) as f64))
    }
}
