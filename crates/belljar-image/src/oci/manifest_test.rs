use super::*;

/// Documents that a test made; the first one is what was asked for.
struct Made(Vec<Vec<u8>>);

impl Documents for Made {
    fn first(&mut self) -> Result<Vec<u8>, OciError> {
        Ok(self.0[0].clone())
    }

    fn manifest(&mut self, digest: &str) -> Result<Vec<u8>, OciError> {
        let found = self.0.iter().find(|bytes| digest.ends_with(&hex(Sha256::new().chain_update(bytes))));
        Ok(found.expect("a document").clone())
    }

    fn configuration(&mut self, digest: &str) -> Result<Vec<u8>, OciError> {
        self.manifest(digest)
    }

    fn name(&self) -> String {
        "it".to_owned()
    }

    fn pinned(&self) -> Option<String> {
        None
    }
}

fn descriptor(bytes: &[u8], platform: &str) -> String {
    let digest = hex(Sha256::new().chain_update(bytes));
    format!(r#"{{"mediaType": "a/b", "digest": "sha256:{digest}", "size": {}{platform}}}"#, bytes.len())
}

fn check(documents: Vec<Vec<u8>>, expect: &str) {
    let wanted = Wanted::parse(Some("linux/amd64")).unwrap();
    let got = resolve(&mut Made(documents), &wanted).map_or_else(|error| error.to_string(), |it| format!("{it:?}"));
    assert!(got.contains(expect), "expected {expect:?}, got {got:?}");
}

#[test]
fn what_makes_no_image() {
    let config = |arch: &str, ids: &str| {
        format!(r#"{{"os": "linux", "architecture": "{arch}", "rootfs": {{"type": "layers", "diff_ids": [{ids}]}}}}"#)
            .into_bytes()
    };
    let manifest = |config: &[u8], layers: &str| {
        let config = descriptor(config, "");
        format!(r#"{{"schemaVersion": 2, "config": {config}, "layers": [{layers}]}}"#).into_bytes()
    };
    let good = config("amd64", "");
    check(vec![manifest(&good, ""), good.clone()], "layers: []");
    check(vec![b"{}".to_vec()], "it is none of OCI");
    let arm = config("arm64", "");
    check(vec![manifest(&arm, ""), arm], "it is not made for linux/amd64; there is: linux/arm64");
    check(vec![manifest(&good, &descriptor(b"", "")), good.clone()], "it has 1 layers, and its configuration 0");
    let ids = config("amd64", r#""sha256:x""#);
    check(vec![manifest(&ids, ""), ids.clone()], "\"sha256:x\" is no SHA-256");
    let huge = r#"{"mediaType": "a/b", "digest": "sha256:0000000000000000000000000000000000000000000000000000000000000000", "size": 99999999999999}"#;
    let one = config("amd64", r#""sha256:0000000000000000000000000000000000000000000000000000000000000000""#);
    check(vec![manifest(&one, huge), one.clone()], "is larger than 68719476736 bytes");
    check(vec![vec![b' '; 5 << 20]], "is larger than 4194304 bytes");
    // Indexes in one another.
    let index = |inner: &[u8], platform: &str| {
        format!(r#"{{"schemaVersion": 2, "manifests": [{}]}}"#, descriptor(inner, platform)).into_bytes()
    };
    let mut nested = vec![manifest(&good, ""), good];
    for depth in 1..=4 {
        nested.insert(0, index(&nested[0], ""));
        check(nested.clone(), if depth <= 3 { "layers: []" } else { "more than 3 indexes lie in one another" });
    }
    let platform = r#", "platform": {"os": "linux", "architecture": "arm", "variant": "v7"}"#;
    check(vec![index(b"", platform)], "it is not made for linux/amd64; there is: linux/arm/v7");
}

#[test]
fn what_a_sandbox_takes_over() {
    let config = |inner: &str| {
        let text = format!(
            r#"{{"os": "linux", "architecture": "amd64", "config": {inner}, "rootfs": {{"type": "layers", "diff_ids": []}}}}"#
        );
        runtime_config(&serde_json::from_str(&text).unwrap())
    };
    let nothing = config("null");
    assert_eq!((nothing.user.as_deref(), nothing.workdir.as_deref()), (Some("0"), Some("/")));
    let empty = config(r#"{"User": "", "WorkingDir": "", "Env": null, "Cmd": null, "Entrypoint": null}"#);
    assert_eq!(empty, nothing);
    let some =
        config(r#"{"User": "1:2", "Env": ["A=1", "bad", "=x", "A=2"], "ExposedPorts": {"9/udp": {}, "1/tcp": {}}}"#);
    assert_eq!((some.user.as_deref(), some.env.len(), some.env["A"].as_str()), (Some("1:2"), 1, "2"));
    assert_eq!(some.exposed_ports, ["1/tcp", "9/udp"]);
}
