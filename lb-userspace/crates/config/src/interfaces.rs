//! The interfaces that the program is attached to, and the hook that each of them gets.

use lb_model::settings::{Attach, Hooks, TcOrder};

use super::tree::{Field, Table};

/// `interfaces = ["eth0"]`, or `interface = "eth0"` for one.
/// Their names.
pub(super) fn read(root: &Table<'_>) -> Option<Vec<String>> {
    const EXAMPLE: &str = "interfaces = [\"eth0\"]";
    let one = root.optional("interface");
    let fields = match (&one, root.optional("interfaces")) {
        (Some(one), Some(_)) => {
            one.refuse("both `interface` and `interfaces` are given; keep one of them");
            return None;
        }
        (None, None) => {
            root.refuse(format!("`interfaces` is missing; add {EXAMPLE}"));
            return None;
        }
        (None, Some(many)) => {
            let fields = many.strings(EXAMPLE)?;
            if fields.is_empty() {
                many.refuse(format!("no interface; name at least one, as {EXAMPLE}"));
                return None;
            }
            fields
        }
        (Some(_), None) => one.into_iter().collect(),
    };
    let mut names: Vec<String> = Vec::new();
    for field in fields {
        let Some(name) = field.string(EXAMPLE) else { continue };
        if let Err(message) = check_interface(name) {
            field.refuse(message);
        } else if names.iter().any(|known| known == name) {
            field.refuse(format!("{name} is named twice; once is enough"));
        }
        names.push(name.into());
    }
    Some(names)
}

/// Where an interface is named that [`read`] has read.
pub(super) fn place_of(root: &Table<'_>, name: &str) -> (usize, String) {
    let many = root.optional("interfaces").and_then(|field| field.strings(""));
    let fields = root.optional("interface").into_iter().chain(many.into_iter().flatten());
    let place = |field: Field<'_>| {
        (field.string("") == Some(name)).then(|| (field.span().start, field.path().to_owned()))
    };
    fields.into_iter().find_map(place).unwrap_or_default()
}

/// Whether the kernel takes a name for an interface.
pub(super) fn check_interface(name: &str) -> Result<(), String> {
    // IFNAMSIZ is 16 with the final zero; the kernel refuses these characters as well.
    if name.len() > 15 {
        let length = name.len();
        return Err(format!(
            "`{name}` is no name of an interface: {length} characters, where 15 are possible"
        ));
    }
    if name.is_empty() || name.contains(['/', ':']) || name.contains(char::is_whitespace) {
        return Err(format!("`{name}` is no name of an interface; `ip link` lists them"));
    }
    Ok(())
}

/// `attach`, for all or by interface, and `tc_order`; `interfaces` are those that were read.
pub(super) fn read_hooks(root: &Table<'_>, interfaces: Option<&[String]>) -> Hooks {
    let mut hooks = Hooks::default();
    let order = root
        .optional("tc_order")
        .and_then(|field| field.word(&[("first", TcOrder::First), ("last", TcOrder::Last)]));
    hooks.tc_order = order.unwrap_or_default();
    let Some(field) = root.optional("attach") else { return hooks };
    if !field.is_table() {
        hooks.attach = attach(&field).unwrap_or_default();
        return hooks;
    }
    let Some(table) = field.table("attach") else { return hooks };
    for (name, field) in table.entries() {
        if interfaces.is_some_and(|known| !known.iter().any(|one| one == name)) {
            field.refuse(format!(
                "{name} is not one of `interfaces`; add it there, or take this line out"
            ));
        }
        if let Some(attach) = attach(&field) {
            hooks.by_interface.insert(name.to_owned(), attach);
        }
    }
    hooks
}

fn attach(field: &Field<'_>) -> Option<Attach> {
    field.word(&[("auto", Attach::Auto), ("xdp", Attach::Xdp), ("tc", Attach::Tc)])
}
