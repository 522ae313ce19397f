//! Connections in mode `nat`, as they are noted by what their two ends send.

use lb_common::{
    abi::{
        NatConnectionKey, NatConnectionValue,
        nat_connection::{Stage, backend_flags},
    },
    nat_connections::{closing, note_answer, note_close},
    tables::Tables as _,
    verdict::{Forward, Noted, Return, Verdict},
};
use proptest::prelude::*;

use crate::{
    frames::{ACK, Client, FAMILIES, FIN, Family, RST, SYN, segment},
    model::{Model, WEB},
    nat::{PORT, from_backend, l4, translated, world},
};

const TCP: u8 = 6;

/// The balancer between clients and backend 1.
struct Story {
    family: Family,
    model: Model,
}

impl Story {
    fn new(family: Family) -> Self {
        Self { family, model: world(family) }
    }

    /// A packet of the client with a sequence number.
    fn client(&self, client: &Client, flags: u8, sequence: u32) {
        let mut frame = client.tcp_with(self.family, WEB, flags, 64, &[]);
        let at = l4(self.family) + 4;
        frame[at..at + 4].copy_from_slice(&sequence.to_be_bytes());
        let verdict = self.model.decide(&frame);
        let frame = translated(&frame, &verdict);
        let Verdict::Forward(Forward { id, l3, v6, backend, .. }) = verdict else {
            panic!("{verdict:?}");
        };
        let part = lb_common::nat::to_backend(&mut frame.clone()[..], l3, v6, &backend).unwrap();
        if let Some(tcp) = closing(&frame[..], l3, part) {
            let at = lb_common::nat_connections::Place { l3, v6, tcp };
            note_close(&frame[..], &*self.model, at, id, self.model.now());
        }
    }

    /// An answer of the backend with an acknowledgment number.
    fn backend(&self, client: &Client, flags: u8, acknowledged: u32) -> Noted {
        let mut transport = segment(PORT, client.port, flags);
        transport[8..12].copy_from_slice(&acknowledged.to_be_bytes());
        let frame = from_backend(self.family, client, TCP, &transport);
        let verdict = self.model.decide(&frame);
        let Verdict::Return(Return { id, l3, v6, .. }) = verdict else { panic!("{verdict:?}") };
        note_answer(&frame[..], &*self.model, (l3, v6), id, self.model.now())
    }

    fn value(&self, client: &Client) -> Option<NatConnectionValue> {
        let key = NatConnectionKey {
            client: match self.family {
                Family::V4 => lb_common::abi::mapped(client.v4),
                Family::V6 => client.v6,
            },
            port: client.port.into(),
            backend: 1,
            target: PORT.into(),
            reserved: 0,
        };
        self.model.nat_connections.borrow().get(&key).map(|known| known.get())
    }

    fn stage(&self, client: &Client) -> Option<Stage> {
        self.value(client).map(|value| value.stage(self.model.now()))
    }

    /// Opens a connection of which the first number of the client is 100.
    fn open(&self, client: &Client) {
        self.client(client, SYN, 99);
        assert_eq!(self.backend(client, SYN | ACK, 100), Noted::Accepted);
        assert_eq!(self.stage(client), Some(Stage::Opening));
        self.client(client, ACK, 100);
        assert_eq!(self.backend(client, ACK, 100), Noted::Other);
        assert_eq!(self.stage(client), Some(Stage::Open));
    }

    fn pass(&self, secs: u64) {
        self.model.nanos.set(self.model.nanos.get() + secs * 1_000_000_000);
    }
}

fn stories() -> [(Story, Client); 2] {
    FAMILIES.map(|family| (Story::new(family), Client::new(7)))
}

#[test]
fn a_connection_is_closed_when_both_ends_have_sent_a_fin_whoever_begins() {
    for client_first in [true, false] {
        for (story, client) in stories() {
            story.open(&client);
            let ends: [&dyn Fn(); 2] = [&|| story.client(&client, FIN | ACK, 100), &|| {
                story.backend(&client, FIN | ACK, 100);
            }];
            ends[usize::from(!client_first)]();
            assert_eq!(story.stage(&client), Some(Stage::Open), "half of it is open");
            ends[usize::from(client_first)]();
            assert_eq!(story.stage(&client), Some(Stage::Closed));
            // The last acknowledgment, once more a minute later.
            story.pass(60);
            story.backend(&client, ACK, 101);
            assert_eq!(story.stage(&client), Some(Stage::Closed));
        }
    }
}

#[test]
fn an_rst_of_a_client_closes_only_with_the_number_that_the_backend_expects() {
    for (story, client) in stories() {
        story.open(&client);
        for forged in [99, 101, 0, u32::MAX, 100_u32.swap_bytes()] {
            story.client(&client, RST, forged);
            assert_eq!(story.stage(&client), Some(Stage::Open), "{forged}");
        }
        story.pass(1);
        story.backend(&client, ACK, 5_000);
        story.client(&client, RST, 100);
        assert_eq!(story.stage(&client), Some(Stage::Open), "the client has sent more since");
        story.client(&client, RST, 5_000);
        assert_eq!(story.stage(&client), Some(Stage::Closed));
    }
}

#[test]
fn an_answer_of_the_same_second_with_another_number_is_noted() {
    for (story, client) in stories() {
        story.open(&client);
        for acknowledged in [200, 300, 200, 400] {
            story.backend(&client, ACK, acknowledged);
        }
        story.client(&client, RST, 400);
        assert_eq!(story.stage(&client), Some(Stage::Closed));
    }
}

