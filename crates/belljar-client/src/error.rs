//! What can go wrong between this client and the server.

use std::io;

use belljar_api::error::{ErrorBody, code};
use http::StatusCode;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The server refused: its own words.
    #[error("{message}")]
    Api {
        /// HTTP status.
        status: StatusCode,
        /// One of [`belljar_api::error::code`]; empty when the answer had none.
        code: String,
        /// Words for a person.
        message: String,
    },
    /// Nobody answers at the address.
    #[error("cannot connect to {url}")]
    Connect {
        /// The address.
        url: String,
        /// What the system says.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The server's certificate is from somebody whom nobody here knows: it may be another server.
    #[error(
        "cannot trust {url}: its certificate is from an issuer that is not known here; trust that issuer's certificate, \
             too, if it is the right one"
    )]
    Untrusted {
        /// The address.
        url: String,
    },
    /// TLS with the server failed.
    #[error("cannot speak TLS with {url}: {problem}")]
    Tls {
        /// The address.
        url: String,
        /// What is wrong and what to do.
        problem: String,
    },
    /// The certificates that are to be trusted cannot be.
    #[error("the CA certificates cannot be used: {problem}; give certificates as PEM")]
    Ca {
        /// What is wrong with them.
        problem: String,
    },
    /// The connection broke.
    #[error("lost the connection during {what}")]
    Transport {
        /// The request.
        what: String,
        /// What the system says.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// No answer, or silence inside one, for too long.
    #[error("no answer to {what} within {seconds} s")]
    Timeout {
        /// The request.
        what: String,
        /// How long was waited.
        seconds: u64,
    },
    /// The server answered something that this client does not understand.
    #[error("unexpected answer to {what}: {detail}")]
    Protocol {
        /// The request.
        what: String,
        /// What was wrong with it.
        detail: String,
    },
    /// The base address cannot be used.
    #[error("server address {url:?} {problem}")]
    Url {
        /// As given.
        url: String,
        /// What is wrong and what to do.
        problem: &'static str,
    },
    /// The key has characters that no HTTP header can carry.
    #[error("the API key has characters that are not allowed in one; copy it again, without spaces or line breaks")]
    Key,
    /// The local side of a transfer failed.
    #[error("local file or socket failed during {what}")]
    Local {
        /// The request.
        what: String,
        /// What the system says.
        #[source]
        source: io::Error,
    },
}

impl Error {
    /// The error of an answer that is not a success.
    pub(crate) fn from_answer(status: StatusCode, body: &[u8]) -> Self {
        match serde_json::from_slice::<ErrorBody>(body) {
            Ok(ErrorBody { error, code }) => Self::Api { status, code, message: error },
            Err(_) => {
                let text = String::from_utf8_lossy(body);
                let text = text.trim();
                let message =
                    if text.is_empty() { format!("the server answered {status}") } else { format!("{status}: {text}") };
                Self::Api { status, code: String::new(), message }
            }
        }
    }

    pub(crate) fn protocol(what: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::Protocol { what: what.into(), detail: detail.into() }
    }

    /// The stable code, when the server gave one.
    pub fn code(&self) -> Option<&str> {
        match self {
            Self::Api { code, .. } if !code.is_empty() => Some(code),
            _ => None,
        }
    }

    /// The HTTP status, when the server answered.
    pub fn status(&self) -> Option<StatusCode> {
        match self {
            Self::Api { status, .. } => Some(*status),
            _ => None,
        }
    }

    /// Whether the server says that nothing of the request ran, so that it may be sent again.
    pub fn is_undelivered(&self) -> bool {
        matches!(self.code(), Some(code::SANDBOX_NOT_READY | code::SANDBOX_UNREACHABLE))
            && self.status().is_some_and(|status| status.is_server_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_become_errors_with_their_own_words() {
        let body = br#"{"error":"not ready","code":"SANDBOX_NOT_READY"}"#;
        let error = Error::from_answer(StatusCode::SERVICE_UNAVAILABLE, body);
        assert!(error.is_undelivered());
        assert_eq!(error.to_string(), "not ready");
        let error =
            Error::from_answer(StatusCode::SERVICE_UNAVAILABLE, br#"{"error":"x","code":"SANDBOX_NOT_RUNNING"}"#);
        assert!(!error.is_undelivered());
        let error = Error::from_answer(StatusCode::BAD_GATEWAY, b"oops\n");
        assert_eq!((error.to_string().as_str(), error.code()), ("502 Bad Gateway: oops", None));
        assert_eq!(Error::from_answer(StatusCode::BAD_GATEWAY, b"").to_string(), "the server answered 502 Bad Gateway");
    }
}
