//! With the programs that others use: a registry of Debian, filled by skopeo with images that umoci made here.

use std::{
    collections::BTreeMap,
    ffi::CString,
    fs::Permissions,
    io::{BufRead, BufReader},
    os::unix::fs::{FileExt, PermissionsExt, chown, symlink},
    process::{Child, Command, Stdio},
};

use super::*;
use crate::oci::testing::{describe, is_root};

const TOOLS: [&str; 5] = ["docker-registry", "skopeo", "umoci", "mkfs.ext4", "unshare"];

/// Whether everything is there; says by name what is not.
fn can_run(test: &str) -> bool {
    let absent: Vec<&str> = TOOLS.into_iter().filter(|tool| !is_there(tool)).collect();
    if !absent.is_empty() {
        println!("{test}: skipped: not installed: {}", absent.join(" "));
    }
    is_root(test) && absent.is_empty()
}

fn is_there(tool: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]).any(|dir| dir.join(tool).is_file())
}

#[track_caller]
fn run(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A registry that ends with the test.
struct RealRegistry {
    child: Child,
    host: String,
}

impl RealRegistry {
    /// With `guarded`, it wants to hear `me` and `secret`.
    fn start(dir: &Path, guarded: bool) -> Self {
        fs::create_dir_all(dir).unwrap();
        let mut config = format!(
            "version: 0.1\nlog: {{level: info}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: \"127.0.0.1:0\"}}\n",
            dir.join("data").display()
        );
        if guarded {
            // bcrypt of `secret`.
            fs::write(dir.join("users"), "me:$2b$04$czSg.a.BdH9hcwTNkYdft.octU7Nk9E51sPqxMJFmbBm8rTPlJT/O\n").unwrap();
            config.push_str(&format!("auth: {{htpasswd: {{realm: x, path: {}}}}}\n", dir.join("users").display()));
        }
        fs::write(dir.join("config.yml"), config).unwrap();
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(dir.join("config.yml")).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let address = |line: &String| Some(line.split_once("listening on ")?.1.split('"').next()?.to_owned());
        let host = lines.by_ref().map_while(Result::ok).find_map(|line| address(&line)).expect("an address");
        // It ends when nobody takes what it says.
        thread_drains(lines);
        Self { child, host }
    }
}

fn thread_drains(lines: impl Iterator<Item = io::Result<String>> + Send + 'static) {
    std::thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
}

impl Drop for RealRegistry {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// An image in a layout, of four layers, that has everything a layer can have: `packed:base` in gzip, `packed:zstd` in zstd.
struct Made {
    dir: tempfile::TempDir,
}

impl Made {
    fn new() -> Self {
        let it = Self { dir: tempfile::tempdir().unwrap() };
        let (image, bundle) = (format!("{}:base", it.path("packed")), it.path("bundle"));
        run("umoci", &["init", "--layout", &it.path("packed")]);
        run("umoci", &["new", "--image", &image]);
        run("umoci", &["config", "--image", &image, "--config.env", "A=1", "--config.workingdir", "/srv"]);
        run("umoci", &["unpack", "--image", &image, &bundle]);
        let root = it.dir.path().join("bundle/rootfs");
        first_layer(&root);
        run("umoci", &["repack", "--refresh-bundle", "--image", &image, &bundle]);
        second_layer(&root);
        run("umoci", &["repack", "--refresh-bundle", "--image", &image, &bundle]);
        let opaque = it.dir.path().join("opaque");
        fs::create_dir(&opaque).unwrap();
        fs::write(opaque.join("only"), "this").unwrap();
        run("umoci", &["insert", "--image", &image, "--opaque", &it.path("opaque"), "/hidden"]);
        run("umoci", &["insert", "--image", &image, "--whiteout", "/usr/gone"]);
        let copy = |options: &[&str], from: String, to: String| {
            run("skopeo", &[&["--insecure-policy", "copy"], options, &[&from, &to]].concat());
        };
        copy(&[], format!("oci:{image}"), format!("docker-archive:{}:team/tool:v2", it.path("saved.tar")));
        let zstd = ["--dest-compress-format", "zstd"];
        copy(&zstd, format!("docker-archive:{}", it.path("saved.tar")), format!("oci:{}:zstd", it.path("packed")));
        it
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    fn push(&self, tag: &str, registry: &RealRegistry, options: &[&str]) {
        let (from, to) =
            (format!("oci:{}:{tag}", self.path("packed")), format!("docker://{}/team/tool:{tag}", registry.host));
        let fixed = ["--insecure-policy", "copy", "--dest-tls-verify=false"];
        run("skopeo", &[&fixed[..], options, &[&from, &to]].concat());
    }
}

fn first_layer(root: &Path) {
    for dir in ["usr/bin", "usr/gone/deep", "srv", "dev", "hidden/below", "var/long"] {
        fs::create_dir_all(root.join(dir)).unwrap();
    }
    symlink("usr/bin", root.join("bin")).unwrap();
    symlink("../../../outside", root.join("srv/out")).unwrap();
    let put = |name: &str, content: &[u8], mode: u32, owner: u32| {
        let path = root.join(name);
        fs::write(&path, content).unwrap();
        chown(&path, Some(owner), Some(owner + 1)).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
    };
    put("usr/bin/program", &b"#!/bin/true\n".repeat(9000), 0o4755, 0);
    put("usr/bin/capable", b"x", 0o755, 0);
    put("srv/note", b"", 0o600, 70_000);
    put("srv/\u{fc}ml\u{e4}ut and space", b"\xff\0", 0o640, 5);
    put("usr/gone/deep/file", b"1", 0o644, 0);
    put("hidden/below/file", b"1", 0o644, 0);
    put("hidden/file", b"1", 0o644, 0);
    put("srv/replaced", b"before", 0o644, 0);
    put(&format!("var/long/{}", "n".repeat(255)), b"long", 0o644, 0);
    fs::hard_link(root.join("usr/bin/program"), root.join("srv/same")).unwrap();
    let sparse = fs::File::create(root.join("srv/sparse")).unwrap();
    sparse.set_len(32 << 20).unwrap();
    sparse.write_all_at(b"data", 20 << 20).unwrap();
    // CAP_DAC_OVERRIDE and CAP_FOWNER, which make a line feed.
    let capability = [1, 0, 0, 2, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    for (name, attribute, value) in [
        ("usr/bin/capable", "security.capability", &capability[..]),
        ("srv/note", "user.note", b"a\nb"),
        ("srv", "user.of-a-directory", b""),
    ] {
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::lsetxattr(root.join(name), CString::new(attribute).unwrap(), value, flags).unwrap();
    }
    let mode = rustix::fs::Mode::from_raw_mode(0o660);
    for (name, kind, device) in [
        ("dev/null", rustix::fs::FileType::CharacterDevice, rustix::fs::makedev(1, 3)),
        ("dev/disk", rustix::fs::FileType::BlockDevice, rustix::fs::makedev(8, 1)),
        ("dev/pipe", rustix::fs::FileType::Fifo, 0),
    ] {
        rustix::fs::mknodat(rustix::fs::CWD, root.join(name), kind, mode, device).unwrap();
    }
    chown(root, Some(3), Some(4)).unwrap();
    fs::set_permissions(root, Permissions::from_mode(0o751)).unwrap();
}

fn second_layer(root: &Path) {
    fs::remove_file(root.join("srv/replaced")).unwrap();
    fs::create_dir(root.join("srv/replaced")).unwrap();
    fs::remove_dir_all(root.join("var/long")).unwrap();
    fs::write(root.join("var/long"), "a file now").unwrap();
    fs::write(root.join("bin/added"), "behind a link").unwrap();
    fs::set_permissions(root.join("srv"), Permissions::from_mode(0o1777)).unwrap();
}

/// What is in a root file system, copied out with all that belongs to it; in a namespace of its own, so that nothing stays
/// mounted. `lost+found` is the file system's.
fn content(image: &Image, dir: &Path) -> BTreeMap<String, String> {
    let (mounted, copy) = (dir.join("mounted"), dir.join("copy"));
    fs::create_dir(&mounted).unwrap();
    let script = "mount -o ro,loop \"$1\" \"$2\" && cp -a \"$2\" \"$3\"";
    let paths = [image.rootfs.as_path(), &mounted, &copy].map(|path| path.to_str().unwrap());
    run("unshare", &[&["--mount", "--", "sh", "-c", script, "sh"][..], &paths].concat());
    let found = without_nanoseconds(describe(&copy));
    fs::remove_dir(mounted).unwrap();
    fs::remove_dir_all(copy).unwrap();
    found
}

/// `mkfs.ext4` of Debian 12 keeps whole seconds.
fn without_nanoseconds(mut tree: BTreeMap<String, String>) -> BTreeMap<String, String> {
    tree.remove("lost+found");
    for text in tree.values_mut() {
        let (before, after) = text.split_once(", ").unwrap();
        *text = format!("{before}{}", after.split_once(')').unwrap().1);
    }
    tree
}

fn request(source: &str) -> ImportRequest {
    let name = Some("imported".to_owned());
    ImportRequest { source: source.to_owned(), name, insecure: true, ..ImportRequest::default() }
}

#[test]
fn the_tree_is_that_of_umoci() {
    if !can_run("the_tree_is_that_of_umoci") {
        return;
    }
    let made = Made::new();
    run("umoci", &["unpack", "--image", &format!("{}:base", made.path("packed")), &made.path("expected")]);
    let expected = describe(&made.dir.path().join("expected/rootfs"));
    assert!(expected.contains_key("hidden/only") && !expected.contains_key("hidden/file"), "{expected:#?}");
    assert!(expected["usr/bin/capable"].contains("security.capability") && !expected.contains_key("usr/gone"));

    // To the nanosecond, before it is packed.
    let caps = Caps::default();
    for tag in ["base", "zstd"] {
        let dir = made.dir.path().join("packed");
        let mut layout = Layout::new(&dir, Some(source::Which::Tag(tag.to_owned())), tag.to_owned());
        let resolved = manifest::resolve(&mut layout, &Wanted::parse(None).unwrap()).unwrap();
        assert_eq!(resolved.layers.len(), 4);
        let root = made.dir.path().join(tag);
        let mut tree = Tree::new(&root, &caps).unwrap();
        for layer in &resolved.layers {
            let (file, size) = layout.blob(&layer.name).unwrap();
            let content = Content::open(layer, file, size, &caps).unwrap();
            tree.apply(&layer.name, content).unwrap().finish().unwrap();
        }
        assert_eq!(describe(&root), expected, "{tag}");
    }

    let (open, guarded) = (made.dir.path().join("open"), made.dir.path().join("guarded"));
    let (open, guarded) = (RealRegistry::start(&open, false), RealRegistry::start(&guarded, true));
    made.push("base", &open, &[]);
    made.push("zstd", &open, &[]);
    made.push("base", &guarded, &["--dest-creds", "me:secret"]);

    let store = Store::open(&made.dir.path().join("store")).unwrap();
    let mut layers = Vec::new();
    let mut import = |request: &ImportRequest| {
        let imported = import(&store, request, &mut |progress| {
            if let ImportProgress::Unpack(layer) = progress {
                layers.push(layer.digest);
            }
        });
        imported.unwrap()
    };
    let first = import(&request(&format!("{}/team/tool:base", open.host))).image;
    assert_eq!(content(&first, made.dir.path()), without_nanoseconds(expected));
    assert_eq!((first.config.env["A"].as_str(), first.config.workdir.as_deref()), ("1", Some("/srv")));
    first.verify_content().unwrap();

    // The same layers from everywhere else give the same bytes.
    let pin = first.origin.as_ref().unwrap().rsplit_once('@').unwrap().1.to_owned();
    let saved = made.path("saved.tar");
    run("gzip", &["--keep", &saved]);
    for source in [
        format!("{}/team/tool:zstd", open.host),
        format!("{}/team/tool@{pin}", open.host),
        format!("oci:{}:base", made.path("packed")),
        format!("oci:{}@{pin}", made.path("packed")),
        format!("oci:{}:zstd", made.path("packed")),
        format!("docker-archive:{saved}"),
        format!("docker-archive:{saved}:team/tool:v2"),
        format!("docker-archive:{saved}.gz"),
    ] {
        let again = import(&ImportRequest { force: true, ..request(&source) });
        assert!(!again.cached && again.image.digest == first.digest, "{source}");
    }
    let login = Some(Login { username: "me".to_owned(), password: "secret".to_owned() });
    let source = format!("{}/team/tool:base", guarded.host);
    assert!(import(&ImportRequest { login, ..request(&source) }).cached);
    let denied = super::import(&store, &request(&source), &mut |_| {}).unwrap_err().to_string();
    assert!(denied.contains("does not let nobody read team/tool"), "{denied}");
    let absent = format!("{}/team/tool:absent", open.host);
    let absent = super::import(&store, &request(&absent), &mut |_| {}).unwrap_err().to_string();
    assert!(absent.contains("there is no image") && absent.contains("team/tool:absent"), "{absent}");
    let absent = format!("oci:{}:absent", made.path("packed"));
    let absent = super::import(&store, &request(&absent), &mut |_| {}).unwrap_err().to_string();
    assert!(absent.contains("there is: base, zstd"), "{absent}");
    let left: Vec<_> =
        fs::read_dir(made.dir.path().join("store/tmp")).unwrap().map(|it| it.unwrap().file_name()).collect();
    assert_eq!(left, ["blobs"]);
    assert_eq!(fs::read_dir(made.dir.path().join("store/tmp/blobs")).unwrap().count(), 0);
}
