use proptest::prelude::*;

use super::*;

/// The images of a Dockerfile, or what is wrong with it; `with` is `NAME=VALUE …` and may end in `target=STAGE`.
#[track_caller]
fn check(text: &str, with: &str, expect: &str) {
    let mut args: BTreeMap<String, String> =
        with.split_whitespace().filter_map(|word| word.split_once('=')).map(|(n, v)| (n.into(), v.into())).collect();
    let target = args.remove("target");
    let got = match read("Dockerfile", text, &args, target.as_deref()) {
        Ok(found) => found.images.into_iter().map(|it| it.image).collect::<Vec<_>>().join(" "),
        Err(error) => error.to_string(),
    };
    assert_eq!(got, expect, "{text}");
}

#[test]
fn images_of_elsewhere_are_found() {
    check("FROM alpine", "", "alpine");
    check("FROM scratch\nCOPY a /", "", "");
    check("FROM a AS One\nFROM one\nCOPY --from=ONE x y\nCOPY --from=0 x y\nCOPY --from=b/c:1 x y", "", "a b/c:1");
    check("FROM a\nRUN --mount=type=cache,target=/x --mount=type=bind,from=tools,target=/t true", "", "a tools");
    check("# syntax=docker/dockerfile:1\nFROM a\nRUN <<EOF\nFROM not-one\nEOF\nCOPY <<X /x\nFROM this\nX", "", "a");
}

#[test]
fn an_image_is_known_as_it_is_written_too() {
    let found = read("Dockerfile", "ARG A=x\nFROM ${A} AS b\nFROM x", &BTreeMap::new(), None).unwrap();
    let written: Vec<_> = found.images.iter().map(|it| (it.image.as_str(), it.written.as_str())).collect();
    assert_eq!(written, [("x", "${A}"), ("x", "x")]);
}

#[test]
fn arguments_are_put_in() {
    let text = "ARG BASE=debian\nARG TAG=\"12\"\nFROM ${BASE}:$TAG AS x\nARG BASE=late\nFROM ${NONE:-y}${TAG:+-z}";
    check(text, "", "debian:12 y-z");
    check(text, "BASE=ubuntu TAG=24", "ubuntu:24 y-z");
    check("ARG A\nARG B=$A.1\nFROM i${B}", "A=2", "i2.1");
}

#[test]
fn what_is_no_dockerfile_is_told_with_its_place() {
    check("FROM a\nRUNN x", "", "Dockerfile:2:1: unknown instruction 'RUNN'");
    check("FROM a\n\n  COPY x", "", "Dockerfile:3:3: COPY instruction requires at least two arguments");
    check("RUN x", "", "Dockerfile:1:1: expected FROM");
    check("", "", "Dockerfile:1:1: expected at least one FROM instruction");
    check("FROM a AS x\nFROM b AS x", "", "Dockerfile:2:1: duplicate stage name 'x'");
    check("FROM a\nRUN [\"a\", 1]\n  WORKDIR", "", "Dockerfile:3:3: WORKDIR instruction requires exactly one argument");
}

#[test]
fn a_target_has_to_be_there() {
    check("FROM a AS one\nFROM b", "target=ONE", "a b");
    check("FROM a AS one\nFROM b", "target=1", "a b");
    check("FROM a AS one\nFROM b", "target=two", "target: Dockerfile has no stage \"two\"; it has one");
    check("FROM a", "target=x", "target: Dockerfile has no stage \"x\"; it has none with a name");
}

proptest! {
    #[test]
    fn any_text_is_read(text in "(FROM|ARG|COPY|RUN|AS|--from=|--mount=|<<E|E|a|\\$|\\{|\\}|:-|=|\"|\\\\| |\n){0,40}") {
        let _ = read("Dockerfile", &text, &BTreeMap::new(), Some("a"));
    }
}
