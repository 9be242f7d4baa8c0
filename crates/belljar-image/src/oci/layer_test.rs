use std::io::Write;

use super::*;
use crate::oci::testing::sha256;

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    packer.write_all(bytes).unwrap();
    packer.finish().unwrap()
}

/// Reads a layer whose bytes are `packed`, of which `announced` stands in the manifest for `content`.
#[track_caller]
fn check(packed: &[u8], announced: &[u8], content: &[u8], expect: Result<(), &str>) {
    let layer = Layer {
        name: "sha256:0a".to_owned(),
        packed: Some((sha256(announced), announced.len() as u64)),
        unpacked: sha256(content),
    };
    let caps = Caps { ratio_free_bytes: 1 << 20, ..Caps::default() };
    let read = Content::open(&layer, packed, announced.len() as u64, &caps).and_then(|mut it| {
        let mut first = [0; 3];
        // Only a beginning, as of an archive that something follows.
        let _ = it.read(&mut first);
        it.finish()
    });
    match (read, expect) {
        (Ok(()), Ok(())) => {}
        (Err(error), Err(words)) => assert!(error.to_string().contains(words), "expected {words:?}, got {error}"),
        (got, expect) => panic!("expected {expect:?}, got {got:?}"),
    }
}

#[test]
fn layers_in_each_packing() {
    let content = b"some content".repeat(50);
    let zstd = zstd::encode_all(content.as_slice(), 3).unwrap();
    // Several members one after the other are one stream, as programs that pack in parallel write it.
    let (first, second) = content.split_at(100);
    let members = [gzip(first), gzip(second)].concat();
    let frames = [zstd::encode_all(first, 3).unwrap(), zstd::encode_all(second, 3).unwrap()].concat();
    for packed in [content.clone(), gzip(&content), zstd, members, frames] {
        check(&packed, &packed, &content, Ok(()));
        check(&packed, &packed, b"other", Err("the content of layer sha256:0a is not what was announced"));
        let mut lie = packed.clone();
        *lie.last_mut().unwrap() ^= 1;
        assert!(lie != packed);
        check(&packed, &lie, &content, Err("layer sha256:0a is not what was announced"));
        check(&packed[..packed.len() - 1], &packed, &content, Err("layer sha256:0a"));
        check(&[packed.as_slice(), b"xx"].concat(), &packed, &content, Err("layer sha256:0a"));
    }
    check(b"BZh91AY", b"BZh91AY", b"", Err("packed with bzip2; only gzip and zstd are taken"));
    check(b"\xfd7zXZ\0", b"\xfd7zXZ\0", b"", Err("packed with xz"));
}

#[test]
fn bombs_are_given_up() {
    let content = vec![0; 64 << 20];
    for packed in [gzip(&content), zstd::encode_all(content.as_slice(), 3).unwrap()] {
        check(&packed, &packed, &content, Err("it is taken for an attack on this machine"));
    }
    // What a bomb must not be taken for.
    let few = vec![0; 1 << 20];
    let packed = gzip(&few);
    check(&packed, &packed, &few, Ok(()));
}
