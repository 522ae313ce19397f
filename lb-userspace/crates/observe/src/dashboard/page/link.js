// The stream of lbd's updates, for as long as the page is visible: it reconnects by itself.

/** Without a message for so long, the connection is dead: lbd sends one each second. */
const SILENCE = 5000;
/** Between two attempts, in milliseconds: the first, and the most. */
const FIRST = 500;
const MOST = 10000;

/** Applies a merge patch (RFC 7396) to `target`, in place. */
export function merge(target, patch) {
  for (const [name, value] of Object.entries(patch)) {
    if (value === null) delete target[name];
    else if (isObject(value) && isObject(target[name])) merge(target[name], value);
    else target[name] = value;
  }
  return target;
}

const isObject = (value) => typeof value === 'object' && value !== null && !Array.isArray(value);

/**
 * Follows lbd. `handlers` has a function for each kind of event, `stands(state, since)` gets the state
 * of the connection: `live`, `waits` or `lost`.
 */
export function follow(handlers, stands) {
  let source = null;
  let timer = null;
  let watchdog = null;
  let pause = FIRST;
  let since = Date.now();

  const listen = (kind) => source.addEventListener(kind, (event) => {
    alive();
    handlers[kind]?.(JSON.parse(event.data));
  });
  const alive = () => {
    since = Date.now();
    clearTimeout(watchdog);
    watchdog = setTimeout(lost, SILENCE);
    pause = FIRST;
    stands('live', since);
  };
  const close = () => {
    clearTimeout(timer);
    clearTimeout(watchdog);
    source?.close();
    source = null;
  };
  const lost = () => {
    close();
    stands('lost', since);
    // Not all pages at once, when lbd is back.
    timer = setTimeout(open, pause * (0.5 + Math.random()));
    pause = Math.min(MOST, pause * 2);
  };
  const open = () => {
    close();
    source = new EventSource(new URL('stream', import.meta.url));
    watchdog = setTimeout(lost, SILENCE);
    for (const kind of Object.keys(handlers)) listen(kind);
    // A browser gives up on some errors, and on others it does not; here none is the end.
    source.onerror = lost;
  };

  document.addEventListener('visibilitychange', () => {
    if (document.hidden) {
      close();
      stands('waits', since);
    } else if (!source) {
      open();
    }
  });
  window.addEventListener('pagehide', close);
  window.addEventListener('online', () => source ?? open());
  open();
}
