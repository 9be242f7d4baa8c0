//! Parsers of single command line values. Their errors name the rule; clap adds the argument and the value.

use std::{net::SocketAddr, str::FromStr};

use belljar_api::{
    id::{check_name, is_id},
    sandbox::Gpus,
};
use serde::Deserialize;

use super::{BuildSecret, SecretSource};

/// Where `belljar up` listens for SSH.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum SshListen {
    /// Here.
    At(SocketAddr),
    /// Nowhere.
    None,
}

impl FromStr for SshListen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "none" => Ok(Self::None),
            address => address
                .parse()
                .map(Self::At)
                .map_err(|_| "write an address and a port like 127.0.0.1:2222, or `none`".to_owned()),
        }
    }
}

impl TryFrom<String> for SshListen {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// Id or name of a sandbox.
pub fn reference(text: &str) -> Result<String, String> {
    if is_id(text) { Ok(text.to_owned()) } else { name(text) }
}

/// Id of a snapshot or a pool.
pub fn id(text: &str) -> Result<String, String> {
    if is_id(text) { Ok(text.to_owned()) } else { Err("an id has 21 lowercase letters and digits".to_owned()) }
}

/// Name of a sandbox.
pub fn name(text: &str) -> Result<String, String> {
    check_name(text).map(|()| text.to_owned()).map_err(|error| error.to_string())
}

/// Name of an image.
pub fn image(text: &str) -> Result<String, String> {
    belljar_image::canonical(text).map(|_| text.to_owned()).map_err(|error| error.to_string())
}

/// `NAME=VALUE`, or `NAME` for a variable of the environment.
pub fn build_arg(text: &str) -> Result<(String, String), String> {
    let (name, value) = match text.split_once('=') {
        Some((name, value)) => (name, value.to_owned()),
        None => (text, std::env::var(text).map_err(|_| format!("the environment has no {text}; write {text}=VALUE"))?),
    };
    if name.is_empty() {
        return Err("write it like NAME=VALUE".to_owned());
    }
    Ok((name.to_owned(), value))
}

/// `id=ID`, with `src=FILE` or `env=NAME`; without either, the variable that is called like the id.
pub fn build_secret(text: &str) -> Result<BuildSecret, String> {
    let (mut id, mut from) = (None, None);
    for part in text.split(',') {
        match part.split_once('=') {
            Some(("id", value)) if !value.is_empty() => id = Some(value.to_owned()),
            Some(("src" | "source", value)) => from = Some(SecretSource::File(value.into())),
            Some(("env", value)) => from = Some(SecretSource::Env(value.to_owned())),
            Some(("type", "file" | "env")) => {}
            _ => return Err(format!("{part:?} is none of id=ID, src=FILE and env=NAME")),
        }
    }
    let id = id.ok_or("it needs an id: id=ID,src=FILE")?;
    let from = from.unwrap_or_else(|| SecretSource::Env(id.clone()));
    Ok(BuildSecret { id, from })
}

/// Where a tunnel begins in a sandbox and, for a reverse one, where it ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TunnelPort {
    /// Port in the sandbox.
    pub guest: u16,
    /// Host and port on this side, when they were given.
    pub service: Option<(String, u16)>,
}

/// `PORT` or `PORT:HOST:PORT`.
pub fn tunnel(text: &str) -> Result<TunnelPort, String> {
    let any = |text: &str| text.parse::<u16>().map_err(|_| format!("{text:?} is not a port, 1 to 65535"));
    let port = |text: &str| {
        any(text).and_then(|port| if port == 0 { Err("port 0 leads nowhere".to_owned()) } else { Ok(port) })
    };
    let Some((guest, rest)) = text.split_once(':') else {
        return Ok(TunnelPort { guest: port(text)?, service: None });
    };
    let words = "write it like 5432:127.0.0.1:5432; an IPv6 address stands in brackets";
    let (host, to) = rest.rsplit_once(':').ok_or(words)?;
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    if host.is_empty() || (bare.is_none() && host.contains([':', '[', ']'])) {
        return Err(words.to_owned());
    }
    Ok(TunnelPort { guest: any(guest)?, service: Some((bare.unwrap_or(host).to_owned(), port(to)?)) })
}

/// `NAME=VALUE`.
pub fn environment(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("write it like NAME=VALUE".to_owned()),
    }
}

