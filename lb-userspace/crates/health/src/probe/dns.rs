//! A DNS query over UDP (RFC 1035), whose answer must be one without an error.

use std::hash::{BuildHasher as _, RandomState};

use simple_dns::{
    CLASS, Name, Packet, PacketFlag, QTYPE, Question as DnsQuestion, RCODE, TYPE, header_buffer,
};
use tokio::time::Instant;

use super::{Probe, check, reason::ProbeError, udp, vip};

/// Bytes of a message's header.
const HEADER: usize = 12;

/// Sends a query to a backend, and checks its answer.
pub(super) async fn run(
    probe: &Probe,
    dns: &check::Dns,
    network: &vip::Network,
    deadline: Instant,
) -> Result<(), ProbeError> {
    // A hash under random keys: no other process can predict it.
    let id = RandomState::new().hash_one(probe.port) as u16;
    let query = query(id, dns)?;
    let answer = udp::exchange(probe, &query, query.len(), network, deadline).await?;
    judge(&query, &answer)
}

fn query(id: u16, dns: &check::Dns) -> Result<Vec<u8>, ProbeError> {
    let record = match dns.record.as_str() {
        "A" => TYPE::A,
        "AAAA" => TYPE::AAAA,
        "NS" => TYPE::NS,
        "SOA" => TYPE::SOA,
        "MX" => TYPE::MX,
        "TXT" => TYPE::TXT,
        "SRV" => TYPE::SRV,
        "CNAME" => TYPE::CNAME,
        "PTR" => TYPE::PTR,
        other => return Err(ProbeError::unknown(format!("unknown record type `{other}`"))),
    };
    let no_name = |_| ProbeError::unknown(format!("`{}` is no domain name", dns.name));
    let name = Name::new(dns.name.trim_end_matches('.')).map_err(no_name)?;
    let mut packet = Packet::new_query(id);
    // As a client's resolver does; a server that is only an authority ignores it.
    packet.set_flags(PacketFlag::RECURSION_DESIRED);
    packet.questions.push(DnsQuestion::new(name, QTYPE::TYPE(record), CLASS::IN.into(), false));
    packet.build_bytes_vec().map_err(no_name)
}

/// Whether an answer is one to this query, and without an error.
///
/// The records are left alone: an answer that was cut off (TC) has an end that can't be read.
fn judge(query: &[u8], answer: &[u8]) -> Result<(), ProbeError> {
    let not_dns = || ProbeError::failed("answers, but not with DNS");
    if answer.len() < HEADER
        || !header_buffer::has_flags(answer, PacketFlag::RESPONSE).unwrap_or(false)
    {
        return Err(not_dns());
    }
    if answer[..2] != query[..2] {
        return Err(ProbeError::failed("answers to another query"));
    }
    // RFC 1035 4.1.1: the low four bits; the names are those of IANA's registry.
    match header_buffer::rcode(answer).map_err(|_| not_dns())? {
        RCODE::NoError => {}
        rcode => return Err(ProbeError::failed(name_of(rcode, answer[3] & 0x0f))),
    }
    // The letters of a name may come back in another case, the type and class may not.
    let question = &query[HEADER..];
    let echoed = answer.get(HEADER..query.len()).unwrap_or_default();
    let (name, kind) = question.split_at(question.len() - 4);
    let same = header_buffer::questions(answer) == Ok(1)
        && echoed.len() == question.len()
        && echoed[..name.len()].eq_ignore_ascii_case(name)
        && echoed[name.len()..] == *kind;
    if same { Ok(()) } else { Err(ProbeError::failed("answers to another question")) }
}

