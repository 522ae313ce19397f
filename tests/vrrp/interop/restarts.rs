//! `lbd` restarted beside keepalived, each with its default interval: it takes over nothing.
//!
//! Whether a router that begins receives an advertisement in time depends on when in the second it
//! begins. So there are several of them, whose keepaliveds advertise at different times of the second:
//! by their priorities they became Active one after the other.

use std::{net::IpAddr, thread, time::Duration};

use anyhow::{Result, ensure};
use kit::{
    balancer::{Balancer, Service},
    can_run,
    keepalived::{Instance, Keepalived},
    lab::{Lab, Options},
    router::Router,
    wait,
};
use lb_api::status::Pair;
use lb_model::router::State;

const ROUTERS: u8 = 10;
const RESTARTS: usize = 4;

/// The default interval of each.
const OURS: Duration = Duration::from_millis(100);
const THEIRS: Duration = Duration::from_secs(1);

#[test]
fn forty_starts_beside_keepalived_that_advertises_each_second_take_over_nothing() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let lab = Lab::new(&Options { pair: true, webs: 1, ..Options::default() })?;
    let [ours, theirs] = lab.pair()?;
    let vip = |n: u8| IpAddr::from([10, 0, 0, 110 + n]);
    // 23/256 s of skew lie between one and the next: together their advertisements cover the second.
    let instance = |n| Instance::new(51 + n, 240 - 23 * n, THEIRS, &[vip(n)]).with("nopreempt");
    let instances: Vec<_> = (0..ROUTERS).map(instance).collect();
    let theirs = Keepalived::start(&lab, theirs, &instances)?;
    wait::until(Duration::from_secs(10), "keepalived has all addresses", || {
        let became = theirs.log().matches("Entering MASTER STATE").count();
        ensure!(became == usize::from(ROUTERS), "{became} of {ROUTERS} are active");
        Ok(())
    })?;

    let router = |n| {
        let router = Router::new(&format!("r{n}"), 51 + n, 250, OURS, &[vip(n)]);
        router.with("preempt = false").toml()
    };
    let tables: String = (0..ROUTERS).map(router).collect();
    let backend = lab.webs[0].host.v4.into();
    let services = [Service::tcp("web", vip(0), 80, "dsr", vec![backend])];
    let mut ours = Balancer::on(&lab, ours, &services, &tables)?;
    let (mut took, mut starts) = (0, 0);
    for _ in 0..RESTARTS {
        ours.launch()?;
        let pair = wait::until(
            Duration::from_secs(10),
            "all have received an advertisement or taken over",
            || {
                let pair = ours.poll_pair()?;
                let settled = pair
                    .routers
                    .iter()
                    .filter(|one| one.state == State::Active || one.active.is_some());
                ensure!(settled.count() == usize::from(ROUTERS), "{pair:?}");
                Ok(pair)
            },
        )?;
        let became =
            |pair: &Pair| pair.routers.iter().filter(|one| one.counters.became_active > 0).count();
        starts += pair.routers.len();
        // A router that has received one goes on to do so.
        thread::sleep(THEIRS);
        took += became(&ours.poll_pair()?);
        ours.stop()?;
    }
    println!("{took} of {starts} starts took over");
    let lost = theirs.log().matches("Entering BACKUP STATE").count() - usize::from(ROUTERS);
    ensure!(took == 0, "{took} of {starts} starts took over; keepalived gave way {lost} times");
    ensure!(lost == 0, "keepalived gave way {lost} times: {}", theirs.log());
    Ok(())
}
