use std::io::Write;

use super::*;
use crate::oci::{
    loopback::{Asked, Loopback, Reply, Stored},
    testing::{Tar, is_root},
};

/// A store, and limits under which a test is done soon.
struct Fixture {
    dir: tempfile::TempDir,
    store: Store,
    caps: Caps,
    request: ImportRequest,
}

impl Fixture {
    fn new(source: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let soon = Duration::from_millis(300);
        let caps = Caps {
            reserve_bytes: 0,
            stall: soon,
            document: soon,
            rate_window: soon,
            pause: Duration::from_millis(1),
            ratio_free_bytes: 1 << 20,
            ..Caps::default()
        };
        let request = ImportRequest { source: source.to_owned(), insecure: true, ..ImportRequest::default() };
        Self { dir, store, caps, request }
    }

    fn run(&self) -> Result<BuiltImage, String> {
        let imported = import_within(&self.caps, &self.store, &self.request, &mut |_| {});
        imported.map_err(|error| {
            let mut text = error.to_string();
            let mut cause = std::error::Error::source(&error);
            while let Some(one) = cause {
                text.push_str(&format!(": {one}"));
                cause = one.source();
            }
            text
        })
    }

    /// So many files of transfers are kept, and nothing else of an import that failed.
    fn is_clean(&self, blobs: usize) {
        let names = |dir: &str| {
            let dir = self.dir.path().join(dir);
            let mut names: Vec<_> = fs::read_dir(dir).into_iter().flatten().map(|it| it.unwrap().file_name()).collect();
            names.sort();
            names
        };
        assert!(names("tmp").iter().all(|name| name == "blobs"), "{:?}", names("tmp"));
        assert_eq!(names("tmp/blobs").len(), blobs, "{:?}", names("tmp/blobs"));
        assert_eq!((names("images").len(), names("names").len(), names("builds").len()), (0, 0, 0));
    }
}

/// A layer and what is in it.
fn packed(content: Vec<u8>) -> (Vec<u8>, Vec<u8>) {
    let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packer.write_all(&content).unwrap();
    (packer.finish().unwrap(), content)
}

/// Random enough not to be packed to nothing.
fn noise() -> String {
    let letter = |n: u32| char::from(b'a' + n.wrapping_mul(2_654_435_761).to_be_bytes()[0] % 26);
    (0..100_000u32).map(letter).collect()
}

fn stored() -> Stored {
    Stored::new(&[packed(Tar::new().file("a", &noise()).end()), packed(Tar::new().dir("srv").file(".wh.a", "").end())])
}

fn is_layer(asked: &Asked) -> bool {
    asked.path.contains("/blobs/") && !asked.headers.get("accept").is_some_and(|accept| accept.contains("config"))
}

/// Imports from a registry that replies like this: an error with these words, after which so many transfers are kept.
#[track_caller]
fn check(stored: Stored, reply: impl Fn(&Asked, usize) -> Reply + Send + Sync + 'static, words: &str, kept: usize) {
    let server = Loopback::start(stored, reply);
    let it = Fixture::new(&format!("{}/team/tool:v2", server.host));
    let error = it.run().unwrap_err();
    assert!(error.contains(words), "expected {words:?}, got {error:?}");
    it.is_clean(kept);
}