/// GPUs of one model: its name, or with a number, `H100:2`.
pub fn gpus(text: &str) -> Result<Gpus, String> {
    let (model, count) = text.split_once(':').unwrap_or((text, "1"));
    let count = count.parse().map_err(|_| "write MODEL or MODEL:N: H100, H100:2".to_owned())?;
    Ok(Gpus { count, model: model.to_owned() })
}

/// A size in MiB: a number of MiB, or a number with `m`, `g` or `t`.
pub fn megabytes(text: &str) -> Result<u64, String> {
    let refuse = || "write a number of MiB, or one with a unit: 2048, 512m, 2g".to_owned();
    let lower = text.to_ascii_lowercase();
    let digits = lower.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor = match &lower[digits.len()..] {
        "" | "m" | "mb" | "mib" => 1,
        "g" | "gb" | "gib" => 1024,
        "t" | "tb" | "tib" => 1024 * 1024,
        _ => return Err(refuse()),
    };
    digits.parse::<u64>().ok().and_then(|number| number.checked_mul(factor)).ok_or_else(refuse)
}

/// A time in seconds: a number of seconds, or a number with `s`, `m`, `h` or `d`.
pub fn seconds(text: &str) -> Result<u64, String> {
    let refuse = || "write a number of seconds, or one with a unit: 90, 90s, 10m, 2h, 1d".to_owned();
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor = match &text[digits.len()..] {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 24 * 3600,
        _ => return Err(refuse()),
    };
    digits.parse::<u64>().ok().and_then(|number| number.checked_mul(factor)).ok_or_else(refuse)
}

/// A signal by number or name, with or without `SIG`.
pub fn signal(text: &str) -> Result<i32, String> {
    let upper = text.to_ascii_uppercase();
    let full = if upper.starts_with("SIG") { upper } else { format!("SIG{upper}") };
    match text.parse::<i32>() {
        Ok(number) if (1..=64).contains(&number) => Ok(number),
        Ok(_) => Err("signals are numbered 1 to 64".to_owned()),
        Err(_) => nix::sys::signal::Signal::from_str(&full)
            .map(|signal| signal as i32)
            .map_err(|_| "write a signal like TERM, SIGTERM or 15".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Debug;

    use super::*;

    #[track_caller]
    fn check<T: PartialEq + Debug>(parse: impl Fn(&str) -> Result<T, String>, cases: &[(&str, Option<T>)]) {
        for (text, expected) in cases {
            assert_eq!(parse(text).ok().as_ref(), expected.as_ref(), "{text:?}");
        }
    }

    #[test]
    fn values_are_parsed() {
        check(megabytes, &[("2048", Some(2048)), ("2g", Some(2048)), ("1GiB", Some(1024)), ("512m", Some(512))]);
        check(
            megabytes,
            &[("", None), ("g", None), ("1.5g", None), ("-1", None), ("99999999999999t", None), ("1x", None)],
        );
        check(
            seconds,
            &[("90", Some(90)), ("10m", Some(600)), ("2h", Some(7200)), ("0", Some(0)), ("1w", None), ("m", None)],
        );
        check(
            signal,
            &[("9", Some(9)), ("KILL", Some(9)), ("sigterm", Some(15)), ("0", None), ("65", None), ("X", None)],
        );
        let pair = |name: &str, value: &str| Some((name.to_owned(), value.to_owned()));
        check(environment, &[("A=b=c", pair("A", "b=c")), ("A=", pair("A", "")), ("A", None), ("=b", None)]);
        check(
            reference,
            &[("box-1", Some("box-1".into())), ("a23456789012345678901", Some("a23456789012345678901".into()))],
        );
        let to = |guest, host: &str, port| Some(TunnelPort { guest, service: Some((host.to_owned(), port)) });
        check(
            tunnel,
            &[
                ("8000", Some(TunnelPort { guest: 8000, service: None })),
                ("5432:db.lan:5433", to(5432, "db.lan", 5433)),
                ("0:[::1]:80", to(0, "::1", 80)),
                ("80:::1:80", None),
                ("80:a", None),
                ("0", None),
                ("80::80", None),
                ("80:a:0", None),
                ("80:a:70000", None),
                ("x", None),
            ],
        );
        check(reference, &[("Box", None), ("", None), ("a/b", None)]);
    }
}
