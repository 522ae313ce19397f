//! The page and its parts, and the headers that restrict browsers.
//!
//! The page is plain JavaScript modules without a build step. Data from `lbd` becomes text, never markup: the
//! policy (Content-Security-Policy, trusted types) makes the browser refuse anything else. The page does not build
//! the tables of closed services or curves that are off the screen.

use axum::{
    Router,
    http::{HeaderName, HeaderValue, header},
    response::{IntoResponse as _, Response},
    routing::get,
};

/// The page may load its own parts, and nothing that is written into its markup.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
                      connect-src 'self'; base-uri 'none'; form-action 'none'; \
                      frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'";

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const SVG: &str = "image/svg+xml";

macro_rules! part {
    ($kind:ident $name:literal) => {
        (concat!("/dashboard/", $name), $kind, include_str!($name))
    };
}

/// The page's parts: path, type and content.
const PARTS: &[(&str, &str, &str)] = &[
    part!(CSS "style.css"),
    part!(SVG "icon.svg"),
    part!(SCRIPT "theme.js"),
    part!(SCRIPT "main.js"),
    part!(SCRIPT "link.js"),
    part!(SCRIPT "dom.js"),
    part!(SCRIPT "format.js"),
    part!(SCRIPT "charts.js"),
    part!(SCRIPT "series.js"),
    part!(SCRIPT "alerts.js"),
    part!(SCRIPT "services.js"),
    part!(SCRIPT "backend.js"),
    part!(SCRIPT "node.js"),
    part!(SCRIPT "events.js"),
];

/// The routes of the page. Its paths are relative, so that it can be served below another one.
pub(super) fn router() -> Router {
    // A page that was loaded from another version of lbd loads itself again.
    let page = include_str!("index.html").replace("{version}", env!("CARGO_PKG_VERSION"));
    let router = Router::new().route("/", get(move || async move { part(HTML, page) }));
    PARTS.iter().fold(router, |router, &(path, kind, text)| {
        router.route(path, get(move || async move { part(kind, text.to_owned()) }))
    })
}

fn part(kind: &'static str, text: String) -> Response {
    ([(header::CONTENT_TYPE, kind)], text).into_response()
}

/// Adds the headers that restrict browsers, on every answer.
pub(super) async fn guard(mut response: Response) -> Response {
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "no-referrer"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    // The content is of this moment and this version.
    let fresh = HeaderValue::from_static("no-store");
    headers.entry(header::CACHE_CONTROL).or_insert(fresh);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = include_str!("index.html");

    #[test]
    fn nothing_is_loaded_from_elsewhere() {
        let texts = PARTS.iter().map(|(path, _, text)| (*path, *text)).chain([("/", PAGE)]);
        for (path, text) in texts {
            // The name of a namespace is no address.
            let text = text.replace("http://www.w3.org/2000/svg", "");
            for word in ["http://", "https://", "src=\"//", "@import", "url("] {
                assert!(!text.contains(word), "{path} has {word}");
            }
        }
    }

    #[test]
    fn what_lbd_tells_is_text_and_never_markup() {
        for (path, _, text) in PARTS {
            for word in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("]
            {
                assert!(!text.contains(word), "{path} has {word}");
            }
        }
        for word in [" style=", " onclick=", " onload=", "javascript:"] {
            assert!(!PAGE.contains(word), "the page has {word}, which its policy forbids");
        }
    }

    #[test]
    fn every_part_that_is_named_is_there() {
        let exists = |name: &str| PARTS.iter().any(|(path, ..)| path.ends_with(name));
        for (path, kind, text) in PARTS {
            let imports = text.split(" from './").skip(1).filter(|_| *kind == SCRIPT);
            for import in imports.filter_map(|rest| rest.split('\'').next()) {
                assert!(exists(&format!("/{import}")), "{path} imports {import}");
            }
        }
        for named in PAGE.split("\"dashboard/").skip(1).filter_map(|rest| rest.split('"').next()) {
            assert!(exists(&format!("/dashboard/{named}")), "the page names {named}");
        }
    }
}
