//! The effects of a change, for people.

use lb_model::plan::{Plan, ServicePreview};

/// The lines that describe it.
pub(super) fn lines(plan: &Plan) -> Vec<String> {
    let mut lines = plan.changes.clone();
    for (name, service) in &plan.preview.services {
        lines.extend(of_service(name, service));
    }
    if plan.preview.services.is_empty() {
        lines.push("no flow moves".into());
    }
    lines.extend(plan.preview.left_out.iter().map(|what| format!("left out: {what}")));
    lines
}

fn of_service(name: &str, seen: &ServicePreview) -> Vec<String> {
    let share = |slots: u32| match seen.slots {
        0 => "0.0 %".into(),
        all => format!("{:.1} %", 100.0 * f64::from(slots) / f64::from(all)),
    };
    let moved = seen.slots_moved;
    let mut lines = Vec::new();
    if seen.removed {
        lines.push(format!("new connections to {name} are not taken any more"));
    } else if seen.starved && moved > 0 {
        lines.push(format!(
            "{} of the slots of {name} have no owner for new flows: new connections are dropped",
            share(moved)
        ));
    } else {
        let slots = share(moved);
        lines.push(format!("{slots} of the slots of {name} get another owner for new flows"));
    }
    let flows = seen.flows_moved;
    let known = format!("{} pinned flow{}", count(flows), if flows == 1 { "" } else { "s" });
    let older = seen.flow_slots_in_flux;
    let own = seen.flow_slots_moved.saturating_sub(older);
    let slots = |slots: u32| {
        let plural = if slots == 1 { "" } else { "s" };
        format!("{} slot{plural} ({})", count(slots.into()), share(slots))
    };
    let kinds = [
        (own > 0, format!("those of {}", slots(own))),
        (older > 0, format!("those of {} that are older than the last change", slots(older))),
        (flows > 0, known),
    ];
    let which: Vec<_> =
        kinds.into_iter().filter_map(|(some, which)| some.then_some(which)).collect();
    if which.is_empty() {
        lines.push(format!("no flow of {name} moves"));
        return lines;
    }
    let what = if seen.removed || seen.starved { "break" } else { "move" };
    lines.push(format!("flows of {name} {what} at once: {}", which.join(", and ")));
    lines
}

/// A number with its thousands apart.
fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_is_told_in_slots_and_flows() {
        let drain = ServicePreview { slots: 65_537, slots_moved: 21_845, ..Default::default() };
        assert_eq!(
            of_service("web", &drain),
            ["33.3 % of the slots of web get another owner for new flows", "no flow of web moves"]
        );
        let force = ServicePreview { flow_slots_moved: 21_845, flows_moved: 12, ..drain };
        assert_eq!(
            of_service("web", &force)[1],
            "flows of web move at once: those of 21,845 slots (33.3 %), and 12 pinned flows"
        );
        let fresh = ServicePreview {
            slots_moved: 42_140,
            flow_slots_moved: 65_537,
            flow_slots_in_flux: 23_397,
            ..drain
        };
        assert_eq!(
            of_service("web", &fresh)[1],
            "flows of web move at once: those of 42,140 slots (64.3 %), and those of 23,397 slots \
             (35.7 %) that are older than the last change"
        );
        let last = ServicePreview { starved: true, slots_moved: 65_537, ..drain };
        assert_eq!(
            of_service("web", &last)[0],
            "100.0 % of the slots of web have no owner for new flows: new connections are dropped"
        );
        let gone = ServicePreview { removed: true, flow_slots_moved: 65_537, ..last };
        assert_eq!(
            of_service("web", &gone)[1],
            "flows of web break at once: those of 65,537 slots (100.0 %)"
        );
        assert_eq!(lines(&Plan::default()), ["no flow moves"]);
    }

    #[test]
    fn thousands_are_apart() {
        for (number, text) in [(0, "0"), (999, "999"), (1_000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(count(number), text);
        }
    }
}
