//! Plain HTTP, as a stranger would write it.

use std::io::{BufRead, BufReader, Read};

use serde_json::Value;
use ureq::{Agent, Body, SendBody, http::Response};

/// An HTTP client for one server, perhaps for one sandbox of it.
#[derive(Clone)]
pub struct Http {
    agent: Agent,
    base: String,
    key: Option<String>,
    headers: Vec<(String, String)>,
}

/// Status, headers and body of an answer; `json` is null when the body is not JSON.
#[derive(Debug)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// Body as it came.
    pub bytes: Vec<u8>,
    /// Body, parsed.
    pub json: Value,
    /// Headers as `name: value` lines.
    pub headers: String,
}

impl Http {
    /// A client of the server at `address`.
    pub fn new(address: &str, key: Option<&str>) -> Self {
        // A connection each: a server may close one on which it refused a request without reading its body.
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .max_idle_connections(0)
            .max_idle_connections_per_host(0)
            .build()
            .into();
        Self { agent, base: format!("http://{address}"), key: key.map(str::to_owned), headers: Vec::new() }
    }

    /// The same with one more header.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The same with another key, or none.
    #[must_use]
    pub fn with_key(mut self, key: Option<&str>) -> Self {
        self.key = key.map(str::to_owned);
        self
    }

    /// Sends a request and answers the response, its body unread.
    pub fn send(&self, method: &str, path: &str, body: SendBody<'_>) -> Response<Body> {
        let mut request = ureq::http::Request::builder().method(method).uri(format!("{}{path}", self.base));
        if let Some(key) = &self.key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        let request = request.body(body).expect("a request");
        self.agent.run(request).unwrap_or_else(|error| panic!("{method} {path}: {error}"))
    }

    /// `GET`.
    pub fn get(&self, path: &str) -> Answer {
        Answer::read(self.send("GET", path, SendBody::none()))
    }

    /// `DELETE`.
    pub fn delete(&self, path: &str) -> Answer {
        Answer::read(self.send("DELETE", path, SendBody::none()))
    }

    /// `POST` of JSON.
    pub fn post(&self, path: &str, body: &Value) -> Answer {
        self.json("POST", path, &body.to_string())
    }

    /// Any method with a JSON body as text.
    pub fn json(&self, method: &str, path: &str, body: &str) -> Answer {
        let with_type = self.clone().header("content-type", "application/json");
        Answer::read(with_type.send(method, path, SendBody::from_owned_reader(std::io::Cursor::new(body.to_owned()))))
    }

    /// `PUT` of bytes.
    pub fn put(&self, path: &str, body: impl Read + 'static) -> Answer {
        Answer::read(self.send("PUT", path, SendBody::from_owned_reader(body)))
    }

    /// The `data:` of every event of an SSE answer, parsed, until the stream ends.
    pub fn events(&self, method: &str, path: &str, body: &Value) -> Vec<Value> {
        self.event_stream(method, path, body).collect()
    }

    /// The same one by one, as they come.
    pub fn event_stream(&self, method: &str, path: &str, body: &Value) -> impl Iterator<Item = Value> + use<> {
        let with_type = self.clone().header("content-type", "application/json");
        let body = match method {
            "GET" => SendBody::none(),
            _ => SendBody::from_owned_reader(std::io::Cursor::new(body.to_string())),
        };
        let response = with_type.send(method, path, body);
        assert_eq!(response.status(), 200, "{path}: {:?}", Answer::read(response));
        let lines = BufReader::new(response.into_body().into_reader()).lines();
        let data =
            lines.map(|line| line.expect("a line")).filter_map(|line| line.strip_prefix("data:").map(str::to_owned));
        data.map(|text| serde_json::from_str(&text).expect("JSON"))
    }
}

impl Answer {
    fn read(response: Response<Body>) -> Self {
        let status = response.status().as_u16();
        let headers = response.headers().iter().map(|(name, value)| format!("{name}: {value:?}\n")).collect();
        let bytes = response.into_body().into_with_config().limit(512 << 20).read_to_vec().expect("a body");
        let json = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        Self { status, bytes, json, headers }
    }

    /// The error code of the body.
    pub fn code(&self) -> &str {
        self.json["code"].as_str().unwrap_or_default()
    }
}
