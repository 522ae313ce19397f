use std::time::{Duration, SystemTime};

use axum::body::BodyDataStream;
use futures_util::StreamExt as _;
use lb_api::{
    event::{EventBody, Kind},
    status::Status,
};
use lb_model::backend_address::BackendAddress;
use serde_json::json;
use tokio::sync::mpsc;

use super::*;
use crate::StatusReply;

/// The daemon's inputs.
enum Request {
    Status(StatusReply),
    End,
}

impl From<StatusReply> for Request {
    fn from(reply: StatusReply) -> Self {
        Self::Status(reply)
    }
}

/// A daemon whose pins are one more at each request.
fn samples() -> (Samples, mpsc::Sender<Request>) {
    let (to, mut requests) = mpsc::channel(8);
    let mut pins = 0;
    tokio::spawn(async move {
        while let Some(request) = requests.recv().await {
            match request {
                Request::Status(reply) => {
                    pins += 1;
                    let mut status = Status { version: "9.9.9".into(), ..Status::default() };
                    status.pins.used = pins;
                    let _ = reply.send(Ok(status));
                }
                Request::End => return,
            }
        }
    });
    (Samples::start(to.clone()), to)
}

fn streams() -> (Arc<Streams>, mpsc::Sender<Request>) {
    let (samples, daemon) = samples();
    (Arc::new(Streams::new(samples, Events::new(SystemTime::now()))), daemon)
}

async fn begin(streams: &Arc<Streams>) -> BodyDataStream {
    let answer = answer(State(Arc::clone(streams))).await;
    assert_eq!(answer.status(), StatusCode::OK);
    assert_eq!(answer.headers()[header::CONTENT_TYPE], "text/event-stream");
    answer.into_body().into_data_stream()
}

/// The next message: its kind and its data.
async fn next(stream: &mut BodyDataStream) -> (String, Value) {
    let bytes = tokio::time::timeout(Duration::from_secs(10), stream.next()).await;
    let bytes = bytes.expect("in time").expect("it goes on").expect("it is sent");
    let text = String::from_utf8(bytes.to_vec()).expect("text");
    let lines = text.trim_end().lines().rev().collect::<Vec<_>>();
    let value = |name: &str, line: &str| line.strip_prefix(name).expect(line).to_owned();
    let data = value("data: ", lines[0]);
    (value("event: ", lines[1]), serde_json::from_str(&data).expect(&data))
}

#[tokio::test]
async fn all_who_look_get_the_whole_and_then_what_has_changed() {
    let (streams, _daemon) = streams();
    let (mut one, mut other) = (begin(&streams).await, begin(&streams).await);
    for stream in [&mut one, &mut other] {
        assert_eq!(next(stream).await, ("happened".into(), json!([])));
        let (kind, view) = next(stream).await;
        assert_eq!((kind.as_str(), &view["version"]), ("view", &json!("9.9.9")));
    }
    let (kind, patch) = next(&mut one).await;
    assert_eq!(kind, "patch");
    assert_eq!(patch["usage"]["pins"].as_object().map(serde_json::Map::len), Some(1));
    assert!(patch.get("version").is_none(), "{patch}");
    assert_eq!(next(&mut other).await, (kind, patch), "it is the same for all");
}

#[tokio::test]
async fn who_is_slow_gets_the_whole_again_and_nothing_piles_up() {
    let (streams, _daemon) = streams();
    let mut slow = begin(&streams).await;
    next(&mut slow).await;
    assert_eq!(next(&mut slow).await.0, "view");
    let mut quick = begin(&streams).await;
    next(&mut quick).await;
    for _ in 0..3 {
        next(&mut quick).await;
    }
    let (kind, view) = next(&mut slow).await;
    assert_eq!(kind, "view", "it has missed some");
    let newest = streams.samples.last().expect("some").number;
    assert!(view["number"].as_u64() >= Some(newest - 1), "{view} is old");
}

#[tokio::test]
async fn events_come_as_they_happen_with_their_level() {
    let (streams, _daemon) = streams();
    let entry = |message: &str| {
        let backend = BackendAddress::from([10, 0, 0, 11]);
        EventBody::new(Kind::BackendDown, message, "why").of_backend("<b>web</b>", backend)
    };
    streams.events.record(entry("before"));
    let mut stream = begin(&streams).await;
    let (kind, events) = next(&mut stream).await;
    assert_eq!((kind.as_str(), &events[0]["message"]), ("happened", &json!("before")));
    assert_eq!(next(&mut stream).await.0, "view");
    streams.events.record(entry("line\nbreak"));
    let events = loop {
        match next(&mut stream).await {
            (kind, events) if kind == "happened" => break events,
            _ => {}
        }
    };
    assert_eq!(events[0]["message"], "line\nbreak", "a line break ends no message");
    assert_eq!(
        (&events[0]["level"], &events[0]["service"]),
        (&json!("warning"), &json!("<b>web</b>"))
    );
}

#[tokio::test]
async fn there_is_room_for_so_many_and_a_place_is_free_when_one_leaves() {
    let (streams, _daemon) = streams();
    let mut all = Vec::new();
    for _ in 0..STREAMS {
        all.push(begin(&streams).await);
    }
    let refused = answer(State(Arc::clone(&streams))).await;
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(refused.headers().contains_key(header::RETRY_AFTER));
    all.pop();
    next(&mut begin(&streams).await).await;
}

#[tokio::test]
async fn it_ends_with_the_daemon() {
    let (streams, daemon) = streams();
    let mut stream = begin(&streams).await;
    next(&mut stream).await;
    daemon.send(Request::End).await.expect("it takes requests");
    let rest = async {
        while let Some(message) = stream.next().await {
            message.expect("it is sent");
        }
    };
    tokio::time::timeout(Duration::from_secs(10), rest).await.expect("it ends");
}

#[tokio::test]
async fn while_nobody_looks_nothing_is_made() {
    let (streams, _daemon) = streams();
    let mut follower = streams.samples.follow();
    follower.wait_for(|sample| sample.as_ref().is_some_and(|s| s.number == 2)).await.expect("two");
    assert!(streams.last.lock().expect("nobody panicked").is_none());
}
