use super::*;

fn request() -> BuildRequest {
    BuildRequest::new(PathBuf::from("/nonexistent"))
}

fn check(change: impl FnOnce(&mut BuildRequest), expect: &str) {
    let mut request = request();
    change(&mut request);
    let got = request.check().map_or_else(|error| error.to_string(), |()| "good".into());
    assert!(got.contains(expect), "expected {expect:?}, got {got:?}");
}

#[test]
fn requests() {
    check(|_| {}, "good");
    check(|r| r.suite = "trixie".into(), "good");
    check(|r| r.extra_packages = vec!["g++".into(), "libc6-dev".into()], "good");
    check(|r| r.mirror = Some("https://m.example/debian".into()), "good");
    check(|r| r.name = "A".into(), "image name \"A\"");
    check(|r| r.suite = "jammy".into(), "suite \"jammy\" is not one of bookworm, trixie");
    check(|r| r.size_mib = 100, "100 MiB is not between 512 and");
    check(|r| r.size_mib = u64::MAX, "is not between");
    check(|r| r.extra_packages = vec!["--help".into()], "\"--help\" is not the name of a Debian package");
    check(|r| r.extra_packages = vec!["a,b".into()], "\"a,b\" is not the name");
    check(|r| r.extra_packages = vec!["vim".into(); MAX_EXTRA_PACKAGES + 1], "more than 500 extra packages");
    check(|r| r.mirror = Some("file:/srv".into()), "mirror \"file:/srv\" is not");
    check(|r| r.mirror = Some("http://a\nURIs: b".into()), "is not an http://");
}

#[test]
fn what_is_usual_for_a_name() {
    let check = |name: &str, purpose: Purpose, suite: &str, has: &str| {
        let request = BuildRequest::of(name, PathBuf::from("/nonexistent"));
        assert_eq!((request.name.as_str(), request.purpose, request.suite.as_str()), (name, purpose, suite));
        assert!(request.purpose.packages().contains(&has), "{name}");
    };
    check("belljar/debian", Purpose::Sandbox, "bookworm", "nodejs");
    check("team/own", Purpose::Sandbox, "bookworm", "nodejs");
    check("belljar/builder", Purpose::Builder, "trixie", "buildah");
    check("belljar/debian-systemd", Purpose::Systemd, "trixie", "docker-compose");
    check("tensorlake/ubuntu-systemd", Purpose::Systemd, "trixie", "nodejs");
    let of = |purpose| recipe::runtime_config(purpose, false).labels;
    assert_eq!(of(Purpose::Systemd).get("belljar.init").map(String::as_str), Some("systemd"));
    assert!(of(Purpose::Sandbox).is_empty() && of(Purpose::Builder).is_empty());
}

#[test]
fn a_key_for_everything_that_matters() {
    let resolved = Resolved { packages: BTreeMap::from([("a".to_owned(), "1".to_owned())]), released: 5 };
    let no_certificates = BTreeMap::new();
    let mut keys = vec![key(&request(), "s", &no_certificates, &resolved)];
    assert_eq!(keys[0], key(&request(), "s", &no_certificates, &resolved));
    keys.push(key(&BuildRequest { size_mib: 1024, ..request() }, "s", &no_certificates, &resolved));
    keys.push(key(&request(), "t", &no_certificates, &resolved));
    keys.push(key(&BuildRequest { purpose: Purpose::Systemd, ..request() }, "s", &no_certificates, &resolved));
    keys.push(key(&request(), "s", &BTreeMap::from([("a".into(), b"1".to_vec())]), &resolved));
    keys.push(key(&request(), "s", &no_certificates, &Resolved { released: 6, ..resolved.clone() }));
    let newer = Resolved { packages: BTreeMap::from([("a".into(), "2".into())]), ..resolved };
    keys.push(key(&request(), "s", &no_certificates, &newer));
    let all = keys.len();
    keys.sort();
    keys.dedup();
    assert_eq!(keys.len(), all);
}
