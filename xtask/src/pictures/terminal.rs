//! A terminal's screen as a picture: text with the escape sequences of colours in, SVG out.

use std::fmt::Write as _;

/// A character's width and height in the picture.
const CELL: (f32, f32) = (8.4, 18.0);
/// Around the screen.
const MARGIN: f32 = 16.0;
/// Above it, for the window's title.
const TITLE: f32 = 34.0;

const GROUND: &str = "#171b21";
const TEXT: &str = "#d7dce2";

/// The sixteen colours, dark and bright.
const COLOURS: [&str; 16] = [
    "#2a3038", "#ff8266", "#45cfa3", "#f0bb45", "#7eabff", "#bea2f7", "#5fc7e8", "#d7dce2",
    "#6b7682", "#ff9d86", "#6fdcb8", "#f5cd74", "#a3c3ff", "#d2bffa", "#8fd8f0", "#ffffff",
];

/// How characters look.
#[derive(Clone, Debug, Default, PartialEq)]
struct Look {
    text: Option<String>,
    ground: Option<String>,
    bold: bool,
    dim: bool,
    italic: bool,
    underlined: bool,
    reversed: bool,
}

impl Look {
    /// The colours, after their exchange.
    fn colours(&self) -> (&str, Option<&str>) {
        let (text, ground) = (self.text.as_deref(), self.ground.as_deref());
        match self.reversed {
            true => (ground.unwrap_or(GROUND), Some(text.unwrap_or(TEXT))),
            false => (text.unwrap_or(TEXT), ground),
        }
    }

    /// Takes the parameters of one `ESC [ ... m` (ECMA-48, 8.3.117).
    fn take(&mut self, parameters: &str) {
        let mut codes = parameters.split([';', ':']).map(|code| code.parse::<u16>().unwrap_or(0));
        while let Some(code) = codes.next() {
            match code {
                0 => *self = Self::default(),
                1 => self.bold = true,
                2 => self.dim = true,
                3 => self.italic = true,
                4 => self.underlined = true,
                7 => self.reversed = true,
                22 => (self.bold, self.dim) = (false, false),
                23 => self.italic = false,
                24 => self.underlined = false,
                27 => self.reversed = false,
                30..=37 => self.text = colour(code - 30),
                38 => self.text = extended(&mut codes),
                39 => self.text = None,
                40..=47 => self.ground = colour(code - 40),
                48 => self.ground = extended(&mut codes),
                49 => self.ground = None,
                90..=97 => self.text = colour(code - 90 + 8),
                100..=107 => self.ground = colour(code - 100 + 8),
                _ => {}
            }
        }
    }
}

/// One of 256 colours: the sixteen, a cube of six steps each, and greys.
fn colour(number: u16) -> Option<String> {
    let step = |n: u16| if n == 0 { 0 } else { 55 + 40 * n };
    let (r, g, b) = match number {
        0..=15 => return Some(COLOURS[usize::from(number)].to_owned()),
        16..=231 => {
            let n = number - 16;
            (step(n / 36), step(n / 6 % 6), step(n % 6))
        }
        232..=255 => {
            let grey = 8 + 10 * (number - 232);
            (grey, grey, grey)
        }
        _ => return None,
    };
    Some(format!("#{r:02x}{g:02x}{b:02x}"))
}

fn extended(codes: &mut impl Iterator<Item = u16>) -> Option<String> {
    match codes.next()? {
        5 => colour(codes.next()?),
        2 => {
            let (r, g, b) = (codes.next()?, codes.next()?, codes.next()?);
            Some(format!("#{:02x}{:02x}{:02x}", r.min(255), g.min(255), b.min(255)))
        }
        _ => None,
    }
}

/// Characters in a row that look the same.
#[derive(Debug, PartialEq)]
struct Run {
    column: usize,
    text: String,
    look: Look,
}

/// The lines of a screen. Looks go on over the ends of lines.
fn lines(screen: &str) -> Vec<Vec<Run>> {
    let mut look = Look::default();
    screen.lines().map(|line| runs(line, &mut look)).collect()
}

fn runs(line: &str, look: &mut Look) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    let mut column = 0;
    let mut rest = line.chars().peekable();
    while let Some(character) = rest.next() {
        if character == '\x1b' {
            // A control sequence ends with a letter; others (a character set's) have one character.
            if rest.next_if_eq(&'[').is_none() {
                rest.next();
                rest.next();
                continue;
            }
            let mut parameters = String::new();
            let end = loop {
                match rest.next() {
                    Some(c) if ('\x40'..='\x7e').contains(&c) => break c,
                    Some(c) => parameters.push(c),
                    None => break ' ',
                }
            };
            if end == 'm' {
                look.take(&parameters);
            }
            continue;
        }
        if character.is_control() {
            continue;
        }
        match runs.last_mut().filter(|run| run.look == *look) {
            Some(run) => run.text.push(character),
            None => runs.push(Run { column, text: character.into(), look: look.clone() }),
        }
        column += 1;
    }
    runs
}

