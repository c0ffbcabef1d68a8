//! Fetches from servers on this machine, which answer what a test says.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::*;

const MOST: usize = 256 * 1024;
const LONG: Duration = Duration::from_secs(60);

/// What a server does once it has read the head of a request.
enum Then {
    Close,
    Stall,
    /// Sends these bytes without end.
    Repeat(Vec<u8>),
}

/// A server for one request, and where it is; its task ends with the head that it has read.
async fn server(answer: &str, then: Then) -> (Place, tokio::task::JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let answer = answer.replace('\n', "\r\n");
    let task = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        // Who has heard enough hangs up.
        stream.write_all(answer.as_bytes()).await.ok();
        match then {
            Then::Close => {}
            Then::Stall => std::future::pending().await,
            Then::Repeat(bytes) => while stream.write_all(&bytes).await.is_ok() {},
        }
        String::from_utf8(head).unwrap()
    });
    (format!("http://{at}/keys?of=us").parse().unwrap(), task)
}

async fn fetched(answer: &str, then: Then) -> Result<Document, FetchError> {
    let (place, _task) = server(answer, then).await;
    fetch(&place, None, MOST, LONG).await
}

#[tokio::test]
async fn a_document_is_asked_for_once_and_read_whole() {
    let answer = "HTTP/1.1 200 OK\nCache-Control: public, max-age=600\nContent-Length: 5\n\nhello";
    let (place, asked) = server(answer, Then::Close).await;
    let document = fetch(&place, None, MOST, LONG).await.unwrap();
    assert_eq!(document.bytes, b"hello");
    assert_eq!(document.max_age, Some(Duration::from_secs(600)));
    let asked = asked.await.unwrap();
    assert!(asked.starts_with("GET /keys?of=us HTTP/1.1\r\n"), "{asked}");
    assert!(asked.contains(&format!("host: {}\r\n", place.url().split('/').nth(2).unwrap())));
    for answer in [
        "HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n3\nhel\n2\nlo\n0\n\n",
        "HTTP/1.1 200 OK\n\nhello",
        "HTTP/1.0 200 OK\nContent-Encoding: identity\n\nhello",
    ] {
        let document = fetched(answer, Then::Close).await.unwrap();
        assert_eq!((document.bytes, document.max_age), (b"hello".to_vec(), None), "{answer}");
    }
}

#[tokio::test]
async fn whatever_else_is_answered_is_refused() {
    for (answer, says) in [
        ("HTTP/1.1 302 Found\nLocation: http://169.254.169.254/\n\n", "redirects are not followed"),
        ("HTTP/1.1 304 Not Modified\n\n", "redirects"),
        ("HTTP/1.1 404 Not Found\nContent-Length: 5\n\nhello", "the answer is 404"),
        ("HTTP/1.1 500 Oh\n\n", "500"),
        ("HTTP/1.1 206 Partial Content\nContent-Length: 5\n\nhello", "206"),
        ("HTTP/1.1 200 OK\nContent-Encoding: gzip\n\nx", "Content-Encoding"),
        ("HTTP/1.1 200 OK\nContent-Length: 6\n\nhello", "no whole answer over HTTP/1.1"),
        ("HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n3\nhel\n", "no whole answer"),
        ("SSH-2.0-OpenSSH_9.6\n", "no whole answer over HTTP/1.1"),
        ("", "no whole answer over HTTP/1.1"),
    ] {
        let error = fetched(answer, Then::Close).await.err().expect(answer).to_string();
        assert!(error.contains(says), "{answer}: {error}");
    }
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let place = format!("http://{nobody}/").parse().unwrap();
    let error = fetch(&place, None, MOST, LONG).await.err().unwrap();
    assert!(matches!(error, FetchError::Connection(_)), "{error}");
}

