//! Changes: their terms, and the confirmation before a service is taken away.

use std::io::{self, BufRead, IsTerminal as _, Write};

use anyhow::{Result, bail};
use hyper::{Method, body::Bytes};
use lb_api::{
    client::{self, Client},
    requests::{Done, Terms},
};
use lb_model::{plan::Plan, refusal::Error};
use serde::Serialize;

use super::{Printer, plan};

/// Sends changes to lbd and prints their outcome.
#[derive(Clone, Copy, Debug)]
pub(super) struct Changer<'a> {
    pub(super) client: &'a Client,
    pub(super) printer: Printer,
    pub(super) terms: Terms,
}

impl Changer<'_> {
    /// Makes a change, and prints what was done.
    pub(super) async fn make(&self, method: Method, path: &str) -> Result<()> {
        self.send(method, path, Bytes::new()).await
    }

    /// Makes a change that has a body.
    pub(super) async fn make_with(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> Result<()> {
        self.send(method, path, serde_json::to_vec(body)?.into()).await
    }

    async fn send(&self, method: Method, path: &str, body: Bytes) -> Result<()> {
        let done = self.try_send(method.clone(), path, body.clone(), self.terms).await;
        let done = match done {
            Err(client::Error::Refused(Error { error, unconfirmed: Some(plan), .. }))
                if is_asked() =>
            {
                confirm(&error, &plan)?;
                self.try_send(method, path, body, Terms { yes: true, ..self.terms }).await?
            }
            answer => answer?,
        };
        self.printer.done(&done)
    }

    async fn try_send(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        Terms { dry_run, yes }: Terms,
    ) -> Result<Done, client::Error> {
        let and = if path.contains('?') { '&' } else { '?' };
        self.client.send(method, &format!("{path}{and}dry_run={dry_run}&yes={yes}"), body).await
    }
}

/// Whether a person at a terminal can answer.
pub(super) fn is_asked() -> bool {
    io::stdin().is_terminal() && io::stderr().is_terminal()
}

/// Asks on the terminal whether to go on; an error if not.
pub(super) fn confirm(loss: &str, plan: &Plan) -> Result<()> {
    if !agreed(loss, plan, io::stdin().lock(), io::stderr().lock())? {
        bail!("nothing was changed");
    }
    Ok(())
}

fn agreed(
    loss: &str,
    plan: &Plan,
    mut answers: impl BufRead,
    mut out: impl Write,
) -> io::Result<bool> {
    writeln!(out, "{loss}")?;
    for line in plan::lines(plan) {
        writeln!(out, "  {line}")?;
    }
    write!(out, "Do it all the same? [y/N] ")?;
    out.flush()?;
    let mut answer = String::new();
    answers.read_line(&mut answer)?;
    Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_yes_is_a_yes() {
        for (answer, expected) in [
            ("y\n", true),
            ("Yes\n", true),
            ("\n", false),
            ("", false),
            ("n\n", false),
            ("yep\n", false),
        ] {
            let mut out = Vec::new();
            let plan = Plan { changes: vec!["service web removed".into()], ..Plan::default() };
            let agreed = agreed("this ends service web", &plan, answer.as_bytes(), &mut out);
            assert_eq!(agreed.expect("it is answered"), expected, "{answer:?}");
            let out = String::from_utf8(out).expect("it is text");
            assert_eq!(
                out,
                "this ends service web\n  service web removed\n  no flow moves\nDo it all the same? [y/N] "
            );
        }
    }
}
