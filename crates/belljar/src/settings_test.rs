use proptest::{option, prelude::*};

use super::*;

fn around() -> Surroundings {
    Surroundings { home: Some("/home/ann".into()), ..Surroundings::default() }
}

proptest! {
    #[test]
    fn flags_win_over_the_file_and_the_file_over_the_default(
        flag in option::of("[a-z]{1,8}"), file in option::of("[a-z]{1,8}"), built in option::of("[a-z]{1,8}"),
    ) {
        let args = GlobalArgs { api_url: flag.clone(), api_key: flag.clone(), data_dir: flag.clone().map(Into::into), ..GlobalArgs::default() };
        let config = ConfigFile {
            api_url: file.clone(), api_key: file.clone(), data_dir: file.clone().map(Into::into),
            kernel: file.clone().map(Into::into), ..ConfigFile::default()
        };
        let settings = Settings::combine(&args, config, &around());
        let expected = flag.clone().or(file.clone());
        prop_assert_eq!(&settings.api_url, &expected.clone().unwrap_or(DEFAULT_API_URL.into()));
        prop_assert_eq!(&settings.api_key, &expected);
        prop_assert_eq!(&settings.data_dir, &PathBuf::from(expected.unwrap_or("/home/ann/.local/share/belljar".into())));

        let args = UpArgs { kernel: flag.clone().map(Into::into), ..UpArgs::default() };
        let up = settings.combine_up(&args, Current { kernel: built.clone().map(Into::into), ..Current::default() });
        let expected = flag.or(file).or(built).unwrap_or("/home/ann/.cache/belljar/kernel/vmlinux".into());
        prop_assert_eq!(up.kernel, PathBuf::from(expected));
    }
}

#[track_caller]
fn check(text: &str, expected: Result<ConfigFile, &str>) {
    let got = parse(Path::new("/c.toml"), text);
    match (got, expected) {
        (Ok(file), Ok(expected)) => assert_eq!(file, expected, "{text}"),
        (Err(error), Err(part)) => {
            assert_eq!(error.to_string(), "/c.toml has a mistake");
            let cause = std::error::Error::source(&error).expect("cause").to_string();
            assert!(cause.contains(part), "{cause}");
        }
        (got, _) => panic!("{text}: {got:?}"),
    }
}

#[test]
fn files_are_strict() {
    check("", Ok(ConfigFile::default()));
    check("api_url = 'http://x'", Ok(ConfigFile { api_url: Some("http://x".into()), ..ConfigFile::default() }));
    check("api_urll = 'http://x'", Err("unknown field `api_urll`"));
    check("listen = ['127.0.0.1']", Err("listen = ['127.0.0.1']"));
    check("api_key = 7", Err("api_key = 7"));
}

#[test]
fn https_needs_both_files_and_has_an_address_of_its_own() {
    let settings = Settings::combine(&GlobalArgs::default(), ConfigFile::default(), &around());
    let args = |cert: Option<&str>, key: Option<&str>, listen: &[&str]| UpArgs {
        tls_cert: cert.map(Into::into),
        tls_key: key.map(Into::into),
        tls_listen: listen.iter().map(|text| text.parse().expect("address")).collect(),
        ..UpArgs::default()
    };
    let listens = |args: UpArgs| settings.tls(&args).map(|tls| tls.map(|tls| tls.listen));
    assert_eq!(listens(args(None, None, &[])).expect("none"), None);
    let default = vec!["0.0.0.0:443".parse().expect("address")];
    assert_eq!(listens(args(Some("c"), Some("k"), &[])).expect("both"), Some(default));
    let own = vec!["10.0.0.1:8443".parse().expect("address")];
    assert_eq!(listens(args(Some("c"), Some("k"), &["10.0.0.1:8443"])).expect("both"), Some(own));
    for (half, missing) in [
        (args(Some("c"), None, &[]), "--tls-key"),
        (args(None, Some("k"), &[]), "--tls-cert"),
        (args(None, None, &["10.0.0.1:8443"]), "--tls-cert"),
    ] {
        assert!(listens(half).expect_err("half").to_string().contains(missing));
    }
}

