//! One router at a desk: what it is given, and what it does, as text.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use lb_model::router::{Announce, State, Version};
use lb_vrrp::{
    NoticeKind,
    fsm::{Action, Assessment, Event, ReceivedAdvertisement, Settings, VirtualRouter},
};

/// An interval of the tests.
pub const SECOND: Duration = Duration::from_secs(1);
/// That of fast ones.
pub const TENTH: Duration = Duration::from_millis(100);

/// A router, the clock, and what it has done since the last look.
pub struct Desk {
    pub router: VirtualRouter,
    pub assessment: Assessment,
    pub start: Instant,
    pub now: Instant,
    pub out: Vec<Action>,
}

/// A router of version 3, with an interval of a second, that announces once.
pub fn settings() -> Settings {
    Settings {
        name: "main".into(),
        version: Version::V3,
        interval: SECOND,
        preempt: true,
        preempt_delay: Duration::ZERO,
        addresses: Vec::new(),
        announce: Announce { repeat: 1, delay: Duration::ZERO, refresh: Duration::ZERO },
        defers: false,
    }
}

/// Nothing is wrong.
pub fn assessment(priority: u8) -> Assessment {
    Assessment {
        priority,
        fault: None,
        holds_back: None,
        abstains: None,
        known_after: None,
        draining: false,
        drains_there: false,
        lowered: false,
        lowered_there: false,
        handed_over: false,
    }
}

/// 10.0.0.2 has received this from 10.0.0.`from`.
pub fn advert(from: u8, priority: u8) -> ReceivedAdvertisement {
    ReceivedAdvertisement {
        from: IpAddr::from([10, 0, 0, from]),
        own: IpAddr::from([10, 0, 0, 2]),
        second_path: false,
        priority,
        interval: SECOND,
    }
}

impl Desk {
    /// A router with priority 100 that has not begun.
    pub fn new(settings: Settings) -> Self {
        let now = Instant::now();
        let mut desk = Self {
            router: VirtualRouter::new(settings, now),
            assessment: assessment(100),
            start: now,
            now,
            out: Vec::new(),
        };
        desk.assess(|_| {});
        desk
    }

    /// One that is Backup.
    pub fn backup(settings: Settings) -> Self {
        let mut desk = Self::new(settings);
        desk.does(Event::Startup { inherited: false });
        desk
    }

    /// One that is Active, since a tenth of a second.
    pub fn active(settings: Settings) -> Self {
        let mut desk = Self::backup(settings);
        desk.wait();
        assert_eq!(desk.router.state(), State::Active);
        desk.out.clear();
        desk.after(Duration::from_millis(100));
        desk
    }

    pub fn after(&mut self, wait: Duration) -> &mut Self {
        self.now += wait;
        self
    }

    pub fn assess(&mut self, change: impl FnOnce(&mut Assessment)) -> String {
        change(&mut self.assessment);
        self.router.set_assessment(self.assessment.clone(), self.now, &mut self.out);
        self.done()
    }

    pub fn configure(&mut self, settings: Settings) -> String {
        self.router.set_settings(settings, self.now, &mut self.out);
        self.done()
    }

    /// What it does.
    pub fn does(&mut self, event: Event) -> String {
        self.router.handle(event, self.now, &mut self.out);
        self.done()
    }

    pub fn receives(&mut self, from: u8, priority: u8) -> String {
        self.does(Event::Received(advert(from, priority)))
    }

    /// What it does when its deadline has come.
    pub fn wait(&mut self) -> String {
        self.now = self.router.deadline().expect("something is due").max(self.now);
        self.does(Event::Timer)
    }

    /// How long it would wait.
    pub fn due(&self) -> Option<Duration> {
        self.router.deadline().map(|at| at.saturating_duration_since(self.now))
    }

    /// Its state, and what it has done to get there.
    pub fn done(&mut self) -> String {
        let done: Vec<_> = self.out.drain(..).map(|action| describe(&action)).collect();
        format!("{}: {}", self.router.state(), done.join(", "))
    }
}

fn describe(action: &Action) -> String {
    match action {
        Action::Advertise { priority } => format!("advertise {priority}"),
        Action::Hold => "hold".into(),
        Action::Release => "release".into(),
        Action::Announce => "announce".into(),
        Action::AnnounceOnce => "announce once".into(),
        Action::Transition { from, .. } => format!("was {from}"),
        Action::Notice(notice) => match notice.kind {
            NoticeKind::TwoActive => "notice two".into(),
            NoticeKind::Stalled => "notice stalled".into(),
            NoticeKind::Trouble => "notice trouble".into(),
            kind => format!("notice {kind:?}"),
        },
        Action::Yielded(Ok(by)) => format!("yielded to {by}"),
        Action::Yielded(Err(_)) => "not yielded".into(),
        Action::Stopped => "stopped".into(),
    }
}

/// Priority 100: 156/256 of an interval.
pub fn skew(interval: Duration) -> Duration {
    interval * 156 / 256
}
