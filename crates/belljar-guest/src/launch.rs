//! From a request to a running child: who, where, with what environment, and the fork itself.
//!
//! [`Settings`] is what the sandbox's configuration says about every process; [`Launch::prepare`] joins it with a
//! request and refuses what cannot work before anything is forked, with words that name the field.

use std::{
    collections::BTreeMap,
    io,
    os::{fd::OwnedFd, unix::fs::PermissionsExt},
    path::{Component, Path, PathBuf},
};

use belljar_api::{
    image::{Init, RuntimeConfig},
    limits::WORDS_MAX,
    process::UserSpec,
};

use crate::{
    cgroup::Cgroup,
    reaper::{Child, Reaper, SpawnError},
    spawn::Program,
    user::{Accounts, Identity, UserError},
};

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Why a process cannot be started; each but the last is the client's to mend.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LaunchError {
    #[error("{field}: {problem}")]
    Malformed { field: &'static str, problem: String },
    #[error(transparent)]
    User(#[from] UserError),
    #[error("working_dir: {path}: {problem}")]
    WorkingDir { path: String, problem: String },
    #[error("command: `{0}` was not found; give a path, or install it into one of the directories of PATH")]
    CommandNotFound(String),
    #[error("command: `{0}` is not an executable file")]
    NotExecutable(String),
    #[error("command: `{command}` could not be started: {source}")]
    Spawn { command: String, source: io::Error },
    #[error("the sandbox stands still for a moment; try again")]
    Held,
}

/// Where the agent lives: what differs between a VM and a plain directory.
#[derive(Debug, Clone)]
pub(crate) enum Place {
    /// A VM; the root file system is ours.
    Machine {
        /// Whose process 1 it has: ours, or the image's.
        init: Init,
    },
    /// A plain process on a host, working in this directory, that must leave the host as it is.
    Hosted { home: PathBuf, may_switch_user: bool },
}

/// What every process of the sandbox starts from.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) place: Place,
    pub(crate) runtime: RuntimeConfig,
}

/// The part of a request that says what to start.
#[derive(Debug, Clone, Default)]
pub(crate) struct Request {
    pub(crate) command: String,
    pub(crate) args: Vec<String>,
    pub(crate) env: BTreeMap<String, String>,
    pub(crate) working_dir: Option<String>,
    pub(crate) user: Option<UserSpec>,
}

/// A start that can be made, and made again.
#[derive(Debug, Clone)]
pub(crate) struct Launch {
    program: PathBuf,
    pub(crate) command: String,
    pub(crate) args: Vec<String>,
    env: BTreeMap<String, String>,
    cwd: PathBuf,
    /// `None` stays who the agent is.
    pub(crate) identity: Option<Identity>,
}

/// The three standard streams of a child.
pub(crate) struct Streams {
    /// Stdin, stdout, stderr.
    pub(crate) files: [OwnedFd; 3],
    /// Whether stdin is a terminal that becomes the controlling one.
    pub(crate) terminal: bool,
}

impl Settings {
    /// Who runs what names nobody. `None` is the agent's own user.
    pub(crate) fn identity(&self, spec: Option<&UserSpec>) -> Result<Option<Identity>, UserError> {
        let accounts = Accounts::read(Path::new("/"));
        let found = match spec {
            Some(spec) => accounts.resolve(spec),
            None => accounts.default_user(self.runtime.user.as_deref()),
        };
        match &self.place {
            Place::Machine { .. } => found.map(Some),
            // The host's users are not the image's: whoever is missing is played by the agent's own user.
            Place::Hosted { may_switch_user: false, .. } => Ok(None),
            Place::Hosted { .. } => Ok(found.ok().filter(|identity| identity.uid != 0)),
        }
    }

    /// Where what names no directory works, and what relative paths are relative to.
    pub(crate) fn directory(&self, identity: Option<&Identity>) -> PathBuf {
        match (&self.place, &self.runtime.workdir, identity) {
            (Place::Hosted { home, .. }, _, _) => home.clone(),
            (Place::Machine { .. }, Some(workdir), _) if !workdir.is_empty() => Path::new("/").join(workdir),
            (Place::Machine { .. }, _, Some(identity)) => identity.home.clone(),
            (Place::Machine { .. }, _, None) => PathBuf::from("/"),
        }
    }

