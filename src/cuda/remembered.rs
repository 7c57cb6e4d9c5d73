//! [`Remembered`]: the plans of earlier calls. To make them takes the host as long as a launch.

use super::choice::{Choice, training_plans};
use super::launcher::DeviceFacts;
use super::plan::{Alignment, Pass, Plan};
use crate::error::Result;
use crate::problem::Problem;
use std::collections::VecDeque;

/// Questions that are remembered: a workspace is one problem's, of seven passes at most, and its
/// tensors seldom lie in more than two ways.
const CAPACITY: usize = 16;

/// All that the plans of a call follow from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Question {
    pub(super) pass: Pass,
    pub(super) choice: Choice,
    /// How the tensors of a training pass's first sweep lie, and all of the call's.
    pub(super) alignments: [Alignment; 2],
    pub(super) problem: Problem,
    pub(super) facts: DeviceFacts,
}

impl Question {
    fn answer(&self) -> Result<Vec<Plan>> {
        let Question { pass, choice, alignments: [inputs, all], ref problem, ref facts } = *self;
        match pass {
            Pass::Forward | Pass::Backward => {
                training_plans(pass, problem, facts, inputs, all, choice)
            }
            _ => Ok(vec![Plan::new(pass, problem, facts, all)?]),
        }
    }
}

/// The latest questions with their answers, oldest first. What failed is asked again.
#[derive(Debug, Default)]
pub(super) struct Remembered {
    known: VecDeque<(Question, Vec<Plan>)>,
}

impl Remembered {
    /// The launches of a call, in order.
    ///
    /// # Errors
    /// As for [`training_plans`] and [`Plan::new`].
    pub(super) fn plans(&mut self, question: Question) -> Result<&[Plan]> {
        let index = match self.known.iter().position(|(known, _)| *known == question) {
            Some(index) => index,
            None => {
                let plans = question.answer()?;
                if self.known.len() == CAPACITY {
                    self.known.pop_front();
                }
                self.known.push_back((question, plans));
                self.known.len() - 1
            }
        };
        Ok(&self.known[index].1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Activation, Epilogue, Layout};
    use crate::cuda::plan::Tier;
    use crate::cuda::profiles;
    use crate::element::DType;
    use crate::problem::Operand;

    fn problem(extents: [usize; 3], layout: Layout, dtype: DType) -> Problem {
        Problem::new(&extents, layout, dtype, Epilogue::NONE).unwrap()
    }

    fn question(problem: Problem) -> Question {
        let alignments = [Alignment::ALIGNED; 2];
        let (pass, choice, facts) = (Pass::Forward, Choice::Best, profiles::H100);
        Question { pass, choice, alignments, problem, facts }
    }

    /// The first, and others that differ from it in one thing each, so that all plans differ.
    fn questions() -> Vec<Question> {
        let (first, last) = (Layout::ChannelsFirst, Layout::ChannelsLast);
        let plain = problem([32, 64, 3136], first, DType::F16);
        let relu = Epilogue { activation: Activation::Relu, residual: false };
        let base = question(plain);
        let of_tier = |tier| Question { choice: Choice::Tier(tier), ..base };
        let offset = Alignment { offset: Some(1) };
        let mut questions = vec![
            base,
            Question { pass: Pass::Backward, ..base },
            Question { pass: Pass::Apply, ..base },
            Question { pass: Pass::Inference, ..base },
            Question { pass: Pass::Frozen, ..base },
            Question { alignments: [Alignment::ALIGNED, Alignment::MIXED], ..base },
            Question { alignments: [Alignment::MIXED; 2], ..base },
            Question { alignments: [offset; 2], ..base },
            of_tier(Tier::Grid),
            of_tier(Tier::Streaming),
            Question { choice: Choice::Parts(Tier::Cluster, 16), ..base },
            question(problem([33, 64, 3136], first, DType::F16)),
            question(problem([32, 65, 3136], first, DType::F16)),
            question(problem([32, 64, 3137], first, DType::F16)),
            question(problem([32, 64, 3136], last, DType::F16)),
            question(problem([32, 64, 3136], first, DType::Bf16)),
            question(plain.with_epilogue(relu).unwrap()),
            question(plain.with_batch_stride(Operand::X, 64 * 3136 + 1).unwrap()),
        ];
        questions.extend(profiles::ALL.map(|(_, facts)| Question { facts, ..base }));
        questions
    }

    #[test]
    fn answers_are_the_same_remembered_or_not() {
        let mut remembered = Remembered::default();
        let questions = questions();
        assert!(questions.len() > CAPACITY);
        for window in questions.windows(5).chain(questions.windows(CAPACITY + 1)) {
            for question in window.iter().chain(window) {
                let plans = remembered.plans(*question).unwrap();
                assert_eq!(plans, question.answer().unwrap(), "{question:?}");
            }
            assert!(remembered.known.len() <= CAPACITY);
        }
    }

    #[test]
    fn what_was_just_asked_is_not_planned_again() {
        let mut remembered = Remembered::default();
        let questions = &questions()[..CAPACITY];
        let mut places = || -> Vec<*const Plan> {
            questions.iter().map(|it| remembered.plans(*it).unwrap().as_ptr()).collect()
        };
        assert_eq!(places(), places());
    }

    #[test]
    fn failures_are_not_remembered() {
        let mut remembered = Remembered::default();
        let good = question(problem([32, 64, 3136], Layout::ChannelsFirst, DType::F16));
        let bad = question(problem([32, 64, 3136], Layout::ChannelsFirst, DType::F64));
        let too_many = Question { choice: Choice::Parts(Tier::Cluster, 17), ..good };
        for _ in 0..2 {
            for (refused, reason) in [(bad, "f32, f16 or bf16"), (too_many, "parts")] {
                let error = remembered.plans(refused).unwrap_err().to_string();
                assert!(error.contains(reason), "{error}");
                assert_eq!(remembered.plans(good).unwrap(), good.answer().unwrap());
            }
        }
        assert_eq!(remembered.known.len(), 1);
    }
}
