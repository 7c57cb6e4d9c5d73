//! What is kept of cuDNN's modes.

use crate::files::PeerFile;

const REFUSED: &str = "SPATIAL_PERSISTENT: no";

#[test]
fn what_one_way_refuses_is_kept_beside_the_time_of_another() {
    let mut file = PeerFile::default();
    file.replace("a", Some(("SPATIAL".to_owned(), 3.0)), &[REFUSED.to_owned()]);
    assert_eq!(file.results[0].way.as_deref(), Some("SPATIAL"));
    assert_eq!(file.refused_ways["a"], REFUSED);
    assert!(file.refused.is_empty());
    let text = serde_json::to_string(&file).unwrap();
    assert_eq!(serde_json::from_str::<PeerFile>(&text).unwrap(), file);
}

#[test]
fn a_later_run_replaces_all_of_an_earlier_one() {
    let mut file = PeerFile::default();
    file.replace("a", Some(("SPATIAL".to_owned(), 3.0)), &[REFUSED.to_owned()]);
    file.replace("a", None, &["SPATIAL: no".to_owned(), REFUSED.to_owned()]);
    assert!(file.results.is_empty() && file.refused_ways.is_empty());
    assert_eq!(file.refused["a"], "SPATIAL: no; SPATIAL_PERSISTENT: no");
    file.replace("a", Some(("SPATIAL".to_owned(), 2.0)), &[]);
    assert!(file.refused.is_empty() && file.refused_ways.is_empty());
    assert_eq!(file.results.len(), 1);
}
