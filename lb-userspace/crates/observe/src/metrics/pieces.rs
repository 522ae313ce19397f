//! A page that is sent while it is written: that of a thousand backends takes as long to send as to write.

use std::{fmt, mem};

use axum::body::{Body, Bytes};
use futures_util::stream;
use tokio::sync::mpsc;

use super::{format::Format, text};

/// How much is sent at once: more than the kernel takes at a time, and a small part of a large page.
const PIECE: usize = 128 << 10;

/// The output of OpenMetrics, in the parts in which the encoder writes it: no part has more than one
/// line's end, and that last. Pieces of whole lines leave it, in the wanted format.
#[derive(Debug)]
pub(super) struct Writer {
    format: Format,
    to: mpsc::UnboundedSender<Option<Bytes>>,
    piece: String,
    /// The head of a family, until its first sample.
    head: String,
    in_head: bool,
    line_begins: bool,
}

/// A page to write, and its body. A slow reader does not keep the writer waiting.
pub(super) fn open(format: Format) -> (Writer, Pieces) {
    let (to, pieces) = mpsc::unbounded_channel();
    let writer = Writer {
        format,
        to,
        piece: String::with_capacity(PIECE + PIECE / 8),
        head: String::new(),
        in_head: false,
        line_begins: true,
    };
    (writer, Pieces(pieces))
}

impl Writer {
    /// A text that begins with `part` is a line of a head or a sample; the values of labels have their line ends
    /// escaped.
    fn begin_line(&mut self, part: &str) {
        let is_head = part.starts_with('#');
        if self.in_head && (!is_head || part.starts_with("# HELP ")) {
            self.end_head();
        }
        self.in_head = is_head;
        if self.piece.len() >= PIECE {
            let room = String::with_capacity(self.piece.capacity());
            let piece = mem::replace(&mut self.piece, room);
            self.send(Some(piece.into()));
        }
    }

    fn end_head(&mut self) {
        match self.format {
            Format::OpenMetrics => self.piece.push_str(&self.head),
            Format::Text => text::head(&self.head, &mut self.piece),
        }
        self.head.clear();
    }

    fn send(&self, piece: Option<Bytes>) {
        // The client may be gone.
        let _ = self.to.send(piece);
    }

    /// The page is complete.
    pub(super) fn end(mut self) {
        self.end_head();
        let piece = mem::take(&mut self.piece);
        self.send(Some(piece.into()));
        self.send(None);
    }
}

impl fmt::Write for Writer {
    fn write_str(&mut self, part: &str) -> fmt::Result {
        if part.is_empty() {
            return Ok(());
        }
        if self.line_begins {
            self.begin_line(part);
        }
        self.line_begins = part.ends_with('\n');
        let to = if self.in_head { &mut self.head } else { &mut self.piece };
        to.push_str(part);
        Ok(())
    }
}

/// A page as it is written.
#[derive(Debug)]
pub(super) struct Pieces(mpsc::UnboundedReceiver<Option<Bytes>>);

impl Pieces {
    /// As the body of an answer. A page that breaks off breaks the connection, so that no client takes it for
    /// a whole one.
    pub(super) fn body(self) -> Body {
        Body::from_stream(stream::unfold(Some(self), |pieces| async {
            let mut pieces = pieces?;
            match pieces.0.recv().await {
                Some(Some(piece)) => Some((Ok(piece), Some(pieces))),
                Some(None) => None,
                None => Some((Err("the page broke off"), None)),
            }
        }))
    }

    /// In one piece, once it is written; none if it broke off.
    #[cfg(test)]
    pub(super) fn join(mut self) -> Option<String> {
        let mut page = Vec::new();
        loop {
            match self.0.blocking_recv()? {
                Some(piece) => page.extend_from_slice(&piece),
                None => return Some(String::from_utf8(page).expect("it was a string")),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use http_body_util::BodyExt as _;

    use super::*;

    /// As the encoder writes: line by line here.
    fn write(format: Format, page: &str) -> Pieces {
        let (mut writer, pieces) = open(format);
        page.split_inclusive('\n').for_each(|line| writer.write_str(line).expect("it takes all"));
        writer.end();
        pieces
    }

    #[test]
    fn counters_infos_units_and_the_end_are_told_as_the_older_format_does() {
        let page = "# HELP a_bytes Bytes.\n# TYPE a_bytes counter\n# UNIT a_bytes bytes\n\
                    a_bytes_total{x=\"\\n# HELP \"} 1\na_bytes_total 2\n\
                    # HELP b What it is.\n# TYPE b info\nb_info{v=\"1\"} 1\n\
                    # HELP none Nothing.\n# TYPE none gauge\n\
                    # HELP c_seconds Long.\n# TYPE c_seconds histogram\n# UNIT c_seconds seconds\n\
                    c_seconds_sum 1.5\n# HELP d More.\n# TYPE d gauge\nd 3\n# EOF\n";
        let text = "# HELP a_bytes_total Bytes.\n# TYPE a_bytes_total counter\n\
                    a_bytes_total{x=\"\\n# HELP \"} 1\na_bytes_total 2\n\
                    # HELP b_info What it is.\n# TYPE b_info gauge\nb_info{v=\"1\"} 1\n\
                    # HELP none Nothing.\n# TYPE none gauge\n\
                    # HELP c_seconds Long.\n# TYPE c_seconds histogram\nc_seconds_sum 1.5\n\
                    # HELP d More.\n# TYPE d gauge\nd 3\n";
        assert_eq!(write(Format::Text, page).join().as_deref(), Some(text));
        assert_eq!(write(Format::OpenMetrics, page).join().as_deref(), Some(page));
        assert_eq!(write(Format::Text, "# EOF\n").join().as_deref(), Some(""));
    }

    #[test]
    fn a_large_page_comes_in_pieces_of_whole_lines() {
        let sample = "a_total{backend=\"10.0.0.1\"} 1\n".repeat(3 * PIECE / 20);
        let page = format!("# HELP a Much.\n# TYPE a counter\n{sample}# EOF\n");
        let mut pieces = write(Format::OpenMetrics, &page);
        let mut sizes = Vec::new();
        while let Ok(Some(piece)) = pieces.0.try_recv() {
            assert_eq!(piece.last(), Some(&b'\n'));
            sizes.push(piece.len());
        }
        assert!(sizes.len() > 3, "{sizes:?}");
        assert_eq!(sizes.iter().sum::<usize>(), page.len());
    }

    #[tokio::test]
    async fn a_page_that_breaks_off_is_no_whole_answer() {
        let (mut writer, pieces) = open(Format::Text);
        writer.write_str("# HELP a Much.\n").expect("it takes all");
        drop(writer);
        assert!(pieces.body().collect().await.is_err());
        let whole = write(Format::Text, "# HELP a Much.\n# TYPE a gauge\na 1\n# EOF\n").body();
        assert!(whole.collect().await.is_ok());
    }
}