#[test]
fn an_rst_of_the_backend_closes_a_connection_or_refuses_one() {
    for (story, client) in stories() {
        story.open(&client);
        assert_eq!(story.backend(&client, RST | ACK, 100), Noted::Other);
        assert_eq!(story.stage(&client), Some(Stage::Closed));
        assert_eq!(
            story.backend(&client, RST, 0),
            Noted::Refused,
            "it knows the connection no longer"
        );
        let other = Client::new(8);
        story.client(&other, SYN, 99);
        assert_eq!(story.backend(&other, RST | ACK, 100), Noted::Refused);
        assert_eq!(story.stage(&other), None);
    }
}

#[test]
fn a_connection_that_was_opened_through_another_node_is_known_after_its_next_answer() {
    for (story, client) in stories() {
        story.client(&client, ACK, 100);
        story.client(&client, FIN | ACK, 100);
        assert_eq!(story.stage(&client), None);
        story.backend(&client, ACK, 101);
        assert_eq!(story.stage(&client), Some(Stage::Open));
    }
}

#[test]
fn a_port_is_used_again_for_a_connection_of_its_own() {
    for (story, client) in stories() {
        story.open(&client);
        story.client(&client, FIN | ACK, 100);
        story.backend(&client, FIN | ACK, 101);
        assert_eq!(story.stage(&client), Some(Stage::Closed));
        story.open(&client);
        // Also where the end of the one before was not seen.
        story.open(&client);
    }
}

#[test]
fn a_backend_that_does_not_repeat_its_syn_ack_has_a_client() {
    for (story, client) in stories() {
        story.backend(&client, SYN | ACK, 100);
        story.pass(2);
        assert_eq!(story.stage(&client), Some(Stage::Opening));
        story.pass(1);
        assert_eq!(story.stage(&client), Some(Stage::Open), "one that has sent nothing yet");
        // The client of another has gone: the backend waits twice as long each time.
        let gone = Client::new(8);
        story.backend(&gone, SYN | ACK, 100);
        for wait in [1, 2, 4, 8, 16] {
            story.pass(wait);
            assert_eq!(story.stage(&gone), Some(Stage::Opening), "{wait}");
            let again = story.backend(&gone, SYN | ACK, 100);
            assert_eq!(again, Noted::Other, "it is accepted once");
        }
        story.pass(64);
        assert_eq!(story.stage(&gone), Some(Stage::Opening));
        story.pass(1);
        assert_eq!(story.stage(&gone), Some(Stage::Abandoned));
    }
}

/// What a connection does next.
#[derive(Clone, Copy, Debug)]
enum Step {
    Open,
    ClientFin,
    BackendFin,
    ClientRst,
    BackendRst,
    Answer,
}

proptest! {
    #[test]
    fn connections_are_counted_exactly_whatever_they_do_beside_each_other(
        steps in prop::collection::vec((0_u32..5, prop::sample::select(vec![
            Step::Open, Step::ClientFin, Step::BackendFin, Step::ClientRst, Step::BackendRst, Step::Answer,
        ])), 1..80),
    ) {
        for family in FAMILIES {
            let story = Story::new(family);
            // Of each connection: whether client and backend have sent a FIN; none: it is not open.
            let mut open = [None; 5];
            for &(n, step) in &steps {
                let client = Client::new(n);
                let state: &mut Option<[bool; 2]> = &mut open[n as usize];
                match (step, &mut *state) {
                    (Step::Open, None) => {
                        story.open(&client);
                        *state = Some([false; 2]);
                    }
                    (Step::ClientFin, Some([fin, _])) => {
                        story.client(&client, FIN | ACK, 100);
                        *fin = true;
                    }
                    (Step::BackendFin, Some([_, fin])) => {
                        story.backend(&client, FIN | ACK, 100);
                        *fin = true;
                    }
                    (Step::ClientRst, Some(_)) => {
                        story.client(&client, RST, 100);
                        *state = None;
                    }
                    (Step::BackendRst, Some(_)) => {
                        story.backend(&client, RST | ACK, 100);
                        *state = None;
                    }
                    (Step::Answer, Some(_)) => {
                        story.backend(&client, ACK, 100);
                    }
                    _ => {}
                }
                if *state == Some([true; 2]) {
                    *state = None;
                }
                story.pass(u64::from(n % 2));
            }
            for (n, expected) in (0..).zip(open) {
                let is_open = story.stage(&Client::new(n)) == Some(Stage::Open);
                prop_assert_eq!(is_open, expected.is_some(), "connection {}", n);
            }
        }
    }

    #[test]
    fn no_answer_makes_a_state_that_is_none(
        packets in prop::collection::vec((any::<u8>(), any::<u32>(), any::<bool>()), 1..60),
    ) {
        for (story, client) in stories() {
            for &(flags, number, from_client) in &packets {
                if from_client && flags & (SYN | RST | FIN) != SYN {
                    story.client(&client, flags & (SYN | RST | FIN | ACK), number);
                } else {
                    story.backend(&client, flags & (SYN | RST | FIN | ACK), number);
                }
                if let Some(value) = story.value(&client) {
                    let syn_acks = value.backend >> backend_flags::SYN_ACKS_SHIFT;
                    let opening = value.backend & backend_flags::OPENING != 0;
                    prop_assert_eq!(syn_acks > 0, opening, "{:?}", value);
                }
            }
        }
    }
}
