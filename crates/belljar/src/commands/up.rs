//! `belljar up`, in the foreground or detached.
//!
//! ```text
//! up                      up --detach
//!  |                       |-- starts `up --detached` with a pipe as its stdout, waits for one line or the end
//!  |                       |            |-- a session of its own
//!  |- check, bind, open    |            |- check, bind, open, prepare; errors still go to the user's stderr
//!  |- summary on stdout    |<-- JSON ---|- summary into the pipe; from now on stdout and stderr are the log
//!  |- until a signal       |- summary   |- until a signal
//! ```

use std::{
    ffi::OsString,
    io::{self, Read, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::Context as _;
use belljar_server::{Listeners, TlsSource};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::Context;
use crate::{
    cli::UpArgs,
    exit::ExitStatus,
    report::Failure,
    settings::UpSettings,
    up::{data_dir::DataDir, instance::Instance, log, summary::Summary, together},
};

/// Largest summary, bytes.
const SUMMARY_MAX: u64 = 64 * 1024;
/// Lines of the log that are shown when a detached start dies without a word.
const LOG_LINES: usize = 20;

pub(super) fn up(ctx: &Context, args: &UpArgs) -> anyhow::Result<ExitStatus> {
    let data_dir = absolute(&ctx.settings.data_dir)?;
    let mut settings = ctx.settings.up(args)?;
    let paths = [&mut settings.kernel, &mut settings.initrd, &mut settings.image_store, &mut settings.vmm_dir];
    for path in paths.into_iter().chain(&mut settings.volume_file) {
        *path = absolute(path)?;
    }
    if let Some(tls) = &mut settings.tls {
        let paths: [Option<&mut PathBuf>; 3] = match &mut tls.source {
            TlsSource::Files(files) => [Some(&mut files.certificate), Some(&mut files.key), None],
            TlsSource::Acme(acme) => [Some(&mut acme.dir), acme.ca.as_mut(), acme.dns_hook.as_mut()],
        };
        for path in paths.into_iter().flatten() {
            *path = absolute(path)?;
        }
    }
    if args.detach {
        return detach(ctx, &data_dir, &settings);
    }
    if args.detached {
        nix::unistd::setsid().context("cannot begin a session")?;
        // The directory that we were called from may be unmounted.
        std::env::set_current_dir("/").context("cannot change to /")?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start")?;
    runtime.block_on(run(ctx, &data_dir, &settings, args.detached))?;
    Ok(ExitStatus::Success)
}

async fn run(ctx: &Context, data_dir: &Path, settings: &UpSettings, detached: bool) -> anyhow::Result<()> {
    // Refused before anything is made, so that a refusal leaves nothing behind.
    DataDir::check(data_dir)?;
    for (what, path, task) in [("kernel", &settings.kernel, "kernel"), ("initramfs", &settings.initrd, "guest")] {
        if settings.driver.is_vm() && !path.is_file() {
            return Err(Failure::new(format!("{what} {} is missing", path.display()))
                .hint(format!("build it with `cargo xtask {task}`, or name another with --{}", path_flag(what)))
                .into());
        }
    }
    let tls = settings.tls.as_ref().map(|tls| &tls.listen[..]).unwrap_or_default();
    let listeners = Listeners { plain: together::bind(&settings.listen)?, tls: together::bind(tls)?, pipes: None };
    let ssh = together::bind_ssh(settings.ssh_listen)?;
    let dir = DataDir::open(data_dir)?;
    let _claim = Instance::claim(&dir)?;
    raise_file_limit();
    let log_file = if detached { Some(log::open(data_dir).context("cannot open the log")?) } else { None };
    let stdio = log_file.as_ref().map(std::fs::File::try_clone).transpose().context("cannot open the log")?;
    log::begin(ctx.settings.log.as_deref(), log_file);
    let mut together = together::prepare(&dir, settings, listeners, ssh).await?;
    together.summary.log = detached.then(|| log::path(data_dir));
    together
        .run(|summary| {
            let Some(log) = &stdio else { return Ok(summary.print(ctx.printer)?) };
            serde_json::to_writer(io::stdout().lock(), &summary).context("cannot tell that it is ready")?;
            io::stdout().flush().context("cannot tell that it is ready")?;
            nix::unistd::dup2_stdout(log).and_then(|()| nix::unistd::dup2_stderr(log)).context("cannot detach")
        })
        .await
}

fn path_flag(what: &str) -> &'static str {
    if what == "kernel" { "kernel" } else { "initrd" }
}

/// Every connection is a file; the usual soft limit of 1024 is for programs that use `select`.
fn raise_file_limit() {
    let raised =
        getrlimit(Resource::RLIMIT_NOFILE).and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::debug!(%error, "cannot raise the limit of open files");
    }
}

fn absolute(path: &Path) -> anyhow::Result<PathBuf> {
    std::path::absolute(path).with_context(|| format!("{} is not a path", path.display()))
}

fn detach(ctx: &Context, data_dir: &Path, settings: &UpSettings) -> anyhow::Result<ExitStatus> {
    let program = std::env::current_exe().context("cannot find this program")?;
    let spinner = ctx.printer.spinner("starting");
    let mut child = Command::new(program)
        .args(arguments(ctx.printer.is_json(), data_dir, settings))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start this program again")?;
    let mut told = Vec::new();
    if let Some(pipe) = child.stdout.take() {
        pipe.take(SUMMARY_MAX).read_to_end(&mut told).context("cannot hear from it")?;
    }
    spinner.finish_and_clear();
    if let Ok(summary) = serde_json::from_slice::<Summary>(&told) {
        summary.print(ctx.printer)?;
        return Ok(ExitStatus::Success);
    }
    let status = child.wait().context("cannot wait for it")?;
    match status.code() {
        // It has said why itself: its stderr was ours.
        Some(code) if code != 0 => Ok(ExitStatus::Failure),
        _ => {
            let failure = Failure::new(format!("it ended before it was ready ({status})"));
            let lines = log::tail(data_dir, LOG_LINES);
            let failure = if lines.is_empty() {
                failure
            } else {
                failure.because(format!("its log ends with\n{}", lines.join("\n")))
            };
            Err(failure.into())
        }
    }
}

/// The command line of the detached process: every setting as it was resolved here.
fn arguments(json: bool, data_dir: &Path, settings: &UpSettings) -> Vec<OsString> {
    let mut all: Vec<OsString> = vec!["up".into(), "--detached".into()];
    let mut flag = |name: &str, value: OsString| all.extend([name.into(), value]);
    flag("--data-dir", data_dir.into());
    flag("--kernel", settings.kernel.clone().into());
    flag("--initrd", settings.initrd.clone().into());
    flag("--image-store", settings.image_store.clone().into());
    settings.listen.iter().for_each(|address| flag("--listen", address.to_string().into()));
    flag("--ssh-listen", settings.ssh_listen.map_or("none".into(), |address| address.to_string().into()));
    settings.public_url.iter().for_each(|url| flag("--public-url", url.into()));
    settings.ingress_domain.iter().for_each(|name| flag("--ingress-domain", name.into()));
    if let Some(tls) = &settings.tls {
        match &tls.source {
            TlsSource::Files(files) => {
                flag("--tls-cert", files.certificate.clone().into());
                flag("--tls-key", files.key.clone().into());
            }
            TlsSource::Acme(acme) => {
                flag("--acme-server", acme.server.clone().into());
                acme.contact.iter().for_each(|mail| flag("--acme-contact", mail.into()));
                acme.ca.iter().for_each(|file| flag("--acme-ca", file.into()));
                acme.dns_hook.iter().for_each(|program| flag("--acme-dns-hook", program.into()));
            }
        }
        tls.listen.iter().for_each(|address| flag("--tls-listen", address.to_string().into()));
    }
    settings.trusted_proxies.iter().for_each(|range| flag("--trusted-proxy", range.to_string().into()));
    flag("--spares", settings.spares.to_string().into());
    flag("--network", settings.network.kind.to_string().into());
    settings.network.allow_private.iter().for_each(|net| flag("--allow-private", net.to_string().into()));
    settings.network.resolvers.iter().for_each(|address| flag("--resolvers", address.to_string().into()));
    let limits = settings.network.limits;
    limits.megabits.iter().for_each(|megabits| flag("--network-bandwidth-mbit", megabits.to_string().into()));
    flag("--network-new-connections", limits.new_connections.to_string().into());
    flag("--network-connections", limits.connections.to_string().into());
    let bytes = settings.disk_limits.bytes.iter().map(|bytes| bytes.get() >> 20);
    bytes.for_each(|mebibytes| flag("--disk-bandwidth-mib", mebibytes.to_string().into()));
    settings.disk_limits.requests.iter().for_each(|requests| flag("--disk-iops", requests.to_string().into()));
    settings.hidden_features.names().for_each(|name| flag("--hide-cpu-features", name.into()));
    settings.gpus.iter().for_each(|gpu| flag("--gpu", gpu.to_string().into()));
    flag("--templates", settings.templates.to_string().into());
    flag("--resident-secs", settings.resident.as_secs().to_string().into());
    settings.memory_mb.iter().for_each(|mebibytes| flag("--memory-mb", mebibytes.to_string().into()));
    settings.volume_file.iter().for_each(|file| flag("--volume-file", file.into()));
    settings.volume_size_mb.iter().for_each(|size| flag("--volume-size-mb", size.to_string().into()));
    flag("--driver", settings.driver.to_string().into());
    flag("--vmm-dir", settings.vmm_dir.clone().into());
    flag("--jail", settings.jail.to_string().into());
    let is_acme = settings.tls.as_ref().is_some_and(|tls| matches!(tls.source, TlsSource::Acme(_)));
    all.push(format!("--acme={is_acme}").into());
    all.extend(json.then(|| "--json".into()));
    all
}

#[cfg(test)]
mod tests {
    use clap::{Args, CommandFactory, FromArgMatches};

    use super::*;
    use crate::{
        cli::{Cli, GlobalArgs},
        settings::{ConfigFile, Settings, Surroundings},
    };

    const COMMON: &str = "--listen 127.0.0.1:1,127.0.0.1:2 --ssh-listen 127.0.0.1:3 --kernel /k --initrd /i \
         --image-store /s --public-url https://example.com --ingress-domain example.com --tls-listen 127.0.0.1:4 \
         --trusted-proxy 10.0.0.0/8,10.1.0.0/16 --spares 7 --network user --allow-private 10.2.0.0/16,10.3.0.0/16 \
         --resolvers 10.4.0.1,10.4.0.2 --network-bandwidth-mbit 8 --network-new-connections 9 --network-connections 10 \
         --disk-bandwidth-mib 11 --disk-iops 12 --hide-cpu-features avx512f,sha-ni --gpu H100@0000:01:00.0,A10@0000:02:00.0 --templates false --resident-secs 13 --memory-mb 2048 \
         --volume-file /v --volume-size-mb 14 --driver qemu-kvm --jail off --vmm-dir /p";
    const FILES: &str = "--tls-cert /c --tls-key /y";
    const ACME: &str = "--acme=true --acme-contact a@example.com --acme-server https://acme.example.com --acme-ca /a \
                        --acme-dns-hook /h";

    /// What a command line says; it has to be of `up`.
    fn parse(words: &[OsString]) -> UpSettings {
        let words = [&[OsString::from("belljar")], words].concat();
        let matches = Cli::command().try_get_matches_from(words).expect("a command line");
        let global = GlobalArgs::from_arg_matches(&matches).expect("arguments");
        let args = UpArgs::from_arg_matches(matches.subcommand().expect("a command").1).expect("arguments");
        let around = Surroundings { home: Some("/nowhere".into()), ..Surroundings::default() };
        Settings::combine(&global, ConfigFile::default(), &around).up(&args).expect("settings")
    }

    #[test]
    fn the_detached_process_has_every_setting() {
        for source in [FILES, ACME] {
            let words = format!("up --data-dir /d {COMMON} {source}");
            let settings = parse(&words.split_whitespace().map(OsString::from).collect::<Vec<_>>());
            assert_eq!(parse(&arguments(false, Path::new("/d"), &settings)), settings);
        }
        // Whoever adds a setting adds it above.
        let all = format!("{COMMON} {FILES} {ACME} ");
        for flag in UpArgs::augment_args(clap::Command::new("up")).get_arguments().filter(|flag| !flag.is_hide_set()) {
            let name = flag.get_long().expect("a long name");
            let is_set = all.contains(&format!("--{name} ")) || all.contains(&format!("--{name}="));
            assert!(is_set || name == "detach", "--{name} is not tried");
        }
    }
}
