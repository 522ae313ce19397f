//! Headings, links and blocks of code of a Markdown document, for tests of documents.

use std::collections::BTreeMap;

/// A fenced block of code.
#[derive(Debug, PartialEq, Eq)]
pub struct Block {
    /// The words behind the opening fence, as `sh`.
    pub info: String,
    /// The number of its first line, from 1.
    pub line: usize,
    /// Its lines.
    pub text: String,
}

/// A document, taken apart.
#[derive(Debug, Default)]
pub struct Markdown {
    /// Headings with their levels, as written.
    pub headings: Vec<(usize, String)>,
    /// Targets of links and pictures.
    pub links: Vec<String>,
    /// Fenced blocks of code.
    pub blocks: Vec<Block>,
}

impl Markdown {
    /// Takes a document apart. Links in blocks of code are none.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let mut found = Self::default();
        let mut open: Option<Block> = None;
        for (number, line) in (1..).zip(text.lines()) {
            match (&mut open, line.trim_start().strip_prefix("```")) {
                (Some(_), Some(_)) => found.blocks.extend(open.take()),
                (Some(block), None) => {
                    block.text += line;
                    block.text.push('\n');
                }
                (None, Some(info)) => {
                    let info = info.trim().to_owned();
                    open = Some(Block { info, line: number + 1, text: String::new() });
                }
                (None, None) => found.prose(line),
            }
        }
        found
    }

    fn prose(&mut self, line: &str) {
        let level = line.bytes().take_while(|byte| *byte == b'#').count();
        if let Some(title) = line[level..].strip_prefix(' ').filter(|_| level > 0) {
            self.headings.push((level, title.trim().to_owned()));
        }
        let targets = line.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
        self.links.extend(targets.map(|(target, _)| target.to_owned()));
        for attribute in ["src=\"", "srcset=\""] {
            let targets = line.split(attribute).skip(1).filter_map(|rest| rest.split_once('"'));
            self.links.extend(targets.map(|(target, _)| target.to_owned()));
        }
    }

    /// The anchors of its headings, in their order, as GitHub and mdBook make them: one that comes again gets a number.
    #[must_use]
    pub fn anchors(&self) -> Vec<String> {
        let mut seen = BTreeMap::<String, usize>::new();
        let mut anchors = Vec::new();
        for (_, title) in &self.headings {
            let anchor = anchor(title);
            let times = seen.entry(anchor.clone()).or_default();
            anchors.push(if *times == 0 { anchor } else { format!("{anchor}-{times}") });
            *times += 1;
        }
        anchors
    }
}

fn anchor(title: &str) -> String {
    let kept = title.chars().filter(|sign| sign.is_alphanumeric() || " -_".contains(*sign));
    kept.flat_map(char::to_lowercase).map(|sign| if sign == ' ' { '-' } else { sign }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headings_links_and_blocks_are_found() {
        let text = "# A `b`, c\n\n[one](x.md#y) ![two](p.svg)\n<img src=\"q.png\">\n\n```sh\n# no heading\n[no](link)\n```\n## A b c\n";
        let found = Markdown::parse(text);
        assert_eq!(found.headings, [(1, "A `b`, c".to_owned()), (2, "A b c".to_owned())]);
        assert_eq!(found.anchors(), ["a-b-c", "a-b-c-1"]);
        assert_eq!(found.links, ["x.md#y", "p.svg", "q.png"]);
        let text = "# no heading\n[no](link)\n".to_owned();
        assert_eq!(found.blocks, [Block { info: "sh".into(), line: 7, text }]);
    }

    #[test]
    fn an_anchor_has_letters_digits_and_hyphens() {
        assert_eq!(anchor("`[[service.backend]]`"), "servicebackend");
        assert_eq!(anchor("HAProxy's metric names"), "haproxys-metric-names");
    }
}
