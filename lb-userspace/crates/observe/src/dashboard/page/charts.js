// Small pictures of the last five minutes: curves of rates, and strips of states. The figures beside
// them give the same to screen readers.

import { make, set, svg } from './dom.js';
import { duration } from './format.js';

/** Seconds in a picture. */
export const SECONDS = 300;
/** Columns of a curve: several seconds each, so that it is smooth and cheap. */
const COLUMNS = 75;
const HEIGHT = 24;

/** A curve. `draw(list)` takes figures per second, the oldest first. */
export function curve(kind) {
  const area = svg('path', { class: 'area' });
  const line = svg('path', { class: 'line', 'vector-effect': 'non-scaling-stroke' });
  const root = svg(
    'svg',
    {
      class: `curve ${kind}`,
      viewBox: `0 0 ${COLUMNS - 1} ${HEIGHT}`,
      preserveAspectRatio: 'none',
      'aria-hidden': 'true',
    },
    area,
    line,
  );
  const draw = (list) => {
    const means = columns(list ?? []);
    const most = Math.max(1, ...means);
    const first = COLUMNS - means.length;
    const points = means.map((mean, n) => {
      const y = HEIGHT - 1.5 - (mean / most) * (HEIGHT - 3);
      return `${first + n} ${y.toFixed(1)}`;
    });
    if (points.length < 2) points.length = 0;
    const path = points.join('L');
    set(line, 'd', path && `M${path}`);
    set(area, 'd', path && `M${first} ${HEIGHT}L${path}L${COLUMNS - 1} ${HEIGHT}Z`);
  };
  return { root, draw };
}

/** The mean of each column; columns end where the list does. */
function columns(list) {
  const width = SECONDS / COLUMNS;
  const means = [];
  for (let end = list.length; end > 0 && means.length < COLUMNS; end -= width) {
    const some = list.slice(Math.max(0, end - width), end);
    means.unshift(some.reduce((sum, figure) => sum + figure, 0) / some.length);
  }
  return means;
}

/** The letters of a strip; a capital: a check failed in that second. */
const WORDS = {
  u: 'up', b: 'backup', s: 'suspect', h: 'held', d: 'draining', r: 'removing', o: 'disabled',
  x: 'down', n: 'unresolved',
};

/** How high a bar is, of 20, and where it begins: a shape for each state, as a colour may not do. */
const BARS = {
  up: [13, 7], backup: [15, 5], suspect: [4, 12], held: [7, 6], draining: [6, 8], removing: [6, 8],
  disabled: [18, 2], down: [0, 20], unresolved: [0, 20],
};

/** A strip of states. `draw(letters)` takes one for each second, the oldest first. */
export function strip() {
  const picture = svg('svg', {
    class: 'strip',
    viewBox: `0 0 ${SECONDS} 20`,
    preserveAspectRatio: 'none',
    role: 'img',
  });
  const root = make('div', { class: 'strip-box' }, picture);
  const paths = new Map();
  const path = (name) => {
    if (!paths.has(name)) {
      const made = svg('path', { class: name });
      paths.set(name, made);
      picture.append(made);
    }
    return paths.get(name);
  };
  const draw = (letters) => {
    const text = letters ?? '';
    const first = SECONDS - text.length;
    const drawn = new Map();
    const add = (name, d) => drawn.set(name, (drawn.get(name) ?? '') + d);
    const seconds = new Map();
    let failed = 0;
    for (let at = 0; at < text.length; ) {
      const word = WORDS[text[at].toLowerCase()] ?? 'unresolved';
      let end = at;
      while (end < text.length && WORDS[text[end].toLowerCase()] === word) {
        if (text[end] !== text[end].toLowerCase()) {
          failed += 1;
          // Twice as wide as a second, or it could not be seen.
          add('failed', `M${first + end - 1} 0h3v4h-3Z`);
        }
        end += 1;
      }
      end = Math.max(end, at + 1);
      const [top, height] = BARS[word];
      add(word, `M${first + at} ${top}h${end - at}v${height}h${at - end}Z`);
      seconds.set(word, (seconds.get(word) ?? 0) + end - at);
      at = end;
    }
    for (const [name, made] of paths) if (!drawn.has(name)) set(made, 'd', '');
    for (const [name, d] of drawn) set(path(name), 'd', d);
    const parts = [...seconds].map(([word, length]) => `${word} ${duration(length)}`);
    if (failed) parts.push(`checks failed in ${duration(failed)}`);
    const all = `Last five minutes: ${parts.join(', ') || 'not known yet'}`;
    set(picture, 'aria-label', all);
    set(root, 'title', all);
  };
  return { root, draw };
}

const seen = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    if (isIntersecting && !target.lbSeen) target.lbDraw();
    target.lbSeen = isIntersecting;
  }
}, { rootMargin: '200px' });

/** Watches whether an element is on the screen: what is not is not drawn, and is when it comes. */
export function watch(element, draw) {
  element.lbSeen = false;
  element.lbDraw = draw;
  seen.observe(element);
}

/** No more. */
export function unwatch(element) {
  seen.unobserve(element);
}
