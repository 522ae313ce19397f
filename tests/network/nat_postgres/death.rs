//! The death of one PgBouncer of a host, and its return.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use kit::{
    can_run,
    lab::INTERFACE,
    postgres::{BOUNCERS, Connections, Load},
    wait,
    ways::Way,
};
use lb_model::seen::Condition;

use super::{Bed, ONE, OTHERS, SOON, long, short};
use crate::nat::FAMILIES;

/// Clients with a connection for each transaction, and many of them: pgbench goes on without a client that fails.
const MANY: Load =
    Load { connections: Connections::Short, clients: 24, rate: 200, time: Duration::from_secs(8) };

/// Within which `lbd` has counted all connections: it does so every ten seconds.
const COUNTED: Duration = Duration::from_secs(12);
/// Until after the death.
const LONG: Duration = Duration::from_secs(22);

/// Waits until a check finds the PgBouncer in this condition, and new flows go where they then belong.
fn wait_condition(bed: &Bed, way: Way, condition: Condition) -> Result<()> {
    wait::until(SOON, &format!("{ONE} is {condition:?}"), || {
        let one = bed.backend(way, ONE)?;
        let serves = condition == Condition::Up;
        ensure!(one.condition == condition && (one.slots > 0) == serves, "{one:?}");
        Ok(())
    })
}

/// It gets connections again, and no transaction fails.
fn comes_back(bed: &Bed, way: Way) -> Result<()> {
    wait_condition(bed, way, Condition::Up)?;
    let again = bed.pgbench(way, short(Duration::from_secs(2)))?;
    bed.database.wait_logins(&BOUNCERS, 10)?;
    again.finish()?.check()
}

fn only_transactions_of_the_dead_fail(bed: &mut Bed, way: Way) -> Result<()> {
    let lasting = bed.pgbench(way, long(LONG))?;
    let clients = u64::from(long(LONG).clients);
    wait::until(COUNTED, "all connections are counted", || {
        let open = BOUNCERS.map(|port| bed.open(way, port));
        let open = open.into_iter().collect::<Result<Vec<_>>>()?;
        ensure!(open.iter().sum::<u64>() == clients, "{open:?} are open");
        Ok(())
    })?;
    let on_it = bed.open(way, ONE)?;
    let passing = bed.pgbench(way, MANY)?;
    bed.database.wait_logins(&BOUNCERS, 20)?;
    bed.database.bouncer_mut(ONE)?.kill()?;
    let killed = Instant::now();
    wait_condition(bed, way, Condition::SoftDown)?;
    let found = killed.elapsed();
    // From here on no client meets the dead one.
    let later = bed.pgbench(way, short(Duration::from_secs(3)))?;
    later.finish()?.check().context("new connections after the death")?;

    let [lasting, passing] = [lasting.finish()?, passing.finish()?];
    let failed = lasting.aborted.len() as u64;
    ensure!(failed == on_it, "{failed} of the {on_it} clients on the dead one failed: {lasting:?}");
    // One line for each client: of one that was within a transaction pgbench does not always say how its connection ended.
    let ended = |line: &str| {
        line.contains("server closed the connection") || line.contains("reset by peer")
    };
    let died = |line: &str| {
        line.contains("perhaps the backend died while processing")
            || line.contains("connection to server at") && ended(line)
    };
    let refused = passing.messages.matches("Connection refused").count();
    let cut = passing.messages.lines().filter(|line| died(line)).count();
    ensure!(passing.aborted.len() == refused + cut, "others failed: {passing:?}");
    ensure!(passing.aborted.len() < usize::from(MANY.clients), "{passing:?}");
    println!(
        "{}: {failed} long connections were on it and ended; found after {found:?}, until when {refused} of the short \
         ones were refused and {cut} ended, of {}",
        way.name(),
        passing.transactions
    );
    let host = &bed.lab.webs[0].host.namespace;
    bed.database.bouncer_mut(ONE)?.restart(host)?;
    comes_back(bed, way)
}

#[test]
fn only_transactions_on_a_killed_pgbouncer_fail_and_it_comes_back() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let mut bed = Bed::start("xdp", "check = { type = \"tcp\" }")?;
    for way in FAMILIES {
        only_transactions_of_the_dead_fail(&mut bed, way).with_context(|| way.name())?;
    }
    Ok(())
}

/// The host drops what comes to one port, as a hung firewall or a stopped container does.
#[test]
fn no_transaction_of_a_new_connection_fails_while_a_pgbouncer_is_silent() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let bed = Bed::start("xdp", "check = { type = \"tcp\", interval = \"5s\" }")?;
    for way in FAMILIES {
        let passing = bed.pgbench(way, short(Duration::from_secs(14)))?;
        bed.database.wait_logins(&BOUNCERS, 20)?;
        let host = &bed.lab.webs[0].host.namespace;
        host.keep_out(INTERFACE, &[&format!("tcp dport {ONE}")])?;
        let silent = Instant::now();
        wait_condition(&bed, way, Condition::SoftDown)?;
        let found = silent.elapsed();
        bed.database.wait_logins(&OTHERS, 50)?;
        host.let_in()?;
        let tally = passing.finish()?;
        tally.check().with_context(|| way.name())?;
        println!("{}: found after {found:?}, {} transactions", way.name(), tally.transactions);
        comes_back(&bed, way).with_context(|| way.name())?;
    }
    Ok(())
}
