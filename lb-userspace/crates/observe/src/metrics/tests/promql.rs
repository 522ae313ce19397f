//! Which metrics and labels a query uses.
//!
//! It takes queries apart into tokens and refuses unknown ones, so that no name of a metric
//! is taken for something else.

use std::collections::{BTreeMap, BTreeSet};

/// Words of the language that are followed by nothing that matters here.
const WORDS: [&str; 46] = [
    "abs",
    "absent",
    "absent_over_time",
    "and",
    "avg",
    "avg_over_time",
    "bool",
    "changes",
    "clamp_max",
    "clamp_min",
    "count",
    "count_over_time",
    "deriv",
    "histogram_quantile",
    "increase",
    "irate",
    "label_join",
    "label_replace",
    "last_over_time",
    "max",
    "max_over_time",
    "min",
    "min_over_time",
    "offset",
    "or",
    "predict_linear",
    "quantile",
    "rate",
    "resets",
    "round",
    "scalar",
    "sort",
    "sort_desc",
    "sum",
    "sum_over_time",
    "time",
    "timestamp",
    "topk",
    "bottomk",
    "unless",
    "vector",
    "floor",
    "ceil",
    "delta",
    "sgn",
    "stddev",
];
/// Words that a list of labels follows.
const LISTS: [&str; 6] = ["by", "without", "on", "ignoring", "group_left", "group_right"];

/// The metrics and labels that a query uses.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Uses {
    /// The metrics, each with the labels and the values that are used of it.
    pub metrics: BTreeMap<String, BTreeMap<String, BTreeSet<String>>>,
    /// The labels that groups are made by.
    pub groups: BTreeSet<String>,
}

#[derive(Clone, Debug, PartialEq)]
enum Token {
    Word(String),
    Text(String),
    Sign(char),
}

fn tokens(query: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut rest = query;
    while let Some(first) = rest.chars().next() {
        let is_word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | ':' | '.' | '$');
        let length = if is_word(first) {
            let length = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
            tokens.push(Token::Word(rest[..length].to_owned()));
            length
        } else if first == '"' {
            let length = rest[1..].find('"').expect("a quote ends it") + 2;
            tokens.push(Token::Text(rest[1..length - 1].to_owned()));
            length
        } else {
            if !first.is_whitespace() {
                tokens.push(Token::Sign(first));
            }
            first.len_utf8()
        };
        rest = &rest[length..];
    }
    tokens
}

/// The metrics and labels of a query, in which `$x` stands for anything.
///
/// # Panics
///
/// At an unknown token.
pub(crate) fn uses(query: &str) -> Uses {
    let mut uses = Uses::default();
    let tokens = tokens(query);
    let mut at = 0;
    while let Some(token) = tokens.get(at) {
        at += 1;
        match token {
            Token::Word(word) if word.starts_with(|c: char| c.is_ascii_digit() || c == '$') => {}
            Token::Word(word) if LISTS.contains(&word.as_str()) => {
                if tokens.get(at) == Some(&Token::Sign('(')) {
                    let end = end_of(&tokens, at, ')');
                    uses.groups.extend(tokens[at..end].iter().filter_map(word_of));
                    at = end;
                }
            }
            Token::Word(word) if WORDS.contains(&word.as_str()) => {}
            Token::Word(word) => {
                assert!(
                    word == "up" || ["lb_", "process_"].iter().any(|begin| word.starts_with(begin)),
                    "`{word}` in `{query}` is no metric of ours and no word that is known"
                );
                let labels = uses.metrics.entry(word.clone()).or_default();
                if tokens.get(at) == Some(&Token::Sign('{')) {
                    let end = end_of(&tokens, at, '}');
                    matchers(&tokens[at + 1..end - 1], labels);
                    at = end;
                }
            }
            // A range or a step, as [5m] and [1h:1m].
            Token::Sign('[') => at = end_of(&tokens, at, ']'),
            Token::Sign(_) | Token::Text(_) => {}
        }
    }
    uses
}

fn word_of(token: &Token) -> Option<String> {
    match token {
        Token::Word(word) => Some(word.clone()),
        _ => None,
    }
}

fn end_of(tokens: &[Token], from: usize, sign: char) -> usize {
    let end = tokens[from..].iter().position(|token| *token == Token::Sign(sign));
    from + end.expect("a bracket ends it") + 1
}

/// `a="b",c=~"d|e"`.
fn matchers(tokens: &[Token], labels: &mut BTreeMap<String, BTreeSet<String>>) {
    let all = tokens.split(|token| *token == Token::Sign(','));
    for matcher in all.filter(|matcher| !matcher.is_empty()) {
        let [Token::Word(label), .., Token::Text(value)] = matcher else {
            panic!("{matcher:?} is no matcher")
        };
        labels.entry(label.clone()).or_default().extend(value.split('|').map(str::to_owned));
    }
}

#[test]
fn queries_are_taken_apart() {
    let uses = uses(
        "sum by (job, service) (rate(lb_a_total{job=~\"$job\",state=~\"x|y\"}[$__rate_interval])) \
         / on(job) group_left(vip) up{} > 0.5 and lb_b offset 5m",
    );
    let metrics: Vec<_> = uses.metrics.keys().map(String::as_str).collect();
    assert_eq!(metrics, ["lb_a_total", "lb_b", "up"]);
    let states = &uses.metrics["lb_a_total"]["state"];
    assert_eq!(states.iter().collect::<Vec<_>>(), ["x", "y"]);
    assert_eq!(uses.groups.iter().collect::<Vec<_>>(), ["job", "service", "vip"]);
}

#[test]
#[should_panic = "`loud` in `loud(lb_a)` is no metric"]
fn a_word_that_is_not_known_is_refused() {
    uses("loud(lb_a)");
}