/// The picture of a screen.
pub fn svg(screen: &str, title: &str) -> String {
    let lines = lines(screen.trim_end());
    let end = |run: &Run| run.column + run.text.chars().count();
    let columns = lines.iter().flatten().map(end).max().unwrap_or(0).max(20);
    let width = columns as f32 * CELL.0 + 2.0 * MARGIN;
    let height = lines.len() as f32 * CELL.1 + TITLE + MARGIN;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.1} {height:.1}\" \
         width=\"{width:.0}\" height=\"{height:.0}\" font-size=\"14\" font-family=\"ui-monospace, \
         'SF Mono', 'Cascadia Mono', 'DejaVu Sans Mono', monospace\">\n<title>{0}</title>\n\
         <rect width=\"100%\" height=\"100%\" rx=\"8\" fill=\"{GROUND}\"/>\n\
         <g fill=\"#3a424c\"><circle cx=\"20\" cy=\"17\" r=\"5\"/><circle cx=\"37\" cy=\"17\" r=\"5\"/>\
         <circle cx=\"54\" cy=\"17\" r=\"5\"/></g>\n\
         <text x=\"50%\" y=\"21.5\" text-anchor=\"middle\" fill=\"#98a2ae\" font-size=\"13\">{0}</text>\n",
        escaped(title)
    );
    for (row, runs) in lines.iter().enumerate() {
        let y = TITLE + row as f32 * CELL.1;
        for run in runs {
            self::run(&mut out, run, y);
        }
    }
    out + "</svg>\n"
}

fn run(out: &mut String, run: &Run, y: f32) {
    let length = run.text.chars().count() as f32 * CELL.0;
    let x = MARGIN + run.column as f32 * CELL.0;
    let (text, ground) = run.look.colours();
    if let Some(ground) = ground {
        let height = CELL.1;
        let _ = writeln!(
            out,
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{length:.1}\" height=\"{height}\" fill=\"{ground}\"/>"
        );
    }
    if run.text.trim().is_empty() {
        return;
    }
    let mut more = String::new();
    for (is, attribute) in [
        (run.look.bold, " font-weight=\"bold\""),
        (run.look.dim, " opacity=\"0.65\""),
        (run.look.italic, " font-style=\"italic\""),
        (run.look.underlined, " text-decoration=\"underline\""),
    ] {
        more.push_str(if is { attribute } else { "" });
    }
    // The length holds columns together, whatever the width of the typeface's characters is.
    let _ = writeln!(
        out,
        "<text x=\"{x:.1}\" y=\"{:.1}\" textLength=\"{length:.1}\" lengthAdjust=\"spacingAndGlyphs\" \
         xml:space=\"preserve\" fill=\"{text}\"{more}>{}</text>",
        y + 13.5,
        escaped(&run.text)
    );
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_begin_and_end_where_the_terminal_says() {
        let lines = lines("a\x1b[1;31mb\x1b[0mc\n\x1b[7md\x1b[27;38;5;196;48;2;1;2;3me");
        let texts: Vec<_> =
            lines.iter().flatten().map(|run| (run.column, run.text.as_str())).collect();
        assert_eq!(texts, [(0, "a"), (1, "b"), (2, "c"), (0, "d"), (1, "e")]);
        assert!(lines[0][1].look.bold && !lines[0][2].look.bold);
        assert_eq!(lines[0][1].look.colours(), (COLOURS[1], None));
        assert_eq!(lines[1][0].look.colours(), (GROUND, Some(TEXT)));
        assert_eq!(lines[1][1].look.colours(), ("#ff0000", Some("#010203")));
    }

    #[test]
    fn what_is_no_colour_is_left_out() {
        let lines = lines("\x1b(Ba\x1b[2Kb\x0ec");
        assert_eq!(lines[0][0].text, "abc");
    }

    #[test]
    fn text_is_text_in_the_picture() {
        let picture = svg("<b>&\x1b[32m up", "lbctl <top>");
        assert!(picture.contains("&lt;b&gt;&amp;</text>"), "{picture}");
        assert!(picture.contains(&format!("fill=\"{}\"> up</text>", COLOURS[2])), "{picture}");
        assert!(picture.contains("<title>lbctl &lt;top&gt;</title>"));
        assert!(picture.ends_with("</svg>\n"));
    }
}
