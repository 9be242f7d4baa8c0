//! What a client wants to reach, by the user name that it gives: a pure function.
//!
//! `{id|name}` is a sandbox, `{port}-{id|name}` a TCP port of it. A name begins with a letter, so the form with a port is
//! never a name.

use belljar_api::{
    id::{check_name, is_id},
    limits::AGENT_PORT,
};

/// A user name that names no sandbox.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum UserError {
    #[error("the user name {0:?} is not the id or the name of a sandbox; connect as `ssh <sandbox>@host`")]
    NoSandbox(String),
    #[error("port {0} of a sandbox cannot be reached; use 1 to 65535, and not {AGENT_PORT}, which is reserved")]
    Port(String),
}

/// What is to be reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct User {
    /// Id or name.
    pub(crate) sandbox: String,
    /// The one port that sessions lead to; programs are run when there is none.
    pub(crate) port: Option<u16>,
}

impl User {
    pub(crate) fn parse(text: &str) -> Result<Self, UserError> {
        if is_reference(text) {
            return Ok(Self { sandbox: text.to_owned(), port: None });
        }
        let unknown = || UserError::NoSandbox(text.chars().take(80).collect());
        let (port, sandbox) = text.split_once('-').ok_or_else(unknown)?;
        if port.is_empty() || !port.bytes().all(|b| b.is_ascii_digit()) || !is_reference(sandbox) {
            return Err(unknown());
        }
        let number = port.parse::<u32>().ok().and_then(open_port).ok_or_else(|| UserError::Port(port.to_owned()))?;
        Ok(Self { sandbox: sandbox.to_owned(), port: Some(number) })
    }
}

fn is_reference(text: &str) -> bool {
    is_id(text) || check_name(text).is_ok()
}

/// A port of a sandbox that a client may be connected to: neither the agent's nor the node's own.
pub(super) fn open_port(port: u32) -> Option<u16> {
    u16::try_from(port).ok().filter(|port| *port != 0 && *port != AGENT_PORT)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ID: &str = "5gm9wex8dm6ko1ed441ya";

    #[track_caller]
    fn check(text: &str, expected: Option<(&str, Option<u16>)>) {
        let got = User::parse(text).ok();
        assert_eq!(got.as_ref().map(|user| (user.sandbox.as_str(), user.port)), expected, "{text:?}");
    }

    #[test]
    fn names_lead_to_sandboxes_and_ports() {
        check("box-1", Some(("box-1", None)));
        check(ID, Some((ID, None)));
        check("8080-box-1", Some(("box-1", Some(8080))));
        check(&format!("22-{ID}"), Some((ID, Some(22))));
        check("00080-box", Some(("box", Some(80))));
        for wrong in
            ["", "root@box", "-box", "0-box", "70000-box", "9501-box", "4294967376-box", "+80-box", "80-", "BOX", "a b"]
        {
            check(wrong, None);
        }
    }

    #[test]
    fn refusals_say_what_to_do() {
        let words = User::parse("9501-box").expect_err("reserved").to_string();
        assert!(words.contains("port 9501") && words.contains("reserved"), "{words}");
        let words = User::parse("No Such").expect_err("no name").to_string();
        assert!(words.contains("\"No Such\"") && words.contains("ssh <sandbox>@host"), "{words}");
    }

    proptest! {
        #[test]
        fn what_is_accepted_is_a_reference(text in "\\PC{0,60}") {
            if let Ok(user) = User::parse(&text) {
                prop_assert!(is_reference(&user.sandbox));
                prop_assert!(user.port.is_none_or(|port| port != 0 && port != AGENT_PORT));
            }
        }
    }
}
