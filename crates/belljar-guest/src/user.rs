//! Who a process runs as: reads `/etc/passwd` and `/etc/group` itself.
//!
//! The agent is statically linked, so the C library's lookups are not there; nor would they be wanted: what counts is
//! what stands in the root file system.

use std::path::{Path, PathBuf};

use belljar_api::process::UserSpec;

/// User that every Belljar image has.
pub(crate) const DEFAULT_USER: &str = "tl-user";

/// Who a process runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Supplementary groups.
    pub(crate) groups: Vec<u32>,
    /// Login name, or the uid as text.
    pub(crate) name: String,
    pub(crate) home: PathBuf,
    pub(crate) shell: String,
}

/// A user that is not there, or a text that is none.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum UserError {
    #[error("user: there is no user `{0}` in /etc/passwd; name one that exists, or a number")]
    UnknownUser(String),
    #[error("user: there is no group `{0}` in /etc/group; name one that exists, or a number")]
    UnknownGroup(String),
    #[error("user: `{0}` is not a user; write `name`, `uid` or `uid:gid`")]
    Malformed(String),
}

/// A line of `/etc/passwd`.
struct Account<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
    shell: &'a str,
}

/// The two files, as text.
pub(crate) struct Accounts {
    passwd: String,
    group: String,
}

impl Accounts {
    /// Reads both below `root`; a file that cannot be read counts as empty, as in an image from scratch.
    pub(crate) fn read(root: &Path) -> Self {
        let text = |name: &str| {
            std::fs::read(root.join(name)).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
        };
        Self { passwd: text("etc/passwd"), group: text("etc/group") }
    }

    /// Finds who `spec` names.
    pub(crate) fn resolve(&self, spec: &UserSpec) -> Result<Identity, UserError> {
        match spec {
            UserSpec::Name { name } => self.by_name(name).ok_or_else(|| UserError::UnknownUser(name.clone())),
            UserSpec::Ids { uid, gid } => Ok(self.by_uid(*uid, *gid)),
            UserSpec::Text(text) => self.by_text(text),
        }
    }

    /// The user of a process that names none: the image's, else [`DEFAULT_USER`], else root.
    pub(crate) fn default_user(&self, image_user: Option<&str>) -> Result<Identity, UserError> {
        match image_user.filter(|user| !user.is_empty()) {
            Some(user) => self.by_text(user),
            None => Ok(self.by_name(DEFAULT_USER).unwrap_or_else(|| self.by_uid(0, None))),
        }
    }

    /// `name`, `uid`, and either with `:group` or `:gid`.
    fn by_text(&self, text: &str) -> Result<Identity, UserError> {
        let (user, group) = match text.split_once(':') {
            Some((user, group)) => (user, Some(group)),
            None => (text, None),
        };
        if user.is_empty() || group.is_some_and(|group| group.is_empty() || group.contains(':')) {
            return Err(UserError::Malformed(text.to_owned()));
        }
        let gid = group.map(|group| self.gid_of(group)).transpose()?;
        // A name of digits only is possible; a number that is no name is a uid.
        if let Some(mut identity) = self.by_name(user) {
            identity.gid = gid.unwrap_or(identity.gid);
            return Ok(identity);
        }
        match user.parse() {
            Ok(uid) => Ok(self.by_uid(uid, gid)),
            Err(_) => Err(UserError::UnknownUser(user.to_owned())),
        }
    }

    fn by_name(&self, name: &str) -> Option<Identity> {
        self.accounts().find(|account| account.name == name).map(|account| self.identity(&account))
    }

    /// A uid needs no account: containers run as numbers that stand nowhere.
    fn by_uid(&self, uid: u32, gid: Option<u32>) -> Identity {
        let mut identity = match self.accounts().find(|account| account.uid == uid) {
            Some(account) => self.identity(&account),
            None => Identity {
                uid,
                gid: uid,
                groups: Vec::new(),
                name: if uid == 0 { "root".to_owned() } else { uid.to_string() },
                home: PathBuf::from(if uid == 0 { "/root" } else { "/" }),
                shell: "/bin/sh".to_owned(),
            },
        };
        identity.gid = gid.unwrap_or(identity.gid);
        identity
    }

