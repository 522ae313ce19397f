//! Chromium without a window, in a namespace: the dashboard in an operator's browser.
//!
//! It is driven by the DevTools protocol over a pair of pipes (`--remote-debugging-pipe`), messages of
//! JSON that end with a zero byte: no port, no driver beside it.

use std::{
    cell::{Cell, RefCell},
    fs,
    io::{BufRead as _, BufReader, Write as _},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Stdio},
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use crate::{command, namespace::Namespace, wait};

/// How long the browser may take for anything that it does at once, on a busy machine.
const SOON: Duration = Duration::from_secs(30);

/// Keeps it to itself: no sandbox, since tests are root's; nothing that it would fetch or report.
const OPTIONS: &[&str] = &[
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-breakpad",
    "--no-first-run",
    "--no-default-browser-check",
    "--hide-scrollbars",
    "--disable-lcd-text",
    "--force-color-profile=srgb",
    "--remote-debugging-pipe",
];

/// A running browser; it ends when dropped.
#[derive(Debug)]
pub struct Browser {
    child: Child,
    to: RefCell<ChildStdin>,
    from: Receiver<Value>,
    number: Cell<u64>,
    events: RefCell<Vec<Value>>,
    folder: PathBuf,
}

/// How a page is looked at.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Screen {
    /// Width in CSS pixels.
    pub width: u32,
    /// Height in CSS pixels.
    pub height: u32,
    /// Pixels of the device for one of CSS.
    pub scale: f32,
    /// Whether its owner prefers dark colours.
    pub dark: bool,
}

/// A page that is open in a browser.
#[derive(Debug)]
pub struct Page<'a> {
    browser: &'a Browser,
    session: String,
}

impl Browser {
    /// Starts Chromium in a namespace. Its profile is in `folder`, which it makes.
    ///
    /// # Errors
    ///
    /// If it is not installed or does not answer.
    pub fn start(namespace: &Namespace, folder: &Path) -> Result<Self> {
        let program = command::find("chromium")
            .context("chromium is not installed; `apt-get install chromium` on Debian")?;
        fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
        // The browser reads commands from descriptor 3, and writes answers and events to descriptor 4.
        let pipes = "exec \"$@\" 3<&0 4>&1 </dev/null >>\"$LOG\" 2>&1";
        let mut command = namespace.command("setpriv");
        command.args(["--pdeathsig", "KILL", "--", "sh", "-c", pipes, "sh"]).arg(program);
        command.args(OPTIONS).arg(format!("--user-data-dir={}", folder.display()));
        command.arg("about:blank").process_group(0);
        command.env("HOME", folder).env("LOG", folder.join("chromium.log"));
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().with_context(|| command::line(&command))?;
        let to = RefCell::new(child.stdin.take().context("its standard input")?);
        let mut messages = BufReader::new(child.stdout.take().context("its standard output")?);
        let (sender, from) = mpsc::channel();
        thread::spawn(move || {
            let mut message = Vec::new();
            // It ends with the browser, or with the reader of its messages.
            while messages.read_until(0, &mut message).is_ok_and(|length| length > 0) {
                let json = message.strip_suffix(&[0]).unwrap_or(&message);
                let Ok(json) = serde_json::from_slice(json) else { break };
                if sender.send(json).is_err() {
                    break;
                }
                message.clear();
            }
        });
        let (number, events) = <_>::default();
        let browser = Self { child, to, from, number, events, folder: folder.to_owned() };
        browser.call("Browser.getVersion", &json!({}), None).with_context(|| browser.log())?;
        Ok(browser)
    }

    /// Opens an address in a page of its own.
    ///
    /// # Errors
    ///
    /// If it can't be loaded.
    pub fn open(&self, address: &str, screen: Screen) -> Result<Page<'_>> {
        let blank = json!({"url": "about:blank"});
        let target = self.call("Target.createTarget", &blank, None)?;
        let attach = json!({"targetId": target["targetId"], "flatten": true});
        let session = self.call("Target.attachToTarget", &attach, None)?;
        let session = session["sessionId"].as_str().context("a session")?.to_owned();
        let page = Page { browser: self, session };
        for domain in ["Page", "Runtime", "Log", "Network"] {
            page.call(&format!("{domain}.enable"), &json!({}))?;
        }
        page.look(screen)?;
        let loaded = page.call("Page.navigate", &json!({"url": address}))?;
        ensure!(loaded["errorText"].is_null(), "{address}: {}", loaded["errorText"]);
        Ok(page)
    }

    fn call(&self, method: &str, params: &Value, session: Option<&str>) -> Result<Value> {
        let id = self.number.get() + 1;
        self.number.set(id);
        let mut message = json!({"id": id, "method": method, "params": params});
        if let Some(session) = session {
            message["sessionId"] = session.into();
        }
        let mut bytes = serde_json::to_vec(&message).context("a message")?;
        bytes.push(0);
        self.to.borrow_mut().write_all(&bytes).with_context(|| format!("call {method}"))?;
        let deadline = Instant::now() + SOON;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let answer = match self.from.recv_timeout(left) {
                Ok(answer) => answer,
                Err(RecvTimeoutError::Timeout) => bail!("{method}: no answer within {SOON:?}"),
                Err(RecvTimeoutError::Disconnected) => bail!("{method}: chromium has ended"),
            };
            if answer["id"] != id {
                self.events.borrow_mut().push(answer);
                continue;
            }
            let error = &answer["error"];
            ensure!(error.is_null(), "{method}: {error}");
            return Ok(answer["result"].clone());
        }
    }

    fn log(&self) -> String {
        let log = fs::read_to_string(self.folder.join("chromium.log"));
        format!("chromium wrote:\n{}", log.unwrap_or_default())
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Its other processes end with it, and write no more into the folder.
        let _ = self.call("Browser.close", &json!({}), None);
        let ends = wait::until_true(Duration::from_secs(5), "chromium ends", || {
            Ok(self.child.try_wait()?.is_some())
        });
        if ends.is_err() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        let _ = fs::remove_dir_all(&self.folder);
    }
}