#[test]
fn certificates_come_from_one_place() {
    let settings = Settings::combine(&GlobalArgs::default(), ConfigFile::default(), &around());
    let source = |args: UpArgs| settings.tls(&args).map(|tls| tls.map(|tls| tls.source));
    let acme =
        |server: Option<&str>| UpArgs { acme: Some(true), acme_server: server.map(Into::into), ..UpArgs::default() };
    for (args, server) in [(acme(None), LETS_ENCRYPT), (acme(Some("https://x")), "https://x")] {
        let Some(TlsSource::Acme(acme)) = source(args).expect("ACME") else { panic!("another source") };
        assert_eq!((acme.server.as_str(), acme.dir), (server, "/home/ann/.local/share/belljar/acme".into()));
    }
    let both = UpArgs { tls_cert: Some("c".into()), tls_key: Some("k".into()), ..acme(None) };
    assert!(source(both).expect_err("both").to_string().contains("one source"));
    let hook = |acme| UpArgs { acme, acme_dns_hook: Some("hook".into()), ..UpArgs::default() };
    assert!(source(hook(None)).expect_err("without --acme").to_string().contains("--acme-dns-hook is for"));
    assert_eq!(source(hook(Some(false))).expect("off"), None);
}

#[test]
fn limits_of_disks_have_bounds() {
    let file = ConfigFile { disk_iops: Some(7), ..ConfigFile::default() };
    let settings = Settings::combine(&GlobalArgs::default(), file, &around());
    let args = |mib, iops| UpArgs { disk_bandwidth_mib: mib, disk_iops: iops, ..UpArgs::default() };
    let got = settings.disk_limits(&args(Some(2), None)).expect("limits");
    assert_eq!(got, DiskLimits { bytes: NonZeroU64::new(2 << 20), requests: NonZeroU64::new(7) });
    for (args, error) in [
        (args(Some(0), None), "disk_bandwidth_mib: 0 is not between 1 and 1000000"),
        (args(None, Some(u32::MAX)), "disk_iops: 4294967295 is not between 1 and 10000000"),
    ] {
        assert_eq!(settings.disk_limits(&args).expect_err("refused").to_string(), error);
    }
}

#[test]
fn memory_for_sandboxes_has_bounds() {
    let file = ConfigFile { memory_mb: Some(4096), ..ConfigFile::default() };
    let settings = Settings::combine(&GlobalArgs::default(), file, &around());
    let got = |memory_mb| settings.up(&UpArgs { memory_mb, ..UpArgs::default() }).map(|settings| settings.memory_mb);
    assert_eq!(got(None).expect("the file's"), Some(4096));
    assert_eq!(got(Some(1024)).expect("the least"), Some(1024));
    let error = got(Some(1023)).expect_err("refused").to_string();
    assert_eq!(error, "memory_mb: 1023 is not between 1024 and 100000000");
}

#[test]
fn limits_of_the_network_have_bounds() {
    let file = ConfigFile { network_connections: Some(7), network_new_connections: Some(9), ..ConfigFile::default() };
    let settings = Settings::combine(&GlobalArgs::default(), file, &around());
    let args = |mbit, new, connections| UpArgs {
        network_bandwidth_mbit: mbit,
        network_new_connections: new,
        network_connections: connections,
        ..UpArgs::default()
    };
    let got = settings.network_limits(&args(Some(1), Some(2), None)).expect("limits");
    assert_eq!(got, NetworkLimits { megabits: Some(1), new_connections: 2, connections: 7 });
    assert_eq!(got.to_string(), "1 Mbit/s each way, 2 new connections per second, 7 connections");
    for (args, error) in [
        (args(Some(0), None, None), "network_bandwidth_mbit: 0 is not between 1 and 100000"),
        (args(Some(100_001), None, None), "network_bandwidth_mbit: 100001 is not between 1 and 100000"),
        (args(None, Some(0), None), "network_new_connections: 0 is not between 1 and 1000000"),
        (args(None, None, Some(u32::MAX)), "network_connections: 4294967295 is not between 1 and 1000000"),
    ] {
        assert_eq!(settings.network_limits(&args).expect_err("refused").to_string(), error);
    }
}

#[test]
fn only_this_machine_gets_the_local_key() {
    for (url, expected) in [
        ("http://127.0.0.1:8900", true),
        ("http://localhost", true),
        ("http://[::1]:8900/x", true),
        ("http://127.0.0.1.example.com:80", false),
        ("http://localhost@example.com", false),
        ("http://localhost:1@example.com", false),
        ("http://example.com?localhost", false),
        ("http://10.0.0.5:8900", false),
    ] {
        assert_eq!(is_loopback(url), expected, "{url}");
    }
}

#[test]
fn root_and_users_have_their_own_places() {
    let root = Surroundings { root: true, ..around() };
    assert_eq!(root.data_dir(), PathBuf::from("/var/lib/belljar"));
    assert_eq!(around().config_file(), Some("/home/ann/.config/belljar/config.toml".into()));
    let xdg = Surroundings { config_home: Some("/x".into()), ..around() };
    assert_eq!(xdg.config_file(), Some("/x/belljar/config.toml".into()));
}