#[test]
fn an_image_with_its_configuration() {
    if !is_root("an_image_with_its_configuration") {
        return;
    }
    let server = Loopback::start(stored().in_index("linux", "amd64"), |_, _| Reply::Honest);
    let it = Fixture::new(&format!("{}/team/tool:v2", server.host));
    let first = it.run().unwrap();
    assert_eq!((first.name.as_str(), first.cached), ("tool:v2", false));
    let config = &first.image.config;
    assert_eq!(config.env["A"], "b=c");
    assert_eq!((config.user.as_deref(), config.workdir.as_deref()), (Some("www"), Some("/srv/app")));
    assert_eq!(
        (config.entrypoint.as_slice(), config.cmd.as_slice()),
        (&["/init".to_owned()][..], &["-v".to_owned()][..])
    );
    assert_eq!((config.labels["maker"].as_str(), config.exposed_ports[0].as_str()), ("me", "80/tcp"));
    let history: Vec<_> = first.image.history.iter().map(|it| (it.created_by.as_str(), it.empty_layer)).collect();
    assert_eq!(history, [("COPY a /", false), ("CMD -v", true)]);
    assert!(first.image.origin.as_ref().unwrap().contains("/team/tool:v2@sha256:"));
    first.image.verify_content().unwrap();
    assert_eq!(it.store.lookup("tool:v2").unwrap(), first.image);
    let again = it.run().unwrap();
    assert!(again.cached && again.image == first.image);
    // Made anew, it has the same bytes.
    let other = Fixture::new(&it.request.source);
    assert_eq!(other.run().unwrap().image.digest, first.image.digest);
    it.store.remove("tool:v2").unwrap();
    it.is_clean(0);
}