impl Page<'_> {
    fn call(&self, method: &str, params: &Value) -> Result<Value> {
        self.browser.call(method, params, Some(&self.session))
    }

    /// Looks at it by another screen.
    ///
    /// # Errors
    ///
    /// If the browser refuses.
    pub fn look(&self, screen: Screen) -> Result<()> {
        let Screen { width, height, scale, dark } = screen;
        let size = json!({
            "width": width, "height": height, "deviceScaleFactor": scale, "mobile": false,
        });
        self.call("Emulation.setDeviceMetricsOverride", &size)?;
        let scheme = if dark { "dark" } else { "light" };
        let features = json!([{"name": "prefers-color-scheme", "value": scheme}]);
        self.call("Emulation.setEmulatedMedia", &json!({"features": features})).map(drop)
    }

    /// The value of an expression of JavaScript in the page.
    ///
    /// # Errors
    ///
    /// If it throws.
    pub fn evaluate(&self, expression: &str) -> Result<Value> {
        let asked = json!({"expression": expression, "awaitPromise": true, "returnByValue": true});
        let result = self.call("Runtime.evaluate", &asked)?;
        let thrown = &result["exceptionDetails"];
        ensure!(thrown.is_null(), "{expression}: {thrown}");
        Ok(result["result"]["value"].clone())
    }

    /// Waits until an expression has the expected value.
    ///
    /// # Errors
    ///
    /// If it is not within `limit`; the error has its last value.
    pub fn wait(
        &self,
        limit: Duration,
        expression: &str,
        expected: impl Into<Value>,
    ) -> Result<()> {
        let expected = expected.into();
        wait::until(limit, &format!("{expression} is {expected}"), || {
            let is = self.evaluate(expression)?;
            ensure!(is == expected, "it is {is}");
            Ok(())
        })
    }

    /// Presses keys, as a person types them.
    ///
    /// # Errors
    ///
    /// If the browser refuses.
    pub fn press(&self, key: &str) -> Result<()> {
        let text = if key.chars().count() == 1 { key } else { "" };
        let down = json!({"type": "keyDown", "key": key, "text": text});
        self.call("Input.dispatchKeyEvent", &down)?;
        let up = json!({"type": "keyUp", "key": key});
        self.call("Input.dispatchKeyEvent", &up).map(drop)
    }

    /// A picture (PNG) of the screen.
    ///
    /// # Errors
    ///
    /// If the browser refuses.
    pub fn picture(&self) -> Result<Vec<u8>> {
        let result = self.call("Page.captureScreenshot", &json!({"format": "png"}))?;
        let data = result["data"].as_str().context("a picture")?;
        STANDARD.decode(data).context("a picture in base64")
    }

    /// The problems of the page so far: errors and warnings of the console, exceptions, requests
    /// that were refused.
    ///
    /// # Errors
    ///
    /// If the browser does not answer.
    pub fn problems(&self) -> Result<Vec<String>> {
        let events = self.page_events()?;
        let problems = events.iter().filter_map(|event| {
            let params = &event["params"];
            match event["method"].as_str()? {
                "Runtime.exceptionThrown" => Some(params["exceptionDetails"].to_string()),
                "Runtime.consoleAPICalled" => Some(params["args"].to_string()),
                "Log.entryAdded" => Some(params["entry"].to_string()),
                _ => None,
            }
        });
        Ok(problems.collect())
    }

    /// The addresses that the page has requested so far.
    ///
    /// # Errors
    ///
    /// If the browser does not answer.
    pub fn requests(&self) -> Result<Vec<String>> {
        let events = self.page_events()?;
        let requests = events.iter().filter(|event| event["method"] == "Network.requestWillBeSent");
        Ok(requests
            .filter_map(|e| Some(e["params"]["request"]["url"].as_str()?.to_owned()))
            .collect())
    }

    fn page_events(&self) -> Result<Vec<Value>> {
        // Events on their way have come when a later call is answered.
        self.evaluate("0")?;
        let events = self.browser.events.borrow();
        let own = events.iter().filter(|event| event["sessionId"] == self.session.as_str());
        Ok(own.cloned().collect())
    }
}
