//! A parser of server-sent events (`text/event-stream`), pure: bytes in, events out.
//!
//! It keeps what the `run` and `follow` streams need: `event:` and `data:`. Comments, `id:` and `retry:` are ignored.
//! Lines end with `\n`, `\r\n` or `\r`; input may be cut anywhere, also inside a character.

use crate::limits::EVENT_MAX;

/// One event.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Event {
    /// Value of `event:`; empty when there was none.
    pub name: String,
    /// The `data:` lines, joined with newlines.
    pub data: String,
}

/// The stream cannot be an event stream that we accept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an event is longer than {EVENT_MAX} bytes")]
pub struct TooLong;

/// Holds the unfinished rest of a stream.
#[derive(Debug, Default)]
pub struct Parser {
    line: Vec<u8>,
    after_cr: bool,
    name: String,
    data: Option<String>,
}

impl Parser {
    /// Takes in the next bytes and calls `emit` for each event that they complete.
    pub fn push(&mut self, bytes: &[u8], mut emit: impl FnMut(Event)) -> Result<(), TooLong> {
        for &byte in bytes {
            let second_half = std::mem::take(&mut self.after_cr) && byte == b'\n';
            match byte {
                _ if second_half => {}
                b'\n' | b'\r' => {
                    self.after_cr = byte == b'\r';
                    if let Some(event) = self.end_line() {
                        emit(event);
                    }
                }
                _ => self.line.push(byte),
            }
            if self.line.len() + self.data.as_ref().map_or(0, String::len) > EVENT_MAX {
                return Err(TooLong);
            }
        }
        Ok(())
    }

    fn end_line(&mut self) -> Option<Event> {
        let line = std::mem::take(&mut self.line);
        if line.is_empty() {
            let name = std::mem::take(&mut self.name);
            return self.data.take().map(|data| Event { name, data });
        }
        let line = String::from_utf8_lossy(&line);
        let (field, value) = line.split_once(':').unwrap_or((&line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => value.clone_into(&mut self.name),
            "data" => match &mut self.data {
                Some(data) => {
                    data.push('\n');
                    data.push_str(value);
                }
                None => self.data = Some(value.to_owned()),
            },
            // A comment has an empty field name; `id` and `retry` mean nothing here.
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse<'a>(chunks: impl IntoIterator<Item = &'a [u8]>) -> Vec<Event> {
        let (mut parser, mut events) = (Parser::default(), Vec::new());
        for chunk in chunks {
            parser.push(chunk, |event| events.push(event)).expect("short");
        }
        events
    }

    #[track_caller]
    fn check(stream: &str, expected: &[(&str, &str)]) {
        let events = parse([stream.as_bytes()]);
        let got: Vec<_> = events.iter().map(|event| (event.name.as_str(), event.data.as_str())).collect();
        assert_eq!(got, expected, "{stream:?}");
    }

    #[test]
    fn streams_are_read() {
        check("data: {\"pid\":1}\n\n", &[("", "{\"pid\":1}")]);
        check("event: eof\ndata: {}\n\n", &[("eof", "{}")]);
        check(": keep-alive\n\ndata: a\n: in between\ndata:b\n\n", &[("", "a\nb")]);
        check("event: nothing\n\nid: 7\nretry: 1\n\n", &[]);
        check("data: x\r\n\r\ndata: y\r\rdata\n\n", &[("", "x"), ("", "y"), ("", "")]);
        check("data: unfinished\n", &[]);
    }

    #[test]
    fn an_endless_event_is_refused() {
        let mut parser = Parser::default();
        let chunk = vec![b'x'; EVENT_MAX / 4];
        let results: Vec<_> = (0..5).map(|_| parser.push(&chunk, |_| {})).collect();
        assert_eq!(results.iter().filter(|result| result.is_err()).count(), 1);
        let mut parser = Parser::default();
        let line = format!("data: {}\n", "y".repeat(1000));
        assert!((0..2000).any(|_| parser.push(line.as_bytes(), |_| {}).is_err()));
    }

    proptest! {
        #[test]
        fn cuts_change_nothing(
            pieces in prop::collection::vec(prop::sample::select(vec![
                "data: ä€😀", "data: x", "event: output", ": comment", "id: 1", "\n", "\r\n", "\r", "\n\n", "\r\n\r\n", "data",
            ]), 0..60),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
        ) {
            let stream = pieces.concat().into_bytes();
            let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect();
            at.extend([0, stream.len()]);
            at.sort_unstable();
            let chunks = at.windows(2).map(|pair| &stream[pair[0]..pair[1]]);
            prop_assert_eq!(parse(chunks), parse([stream.as_slice()]));
        }

        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..4096)) {
            let _ = Parser::default().push(&bytes, |_| {});
        }
    }
}
