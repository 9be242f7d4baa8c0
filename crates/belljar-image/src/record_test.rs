use proptest::prelude::*;

use super::*;

fn entry(words: usize) -> HistoryEntry {
    HistoryEntry { created_by: "x".repeat(words), ..HistoryEntry::default() }
}

#[test]
fn records_of_older_versions_are_read_and_ours_by_them() {
    let dir = tempfile::tempdir().unwrap();
    let digest = format!("blake3:{}", "0a".repeat(32));
    let image = dir.path().join(digest::to_dir_name(&digest));
    fs::create_dir(&image).unwrap();
    let old = format!(
        r#"{{"format": 1, "digest": "{digest}", "size_bytes": 5, "disk_bytes": 4, "created_at": "2025-09-06T09:51:06Z",
            "suite": "", "config": {{"env": {{}}, "workdir": null, "user": null, "entrypoint": [], "cmd": []}},
            "packages": {{}}}}"#
    );
    fs::write(image.join(RECORD), &old).unwrap();
    let found = Image::read(&image).unwrap();
    assert_eq!(
        (found.size_bytes, &found.history, found.id().as_str()),
        (5, &Vec::new(), "image_0a0a0a0a0a0a0a0a0a0a0")
    );
    found.write(&image).unwrap();
    let json = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
    assert_eq!(json(&fs::read_to_string(image.join(RECORD)).unwrap()), json(&old));

    let name = dir.path().join("a.json");
    let old = format!(r#"{{"format": 1, "name": "a", "digest": "{digest}"}}"#);
    fs::write(&name, &old).unwrap();
    let found = NameRecord::read(&name).unwrap();
    assert!(found.public && found.variant.is_none());
    found.write(&name).unwrap();
    assert_eq!(json(&fs::read_to_string(&name).unwrap()), json(&old));
}

#[test]
fn a_record_that_nobody_could_read_is_not_written() {
    let dir = tempfile::tempdir().unwrap();
    let config =
        RuntimeConfig { cmd: vec!["x".repeat(usize::try_from(MAX_RECORD_BYTES).unwrap())], ..RuntimeConfig::default() };
    let path = dir.path().join("image.json");
    assert!(write_json(&path, &config).unwrap_err().to_string().contains("would have more than"));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn of_a_long_history_the_end_is_kept() {
    let sizes = |kept: &[HistoryEntry]| -> Vec<usize> { kept.iter().map(HistoryEntry::bytes).collect() };
    assert_eq!(sizes(&bounded(vec![entry(3), entry(0), entry(5)])), [3, 0, 5]);
    assert_eq!(sizes(&bounded(vec![entry(3), entry(MAX_HISTORY_BYTES), entry(0)])), [MAX_HISTORY_BYTES, 0]);
    assert_eq!(sizes(&bounded(vec![entry(3), entry(MAX_HISTORY_BYTES + 1), entry(5)])), [5]);
    assert_eq!(bounded(vec![entry(1); MAX_HISTORY + 9]).len(), MAX_HISTORY);
}

proptest! {
    #[test]
    fn what_is_kept_is_the_end_and_within_bounds(sizes in prop::collection::vec(0..100_000_usize, 0..600)) {
        let history: Vec<_> = sizes.iter().map(|&size| entry(size)).collect();
        let kept = bounded(history.clone());
        prop_assert!(history.ends_with(&kept));
        prop_assert!(kept.len() <= MAX_HISTORY);
        prop_assert!(kept.iter().map(HistoryEntry::bytes).sum::<usize>() <= MAX_HISTORY_BYTES);
    }
}