    /// As [`Settings::directory`], for the default user.
    pub(crate) fn default_directory(&self) -> PathBuf {
        self.directory(self.identity(None).ok().flatten().as_ref())
    }

    fn environment(&self, identity: Option<&Identity>, own: BTreeMap<String, String>) -> BTreeMap<String, String> {
        let mut env = BTreeMap::new();
        let mut set = |name: &str, value: &str| drop(env.insert(name.to_owned(), value.to_owned()));
        match &self.place {
            Place::Machine { .. } => set("PATH", DEFAULT_PATH),
            Place::Hosted { .. } => set("PATH", &std::env::var("PATH").unwrap_or_else(|_| DEFAULT_PATH.to_owned())),
        }
        if let Some(identity) = identity {
            set("HOME", &identity.home.to_string_lossy());
            set("USER", &identity.name);
            set("LOGNAME", &identity.name);
            set("SHELL", &identity.shell);
        }
        if let Place::Hosted { home, .. } = &self.place {
            set("HOME", &home.to_string_lossy());
        }
        env.extend(self.runtime.env.clone());
        env.extend(own);
        env
    }
}

impl Launch {
    /// Joins settings and request.
    pub(crate) fn prepare(settings: &Settings, request: Request) -> Result<Self, LaunchError> {
        check_words(&request)?;
        let identity = settings.identity(request.user.as_ref())?;
        let default = settings.directory(identity.as_ref());
        let cwd = match request.working_dir.filter(|path| !path.is_empty()) {
            Some(path) => checked_directory(default.join(&path), &path)?,
            // A home that was never made is no reason to refuse every process.
            None if default.is_dir() => default,
            None => PathBuf::from("/"),
        };
        let env = settings.environment(identity.as_ref(), request.env);
        let program = find_program(&request.command, env.get("PATH").map_or("", String::as_str), &cwd)?;
        Ok(Self { program, command: request.command, args: request.args, env, cwd, identity })
    }

    /// Adds a variable unless it is set.
    pub(crate) fn default_env(&mut self, name: &str, value: &str) {
        self.env.entry(name.to_owned()).or_insert_with(|| value.to_owned());
    }

    /// Forks. The child leads its own session and process group, and is in `cgroup` before it runs a line.
    pub(crate) fn start(
        &self,
        reaper: &Reaper,
        streams: Streams,
        cgroup: Option<&Cgroup>,
    ) -> Result<Child, LaunchError> {
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::NotFound => LaunchError::CommandNotFound(self.command.clone()),
            io::ErrorKind::PermissionDenied => LaunchError::NotExecutable(self.command.clone()),
            _ => LaunchError::Spawn { command: self.command.clone(), source },
        };
        let program = Program {
            path: &self.program,
            words: std::iter::once(&self.command).chain(&self.args).cloned().collect(),
            environment: self.env.iter().map(|(name, value)| format!("{name}={value}")).collect(),
            directory: &self.cwd,
            streams: streams.files,
            terminal: streams.terminal,
            cgroup: cgroup.map(Cgroup::join_file).transpose().map_err(failed)?,
            identity: self.identity.as_ref().map(|who| (who.uid, who.gid, who.groups.clone())),
        };
        reaper.spawn(program).map_err(|error| match error {
            SpawnError::Held => LaunchError::Held,
            SpawnError::Failed(source) => failed(source),
        })
    }
}

fn check_words(request: &Request) -> Result<(), LaunchError> {
    let malformed = |field, problem: &str| Err(LaunchError::Malformed { field, problem: problem.to_owned() });
    if request.command.is_empty() {
        return malformed("command", "is empty; name a program");
    }
    if request.args.len() > WORDS_MAX {
        return malformed("args", &format!("has more than {WORDS_MAX} words"));
    }
    if request.env.len() > WORDS_MAX {
        return malformed("env", &format!("has more than {WORDS_MAX} variables"));
    }
    if request.command.contains('\0') || request.args.iter().any(|arg| arg.contains('\0')) {
        return malformed("args", "a word contains a NUL byte, which no program can be given");
    }
    for (name, value) in &request.env {
        if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
            return malformed(
                "env",
                &format!("`{}` cannot be set: a name has no `=`, neither has a NUL byte", name.escape_debug()),
            );
        }
    }
    Ok(())
}