    fn identity(&self, account: &Account<'_>) -> Identity {
        Identity {
            uid: account.uid,
            gid: account.gid,
            groups: self.groups_of(account.name),
            name: account.name.to_owned(),
            home: PathBuf::from(if account.home.is_empty() { "/" } else { account.home }),
            shell: if account.shell.is_empty() { "/bin/sh" } else { account.shell }.to_owned(),
        }
    }

    fn accounts(&self) -> impl Iterator<Item = Account<'_>> {
        self.passwd.lines().filter_map(|line| {
            let mut fields = line.split(':');
            let (name, _password) = (fields.next()?, fields.next()?);
            let (uid, gid) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
            let (_comment, home) = (fields.next()?, fields.next()?);
            Some(Account { name, uid, gid, home, shell: fields.next().unwrap_or("") })
        })
    }

    fn group_lines(&self) -> impl Iterator<Item = (&str, u32, &str)> {
        self.group.lines().filter_map(|line| {
            let mut fields = line.split(':');
            let (name, _password) = (fields.next()?, fields.next()?);
            Some((name, fields.next()?.parse().ok()?, fields.next().unwrap_or("")))
        })
    }

    fn groups_of(&self, user: &str) -> Vec<u32> {
        let is_member = |members: &str| members.split(',').any(|member| member.trim() == user);
        self.group_lines().filter(|(_, _, members)| is_member(members)).map(|(_, gid, _)| gid).collect()
    }

    fn gid_of(&self, group: &str) -> Result<u32, UserError> {
        match self.group_lines().find(|(name, _, _)| *name == group) {
            Some((_, gid, _)) => Ok(gid),
            None => group.parse().map_err(|_| UserError::UnknownGroup(group.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accounts() -> Accounts {
        Accounts {
            passwd: "root:x:0:0:root:/root:/bin/bash\nbroken line\n\
                     tl-user:x:1000:1000::/home/tl-user:/bin/bash\nwww:x:33:33:www:/var/www:\n"
                .to_owned(),
            group: "root:x:0:\nsudo:x:27:tl-user,other\ndocker:x:998:tl-user\ntl-user:x:1000:\n".to_owned(),
        }
    }

    #[track_caller]
    fn check(spec: &str, expected: &str) {
        let shown = match accounts().resolve(&UserSpec::Text(spec.to_owned())) {
            Ok(id) => format!("{} {}:{} {:?} {} {}", id.name, id.uid, id.gid, id.groups, id.home.display(), id.shell),
            Err(error) => error.to_string(),
        };
        assert_eq!(shown, expected);
    }

    #[test]
    fn users_are_found_in_every_form() {
        check("tl-user", "tl-user 1000:1000 [27, 998] /home/tl-user /bin/bash");
        check("1000", "tl-user 1000:1000 [27, 998] /home/tl-user /bin/bash");
        check("1000:27", "tl-user 1000:27 [27, 998] /home/tl-user /bin/bash");
        check("www:sudo", "www 33:27 [] /var/www /bin/sh");
        check("4242", "4242 4242:4242 [] / /bin/sh");
        check("0", "root 0:0 [] /root /bin/bash");
        check("nobody", "user: there is no user `nobody` in /etc/passwd; name one that exists, or a number");
        check("0:what", "user: there is no group `what` in /etc/group; name one that exists, or a number");
        for malformed in ["", ":", "1:", ":1", "1:2:3"] {
            check(malformed, &format!("user: `{malformed}` is not a user; write `name`, `uid` or `uid:gid`"));
        }
    }

    #[test]
    fn the_default_is_the_images_user_then_ours_then_root() {
        let name = |accounts: &Accounts, image| accounts.default_user(image).map(|id| id.name);
        assert_eq!(name(&accounts(), Some("www")), Ok("www".to_owned()));
        assert_eq!(name(&accounts(), Some("")), Ok("tl-user".to_owned()));
        assert_eq!(name(&accounts(), None), Ok("tl-user".to_owned()));
        let empty = Accounts { passwd: String::new(), group: String::new() };
        assert_eq!(name(&empty, None), Ok("root".to_owned()));
    }
}
