//! A client of a node's HTTP API: one request, one answer.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;

use serde_json::Value;

use super::{Cluster, Node, PATIENCE};

/// What was answered.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// The head's lines, in lower case.
    pub(crate) head: Vec<String>,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.iter().filter_map(|line| line.split_once(": "));
        lines.filter(|(it, _)| *it == name).map(|(_, value)| value).next()
    }

    /// These are problem details of this status; what they say.
    #[track_caller]
    pub(crate) fn problem(&self, status: u16) -> String {
        assert_eq!(self.status, status, "{self:?}");
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{self:?}");
        let problem = self.json();
        assert_eq!(problem["status"], status, "{problem}");
        problem["detail"].as_str().unwrap().to_owned()
    }
}

/// A token of this role, for every topic.
pub(crate) fn token(cluster: &Cluster, role: &str) -> String {
    let args = ["token", "create", "--sub", "test", "--role", role, "--certs", "certs"];
    cluster.print(&args).trim().to_owned()
}

impl Node {
    /// Sends a request and leaves the answer to be read.
    pub(crate) fn request(&self, what: &str, headers: &[(&str, &str)]) -> BufReader<TcpStream> {
        let mut stream = TcpStream::connect(self.http()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let headers: String =
            headers.iter().map(|(name, is)| format!("{name}: {is}\r\n")).collect();
        let head = format!("{what} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        BufReader::new(stream)
    }

    /// `METHOD /path`, with these headers.
    #[track_caller]
    pub(crate) fn asks(&self, what: &str, headers: &[(&str, &str)]) -> Answer {
        let mut reader = self.request(what, &[headers, &[("Connection", "close")]].concat());
        let status = head(&mut reader);
        let mut body = Vec::new();
        reader.read_to_end(&mut body).unwrap();
        Answer { body: String::from_utf8(body).unwrap(), ..status }
    }

    /// `POST /path`, with lines of JSON.
    #[track_caller]
    pub(crate) fn posts(&self, path: &str, lines: &[Value]) -> Answer {
        let lines: Vec<_> = lines.iter().map(Value::to_string).collect();
        let body = lines.join("\n");
        let length = body.len().to_string();
        let headers = [("Content-Type", "application/x-ndjson"), ("Content-Length", &length)];
        let mut reader = self.request(
            &format!("POST {path}"),
            &[headers.as_slice(), &[("Connection", "close")]].concat(),
        );
        reader.get_mut().write_all(body.as_bytes()).unwrap();
        let status = head(&mut reader);
        let mut body = String::new();
        reader.read_to_string(&mut body).unwrap();
        Answer { body, ..status }
    }

    /// `GET /path`, with this token.
    #[track_caller]
    pub(crate) fn gets(&self, path: &str, token: &str) -> Answer {
        self.asks(&format!("GET {path}"), &[("Authorization", &format!("Bearer {token}"))])
    }
}

/// Reads the head of an answer.
pub(crate) fn head(reader: &mut BufReader<TcpStream>) -> Answer {
    let lines = reader.lines().map(Result::unwrap).take_while(|line| !line.is_empty());
    let mut head: Vec<String> = lines.map(|line| line.to_ascii_lowercase()).collect();
    assert!(!head.is_empty(), "no answer");
    let first = head.remove(0);
    let status = first.split(' ').nth(1).and_then(|status| status.parse().ok());
    Answer { status: status.unwrap_or_else(|| panic!("{first}")), head, body: String::new() }
}