#[test]
fn a_registry_that_lies() {
    if !is_root("a_registry_that_lies") {
        return;
    }
    let lie = |asked: &Asked, _: usize| match is_layer(asked) {
        true => {
            Reply::With(200, String::new(), vec![b'x'; stored().blobs[asked.path.rsplit('/').next().unwrap()].len()])
        }
        false => Reply::Honest,
    };
    check(stored(), lie, "is not what was announced: it has the digest sha256:", 0);
    let longer = |asked: &Asked, _: usize| match is_layer(asked) {
        true => Reply::With(200, String::new(), vec![b'x'; 1 << 20]),
        false => Reply::Honest,
    };
    check(stored(), longer, "as the registry sends it is larger than", 0);
    let config = |asked: &Asked, _: usize| match asked.path.contains("/blobs/") {
        true => Reply::With(200, String::new(), b"{}".to_vec()),
        false => Reply::Honest,
    };
    check(stored(), config, "the configuration of", 0);
    let server = Loopback::start(stored(), |_, _| Reply::Honest);
    let it = Fixture::new(&format!("{}/tool@sha256:{}", server.host, "0".repeat(64)));
    assert!(it.run().unwrap_err().contains("there is no image"));
    let other = |_: &Asked, _: usize| Reply::With(200, String::new(), br#"{"schemaVersion": 2}"#.to_vec());
    let server = Loopback::start(stored(), other);
    let it = Fixture::new(&format!("{}/tool@sha256:{}", server.host, "0".repeat(64)));
    assert!(it.run().unwrap_err().contains("do not trust where it comes from"));
    check(stored(), |_, _| Reply::Endless, "is larger than 4194304 bytes", 0);
    check(stored(), |_, _| Reply::With(200, String::new(), b"<html>".to_vec()), "cannot be used: expected value", 0);
    check(stored(), |_, _| Reply::With(200, String::new(), b"{}".to_vec()), "it is none of OCI", 0);
    check(
        stored().in_index("linux", "arm64"),
        |_, _| Reply::Honest,
        "there is: linux/arm64; choose with --platform",
        0,
    );
}

#[test]
fn a_registry_that_is_away_or_slow() {
    if !is_root("a_registry_that_is_away_or_slow") {
        return;
    }
    let it = Fixture::new("127.0.0.1:1/tool");
    let error = it.run().unwrap_err();
    assert!(error.contains("cannot reach the registry 127.0.0.1:1; is its name right"), "{error}");
    it.is_clean(0);
    check(stored(), |_, _| Reply::StallAfter(0), "cannot reach the registry", 0);
    check(stored(), |_, _| Reply::Drip, "cannot reach the registry", 0);
    check(stored(), |_, _| Reply::With(503, String::new(), Vec::new()), "503", 0);
    check(stored(), |_, _| Reply::With(404, String::new(), Vec::new()), "there is no image", 0);
    check(stored(), |_, _| Reply::With(400, String::new(), b"what?".to_vec()), "answered 400 to the request for", 0);
    let stalls = |asked: &Asked, _: usize| if is_layer(asked) { Reply::StallAfter(50) } else { Reply::Honest };
    check(stored(), stalls, "stands still: ", 1);
    let drips = |asked: &Asked, _: usize| if is_layer(asked) { Reply::Drip } else { Reply::Honest };
    check(stored(), drips, "stands still: ", 1);
}

#[test]
fn a_broken_import_goes_on() {
    if !is_root("a_broken_import_goes_on") {
        return;
    }
    let ranges = |server: &Loopback| -> Vec<String> {
        server.asked().iter().filter_map(|asked| asked.headers.get("range").cloned()).collect()
    };
    // Within one import.
    let reply = |asked: &Asked, number: usize| match is_layer(asked) && number == 1 {
        true => Reply::BreakAfter(100),
        false => Reply::Honest,
    };
    let server = Loopback::start(stored(), reply);
    let it = Fixture::new(&format!("{}/tool", server.host));
    it.run().unwrap();
    assert_eq!(ranges(&server).len(), 2);
    assert!(ranges(&server).iter().all(|range| range == "bytes=100-"));
    // In the next one: the first has a beginning of the first layer, and got no more in all its attempts.
    let count = std::sync::atomic::AtomicUsize::new(0);
    let reply = move |asked: &Asked, _: usize| match is_layer(asked) {
        true => match count.fetch_add(1, std::sync::atomic::Ordering::Relaxed) {
            0 => Reply::BreakAfter(100),
            1..=4 => Reply::BreakAfter(0),
            _ => Reply::Honest,
        },
        false => Reply::Honest,
    };
    let server = Loopback::start(stored(), reply);
    let it = Fixture::new(&format!("{}/tool", server.host));
    it.run().unwrap_err();
    it.is_clean(1);
    it.run().unwrap();
    assert_eq!(ranges(&server), ["bytes=100-"; 5]);
    // What is kept and is something else is fetched anew.
    let server = Loopback::start(stored(), |_, _| Reply::Honest);
    let it = Fixture::new(&format!("{}/tool", server.host));
    for digest in stored().blobs.keys() {
        let name = digest.replace(':', "-");
        fs::create_dir_all(it.dir.path().join("tmp/blobs")).unwrap();
        fs::write(it.dir.path().join("tmp/blobs").join(name + ".part"), "something else").unwrap();
    }
    it.run().unwrap();
}

#[test]
fn layers_that_would_do_harm() {
    if !is_root("layers_that_would_do_harm") {
        return;
    }
    let honest = |_: &Asked, _: usize| Reply::Honest;
    let bomb = Tar::new().raw(tar::EntryType::Regular, "zeros", "", 0o644, &vec![0; 64 << 20]).end();
    check(Stored::new(&[packed(bomb)]), honest, "it is taken for an attack on this machine", 0);
    check(Stored::new(&[packed(Tar::new().file("../x", "").end())]), honest, "\"../x\" leads out of the image", 0);
    check(Stored::new(&[packed(vec![1; 5000])]), honest, "it is no tar archive, or damaged", 0);
    check(Stored::new(&[(b"\x1f\x8bno".to_vec(), Vec::new())]), honest, "cannot be unpacked", 0);
    let (layer, _) = packed(Tar::new().file("a", "").end());
    check(Stored::new(&[(layer, b"other".to_vec())]), honest, "the content of layer sha256:", 0);
    let server = Loopback::start(stored(), honest);
    let mut it = Fixture::new(&format!("{}/tool", server.host));
    it.caps.reserve_bytes = u64::MAX;
    assert!(it.run().unwrap_err().contains("make room, or choose another --image-store"));
    it.is_clean(1);
}

/// Lets in who says `me:secret`, himself or through a token.
fn guarded(bearer: bool) -> impl Fn(&Asked, usize) -> Reply + Send + Sync + 'static {
    move |asked, _| {
        let said = asked.headers.get("authorization").map(String::as_str).unwrap_or_default();
        let basic = "Basic bWU6c2VjcmV0";
        let host = &asked.headers["host"];
        match (bearer, asked.path.starts_with("/token")) {
            (true, true) if said == basic && asked.path.contains("scope=repository%3Ateam%2Ftool%3Apull") => {
                Reply::With(200, String::new(), br#"{"token": "abc"}"#.to_vec())
            }
            (true, true) => Reply::With(401, String::new(), Vec::new()),
            (true, false) if said == "Bearer abc" => Reply::Honest,
            (false, _) if said == basic => Reply::Honest,
            (true, false) => {
                let challenge = format!("WWW-Authenticate: Bearer realm=\"http://{host}/token\",service=\"s\"\r\n");
                Reply::With(401, challenge, Vec::new())
            }
            (false, _) => Reply::With(401, "WWW-Authenticate: Basic realm=\"x\"\r\n".to_owned(), Vec::new()),
        }
    }
}

#[test]
fn who_asks() {
    if !is_root("who_asks") {
        return;
    }
    for bearer in [false, true] {
        let server = Loopback::start(stored(), guarded(bearer));
        let mut it = Fixture::new(&format!("{}/team/tool:v2", server.host));
        let login = |password: &str| Some(Login { username: "me".to_owned(), password: password.to_owned() });
        let denied = |it: &Fixture, who: &str| {
            let error = it.run().unwrap_err();
            assert!(error.contains(&format!("does not let {who} read team/tool; give --username")), "{error}");
            it.is_clean(0);
        };
        denied(&it, "nobody");
        it.request.login = login("wrong");
        denied(&it, "\"me\"");
        it.request.login = login("secret");
        it.run().unwrap();
        // What `docker login` stored.
        let docker = tempfile::tempdir().unwrap();
        let config = serde_json::json!({"auths": {&server.host: {"auth": "bWU6c2VjcmV0"}}});
        fs::write(docker.path().join("config.json"), config.to_string()).unwrap();
        let mut other = Fixture::new(&it.request.source);
        other.request.docker_dir = Some(docker.path().to_owned());
        other.run().unwrap();
    }
}

/// Layers may lie elsewhere; who keeps them does not learn the password.
#[test]
fn passwords_stay_with_the_registry() {
    if !is_root("passwords_stay_with_the_registry") {
        return;
    }
    let elsewhere = Loopback::start(stored(), |_, _| Reply::Honest);
    let other = elsewhere.host.replace("127.0.0.1", "localhost");
    let inner = guarded(false);
    let server = Loopback::start(stored(), move |asked, number| match inner(asked, number) {
        Reply::Honest if is_layer(asked) => {
            Reply::With(307, format!("Location: http://{other}{}\r\n", asked.path), Vec::new())
        }
        reply => reply,
    });
    let mut it = Fixture::new(&format!("{}/team/tool", server.host));
    it.request.login = Some(Login { username: "me".to_owned(), password: "secret".to_owned() });
    it.run().unwrap();
    let asked = elsewhere.asked();
    assert!(asked.len() == 2 && asked.iter().all(|asked| !asked.headers.contains_key("authorization")), "{asked:?}");
}

/// Stopped at the step with this number, from 1; whether it got there.
fn stopped_at(number: usize, cached: bool) -> bool {
    let server = Loopback::start(stored(), |_, _| Reply::Honest);
    let mut it = Fixture::new(&format!("{}/team/tool:v2", server.host));
    (it.request.name, it.request.size_mib) = (Some("mine".to_owned()), Some(limits::MIN_SIZE_MIB));
    if cached {
        it.run().unwrap();
        it.request.stop = Stop::default();
        it.store.tag("mine", "first").unwrap();
        it.store.remove("mine").unwrap();
    }
    let (mut steps, stop) = (0, it.request.stop.clone());
    let imported = import_within(&it.caps, &it.store, &it.request, &mut |_| {
        steps += 1;
        if steps == number {
            assert!(stop.stop(), "nothing is named while there is progress");
        }
    });
    if steps < number {
        assert!(!stop.stop(), "it is too late");
        assert_eq!(it.store.lookup("mine").unwrap(), imported.unwrap().image);
        return false;
    }
    assert!(matches!(imported, Err(ImageError::Stopped)), "step {number}: {imported:?}");
    assert!(it.store.lookup("mine").is_err(), "step {number}");
    if !cached {
        let layers = fs::read_dir(it.dir.path().join("tmp/blobs")).map_or(0, Iterator::count);
        it.is_clean(layers);
    }
    // What was stopped is in nobody's way, and what arrived is of use.
    it.request.stop = Stop::default();
    it.run().unwrap();
    true
}

#[test]
fn an_import_is_stopped_at_any_step() {
    if !is_root("an_import_is_stopped_at_any_step") {
        return;
    }
    let mut number = 1;
    while stopped_at(number, false) {
        number += 1;
    }
    assert!(number > 8, "two layers fetched and unpacked are more than {number} steps");
    assert!(stopped_at(1, true), "also where nothing would have to be fetched");
}

#[test]
fn only_registries_are_remote() {
    let check = |reference: &str, expect: &str| match check_reference(reference) {
        Ok(()) => assert_eq!(expect, "", "{reference}"),
        Err(error) => assert!(!expect.is_empty() && error.to_string().contains(expect), "{error}"),
    };
    check("alpine", "");
    check("docker://registry.example:5000/team/tool:v2", "");
    check("oci:/etc", "is a place on the node's own disk");
    check("docker-archive:/etc/shadow", "write REGISTRY/NAME:TAG");
    check("/etc/shadow", "is no image of a registry");
    check("", "is no image of a registry");
}

#[test]
fn whose_image_it_is() {
    if !is_root("whose_image_it_is") {
        return;
    }
    let server = Loopback::start(stored(), guarded(false));
    let mut it = Fixture::new(&format!("{}/team/tool:v2", server.host));
    let auths = serde_json::json!({"auths": {&server.host: {"auth": "bWU6c2VjcmV0"}}}).to_string();
    it.request.docker_auths = Some(DockerAuths::new(auths));
    for (private, name) in [(true, "mine"), (false, "ours"), (true, "again")] {
        (it.request.private, it.request.name) = (private, Some(name.to_owned()));
        it.run().unwrap();
        assert_eq!(it.store.find(name).unwrap().public, !private, "{name}");
    }
}

#[test]
fn requests_that_make_no_sense() {
    let check = |change: &dyn Fn(&mut ImportRequest), expect: &str| {
        let mut it = Fixture::new("127.0.0.1:1/tool");
        change(&mut it.request);
        let error = it.run().unwrap_err();
        assert!(error.contains(expect), "expected {expect:?}, got {error:?}");
        it.is_clean(0);
    };
    check(&|it| it.source = "UPPER".to_owned(), "is no image of a registry");
    check(&|it| it.name = Some("UPPER".to_owned()), "image name \"UPPER\"");
    check(&|it| it.source = "oci:/srv/UPPER".to_owned(), "\"UPPER\", as the source is called, is no name");
    check(&|it| it.platform = Some("x".to_owned()), "is not OS/ARCH");
    check(&|it| it.size_mib = Some(1), "1 MiB is not between 512");
    if is_root("requests_that_make_no_sense") {
        check(&|it| it.source = "oci:/nonexistent".to_owned(), "No such file");
        check(&|it| it.source = "docker-archive:/nonexistent".to_owned(), "cannot open /nonexistent");
        check(&|it| it.source = "docker-archive:/dev/null".to_owned(), "it is no file");
        let it = Fixture::new("127.0.0.1:1/tool");
        let _claim = it.store.claim("tool").unwrap();
        let error = it.run().unwrap_err();
        assert!(error.contains("is being made by another `belljar image`"), "{error}");
    }
}
