use super::*;

/// A client that knows what it asked for.
struct Client {
    session: Session,
    dir: tempfile::TempDir,
}

impl Client {
    fn new() -> Self {
        Self { session: Session::default(), dir: tempfile::tempdir().expect("directory") }
    }

    fn path(&self, name: &str) -> Vec<u8> {
        self.dir.path().join(name).into_os_string().into_encoded_bytes()
    }

    /// Type of the answer and what follows the request's number.
    fn ask(&mut self, request: Packet) -> (u8, Vec<u8>) {
        let answer = self.session.answer(&request.finish()[4..]).finish();
        assert_eq!(answer[5..9], [0, 0, 0, 7]);
        (answer[4], answer[9..].to_vec())
    }

    #[track_caller]
    fn status(&mut self, request: Packet) -> u32 {
        let (kind, rest) = self.ask(request);
        assert_eq!(kind, kind::STATUS, "{rest:?}");
        Fields(&rest).u32().expect("code")
    }

    #[track_caller]
    fn open(&mut self, name: &str, flags: u32) -> Vec<u8> {
        let path = self.path(name);
        let (kind, rest) = self.ask(request(kind::OPEN).bytes(&path).u32(flags).no_attributes());
        assert_eq!(kind, kind::HANDLE, "{}", String::from_utf8_lossy(&rest));
        Fields(&rest).bytes().expect("handle").to_vec()
    }
}

fn request(kind: u8) -> Packet {
    Packet::answer(kind, 7)
}

#[test]
fn a_file_is_written_read_and_gone() {
    let mut client = Client::new();
    let (path, other) = (client.path("a"), client.path("b"));
    let handle = client.open("a", 0x1a);
    assert_eq!(client.status(request(kind::WRITE).bytes(&handle).u64(3).bytes(b"def")), 0);
    assert_eq!(client.status(request(kind::WRITE).bytes(&handle).u64(0).bytes(b"abc")), 0);
    assert_eq!(client.status(request(kind::FSETSTAT).bytes(&handle).u32(4).u32(0o640)), 0);
    assert_eq!(client.status(request(kind::CLOSE).bytes(&handle)), 0);
    assert_eq!(client.status(request(kind::CLOSE).bytes(&handle)), 4);

    let handle = client.open("a", 1);
    let (kind, rest) = client.ask(request(kind::READ).bytes(&handle).u64(1).u32(1 << 30));
    assert_eq!((kind, Fields(&rest).bytes().expect("data")), (kind::DATA, b"bcdef".as_slice()));
    assert_eq!(client.status(request(kind::READ).bytes(&handle).u64(6).u32(9)), 1);

    let (kind, rest) = client.ask(request(kind::STAT).bytes(&path));
    let attributes = Fields(&rest).attributes().expect("attributes");
    assert_eq!((kind, attributes.size, attributes.mode), (kind::ATTRS, Some(6), Some(0o100_640)));

    assert_eq!(client.status(request(kind::SETSTAT).bytes(&path).u32(8).u32(5).u32(6)), 0);
    assert_eq!(client.status(request(kind::RENAME).bytes(&path).bytes(&other)), 0);
    assert_eq!(client.status(request(kind::STAT).bytes(&path)), 2);
    drop(client.open("a", 0x0a));
    assert_eq!(client.status(request(kind::RENAME).bytes(&path).bytes(&other)), 4);
    let replace = request(kind::EXTENDED).bytes(b"posix-rename@openssh.com").bytes(&path).bytes(&other);
    assert_eq!(client.status(replace), 0);
    assert_eq!(client.status(request(kind::REMOVE).bytes(&other)), 0);
    assert_eq!(client.status(request(kind::REMOVE).bytes(&other)), 2);
}

#[test]
fn directories_are_listed_to_the_end() {
    let mut client = Client::new();
    let dir = client.path("d");
    assert_eq!(client.status(request(kind::MKDIR).bytes(&dir).no_attributes()), 0);
    let count = 2 * crate::limits::SFTP_NAMES + 1;
    for number in 0..count {
        std::fs::write(client.dir.path().join(format!("d/{number}")), "").expect("file");
    }
    let (_, rest) = client.ask(request(kind::OPENDIR).bytes(&dir));
    let handle = Fields(&rest).bytes().expect("handle").to_vec();
    let mut names = Vec::new();
    loop {
        let (kind, rest) = client.ask(request(kind::READDIR).bytes(&handle));
        if kind == kind::STATUS {
            assert_eq!(Fields(&rest).u32().expect("code"), 1);
            break;
        }
        let mut fields = Fields(&rest);
        for _ in 0..fields.u32().expect("count") {
            names.push(fields.path().expect("name"));
            fields.bytes().expect("long name");
            fields.attributes().expect("attributes");
        }
    }
    assert_eq!(names.len(), count + 2);
    assert_eq!(client.status(request(kind::RMDIR).bytes(&dir)), 4);
}

#[test]
fn paths_are_resolved_also_where_nothing_is_yet() {
    let mut client = Client::new();
    let root = client.dir.path().canonicalize().expect("path");
    for (name, expected) in [(".", root.clone()), ("x/../y", root.join("y"))] {
        let path = client.path(name);
        let (_, rest) = client.ask(request(kind::REALPATH).bytes(&path));
        let mut fields = Fields(&rest);
        assert_eq!((fields.u32().expect("count"), fields.path().expect("path")), (1, expected), "{name}");
    }
}

#[test]
fn nonsense_is_refused_and_the_session_goes_on() {
    let mut client = Client::new();
    assert_eq!(client.status(request(99)), 8);
    assert_eq!(client.status(request(kind::OPEN).u32(9)), 5);
    assert_eq!(client.status(request(kind::READ).bytes(b"none").u64(0).u32(1)), 4);
    assert_eq!(client.status(request(kind::EXTENDED).bytes(b"what@ever")), 8);
    let mut output = Vec::new();
    let input = [0, 0, 0, 5, kind::INIT, 0, 0, 0, 3];
    serve(&mut input.as_slice(), &mut output).expect("served");
    assert_eq!(output[4..9], [kind::VERSION, 0, 0, 0, 3]);
}
