//! The dashboard: one page without a build step, which every node serves at `/` and feeds by its own channels.
//!
//! The page holds nothing of the node: anyone who may not join `network:updates` sees a prompt for a token, no more.
//! Invariant: what runs in the page is this file's own script, fixed by its hash, and talks to this host alone.

use std::sync::LazyLock;

use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use sha2::{Digest, Sha256};

const PAGE: &str = include_str!("dashboard.html");

static TAG: LazyLock<String> =
    LazyLock::new(|| format!("\"{}\"", URL_SAFE_NO_PAD.encode(Sha256::digest(PAGE))));

/// What the page may do (Content Security Policy, level 3): run its script, use its style, connect to its host.
static POLICY: LazyLock<String> = LazyLock::new(|| {
    let hash = |tag| format!("'sha256-{}'", STANDARD.encode(Sha256::digest(inside(PAGE, tag))));
    format!(
        "default-src 'none'; script-src {}; style-src {}; connect-src 'self'; img-src data:; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
        hash("script"),
        hash("style")
    )
});

/// What stands between the first start of this element and its end.
fn inside<'a>(page: &'a str, tag: &str) -> &'a str {
    let (_, rest) = page.split_once(&format!("<{tag}")).unwrap_or_default();
    let (_, rest) = rest.split_once('>').unwrap_or_default();
    rest.split_once(&format!("</{tag}>")).unwrap_or_default().0
}

/// `GET /`, for anybody.
pub(super) async fn page(request: HeaderMap) -> Response {
    let headers: [(HeaderName, &str); 8] = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, &POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
        (header::CACHE_CONTROL, "no-cache"),
        (header::ETAG, &TAG),
    ];
    let known = request.get_all(header::IF_NONE_MATCH).iter();
    let known = known.filter_map(|tags| tags.to_str().ok()).flat_map(|tags| tags.split(','));
    if known.map(|tag| tag.trim().trim_start_matches("W/")).any(|tag| tag == *TAG || tag == "*") {
        return (StatusCode::NOT_MODIFIED, headers).into_response();
    }
    (headers, PAGE).into_response()
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::body::{Body, to_bytes};
    use axum::http::{Method, Request};
    use axum::routing::get;
    use hyper::service::Service as _;
    use hyper_util::service::TowerToHyperService;

    use super::*;
    use crate::proto::event::Event;

    /// The most that the page may have.
    const MAX_PAGE: usize = 64 * 1024;

    async fn ask(method: Method, known: Option<&str>) -> (Response, Vec<u8>) {
        let mut request = Request::builder().method(method).uri("/");
        if let Some(tag) = known {
            request = request.header(header::IF_NONE_MATCH, tag);
        }
        let routes = TowerToHyperService::new(Router::<()>::new().route("/", get(page)));
        let answer = routes.call(request.body(Body::empty()).expect("a request")).await;
        let (parts, body) = answer.expect("an answer").into_parts();
        let body = to_bytes(body, usize::MAX).await.expect("a body").to_vec();
        (Response::from_parts(parts, Body::empty()), body)
    }

    #[tokio::test]
    async fn a_page_is_sent_once() {
        let (first, body) = ask(Method::GET, None).await;
        assert_eq!((first.status(), body.as_slice()), (StatusCode::OK, PAGE.as_bytes()));
        let tag = first.headers()[header::ETAG].to_str().expect("a tag");
        for known in [tag, &format!("\"old\", W/{tag}"), "*"] {
            let (again, body) = ask(Method::GET, Some(known)).await;
            assert_eq!((again.status(), body.len()), (StatusCode::NOT_MODIFIED, 0), "{known}");
        }
        assert_eq!(ask(Method::GET, Some("\"old\"")).await.0.status(), StatusCode::OK);
        let (head, body) = ask(Method::HEAD, None).await;
        assert_eq!((head.status(), body.len()), (StatusCode::OK, 0));
        assert_eq!(head.headers()[header::CONTENT_LENGTH], PAGE.len().to_string().as_str());
        assert_eq!(ask(Method::POST, None).await.0.status(), StatusCode::METHOD_NOT_ALLOWED);
    }

    #[tokio::test]
    async fn the_policy_allows_the_page_and_nothing_else() {
        let (answer, _) = ask(Method::GET, None).await;
        let policy = answer.headers()[header::CONTENT_SECURITY_POLICY].to_str().expect("a policy");
        for tag in ["script", "style"] {
            assert_eq!(
                PAGE.matches(&format!("<{tag}")).count(),
                1,
                "{tag}: what has no hash is not run"
            );
            let content = inside(PAGE, tag);
            assert!(
                content.len() > 5_000 && PAGE.contains(&format!(">{content}</{tag}>")),
                "{tag}"
            );
            let hash = STANDARD.encode(Sha256::digest(content));
            assert!(policy.contains(&format!("{tag}-src 'sha256-{hash}';")), "{policy}");
        }
        assert!(
            policy.starts_with("default-src 'none';") && policy.contains("frame-ancestors 'none'")
        );
        for loose in ["unsafe", "http:", "https:", "*"] {
            assert!(!policy.contains(loose), "{loose}");
        }
    }

    #[test]
    fn the_page_knows_the_events_that_it_shapes_and_words_none() {
        let (_, shapes) = PAGE.split_once("const SHAPE = {").expect("the events");
        let (shapes, _) = shapes.split_once("};").expect("their end");
        let shaped: Vec<_> = shapes.split(',').filter_map(|it| it.split_once(':')).collect();
        assert!(shaped.len() > 10, "{shaped:?}");
        for (label, _) in shaped {
            let label = label.trim();
            assert!(label.starts_with("page_") || Event::LABELS.contains(&label), "{label}");
        }
        for words in ["suspect: missed", "heard again", "link lost", "given up after"] {
            assert!(!PAGE.contains(words), "the text comes with the event: {words}");
        }
    }

    #[test]
    fn the_page_is_small_and_whole() {
        assert!(PAGE.len() < MAX_PAGE, "{} bytes", PAGE.len());
        let (elements, _) = PAGE.split_once("<script").expect("a script");
        for outside in ["http://", "https://", " src=", " style=", "@import", "url(", " onclick"] {
            assert!(!elements.contains(outside), "{outside}");
        }
        for markup in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("] {
            assert!(
                !inside(PAGE, "script").contains(markup),
                "what a node says is never markup: {markup}"
            );
        }
    }
}
