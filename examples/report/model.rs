//! What plans predict against what was measured, and how time grows with each extent.

use crate::cases::GROWTH;
use crate::files::GpuFile;
use crate::id::{Config, Element, Fused, Id, Pass, Slot};
use crate::join::Row;
use std::collections::HashMap;

/// Beyond this a prediction is called off.
pub const TOLERANCE: f64 = 0.15;

/// A measured call that was predicted.
#[derive(Debug, Clone, PartialEq)]
pub struct Compared {
    pub id: Id,
    pub tier: String,
    pub predicted_ns: f64,
    pub measured_ns: f64,
}

impl Compared {
    /// The time measured over the time predicted, less 1.
    pub fn deviation(&self) -> f64 {
        self.measured_ns / self.predicted_ns - 1.0
    }
}

/// Calls on rotating tensors, those farthest off first.
pub fn compare(rows: &[Row], gpu: &GpuFile) -> Vec<Compared> {
    let planned = |row: &Row| {
        let plan = gpu.plans.get(&row.id.to_string())?;
        Some(Compared {
            id: row.id.clone(),
            tier: plan.tier.clone(),
            predicted_ns: plan.predicted_ns,
            measured_ns: row.median_ns,
        })
    };
    let rows = rows.iter().filter(|row| row.id.config == Config::Gpu);
    let mut compared: Vec<_> = rows.filter_map(planned).collect();
    let off = |it: &Compared| it.deviation().abs();
    compared.sort_by(|a, b| off(b).total_cmp(&off(a)));
    compared
}

/// Times along one growing extent.
#[derive(Debug, Clone, PartialEq)]
pub struct Growth {
    pub extent: &'static str,
    pub pass: Pass,
    pub slot: Slot,
    /// Shape, elements, nanoseconds.
    pub points: Vec<(String, usize, f64)>,
}

impl Growth {
    /// The time of each point's last growth over what a line through the origin would add: 1 is
    /// linear, less is a floor that does not grow.
    pub fn slopes(&self) -> Vec<f64> {
        let pairs = self.points.windows(2);
        pairs.map(|pair| (pair[1].2 / pair[0].2) / (pair[1].1 as f64 / pair[0].1 as f64)).collect()
    }
}

/// Every series of which two points or more were measured.
pub fn growth(rows: &[Row]) -> Vec<Growth> {
    let times: HashMap<String, f64> =
        rows.iter().map(|row| (row.id.to_string(), row.median_ns)).collect();
    let mut found = Vec::new();
    for (extent, shapes) in GROWTH {
        for pass in [Pass::TrainForward, Pass::TrainBackward] {
            for slot in [Slot::ChannelsFirst, Slot::ChannelsLast] {
                let point = |shape: &&[usize]| {
                    let (element, fused, config) = (Element::F16, Fused::None, Config::Gpu);
                    let extents = shape.to_vec();
                    let id = Id { pass, slot, element, extents, fused, config };
                    let time = times.get(&id.to_string())?;
                    Some((id.shape(), shape.iter().product(), *time))
                };
                let points: Vec<_> = shapes.iter().filter_map(point).collect();
                if points.len() > 1 {
                    found.push(Growth { extent, pass, slot, points });
                }
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::Planned;
    use crate::join::{Measured, join};

    fn rows(times: &[(&str, f64)]) -> Vec<Row> {
        let measured =
            |&(id, median_ns): &(&str, f64)| Measured::new(id.parse().unwrap(), median_ns);
        join(&times.iter().map(measured).collect::<Vec<_>>(), &[]).unwrap()
    }

    #[test]
    fn predictions_are_compared_on_rotating_tensors_only() {
        let id = "train_forward/channels-last/f16/64x256x28x28/none/gpu";
        let rows = rows(&[(id, 130.0), (&format!("{id}-in-cache"), 10.0)]);
        let plan =
            Planned { tier: "grid".into(), kernels: Vec::new(), predicted_ns: 100.0, hbm_bytes: 0 };
        let gpu = GpuFile { plans: [(id.to_owned(), plan)].into(), ..GpuFile::default() };
        let compared = compare(&rows, &gpu);
        assert_eq!(compared.len(), 1);
        assert!((compared[0].deviation() - 0.3).abs() < 1e-12);
    }

    #[test]
    fn growth_is_1_where_time_grows_as_the_tensor() {
        let id = |n| format!("train_forward/channels-last/f16/{n}x256x28x28/none/gpu");
        let rows = rows(&[(&id(4), 10.0), (&id(16), 20.0), (&id(64), 80.0)]);
        let growth = growth(&rows);
        assert_eq!((growth.len(), growth[0].extent), (1, "N"));
        assert_eq!(growth[0].slopes(), [0.5, 1.0]);
    }
}
