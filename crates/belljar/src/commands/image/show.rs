//! `belljar image show`: all that the store knows of an image.

use belljar_image::{HistoryEntry, Named, Store};
use serde_json::{Value, json};

use super::Context;
use crate::{
    exit::ExitStatus,
    table::{bytes, or_dash, printable},
};

pub(super) fn show(ctx: &Context, store: &Store, name: &str) -> anyhow::Result<ExitStatus> {
    let named = store.find(name)?;
    let names = store.names_of(&named.image)?;
    if ctx.printer.is_json() {
        ctx.printer.json(&as_json(&named, &names))?;
        return Ok(ExitStatus::Success);
    }
    for (title, values) in lines(&named, &names) {
        for (index, value) in values.iter().enumerate() {
            let title = if index == 0 { format!("{title}:") } else { String::new() };
            ctx.printer.line(format!("{title:13}{}", printable(value)))?;
        }
    }
    Ok(ExitStatus::Success)
}

/// What there is to say, each with one line or more; what the image says nothing about has none.
fn lines(named: &Named, names: &[String]) -> Vec<(&'static str, Vec<String>)> {
    let (image, config) = (&named.image, &named.image.config);
    let pairs = |pairs: &std::collections::BTreeMap<String, String>| -> Vec<String> {
        pairs.iter().map(|(name, value)| format!("{name}={value}")).collect()
    };
    let some = |text: &str| if text.is_empty() { Vec::new() } else { vec![text.to_owned()] };
    let packages = image.packages.len();
    vec![
        ("name", vec![named.name.clone()]),
        ("names", if names.len() > 1 { vec![names.join(", ")] } else { Vec::new() }),
        ("id", vec![image.id()]),
        ("digest", vec![image.digest.clone()]),
        ("size", vec![bytes(image.size_bytes)]),
        ("on disk", vec![bytes(image.disk_bytes)]),
        ("created", vec![image.created_at.clone()]),
        ("suite", some(&image.suite)),
        ("origin", some(image.origin.as_deref().unwrap_or_default())),
        ("packages", if packages > 0 { vec![packages.to_string()] } else { Vec::new() }),
        ("public", vec![if named.public { "yes" } else { "no" }.to_owned()]),
        ("env", pairs(&config.env)),
        ("workdir", some(config.workdir.as_deref().unwrap_or("the user's home"))),
        ("user", some(config.user.as_deref().unwrap_or("tl-user"))),
        ("entrypoint", some(&words(&config.entrypoint))),
        ("cmd", some(&words(&config.cmd))),
        ("labels", pairs(&config.labels)),
        ("ports", some(&config.exposed_ports.join(", "))),
        ("rootfs", vec![image.rootfs.display().to_string()]),
        ("history", image.history.iter().map(step).collect()),
    ]
}

/// A command line as a shell would take it.
fn words(words: &[String]) -> String {
    let quoted = |word: &String| {
        let plain = !word.is_empty() && word.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_=/.:,@%+".contains(&b));
        if plain { word.clone() } else { format!("'{}'", word.replace('\'', r"'\''")) }
    };
    words.iter().map(quoted).collect::<Vec<_>>().join(" ")
}

fn step(entry: &HistoryEntry) -> String {
    let comment = if entry.comment.is_empty() { String::new() } else { format!(" ({})", entry.comment) };
    format!("{}  {}{comment}", or_dash(entry.created.as_ref()), entry.created_by.trim())
}

fn as_json(named: &Named, names: &[String]) -> Value {
    let (image, config) = (&named.image, &named.image.config);
    json!({
        "name": named.name, "names": names, "public": named.public, "id": image.id(), "digest": image.digest,
        "rootfs": image.rootfs, "logical_size_bytes": image.size_bytes, "physical_size_bytes": image.disk_bytes,
        "created_at": image.created_at, "suite": image.suite, "origin": image.origin, "packages": image.packages,
        "config": {
            "env": config.env, "workdir": config.workdir, "user": config.user, "entrypoint": config.entrypoint,
            "cmd": config.cmd, "labels": config.labels, "exposed_ports": config.exposed_ports,
        },
        "history": image.history,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_lines_can_be_copied() {
        let check = |given: &[&str], expected: &str| {
            assert_eq!(words(&given.iter().map(|&word| word.to_owned()).collect::<Vec<_>>()), expected);
        };
        check(&[], "");
        check(&["/bin/sh", "-c", "echo $A"], "/bin/sh -c 'echo $A'");
        check(&["", "it's"], r"'' 'it'\''s'");
    }
}
