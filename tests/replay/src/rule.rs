//! Which outputs a case expects, and by which rule each is scored.

use crate::case::{Case, Malformed};
use crate::magnitude;
use crate::meta::Kind;
use crate::score::{BAR, GRADIENT_BAR, ONNX_BAR, Rule, Scale, std_per_channel};
use ndarray::ArrayD;

/// What an output is, whatever step or rank it belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Family {
    Y,
    Dx,
    Dresidual,
    ParameterGradient,
    Statistic,
}

/// The names of the arrays to compare with.
///
/// # Errors
/// There are none, one is missing, or `meta.outputs` has a name that is not known.
pub fn expected_outputs(case: &Case) -> Result<Vec<String>, Malformed> {
    let mut names = match (&case.meta.outputs, case.kind) {
        (_, Kind::Sequence) => sequence_outputs(case)?,
        (Some(outputs), _) => outputs.clone(),
        (None, Kind::Onnx) => present(case, &["y", "running_mean", "running_var"]),
        (None, _) => files_of_a_family(case)?,
    };
    if names.is_empty() {
        return Err(Malformed::new("no expected output to compare with"));
    }
    for name in &names {
        if family(name).is_none() {
            return Err(Malformed(format!("meta.outputs: unknown output `{name}`")));
        }
        if !case.has(name) {
            return Err(Malformed(format!("{name}.npy is missing")));
        }
    }
    if case.kind != Kind::Sequence {
        names.sort_by_key(|name| family(name));
    }
    Ok(names)
}

/// How many training forwards a sequence has.
pub fn steps(case: &Case) -> usize {
    let counted = || (0..).take_while(|step| case.has_input(&format!("x_step{step}"))).count();
    case.meta.steps.unwrap_or_else(counted)
}

fn sequence_outputs(case: &Case) -> Result<Vec<String>, Malformed> {
    let mut names = Vec::new();
    for step in 0..steps(case) {
        if !case.has_input(&format!("x_step{step}")) {
            return Err(Malformed(format!("x_step{step}.npy is missing")));
        }
        names.push(format!("y_step{step}"));
        if case.meta.tracks() {
            names.push(format!("running_mean_step{step}"));
            names.push(format!("running_var_step{step}"));
        }
    }
    if case.has_input("x_eval") || case.has("y_eval") {
        names.push("y_eval".to_owned());
    }
    Ok(names)
}

fn present(case: &Case, names: &[&str]) -> Vec<String> {
    let found = names.iter().filter(|name| case.has(name));
    found.map(|name| (*name).to_owned()).collect()
}

fn files_of_a_family(case: &Case) -> Result<Vec<String>, Malformed> {
    let mut names = case.names()?;
    names.retain(|name| family(name).is_some());
    Ok(names)
}

fn family(name: &str) -> Option<Family> {
    Some(match whole(name) {
        "y" => Family::Y,
        "dx" => Family::Dx,
        "dresidual" => Family::Dresidual,
        "dweight" | "dbias" => Family::ParameterGradient,
        "save_mean" | "save_invstd" => Family::Statistic,
        "running_mean_out" | "running_var_out" => Family::Statistic,
        "running_mean" | "running_var" => Family::Statistic,
        _ => return None,
    })
}

/// The name without `_stepK`, `_rankK` or `_eval`.
fn whole(name: &str) -> &str {
    if let Some(before) = name.strip_suffix("_eval") {
        return before;
    }
    let before = name.trim_end_matches(|letter: char| letter.is_ascii_digit());
    if before.len() == name.len() {
        return name;
    }
    let stripped = before.strip_suffix("_step").or_else(|| before.strip_suffix("_rank"));
    stripped.unwrap_or(name)
}

/// How `name` is scored.
///
/// # Errors
/// A file that the rule needs is missing or does not fit.
pub fn rule(case: &Case, name: &str, expected: &ArrayD<f64>) -> Result<Rule, Malformed> {
    if case.kind == Kind::Onnx {
        return Ok(Rule { bar: ONNX_BAR, scale: Scale::OnePlusExpected, free: 0.0 });
    }
    let family = family(name).ok_or_else(|| Malformed(format!("unknown output `{name}`")))?;
    let bar = match family {
        Family::Dx | Family::Dresidual => GRADIENT_BAR,
        Family::Y | Family::ParameterGradient | Family::Statistic => BAR,
    };
    let scale = match family {
        Family::Statistic => Scale::Expected { std: input_std(case, name)? },
        _ => Scale::PerChannel(natural_scale(case, name, family, expected)?),
    };
    let free = match family {
        Family::Y if case.meta.activation().map_err(Malformed)?.is_smooth() => ACTIVATION_SHARE,
        _ => 0.0,
    };
    Ok(Rule { bar, scale, free })
}

/// Two units in fp32's last place of the activation itself: its value need not be small where
/// the magnitude of what goes into it is (the sigmoid of 0 is 0.5).
const ACTIVATION_SHARE: f64 = 2.0 * f32::EPSILON as f64;

fn input_std(case: &Case, name: &str) -> Result<Vec<f64>, Malformed> {
    let x = case.require_input(&input_of(name))?;
    if x.ndim() < 2 {
        return Err(Malformed(format!("x.npy: rank {} has no channels", x.ndim())));
    }
    Ok(std_per_channel(x.view()))
}

/// `x`, or `x_stepK`.
fn input_of(name: &str) -> String {
    format!("x{}", name.strip_prefix(whole(name)).unwrap_or_default())
}

fn natural_scale(
    case: &Case,
    name: &str,
    family: Family,
    expected: &ArrayD<f64>,
) -> Result<Vec<f64>, Malformed> {
    let channels = channels_of(expected);
    for file in [format!("scale_{name}"), format!("scale_{}", whole(name))] {
        if let Some(scale) = case.per_channel(&file, channels)? {
            return Ok(scale);
        }
    }
    match family {
        Family::Dresidual => magnitude::of_dresidual(case, channels),
        Family::Y if case.kind == Kind::Sequence => Ok(magnitude::of_sequence_y(expected)),
        _ => magnitude::before_cancellation(case, whole(name)),
    }
}

fn channels_of(values: &ArrayD<f64>) -> usize {
    values.shape().get(usize::from(values.ndim() > 1)).copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_and_ranks_belong_to_their_output() {
        assert_eq!(whole("y_step12"), "y");
        assert_eq!(whole("y_eval"), "y");
        assert_eq!(whole("dweight_rank0"), "dweight");
        assert_eq!(whole("running_mean_step3"), "running_mean");
        assert_eq!(whole("running_mean_out"), "running_mean_out");
        assert_eq!(family("running_mean_in"), None);
        assert_eq!(family("scale_y"), None);
        assert_eq!(family("x_step1"), None);
    }

    #[test]
    fn statistics_are_those_of_their_input() {
        assert_eq!(input_of("running_var_step3"), "x_step3");
        assert_eq!(input_of("running_var_out"), "x");
        assert_eq!(input_of("save_mean"), "x");
    }
}
