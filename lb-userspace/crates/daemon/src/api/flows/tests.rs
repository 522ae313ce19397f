//! The lines of flows, and that no request holds up the others.

use std::sync::mpsc as std_mpsc;

use http_body_util::BodyExt as _;
use lb_api::status::Status;
use lb_common::abi::{self, FlowKey, FlowValue};
use lb_model::flow::{FlowRef, FlowTable};
use zerocopy::FromZeros as _;

use super::*;

/// As many pins of one service; each walk waits for a message, if there is a sender.
struct Pins {
    count: u32,
    gate: Option<std::sync::Mutex<std_mpsc::Receiver<()>>>,
}

impl Source for Pins {
    fn services(&self) -> Result<BTreeMap<ServiceKey, abi::Service>> {
        let key = "10.0.0.100".parse().expect("an address");
        let key = ServiceKey::new(key, 80, lb_model::desired::Protocol::Tcp);
        let mut service = abi::Service::new_zeroed();
        (service.id, service.slots, service.idle_timeout) = (1, 1_009, 900);
        Ok([(key, service)].into())
    }

    fn backends(&self) -> Result<BTreeMap<u16, abi::Backend>> {
        Ok(BTreeMap::new())
    }

    fn walk(
        &self,
        table: FlowTable,
        visit: &mut dyn FnMut(FlowRef, FlowValue) -> ControlFlow<()>,
    ) -> Result<()> {
        if table != FlowTable::Pins {
            return Ok(());
        }
        if let Some(gate) = &self.gate {
            // The sender may be gone: then it is open.
            let _ = gate.lock().expect("no thread panics").recv();
        }
        for index in 0..self.count {
            let mut source = [0; 16];
            source[12..].copy_from_slice(&index.to_be_bytes());
            let key = FlowKey::new(source, 1.into(), 1);
            let value = FlowValue { backend: 1, flags: 0, seen: now() };
            if visit(FlowRef::Pin(key), value).is_break() {
                break;
            }
        }
        Ok(())
    }
}

/// A reader of these, beside a daemon without services.
fn reader(pins: Pins) -> Reader {
    let (daemon, mut requests) = mpsc::channel(1);
    tokio::spawn(async move {
        while let Some(request) = requests.recv().await {
            if let Request::Status(reply) = request {
                let _ = reply.send(Ok(Status::default()));
            }
        }
    });
    Reader {
        daemon,
        source: Arc::new(pins),
        requests: Arc::new(Semaphore::new(REQUESTS)),
        walks: Arc::new(Semaphore::new(1)),
        patience: WALK,
    }
}

fn streamed(limit: Option<usize>) -> Query {
    Query { stream: true, limit, ..Query::default() }
}

async fn lines(answer: Response) -> Vec<Line> {
    let body = answer.into_body().collect().await.expect("it is in memory").to_bytes();
    let lines = body.split(|&byte| byte == b'\n').filter(|line| !line.is_empty());
    lines.map(|line| serde_json::from_slice(line).expect("a line of JSON")).collect()
}

#[tokio::test]
async fn lines_end_with_how_many_there_were() {
    for (limit, expected) in [(None, 5_000), (Some(3), 3), (Some(0), 0)] {
        let reader = reader(Pins { count: 5_000, gate: None });
        let answer = reader.answer(streamed(limit)).await.expect("it answers");
        let lines = lines(answer).await;
        assert_eq!(lines.len(), expected + 1, "{limit:?}");
        assert!(lines[..expected].iter().all(|line| matches!(line, Line::Flow(_))));
        assert_eq!(lines[expected], Line::End { sent: expected as u64 });
    }
    let end = serde_json::to_string(&Line::End { sent: 3 }).expect("it is a number");
    assert_eq!(end, r#"{"told":3}"#, "as lbctl of other versions reads it");
}

#[tokio::test]
async fn a_stream_of_what_there_is_not_is_refused() {
    let reader = reader(Pins { count: 1, gate: None });
    let query = Query { service: Some("wep".into()), ..streamed(None) };
    let refusal = reader.answer(query).await.expect_err("there is no such service");
    assert_eq!(refusal.kind, RefusalKind::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn few_ask_at_a_time_and_one_walks() {
    let (open, gate) = std_mpsc::channel();
    let reader = reader(Pins { count: 1, gate: Some(gate.into()) });
    let answers: Vec<_> =
        (0..REQUESTS).map(|_| tokio::spawn(reader.clone().answer(Query::default()))).collect();
    while reader.requests.available_permits() > 0 {
        tokio::task::yield_now().await;
    }
    let refusal = reader.clone().answer(Query::default()).await.expect_err("they are enough");
    assert_eq!(refusal.kind, RefusalKind::Conflict);
    assert_eq!(reader.walks.available_permits(), 0);
    drop(open);
    for answer in answers {
        answer.await.expect("no panic").expect("its turn comes");
    }
    reader.answer(Query::default()).await.expect("there is room again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_does_not_read_ends_the_walk_and_not_those_of_others() {
    let mut reader = reader(Pins { count: 100_000, gate: None });
    reader.patience = Duration::from_millis(50);
    // Its answer stays open, and no client reads it.
    let slow = reader.clone().answer(streamed(None)).await.expect("it begins");
    reader.clone().answer(Query::default()).await.expect("its turn comes");
    let lines = lines(slow).await;
    assert!(!matches!(lines.last(), Some(Line::End { .. })), "it can't have sent all");
}