fn checked_directory(path: PathBuf, asked: &str) -> Result<PathBuf, LaunchError> {
    let wrong = |problem: String| Err(LaunchError::WorkingDir { path: asked.to_owned(), problem });
    match std::fs::metadata(&path) {
        Ok(metadata) if metadata.is_dir() => Ok(path),
        Ok(_) => wrong("is not a directory".to_owned()),
        Err(error) => wrong(error.to_string()),
    }
}

/// Finds a program as a shell does, so that the refusal can say what was wrong before anything is forked.
fn find_program(command: &str, path: &str, cwd: &Path) -> Result<PathBuf, LaunchError> {
    let mut components = Path::new(command).components();
    let is_name = matches!((components.next(), components.next()), (Some(Component::Normal(_)), None));
    if !is_name || command.contains('/') {
        let program = cwd.join(command);
        return match std::fs::metadata(&program) {
            Err(_) => Err(LaunchError::CommandNotFound(command.to_owned())),
            Ok(metadata) if is_program(&metadata) => Ok(program),
            Ok(_) => Err(LaunchError::NotExecutable(command.to_owned())),
        };
    }
    let mut seen = false;
    for directory in path.split(':') {
        let program = cwd.join(directory).join(command);
        match std::fs::metadata(&program) {
            Ok(metadata) if is_program(&metadata) => return Ok(program),
            Ok(_) => seen = true,
            Err(_) => {}
        }
    }
    Err(if seen { LaunchError::NotExecutable } else { LaunchError::CommandNotFound }(command.to_owned()))
}

fn is_program(metadata: &std::fs::Metadata) -> bool {
    metadata.is_file() && metadata.permissions().mode() & 0o111 != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        let place = Place::Hosted { home: PathBuf::from("/tmp"), may_switch_user: false };
        let env = BTreeMap::from([("A".to_owned(), "image".to_owned()), ("B".to_owned(), "image".to_owned())]);
        Settings { place, runtime: RuntimeConfig { env, ..RuntimeConfig::default() } }
    }

    #[track_caller]
    fn check(request: Request, expected: &str) {
        let shown = match Launch::prepare(&settings(), request) {
            Ok(launch) => launch.cwd.display().to_string(),
            Err(error) => error.to_string(),
        };
        assert_eq!(shown, expected);
    }

    fn command(command: &str) -> Request {
        Request { command: command.to_owned(), ..Request::default() }
    }

    #[test]
    fn refusals_name_the_field() {
        check(command("sh"), "/tmp");
        check(command("/bin/sh"), "/tmp");
        check(command(""), "command: is empty; name a program");
        check(
            command("no-such-program"),
            "command: `no-such-program` was not found; give a path, or install it into one of the directories of PATH",
        );
        check(command("/etc/passwd"), "command: `/etc/passwd` is not an executable file");
        check(command("/tmp"), "command: `/tmp` is not an executable file");
        check(
            Request { working_dir: Some("/no/such".to_owned()), ..command("sh") },
            "working_dir: /no/such: No such file or directory (os error 2)",
        );
        check(
            Request { working_dir: Some("/etc/passwd".to_owned()), ..command("sh") },
            "working_dir: /etc/passwd: is not a directory",
        );
        check(Request { working_dir: Some("/".to_owned()), ..command("sh") }, "/");
        check(
            Request { env: BTreeMap::from([("A=B".to_owned(), String::new())]), ..command("sh") },
            "env: `A=B` cannot be set: a name has no `=`, neither has a NUL byte",
        );
    }

    #[test]
    fn a_requests_environment_wins_over_the_images() {
        let env = BTreeMap::from([("B".to_owned(), "own".to_owned())]);
        let mut launch = Launch::prepare(&settings(), Request { env, ..command("sh") }).expect("sh is there");
        launch.default_env("A", "default");
        launch.default_env("TERM", "dumb");
        let get = |name: &str| launch.env.get(name).map(String::as_str);
        assert_eq!(
            (get("A"), get("B"), get("TERM"), get("HOME")),
            (Some("image"), Some("own"), Some("dumb"), Some("/tmp"))
        );
    }
}
