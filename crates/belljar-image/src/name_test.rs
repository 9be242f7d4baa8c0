use proptest::prelude::*;

use super::*;

fn check(name: &str, expect: &str) {
    let got = match canonical(name) {
        Ok(name) => name.to_owned(),
        Err(error) => format!("error: {error}"),
    };
    assert!(got.starts_with(expect), "{name:?}: expected {expect:?}, got {got:?}");
}

#[test]
fn names_and_aliases() {
    check("belljar/debian", "belljar/debian");
    check("belljar/debian:latest", "belljar/debian");
    check("belljar/debian-minimal", "belljar/debian");
    check("tensorlake/ubuntu-minimal", "belljar/debian");
    check("tensorlake/ubuntu-minimal:latest", "belljar/debian");
    check("tensorlake/debian-minimal", "belljar/debian");
    check("tensorlake/ubuntu-systemd", "belljar/debian-systemd");
    check("tensorlake/ubuntu-vnc", "belljar/desktop");
    check("team/tool:v2.1_B", "team/tool:v2.1_B");
    check("9", "9");
}

#[test]
fn bad_names_say_why() {
    check("", "error: image name \"\" is empty");
    check("Debian", "error: image name \"Debian\" does not start with");
    check("../etc/passwd", "error: image name \"../etc/passwd\" does not start");
    check("a/../b", "error: image name \"a/../b\" has an empty part");
    check("a//b", "error: image name \"a//b\" has an empty part");
    check("a/", "error: image name \"a/\" has an empty part");
    check("a b", "error: image name \"a b\" has a character");
    check("a:", "error: image name \"a:\" has a tag that");
    check("a:b/c", "error: image name \"a:b/c\" has a tag with");
    check("a%2Fb", "error: image name \"a%2Fb\" has a character");
    check(&"a".repeat(129), "error: image name");
    check(&"a".repeat(128), "aaaa");
}

proptest! {
    #[test]
    fn any_input_gives_a_name_or_an_error(name in ".{0,200}") {
        let _ = canonical(&name);
    }

    #[test]
    fn valid_names_have_file_names_of_their_own(
        a in "[a-z0-9][a-z0-9.-]{0,9}(/[a-z0-9]{1,9})?(:[a-z0-9]{1,5})?",
        b in "[a-z0-9][a-z0-9.-]{0,9}(/[a-z0-9]{1,9})?(:[a-z0-9]{1,5})?",
    ) {
        prop_assume!(canonical(&a).is_ok() && canonical(&b).is_ok());
        prop_assert_eq!(a == b, to_file_name(&a) == to_file_name(&b));
        prop_assert!(!to_file_name(&a).contains('/'));
    }
}
