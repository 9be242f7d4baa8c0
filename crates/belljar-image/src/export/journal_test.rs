use std::{fs, path::Path};

use crate::{
    export::{ext4::Filesystem, walk},
    tool,
};

/// All files of a file system as a tar stream.
fn contents(image: &Path) -> Vec<u8> {
    let filesystem = Filesystem::open(image).unwrap();
    let size = fs::metadata(image).unwrap().len();
    walk::walk(&filesystem, size, false, Vec::new(), &mut |_| {}).unwrap().1
}

fn run(program: &str, args: &[&str], image: &Path) -> String {
    tool::run(tool::command(program).args(args).arg(image), &mut |_| {}).unwrap()
}

/// Writes these transactions to the journal of a file system as debugfs does it, and reads that: it has to be what
/// debugfs makes of it when it replays the journal. `{0}`, `{1}`… are blocks of a file, `{new}` is a file with the
/// content of two. Whether anything has changed is told.
#[track_caller]
fn check(features: &str, transactions: &[&str], changes: bool) {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    fs::create_dir_all(path("root/a")).unwrap();
    fs::write(path("root/a/file"), vec![b'x'; 20_000]).unwrap();
    let image = path("image");
    fs::File::create(&image).and_then(|file| file.set_len(8 << 20)).unwrap();
    let root = path("root").display().to_string();
    run("mkfs.ext4", &["-q", "-F", "-b", "1024", "-J", "size=1", "-O", features, "-d", &root], &image);
    let before = contents(&image);
    // The second one begins as a block of the journal does.
    fs::write(path("new"), [vec![b'y'; 1024], vec![0xC0, 0x3B, 0x39, 0x98], vec![b'z'; 1020]].concat()).unwrap();
    let blocks = run("debugfs", &["-R", "blocks /a/file"], &image);
    for transaction in transactions {
        let mut script = format!("{transaction}\njc\n").replace("{new}", &path("new").display().to_string());
        for (number, block) in blocks.split_whitespace().enumerate() {
            script = script.replace(&format!("{{{number}}}"), block);
        }
        fs::write(path("script"), script).unwrap();
        run("debugfs", &["-w", "-f", &path("script").display().to_string()], &image);
    }
    let found = contents(&image);
    let replayed = path("replayed");
    fs::copy(&image, &replayed).unwrap();
    run("debugfs", &["-w", "-R", "journal_run"], &replayed);
    let expected = contents(&replayed);
    assert!(found == expected, "{features} {transactions:?}");
    assert_eq!(found != before, changes, "{features} {transactions:?}");
}

#[test]
fn a_journal_is_read_as_others_replay_it() {
    // With checksums that are older than those of metadata, debugfs writes what it takes for corrupt itself.
    for (features, opens) in
        [("metadata_csum", &["jo", "jo -c -v 3"][..]), ("^metadata_csum", &["jo"]), ("^metadata_csum,^64bit", &["jo"])]
    {
        for open in opens {
            let check = |transactions: &[&str], changes: bool| {
                let opened: Vec<String> = transactions.iter().map(|it| format!("{open}\n{it}")).collect();
                check(features, &opened.iter().map(String::as_str).collect::<Vec<_>>(), changes);
            };
            check(&["jw -b {0},{1} {new}"], true);
            check(&["jw -b {0},{1} {new}", "jw -b {5},{6} {new}"], true);
            check(&["jw -b {0},{1} {new}\njw -b {2},{0} {new}\njw -b {8},{9} {new}"], true);
            // Not committed, it has not happened.
            check(&["jw -b {0},{1} -c {new}"], false);
            check(&["jw -b {0},{1} {new}\njw -b {4},{5} -c {new}"], true);
            // Revoked, the older content does not count; a newer one does.
            check(&["jw -b {0},{1} {new}\njw -r {0},{1} /dev/null"], false);
            check(&["jw -b {0},{1} {new}\njw -r {0} /dev/null"], true);
            check(&["jw -b {0},{1} {new}\njw -r {0},{1} /dev/null\njw -b {0},{1} {new}"], true);
        }
    }
}
