//! Guests that send anything at all.

use hickory_proto::op::OpCode;
use hickory_proto::rr::DNSClass;
use proptest::{collection::vec, prelude::*};

use super::*;
use crate::egress::{
    limits,
    resolver::query::{self, Transport},
};

#[tokio::test]
async fn what_is_no_query_gets_no_answer() {
    let scene = Scene::new(&[("a.example", &["a.example 60 A 1.1.1.1"])], policy(true, &["*.example"], &[])).await;
    let good = question("a.example A").to_vec().unwrap();
    let mut answer = question("a.example A");
    answer.metadata.message_type = MessageType::Response;
    let mut long = good.clone();
    long.resize(limits::QUERY_MAX + 1, 0);
    for bytes in
        [vec![], b"x".to_vec(), vec![0xff; 600], good[..good.len() - 3].to_vec(), answer.to_vec().unwrap(), long]
    {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.send_to(&bytes, scene.address).await.unwrap();
        // Answers come in turn: that to a good query shows that none came before.
        socket.send_to(&good, scene.address).await.unwrap();
        let mut buffer = [0; 512];
        let length = timeout(SOON, socket.recv(&mut buffer)).await.unwrap().unwrap();
        assert_eq!(shown(&Message::from_vec(&buffer[..length]).unwrap()), "NOERROR; a.example A 1.1.1.1");
        assert!(timeout(Duration::from_millis(50), socket.recv(&mut buffer)).await.is_err(), "{bytes:?}");
    }
    scene.end().await;
}

#[tokio::test]
async fn odd_queries_get_a_code() {
    let scene = Scene::new(&[], policy(true, &["*.example"], &[])).await;
    let check = async |change: fn(&mut Message), expected: &str| {
        let mut message = question("a.example A");
        change(&mut message);
        assert_eq!(shown(&scene.exchange(&message).await.unwrap()), expected);
    };
    check(|message| message.metadata.op_code = OpCode::Update, "NOTIMP").await;
    check(|message| drop(message.queries.pop()), "FORMERR").await;
    check(|message| message.queries.push(message.queries[0].clone()), "FORMERR").await;
    check(|message| message.queries[0].query_class = DNSClass::CH, "REFUSED").await;
    check(|message| message.queries[0].name = Name::root(), "REFUSED").await;
    check(|message| message.queries[0].name = Name::from_labels(["a.example".as_bytes()]).unwrap(), "REFUSED").await;
    check(|message| message.queries[0].name = Name::from_labels(["a\\.b".as_bytes(), b"example"]).unwrap(), "REFUSED")
        .await;
    check(|message| message.queries[0].name = Name::from_labels([&b"\xff"[..], b"example"]).unwrap(), "REFUSED").await;
    scene.end().await;
}

#[tokio::test]
async fn a_flood_is_answered_up_to_the_rate_and_the_resolver_lives_on() {
    let scene = Scene::new(&[("a.example", &["a.example 60 A 1.1.1.1"])], policy(true, &["*.example"], &[])).await;
    let query = question("x.org A").to_vec().unwrap();
    let flood = 4 * usize::try_from(limits::QUERIES_BURST).unwrap();
    let mut stream = TcpStream::connect(scene.address).await.unwrap();
    let mut answered = 0;
    for _ in 0..flood {
        write_framed(&mut stream, &query).await.unwrap_or_default();
        match timeout(SOON, read_framed(&mut stream)).await.expect("an answer or an end") {
            Ok(_) => answered += 1,
            Err(_) => stream = TcpStream::connect(scene.address).await.unwrap(),
        }
    }
    assert!((limits::QUERIES_BURST as usize..flood).contains(&answered), "{answered} of {flood}");
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(scene.ask("a.example A").await, "NOERROR; a.example A 1.1.1.1");
    scene.end().await;
}

#[tokio::test]
async fn more_connections_than_it_takes_are_closed() {
    let scene = Scene::new(&[], policy(true, &["*.example"], &[])).await;
    let mut held = Vec::new();
    for _ in 0..limits::TCP_CONNECTIONS_MAX {
        let mut stream = TcpStream::connect(scene.address).await.unwrap();
        // One question each, so that all are accepted.
        write_framed(&mut stream, &question("x.org A").to_vec().unwrap()).await.unwrap();
        read_framed(&mut stream).await.unwrap();
        held.push(stream);
    }
    let mut more = TcpStream::connect(scene.address).await.unwrap();
    assert!(timeout(SOON, more.read_u8()).await.unwrap().is_err());
    drop(held);
    scene.end().await;
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in vec(any::<u8>(), 0..600), flips in vec((0..40_usize, any::<u8>()), 0..6)) {
        let mut near = question("a.example A").to_vec().unwrap();
        for (at, byte) in flips {
            if let Some(place) = near.get_mut(at) {
                *place = byte;
            }
        }
        for policy in [policy(true, &["*.example"], &[]), policy(true, &[], &[])] {
            for bytes in [&bytes, &near] {
                let Some(message) = query::read(bytes) else { continue };
                let _ = query::judge(&message, &policy);
                let answer = query::coded(&message, ResponseCode::Refused);
                if let Some(written) = query::write(&answer, &message, Transport::Udp) {
                    prop_assert!(written.len() <= usize::from(limits::UDP_ANSWER_MAX));
                }
                let _ = query::relayed(&message, &policy, message.clone());
            }
        }
    }
}