fn name_of(rcode: RCODE, number: u8) -> String {
    match rcode {
        RCODE::FormatError => "FORMERR",
        RCODE::ServerFailure => "SERVFAIL",
        RCODE::NameError => "NXDOMAIN",
        RCODE::NotImplemented => "NOTIMP",
        RCODE::Refused => "REFUSED",
        RCODE::YXDOMAIN => "YXDOMAIN",
        RCODE::YXRRSET => "YXRRSET",
        RCODE::NXRRSET => "NXRRSET",
        RCODE::NOTAUTH => "NOTAUTH",
        RCODE::NOTZONE => "NOTZONE",
        _ => return format!("RCODE {number}"),
    }
    .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(name: &str, record: &str) -> Vec<u8> {
        query(0x1234, &check::Dns { name: name.into(), record: record.into() }).unwrap()
    }

    /// The query as a server returns it, with this RCODE.
    fn answer(query: &[u8], rcode: u8) -> Vec<u8> {
        let mut answer = query.to_vec();
        answer[2] |= 0x80;
        answer[3] = 0x80 | rcode;
        answer
    }

    #[test]
    fn the_query_for_the_root_is_what_rfc_1035_says() {
        let bytes = [0x12, 0x34, 0x01, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 1];
        assert_eq!(asked(".", "NS"), bytes);
        let named = asked("www.example.com.", "AAAA");
        assert_eq!(named[12..], *b"\x03www\x07example\x03com\0\0\x1c\0\x01");
        assert_eq!(named, asked("www.example.com", "AAAA"));
    }

    #[test]
    fn every_record_type_of_the_configuration_can_be_asked_for() {
        for (record, number) in [
            ("A", 1),
            ("NS", 2),
            ("CNAME", 5),
            ("SOA", 6),
            ("PTR", 12),
            ("MX", 15),
            ("TXT", 16),
            ("AAAA", 28),
            ("SRV", 33),
        ] {
            assert_eq!(asked(".", record)[14], number, "{record}");
        }
    }

    #[test]
    fn a_query_that_cannot_be_written_is_unknown() {
        for (name, record) in [(&*"x.".repeat(150), "A"), (&*"x".repeat(64), "A"), (".", "XYZZY")] {
            let dns = check::Dns { name: name.into(), record: record.into() };
            assert!(matches!(query(1, &dns), Err(ProbeError::Unknown(_))), "{name} {record}");
        }
    }

    #[test]
    fn an_answer_without_error_is_good_even_cut_off_or_with_letters_in_another_case() {
        let query = asked("www.example.com", "A");
        let good = answer(&query, 0);
        assert_eq!(judge(&query, &good), Ok(()));
        let mut cut = good.clone();
        cut[2] |= 0x02;
        cut[7] = 9;
        cut.extend([0xc0, 0x0c, 0]);
        assert_eq!(judge(&query, &cut), Ok(()));
        assert_eq!(judge(&query, &good.to_ascii_uppercase()), Ok(()));
    }

    #[test]
    fn an_error_is_named() {
        let query = asked("www.example.com", "A");
        for (number, name) in
            [(1, "FORMERR"), (2, "SERVFAIL"), (3, "NXDOMAIN"), (5, "REFUSED"), (15, "RCODE 15")]
        {
            assert_eq!(judge(&query, &answer(&query, number)), Err(ProbeError::failed(name)));
        }
        let mut bare = answer(&query, 4)[..HEADER].to_vec();
        bare[5] = 0;
        assert_eq!(judge(&query, &bare), Err(ProbeError::failed("NOTIMP")));
    }

    #[test]
    fn an_answer_to_something_else_is_bad() {
        let query = asked("www.example.com", "A");
        let good = answer(&query, 0);
        let mut other_id = good.clone();
        other_id[1] ^= 1;
        let mut other_name = good.clone();
        other_name[14] = b'v';
        let mut other_type = good.clone();
        other_type[query.len() - 3] = 2;
        for wrong in [other_id, other_name, other_type, good[..good.len() - 1].to_vec()] {
            assert!(
                matches!(judge(&query, &wrong), Err(ProbeError::Failed(why)) if why.contains("another"))
            );
        }
        for garbage in [&b""[..], b"HTTP", &query, &[0xff; 11], &[0; 600]] {
            assert_eq!(
                judge(&query, garbage),
                Err(ProbeError::failed("answers, but not with DNS"))
            );
        }
    }
}