#[tokio::test]
async fn what_has_no_end_ends_in_time_and_in_memory() {
    let long = format!("HTTP/1.1 200 OK\nContent-Length: {}\n\n", MOST + 1);
    let chunked = "HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n";
    let head = "HTTP/1.1 200 OK\nX: ";
    for (answer, bytes) in [
        (long.as_str(), b"x".repeat(4096)),
        (chunked, [&b"1000\r\n"[..], &b"x".repeat(4096), b"\r\n"].concat()),
    ] {
        let error = fetched(answer, Then::Repeat(bytes)).await.err().unwrap();
        assert!(matches!(error, FetchError::TooLong(MOST)), "{error}");
    }
    let error = fetched(head, Then::Repeat(b"x".repeat(4096))).await.err().unwrap();
    assert!(matches!(error, FetchError::Http(_)), "{error}");
    for answer in ["", "HTTP/1.1 200 OK\nContent-Length: 5\n\nhel"] {
        let (place, _task) = server(answer, Then::Stall).await;
        let error = fetch(&place, None, MOST, Duration::from_millis(50)).await.err().unwrap();
        assert!(matches!(error, FetchError::Late(_)), "{error}");
    }
}

#[test]
fn places_are_https_or_on_this_machine() {
    for (url, host, port, tls) in [
        ("https://id.example/jwks.json", "id.example", 443, true),
        ("https://id.example:8443", "id.example", 8443, true),
        ("https://[::1]/", "::1", 443, true),
        ("https://10.0.0.1/x", "10.0.0.1", 443, true),
        ("http://localhost/x", "localhost", 80, false),
        ("http://127.0.0.1:9/x", "127.0.0.1", 9, false),
        ("http://[::1]:9/x", "::1", 9, false),
    ] {
        let place: Place = url.parse().unwrap();
        assert_eq!((place.host.as_str(), place.port, place.tls), (host, port, tls), "{url}");
        assert_eq!(place.url(), url);
    }
    let long = format!("https://id.example/{}", "x".repeat(MAX_URL));
    for (url, says) in [
        ("", "no URL"),
        ("id.example", "no URL"),
        ("/jwks.json", "no URL"),
        ("file:///etc/passwd", "no URL"),
        ("ftp://id.example/", "no URL"),
        ("https://", "no URL"),
        ("https://id.example:99999/", "no URL"),
        ("https://id.exa mple/", "no URL"),
        (long.as_str(), "no URL"),
        ("http://id.example/", "this machine alone"),
        ("http://10.0.0.1/", "this machine alone"),
        ("http://127.0.0.1.example/", "this machine alone"),
        ("https://me:secret@id.example/", "a password"),
        ("https://id.example/#x", "a fragment"),
    ] {
        let error = url.parse::<Place>().unwrap_err();
        assert!(error.contains(says), "{url}: {error}");
    }
}

#[test]
fn how_long_a_document_is_good_is_read_of_its_head() {
    let of = |headers: &[(HeaderName, &'static str)]| {
        let values = headers.iter().map(|(name, text)| (name.clone(), text.parse().unwrap()));
        max_age(&values.collect::<HeaderMap>()).map(|it| it.as_secs())
    };
    for (text, seconds) in [
        ("max-age=60", Some(60)),
        ("public, MAX-AGE=\"90\" , must-revalidate", Some(90)),
        ("no-cache", Some(0)),
        ("max-age=60, no-store", Some(0)),
        ("s-maxage=5", None),
        ("max-age=x", None),
        ("max-age=-1", None),
        ("max-age=99999999999999999999", None),
        ("", None),
    ] {
        assert_eq!(of(&[(header::CACHE_CONTROL, text)]), seconds, "{text}");
    }
    let control = (header::CACHE_CONTROL, "max-age=60");
    assert_eq!(of(&[control.clone(), (header::AGE, "20")]), Some(40));
    assert_eq!(of(&[control.clone(), (header::AGE, "100")]), Some(0));
    assert_eq!(of(&[control, (header::AGE, "x")]), Some(60));
}
