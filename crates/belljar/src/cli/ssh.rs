//! Arguments of the commands around SSH.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::value;

/// `belljar ssh`.
#[derive(Debug, Args)]
#[command(after_help = "\
Runs this machine's OpenSSH client with a key of its own, which is made and added to the server at its first use, and \
with the server's host key, so that nothing is asked. Ports are forwarded with -o: `belljar ssh -o -L8080:localhost:80 \
box`. `belljar ssh-config` sets scp, sftp, rsync and editors up in the same way.")]
pub struct SshArgs {
    /// An argument for ssh itself; may be repeated
    #[arg(short, long = "option", value_name = "ARG", allow_hyphen_values = true)]
    pub options: Vec<String>,
    /// Id or name
    #[arg(value_parser = value::reference)]
    pub sandbox: String,
    /// Command line for the user's shell, after `--` [default: a login]
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

/// `belljar ssh-config`.
#[derive(Debug, Args)]
#[command(after_help = "\
Append it to ~/.ssh/config; then `ssh belljar-box`, `scp`, `rsync` and VS Code's Remote-SSH know the host.")]
pub struct SshConfigArgs {
    /// Name of the host in the block [default: belljar-SANDBOX]
    #[arg(long, value_name = "NAME", value_parser = host)]
    pub host: Option<String>,
    /// Id or name
    #[arg(value_parser = value::reference)]
    pub sandbox: String,
}

/// `belljar ssh-key`.
#[derive(Debug, Subcommand)]
pub enum SshKeyCommand {
    /// List the SSH keys that open the sandboxes
    Ls,
    /// Add a public key
    Add {
        /// Its file, like ~/.ssh/id_ed25519.pub; `-` is stdin
        file: PathBuf,
        /// A label for people [default: the key's comment]
        #[arg(long, default_value = "", hide_default_value = true)]
        name: String,
    },
    /// Remove a key; connections that it opened are closed
    Rm {
        /// Its id, as `ls` shows it
        id: String,
    },
}

/// A host's name in a configuration file of OpenSSH: one word that is no pattern.
fn host(text: &str) -> Result<String, String> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    match !text.is_empty() && text.bytes().all(plain) {
        true => Ok(text.to_owned()),
        false => Err("use letters, digits, `-`, `_` and `.`".to_owned()),
    }
}
